"""Streams give exactly the text of decode, whatever the ids, and never a split code point."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models

from lattice.tokenizers.tokenizer import Tokenizer


def byte_level() -> Tokenizer:
    from lattice.tokenizers.stream import byte_table

    vocab = {character: number for number, character in enumerate(byte_table())}
    vocab |= {"Ġthe": 256, "âĤ": 257, "<|x｜>": 258, "<a b>": 259}
    library = Library(models.BPE(vocab, []))
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(["<|x｜>"])
    library.add_tokens(["<a b>"])
    return Tokenizer(library)


def wordpiece() -> Tokenizer:
    words = [
        "[PAD]",
        "[UNK]",
        "a",
        "the",
        "##ing",
        "##s",
        ".",
        ",",
        "'",
        "n't",
        "##",
        "é",
        "do",
        "not",
        "!",
        "##'s",
        "?",
    ]
    library = Library(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    library.decoder = decoders.WordPiece()
    library.add_special_tokens(["[PAD]", "[UNK]"])
    return Tokenizer(library)


def byte_fallback() -> Tokenizer:
    words = [
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁the",
        "▁",
        "a",
        "▁▁",
        "é",
        "\ufffd",
    ]
    library = Library(models.BPE({word: number for number, word in enumerate(words)}, []))
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    library.add_special_tokens(["<s>", "</s>"])
    return Tokenizer(library)


def metaspace() -> Tokenizer:
    library = Library(models.BPE({"▁a": 0, "▁": 1, "b": 2, "c▁": 3, "<s>": 4}, []))
    library.decoder = decoders.Metaspace()
    library.add_special_tokens(["<s>"])
    return Tokenizer(library)


def suffixes() -> Tokenizer:  # its last token differs: not streamed, but exact
    library = Library(models.BPE({"a</w>": 0, "b": 1, "c</w>": 2}, []))
    library.decoder = decoders.BPEDecoder()
    return Tokenizer(library)


def plain() -> Tokenizer:
    return Tokenizer(Library(models.WordLevel({"a": 0, "b c": 1, "é": 2}, unk_token="a")))


KINDS = {f.__name__: f() for f in (byte_level, wordpiece, byte_fallback, metaspace, suffixes, plain)}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_pushes_and_finish_are_decode(kind: str, data: st.DataObject) -> None:
    tokenizer = KINDS[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 2), max_size=30))
    skip = data.draw(st.booleans())
    stream = tokenizer.stream(skip)
    assert "".join(map(stream.push, ids)) + stream.finish() == tokenizer.decode(ids, skip)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30))
def test_valid_text_comes_whole_code_points_at_once(text: str) -> None:
    tokenizer = KINDS["byte_level"]
    stream, ids = tokenizer.stream(), list(text.encode())
    table = {character: number for number, character in enumerate(_characters())}
    pieces = [stream.push(table[byte]) for byte in ids]
    assert "".join(pieces) == text and stream.finish() == ""
    # Each code point is given by its own last byte: nothing is held longer than it must be.
    ends = [len(text[: n + 1].encode()) - 1 for n in range(len(text))]
    assert [n for n, piece in enumerate(pieces) if piece] == ends


def _characters() -> list[int]:
    from lattice.tokenizers.stream import byte_table

    return list(byte_table().values())


def test_incomplete_end_is_replaced_once_finished() -> None:
    tokenizer = KINDS["byte_level"]
    table = {byte: number for number, byte in enumerate(_characters())}
    stream = tokenizer.stream()
    assert [stream.push(table[byte]) for byte in (0xF0, 0x9F, 0x98)] == ["", "", ""]
    assert stream.finish() == "\ufffd"


def test_a_push_looks_at_one_token(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = wordpiece()
    sizes = []
    plan = tokenizer._stream_plan
    real = plan.library

    class Counting:
        def decode(self, ids: list[int], **options: bool) -> str:
            sizes.append(len(ids))
            return real.decode(ids, **options)

        def id_to_token(self, token: int) -> str | None:
            return real.id_to_token(token)

    plan.library = Counting()
    stream = tokenizer.stream()
    for n in range(500):
        stream.push(2 + n % 10)
    assert max(sizes) <= 2 and len(sizes) <= 12


def test_the_text_of_one_token_is_that_behind_others() -> None:
    wanted = {
        "byte_level": {256: " the", 257: "\ufffd", 258: "<|x｜>", 999: ""},
        "wordpiece": {3: " the", 4: "ing", 0: " [PAD]"},
        "byte_fallback": {0: "<s>", 2 + 0xE2: "\ufffd", 2 + 65: "A", 258: " the", 999: ""},
        "metaspace": {0: " a", 2: "b", 4: "<s>"},
        "suffixes": {0: "a", 1: "b"},
        "plain": {1: " b c"},
    }
    for kind, texts in wanted.items():
        assert {token: KINDS[kind].token_text(token) for token in texts} == texts, kind
