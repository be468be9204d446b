"""Reads a SentencePiece `.model` file: the few fields in use of its protobuf, every length checked.

Not a protobuf library: a message is a list of (field number, wire type, value), what is not asked for is skipped.

Field numbers: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto; the encoding:
https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from lattice.errors import FormatError, expected
from lattice.tokenizers.sentencepiece import COUNT, NORMAL, UNKNOWN, Pieces

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_KINDS = {1: "unigram", 2: "bpe"}
_IDS = {"unk": (40, 0), "bos": (41, 1), "eos": (42, 2), "pad": (43, -1)}  # role: field, its default


def read_model(data: bytes, where: str = "tokenizer.model") -> Pieces:
    """Return the vocabulary of a `.model` file's bytes; raises FormatError for one that is malformed or not read."""
    texts: list[str] = []
    scores: list[float] = []
    types: list[int] = []
    trainer: dict[int, Any] = {}
    rules: dict[int, Any] = {}
    for number, value in _fields(data, where):
        if number == 1:
            text, score, kind = _piece(_message(value, where), where)
            texts.append(text)
            scores.append(score)
            types.append(kind)
            if len(texts) > COUNT:
                raise expected(where, f"at most {COUNT} pieces", "more", kind=FormatError)
        elif number == 2:
            trainer |= dict(_fields(_message(value, where), where))  # the last of a field counts
        elif number == 3:
            rules |= dict(_fields(_message(value, where), where))
    kind = trainer.get(3, 1)
    if kind not in _KINDS or trainer.get(24, 0):
        got = f"model type {kind}" if kind not in _KINDS else "spaces behind words"
        raise expected(where, "a unigram (1) or BPE (2) vocabulary with spaces before words", got, kind=FormatError)
    unknown = [n for n, kind in enumerate(types) if kind == UNKNOWN]
    if len(unknown) != 1:
        raise expected(where, "one unknown piece", len(unknown), kind=FormatError)
    special = {"unk": unknown[0]}
    for role, (number, default) in _IDS.items():
        at = trainer.get(number, default)
        at = at - (1 << 64) if isinstance(at, int) and at >= 1 << 63 else at
        if role != "unk" and isinstance(at, int) and 0 <= at < len(texts) and types[at] != NORMAL:
            special[role] = at
    charsmap = rules.get(2, b"")
    return Pieces(
        kind=_KINDS[kind],
        texts=texts,
        scores=scores,
        types=types,
        special=special,
        charsmap=_message(charsmap, where),
        dummy_prefix=bool(rules.get(3, 1)),
        remove_extra=bool(rules.get(4, 1)),
        escape=bool(rules.get(5, 1)),
        byte_fallback=bool(trainer.get(35, 0)),
        where=where,
    )


def _piece(data: bytes, where: str) -> tuple[str, float, int]:
    fields = dict(_fields(data, where))
    score, kind = fields.get(2, b"\0\0\0\0"), fields.get(3, NORMAL)
    try:
        text = _message(fields.get(1, b""), where).decode()
        if isinstance(score, bytes) and len(score) == 4 and isinstance(kind, int):
            return text, struct.unpack("<f", score)[0], kind
    except UnicodeDecodeError:
        pass
    raise expected(where, "pieces of UTF-8 text with a score and a type", repr(fields)[:80], kind=FormatError)


def _message(value: object, where: str) -> bytes:
    if not isinstance(value, bytes):
        raise expected(where, "a message", type(value).__name__, kind=FormatError)
    return value


def _fields(data: bytes, where: str) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(data):
        tag, at = _varint(data, at, where)
        number, wire = tag >> 3, tag & 7
        value: int | bytes
        if wire == _VARINT:
            value, at = _varint(data, at, where)
        else:
            if wire == _BYTES:
                size, at = _varint(data, at, where)
            else:
                size = {_FIXED64: 8, _FIXED32: 4}.get(wire, -1)
            if not 0 <= size <= len(data) - at or not number:
                wanted = f"a field of at most {len(data) - at} bytes at {at}"
                raise expected(where, wanted, f"wire type {wire}, {size} bytes", kind=FormatError)
            value, at = data[at : at + size], at + size
        yield number, value


def _varint(data: bytes, at: int, where: str) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (1 << 64) - 1, at
    raise expected(where, "a number of at most 10 bytes", f"none at byte {at}", kind=FormatError)
