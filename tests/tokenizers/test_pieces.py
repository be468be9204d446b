"""SentencePiece, WordPiece and tiktoken files: what they add, what text keeps, and hostile files."""

from __future__ import annotations

import base64
import itertools
import json
import random
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lattice.errors import FormatError
from lattice.tokenizers import load_tokenizer, tokenizer_from_gguf
from lattice.tokenizers.normalize import Charsmap, Words
from lattice.tokenizers.sentencepiece import Pieces
from lattice.tokenizers.sentencepiece_model import read_model
from lattice.tokenizers.unigram import Unigram, _single

WORDS = ["<unk>", "<s>", "</s>", "▁", "a", "b", "ab", "▁a", "▁▁", "<t>"]
KINDS = [2, 3, 3, 1, 1, 1, 1, 1, 4, 4]
BYTES = [f"<0x{n:02X}>" for n in range(256)]


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def part(number: int, value: bytes | int | float) -> bytes:
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3) + varint(value)


def model(pieces: list[tuple[str, float, int]], kind: int = 2, rules: bytes = b"", more: bytes = b"") -> bytes:
    listed = b"".join(part(1, part(1, t.encode()) + part(2, float(s)) + part(3, k)) for t, s, k in pieces)
    return listed + part(2, part(3, kind) + more) + part(3, rules)


PIECES = [(text, -float(n), kind) for n, (text, kind) in enumerate(zip(WORDS, KINDS, strict=True))]


def gguf(**more: Any) -> dict[str, Any]:
    metadata = {
        "model": "llama",
        "tokens": [text.replace("▁", " ") if kind == 4 else text for text, kind in zip(WORDS, KINDS, strict=True)],
        "scores": [-float(n) for n in range(len(WORDS))],
        "token_type": KINDS,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        **more,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in metadata.items() if value is not None}


def test_llama_from_gguf() -> None:
    tokenizer = tokenizer_from_gguf(gguf())
    assert tokenizer.encode("ab a") == [1, 3, 6, 7] and tokenizer.encode("ab a", add_special=False) == [3, 6, 7]
    assert tokenizer.encode("a  b") == [1, 7, 8, 5]  # a run of spaces is a user-defined piece
    assert tokenizer.encode("zz") == [1, 3, 0]
    assert tokenizer.encode("a</s>a") == [1, 7, 2, 7]  # what follows a control token begins anew
    assert tokenizer.encode("") == [1] and tokenizer.count_special == 1
    assert tokenizer.decode([1, 7, 9, 5, 2]) == "a<t>b"
    assert tokenizer.decode([1, 7, 2], skip_special=False) == "<s> a</s>"
    assert tokenizer.encode_truncated(["aaaa b", "a"], 3) == ([[1, 7, 4], [1, 7]], 1)
    other = tokenizer_from_gguf(gguf(add_bos_token=False, add_eos_token=True, add_space_prefix=False))
    assert other.encode("ab") == [6, 2] and other.encode_truncated(["abab"], 2) == ([[6, 2]], 1)


def test_post_processor_is_in_the_cached_file(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Library

    tokenizer_from_gguf(gguf(add_eos_token=True), tmp_path, "k")
    assert Library.from_file(str(tmp_path / "k/tokenizer.json")).encode("ab a").ids == [1, 3, 6, 7, 2]


def test_byte_fallback_streams() -> None:
    metadata = gguf(tokens=[*WORDS, *BYTES], scores=[-1.0 * n for n in range(266)], token_type=[*KINDS, *[6] * 256])
    tokenizer = tokenizer_from_gguf(metadata)
    ids = tokenizer.encode("aé世")
    assert ids[2:] == [10 + byte for byte in "é世".encode()]
    stream = tokenizer.stream()
    assert "".join(map(stream.push, ids)) + stream.finish() == tokenizer.decode(ids) == "aé世"


def test_bert_from_gguf() -> None:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "▁hello", "▁E", "s", "x"]
    metadata = {"tokenizer.ggml.model": "bert", "tokenizer.ggml.tokens": tokens}
    tokenizer = tokenizer_from_gguf(metadata | {"tokenizer.ggml.token_type": [3] * 4 + [1] * 4})
    assert tokenizer.encode("hellos Ex É") == [2, 4, 6, 5, 7, 1, 3]  # an upper-case piece: text keeps its case
    assert tokenizer.pad == 0 and tokenizer.decode([2, 4, 6, 3]) == "hellos"
    lowered = metadata | {"tokenizer.ggml.tokens": [*tokens[:5], "▁e", *tokens[6:]]}
    assert tokenizer_from_gguf(lowered).encode("HELLOS É") == [2, 4, 6, 5, 3]
    kept = lowered | {"tokenizer.ggml.normalizer.lowercase": False, "tokenizer.ggml.add_bos_token": False}
    assert tokenizer_from_gguf(kept).encode("HELLO é") == [1, 1, 3]
    with pytest.raises(FormatError, match=r"U\+2581"):
        tokenizer_from_gguf(metadata | {"tokenizer.ggml.tokens": ["[UNK]", "a"]})


def test_text_of_tokens_that_are_not_special_is_kept(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(model(PIECES))
    added = {"10": {"content": "<think>", "special": False}, "11": {"content": "<|end|>", "special": True}}
    config = {"added_tokens_decoder": added, "tokenizer_class": "LlamaTokenizer", "eos_token": "<|end|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer.encode("ab<think>ab<|end|>")
    assert ids == [1, 3, 6, 10, 3, 6, 11] and tokenizer.eos == 11
    assert tokenizer.decode(ids) == "ab<think> ab"
    stream = tokenizer.stream()
    assert "".join(map(stream.push, ids)) + stream.finish() == "ab<think> ab"


def ranks(*more: bytes) -> bytes:
    tokens = [bytes([byte]) for byte in range(256)] + list(more)
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))


def test_tiktoken(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(ranks(b"ab", b"abc"))
    config: dict[str, Any] = {"added_tokens_decoder": {"258": {"content": "<think>"}, "259": {"content": "<e>"}}}
    with pytest.raises(FormatError, match="known by name"):
        load_tokenizer(tmp_path)
    config["added_tokens_decoder"]["259"]["special"] = True
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "Qwen2Tokenizer"}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("abc ab<think><e>") == [257, 32, 256, 258, 259]
    assert tokenizer.decode([257, 258, 259]) == "abc<think>"


@pytest.mark.parametrize(
    "data",
    [
        ranks() + b"!!!! 256\n",
        ranks() + b"YQ=== 256\n",
        ranks() + b"YWI= x\n",
        ranks() + b"YWI=\n",
        ranks() + b"YWI= 257\n",  # a hole
        ranks() + b"YWI= 255\n",  # a rank twice
        ranks() + b"YQ== 256\n",  # a token twice
        ranks() + b"YWI= 99999999999999\n",
        b"YQ== 0\n",  # bytes without a token
        ranks() + b"\xff\xfe 3\n",
    ],
)
def test_malformed_ranks(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "qwen.tiktoken").write_bytes(data)
    with pytest.raises(FormatError, match=r"\[qwen.tiktoken\]"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x0a",
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # an absurd length
        b"\x0a\x7fabc",
        b"\xff" * 40,
        model(PIECES)[:-3],
        model(PIECES, kind=3),
        model(PIECES, kind=99),
        model(PIECES, more=part(24, 1)),
        model(PIECES, more=part(35, 1)),  # byte fallback without bytes
        model(PIECES, rules=part(2, b"\xff\xff\xff\x7f1234")),
        model(PIECES, rules=part(2, 7)),
        model([*PIECES, ("a", -1.0, 1)]),
        model([*PIECES, ("", -1.0, 1)]),
        model([*PIECES, ("x" * 5000, -1.0, 1)]),
        model([*PIECES, ("x", float("nan"), 1)]),
        model([*PIECES, ("x", float("-inf"), 1)]),
        model([*PIECES, ("x", 0.0, 9)]),
        model([*PIECES, ("x", 0.0, 5)]),
        model(PIECES[1:]),  # no unknown piece
        part(1, part(1, b"\xff\xfe")) + model(PIECES),
    ],
)
def test_malformed_models(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(FormatError):
        load_tokenizer(tmp_path)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 400), st.binary(min_size=1, max_size=6), st.booleans())
def test_a_damaged_model_opens_or_is_a_format_error(at: int, junk: bytes, unigram: bool) -> None:
    data = model(PIECES, kind=1 if unigram else 2)
    try:
        pieces = read_model(data[: at % len(data)] + junk + data[at % len(data) + len(junk) :])
    except FormatError:
        return
    pieces.document()


@pytest.mark.parametrize(
    "more",
    [
        {"scores": None},
        {"scores": [0.0]},
        {"scores": [float("nan")] * 10},
        {"scores": ["x"] * 10},
        {"token_type": [2, 3, 3, 1, 1, 1, 1, 1, 1, 77]},
        {"token_type": [1] * 9},
        {"tokens": ["a"] * 10},
        {"add_space_prefix": 3},
        {"precompiled_charsmap": 5},
        {"precompiled_charsmap": [1, 2, 3]},
        {"precompiled_charsmap": [9999] * 8},
        {"unknown_token_id": 10},
        {"tokens": [*WORDS[:8], "  ", "▁▁"], "token_type": [*KINDS[:8], 4, 4]},  # one piece once spaces are escaped
    ],
)
def test_malformed_gguf(more: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        tokenizer_from_gguf(gguf(**more))


@pytest.mark.parametrize(
    "config",
    [
        {"added_tokens_decoder": {"11": {"content": "<x>"}}},  # a hole
        {"added_tokens_decoder": {"4": {"content": "<x>"}}},  # another token's id
        {"added_tokens_decoder": {"x": {"content": "<x>"}}},
        {"added_tokens_decoder": {"10": {"content": ""}}},
        {"added_tokens_decoder": {"10": 5}},
        {"added_tokens_decoder": []},
        {"tokenizer_class": "XLMRobertaTokenizer"},  # its ids are not the file's
    ],
)
def test_bad_settings(tmp_path: Path, config: dict[str, Any]) -> None:
    (tmp_path / "spiece.model").write_bytes(model(PIECES))
    load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(FormatError):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("change", [{"kind": "unigram"}, {"kind": 1}, {"types": "x"}, {"types": 3}, {"charsmap": "!"}])
def test_settings_that_do_not_fit_the_cached_file(tmp_path: Path, change: dict[str, Any]) -> None:
    tokenizer_from_gguf(gguf(), tmp_path, "k")
    path = tmp_path / "k/tokenizer_config.json"
    config = json.loads(path.read_text())
    config["lattice"]["sentencepiece"].update(change)
    path.write_text(json.dumps(config))
    with pytest.raises(FormatError):
        load_tokenizer(tmp_path / "k")
    assert tokenizer_from_gguf(gguf(), tmp_path, "k").encode("ab") == [1, 3, 6]  # built again


def test_charsmap_replaces_only_sound_things() -> None:
    trie = struct.pack("<I", 4) + struct.pack("<I", 0)
    assert Charsmap(trie + b"x\0").replace("abc", Words(())) == "abc"  # a trie of nothing
    with pytest.raises(FormatError):
        Charsmap(trie + b"x")


def test_words_are_the_longest() -> None:
    words = ["a", "ab", "abcd", "b", "zz"]
    rng = random.Random(3)
    for _ in range(300):
        text = "".join(rng.choice("abcdz") for _ in range(12))
        wanted, at = [], 0
        while at < len(text):
            length = max((len(word) for word in words if text.startswith(word, at)), default=0)
            wanted += [(at, at + length)] * bool(length)
            at += length or 1
        assert list(Words(words).find(text)) == wanted


def test_merges_are_leftmost_of_the_best_piece() -> None:
    """Ids of the library equal those of the rule itself, on vocabularies whose scores are in any order."""
    from tokenizers import Tokenizer as Library
    from tokenizers import models

    rng = random.Random(5)
    for _ in range(200):
        texts = ["a", "b"]
        while len(texts) < 12:
            piece = rng.choice(texts) + rng.choice(texts)
            texts += [piece] * (piece not in texts and len(piece) < 9)
        scores = [0.0, 0.0, *rng.sample(range(-99, 0), 10)]
        pieces = Pieces("bpe", ["<unk>", *texts], [0.0, *scores], [2] + [1] * 12, {"unk": 0})
        library = Library(models.BPE({t: n for n, t in enumerate(pieces.texts)}, list(map(tuple, pieces.merges()))))
        best = dict(zip(texts, scores, strict=True))
        for _ in range(20):
            symbols = list("".join(rng.choice("ab") for _ in range(20)))
            text = "".join(symbols)
            while pairs := [(-best[a + b], n) for n, (a, b) in enumerate(itertools.pairwise(symbols)) if a + b in best]:
                at = min(pairs)[1]
                symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
            assert library.encode(text).tokens == symbols


def test_float32_sums() -> None:
    """The fast rounding inside the loop is that of float32."""
    rng = random.Random(7)
    score = {chr(97 + n): _single(-rng.random() * 12) for n in range(26)}
    unigram = Unigram(
        [(n, text, value) for n, (text, value) in enumerate(score.items())] + [(99, "ab", -3.25)], frozenset(), 98
    )
    text = "".join(rng.choice("abcdefg") for _ in range(3000))
    best: list[tuple[float, list[int]]] = [(0.0, [])]
    for end in range(1, len(text) + 1):
        value, ids = best[end - 1]
        one = _single(value + score[text[end - 1]]), [*ids, ord(text[end - 1]) - 97]
        if text[end - 2 : end] == "ab" and end > 1:
            two = _single(best[end - 2][0] - 3.25), [*best[end - 2][1], 99]
            one = one if one[0] > two[0] else two
        best.append(one)
    assert unigram.encode(text) == best[-1][1]
