"""Tiktoken rank files: lines of a token's bytes in base64 and its rank, rebuilt as a byte-level tokenizer.json.

A piece that is a token is taken whole; else the neighbours whose joined bytes have the lowest rank are joined, the
leftmost first. Every way to cut a token in two tokens is therefore a merge of its rank (`sentencepiece.py` says why
these need no order among themselves). A rank file names neither the pattern that cuts text nor the special tokens: the
pattern is known by name (the file's, or tokenizer_config.json's tokenizer_class), or given there as `pat_str`; the
special tokens are tokenizer_config.json's `added_tokens_decoder`.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lattice.errors import FormatError, expected
from lattice.tokenizers.document import bounded, byte_level
from lattice.tokenizers.pretokenizers import BY_NAME, PreTokenizer
from lattice.tokenizers.stream import byte_table

COUNT = 1 << 21  # ranks
LONGEST = 1024  # bytes of a token
_LINE = re.compile(rb"([A-Za-z0-9+/]+={0,2})[ \t]+(\d{1,9})[ \t]*")
_CL100K = PreTokenizer(
    (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*+"
        r"|\s++\z|\s*[\r\n]|\s+(?!\S)|\s",
    ),
    gpt2=False,
)
# Names in the order of trial: the first that a hint contains decides.
_PATTERNS = (
    (re.compile(r"qwen3[._]?[56]", re.I), BY_NAME["qwen35"]),
    (re.compile("qwen", re.I), BY_NAME["qwen2"]),
    (re.compile("o200k|gpt-?4o|gpt-?oss", re.I), BY_NAME["gpt-4o"]),
    (re.compile("cl100k|gpt-?4", re.I), _CL100K),
    (re.compile("llama", re.I), BY_NAME["llama-bpe"]),
    (re.compile("gpt-?2|r50k|p50k", re.I), BY_NAME["gpt-2"]),
)
NAMES = "qwen3_5, qwen, o200k, cl100k, llama, gpt2"


def is_ranks(data: bytes) -> bool:
    """Return whether a file's first line is one of a rank file."""
    return _LINE.fullmatch(data[: 2 * LONGEST].split(b"\n", 1)[0].rstrip(b"\r")) is not None


def read_ranks(data: bytes, where: str) -> list[bytes]:
    """Return the tokens of a rank file in the order of their ranks; raises FormatError for one that is malformed."""
    tokens: dict[int, bytes] = {}
    if data.count(b"\n") + data.count(b"\r") > 2 * COUNT:
        raise expected(where, f"at most {COUNT} lines", "more", kind=FormatError)
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        parts = _LINE.fullmatch(line)
        try:
            token = base64.b64decode(parts[1], validate=True) if parts else b""
        except binascii.Error:
            token = b""
        if parts is None or not 0 < len(token) <= LONGEST:
            raise expected(where, f"a token in base64 and its rank in line {number}", repr(line)[:60], kind=FormatError)
        if int(parts[2]) in tokens:
            raise expected(where, "a rank for each line", f"rank {int(parts[2])} twice", kind=FormatError)
        tokens[int(parts[2])] = token
    missing = next((rank for rank in range(len(tokens)) if rank not in tokens), None)
    if missing is not None or not 0 < len(tokens) <= COUNT:
        raise expected(where, f"1 to {COUNT} ranks from 0 on without holes", f"none of {missing}", kind=FormatError)
    ordered = [tokens[rank] for rank in range(len(tokens))]
    found = set(ordered)
    if len(found) != len(ordered):
        raise expected(where, "distinct tokens", f"{len(ordered) - len(found)} repeated", kind=FormatError)
    if lost := [byte for byte in range(256) if bytes([byte]) not in found]:
        raise expected(where, "a token for every byte", f"none for {lost[0]}", kind=FormatError)
    return ordered


def find_pattern(settings: Mapping[str, Any], name: str) -> PreTokenizer:
    """Return how text is cut, by the settings' `pat_str`, the file's name or the settings' tokenizer_class."""
    given = settings.get("pat_str")
    if isinstance(given, str):
        if "}+" in given or "$" in given:  # possessive and end of text there, repetition and end of line here
            wanted = "a pat_str without }+ and $, which the tokenizers library reads otherwise"
            raise expected("tokenizer_config.json", wanted, repr(given)[:80], kind=FormatError)
        return PreTokenizer((given,), gpt2=False)
    given = (name, settings.get("tokenizer_class"), settings.get("name_or_path"))
    hints: list[object] = [hint for hint in given if hint]
    for hint in hints:
        for pattern, known in _PATTERNS:
            if isinstance(hint, str) and pattern.search(hint):
                return known
    raise expected(
        name,
        f"a pattern known by name ({NAMES}) in the file's name or tokenizer_class",
        ", ".join(map(repr, hints))[:120],
        hint="tokenizer_config.json may give the pattern itself as pat_str",
        kind=FormatError,
    )


def document(tokens: list[bytes], pre: PreTokenizer) -> dict[str, Any]:
    """Return the tokenizer.json of a rank file, without special tokens."""
    alphabet = {byte: character for character, byte in byte_table().items()}
    rank = {token: number for number, token in enumerate(tokens)}
    text = {token: "".join(alphabet[byte] for byte in token) for token in tokens}
    merges = (
        [text[token[:at]], text[token[at:]]]
        for token in tokens
        for at in range(len(token) - 1, 0, -1)
        if token[:at] in rank and token[at:] in rank
    )
    vocab = {text[token]: number for number, token in enumerate(tokens)}
    return byte_level(vocab, bounded(merges, "tiktoken ranks"), replace(pre, whole_words=True), [])
