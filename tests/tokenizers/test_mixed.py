"""Ids equal to foreign tokenizers' on 10,000 mixed Unicode strings, for every kind of vocabulary.

All of them where `CI` is set; elsewhere the first 2,000, in a fifth of the time.
"""

from __future__ import annotations

import base64
import json
import os
import random
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mixed_strings import digest, digests, mixed

from lattice.tokenizers import Tokenizer, load_tokenizer, tokenizer_from_gguf
from lattice.tokenizers.sentencepiece_model import read_model
from lattice.tokenizers.stream import byte_table

HERE = Path(__file__).parents[1] / "golden/tokenizers"
GOLDEN = json.loads((HERE / "mixed.json").read_text())
KINDS, MODELS = GOLDEN["kinds"], GOLDEN["models"]
BPE = json.loads((HERE / "bpe.json").read_text())["metadata"]
WORDPIECE = json.loads((HERE / "wordpiece.json").read_text())
STRINGS = mixed(10_000)
COUNT = len(STRINGS) if "CI" in os.environ else 2_000


def byte_level(_: Path) -> Tokenizer:
    return tokenizer_from_gguf({**BPE, "tokenizer.ggml.pre": "gpt-2"})


def wordpiece(directory: Path) -> Tokenizer:
    (directory / "tokenizer.json").write_text(json.dumps(WORDPIECE["tokenizer"]))
    return load_tokenizer(directory)


def tiktoken(directory: Path) -> Tokenizer:
    table = byte_table()
    tokens = [bytes(table[c] for c in token) for token in BPE["tokenizer.ggml.tokens"][3:]]
    lines = [base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)]
    (directory / "cl100k_base.tiktoken").write_bytes(b"".join(lines))
    added = {str(len(tokens)): {"content": "<think>", "special": False}}
    (directory / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    return load_tokenizer(directory)


def model(name: str) -> Callable[[Path], Tokenizer]:
    def make(directory: Path) -> Tokenizer:
        (directory / "tokenizer.model").write_bytes(zlib.decompress(base64.b64decode(MODELS[name])))
        return load_tokenizer(directory)

    return make


MAKERS: dict[str, Callable[[Path], Tokenizer]] = {
    "byte_level": byte_level,
    "wordpiece": wordpiece,
    "tiktoken": tiktoken,
    **{name: model(name) for name in MODELS},
}


def sentencepiece_metadata(name: str) -> dict[str, Any]:
    pieces = read_model(zlib.decompress(base64.b64decode(MODELS[name])))
    # Converters write the spaces of user-defined pieces as spaces.
    tokens = [t.replace("▁", " ") if k == 4 else t for t, k in zip(pieces.texts, pieces.types, strict=True)]
    metadata: dict[str, Any] = {
        "model": "llama" if pieces.kind == "bpe" else "t5",
        "tokens": tokens,
        "scores": pieces.scores,
        "token_type": pieces.types,
        "add_space_prefix": pieces.dummy_prefix,
        "remove_extra_whitespaces": pieces.remove_extra,
        "add_bos_token": False,
        "add_eos_token": False,
        **{f"{role}_token_id": pieces.special[role] for role in ("bos", "eos")},
        "unknown_token_id": pieces.special["unk"],
    }
    if pieces.charsmap:
        metadata["precompiled_charsmap"] = list(pieces.charsmap)
    return {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}


def wordpiece_metadata() -> dict[str, Any]:
    vocab = WORDPIECE["tokenizer"]["model"]["vocab"]
    tokens = [
        t if t[0] == "[" and t[-1] == "]" and len(t) > 2 else t[2:] if t[:2] == "##" else f"▁{t}"
        for t in sorted(vocab, key=vocab.get)
    ]
    return {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * 4 + [1] * (len(tokens) - 4),
    }


def test_golden_covers_every_kind() -> None:
    assert set(KINDS) == set(MAKERS) and len(STRINGS) == 10_000 and len(set(STRINGS)) > 9_000
    assert all(len(kind["hundreds"]) == 800 and len(kind["cases"]) == 40 for kind in KINDS.values())


def compare(name: str, tokenizer: Tokenizer, count: int) -> None:
    kind = KINDS[name]
    for at, ids in kind["cases"].items():  # short strings, to see what a failure is about
        assert tokenizer.encode(STRINGS[int(at)]) == ids, ascii(STRINGS[int(at)])
    rows = tokenizer.encode_batch(STRINGS[:count])
    wanted = [kind["hundreds"][at : at + 8] for at in range(0, count * 8 // 100, 8)]
    other = [at * 100 for at, (a, b) in enumerate(zip(digests(rows), wanted, strict=True)) if a != b]
    assert not other, f"ids differ in the hundreds of strings that begin at {other[:20]}"
    assert count < len(STRINGS) or digest(rows) == kind["digest"]


@pytest.mark.parametrize("name", MAKERS)
def test_ids_equal_the_foreign_tokenizer_s(name: str, tmp_path: Path) -> None:
    compare(name, MAKERS[name](tmp_path), COUNT)


@pytest.mark.parametrize("name", MODELS)
def test_sentencepiece_from_gguf(name: str, tmp_path: Path) -> None:
    metadata = sentencepiece_metadata(name)
    compare(name, tokenizer_from_gguf(metadata, tmp_path, "k"), 1_000)
    for opened in (tokenizer_from_gguf({}, tmp_path, "k"), load_tokenizer(tmp_path / "k")):  # the cache is enough
        compare(name, opened, 200)


def test_wordpiece_from_gguf(tmp_path: Path) -> None:
    tokenizer = tokenizer_from_gguf(wordpiece_metadata(), tmp_path, "k")
    compare("wordpiece", tokenizer, 2_000)
    compare("wordpiece", load_tokenizer(tmp_path / "k"), 200)


@pytest.mark.parametrize("name", MAKERS)
def test_streams_give_what_decode_gives(name: str, tmp_path: Path) -> None:
    tokenizer = MAKERS[name](tmp_path)
    for text in STRINGS[:300]:
        ids = tokenizer.encode(text)
        stream = tokenizer.stream()
        assert "".join(map(stream.push, ids)) + stream.finish() == tokenizer.decode(ids)
        if name in ("byte_level", "tiktoken"):
            assert tokenizer.decode(ids, skip_special=False) == text


MEGABYTE = 1 << 20
LARGE = {
    "one letter": "a" * MEGABYTE,
    "spaces": " " * MEGABYTE,
    "emoji": "😀" * (MEGABYTE // 4),
    "ab": "ab" * (MEGABYTE // 2),
    "han": "世" * (MEGABYTE // 3),
    "decomposed": "e\u0301" * (MEGABYTE // 3),
    "no spaces": "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=MEGABYTE)),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_megabyte_ends(name: str, tmp_path: Path) -> None:
    """Work grows with the text, not with its square: a bound against denial of service, not a measurement."""
    tokenizer = MAKERS[name](tmp_path)
    for kind, text in LARGE.items():
        began = time.process_time()
        tokenizer.encode(text)
        assert time.process_time() - began < 5, kind
