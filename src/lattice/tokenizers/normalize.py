"""SentencePiece's normaliser: what happens to a text before its pieces are looked for.

A charsmap (a double-array trie of UTF-8 keys, then the replacements, each ended by a NUL byte) replaces the longest
key at each position, left to right, but never inside a user-defined piece; then spaces are collapsed and become
U+2581. The `tokenizers` library's own form of it works on grapheme clusters and differs in rare texts: this one is
equal to the `sentencepiece` library. The work is a table look-up a character, but where keys of several characters
may begin.

Layout of the trie: https://github.com/s-yata/darts-clone
"""

from __future__ import annotations

import re
import struct
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from lattice.errors import FormatError, expected

SPACE = "\u2581"
CHARSMAP = 16 << 20  # bytes; those in use have 240 KB
_WHERE = "precompiled charsmap"


class Words:
    """Finds the longest of many words at each position, in time that does not grow with their number."""

    def __init__(self, words: Iterable[str]):
        self.words = frozenset(word for word in words if word)
        lengths: dict[str, set[int]] = {}
        for word in self.words:
            lengths.setdefault(word[:2], set()).add(len(word))
        self.lengths = {start: sorted(found, reverse=True) for start, found in lengths.items()}
        first = "".join(sorted({word[0] for word in self.words}))
        self.first = re.compile(f"[{re.escape(first)}]") if first else None

    def find(self, text: str, begin: int = 0) -> Iterator[tuple[int, int]]:
        """Yield (start, end) of each word from `begin` on, longest at its place, none overlapping."""
        while self.first is not None and (found := self.first.search(text, begin)):
            start = begin = found.start()
            for length in self._lengths(text, start):
                if start + length <= len(text) and text[start : start + length] in self.words:
                    begin = start + length
                    yield start, begin
                    break
            else:
                begin += 1

    def _lengths(self, text: str, start: int) -> list[int]:
        pair = self.lengths.get(text[start : start + 2], [])
        single = self.lengths.get(text[start], []) if start + 1 < len(text) else []
        return [*pair, *single]


class Charsmap:
    """The replacements of a precompiled charsmap; raises FormatError for one that is malformed."""

    def __init__(self, data: bytes):
        size = struct.unpack_from("<I", data)[0] if 4 <= len(data) <= CHARSMAP else 0
        if not 4 <= size <= len(data) - 4 or size % 4 or data[-1:] != b"\0":
            raise expected(_WHERE, "a trie and its replacements", f"{len(data)} bytes", kind=FormatError)
        self.units = array("I", struct.unpack_from(f"<{size // 4}I", data, 4))
        self.replacements = data[4 + size :]
        self.nodes: dict[str, tuple[int, str | None]] = {}  # by character: where its path ends, its replacement
        self.opens: dict[str, bool] = {}  # whether a longer key begins with a character
        self.pairs: dict[tuple[str, str], bool] = {}

    def replace(self, text: str, protected: Words) -> str:
        """Return `text` with every longest key replaced, words of `protected` kept as they are."""
        table = {}
        for character in set(text):
            value = self._single(character)[1]
            if value is not None and value != character:
                table[ord(character)] = value
        longer = self._longer(text)
        if not longer and not protected.words:
            return text.translate(table)
        parts: list[str] = []
        begin = index = 0
        words = protected.find(text)
        word = next(words, None)
        while True:
            while index < len(longer) and longer[index] < begin:
                index += 1
            if word is not None and word[0] < begin:  # its beginning was part of a longer key
                words = protected.find(text, begin)
                word = next(words, None)
            at = longer[index] if index < len(longer) else len(text)
            if word is not None and word[0] <= at:
                parts += text[begin : word[0]].translate(table), text[word[0] : word[1]]
                begin, word = word[1], next(words, None)
            elif at < len(text):
                index += 1
                after, value = self._longest(text, at)
                if value is not None:
                    parts += text[begin:at].translate(table), value
                    begin = after
            else:
                return "".join([*parts, text[begin:].translate(table)])

    def _longer(self, text: str) -> list[int]:
        if not any(self._open(character) for character in set(text)):
            return []
        alive = {pair for pair in set(pairwise(text)) if self._pair(pair)}
        return [at for at, pair in enumerate(pairwise(text)) if pair in alive] if alive else []

    def _step(self, node: int, character: str) -> tuple[int, str | None]:
        """Return the node behind `character`, -1 if there is none, and the replacement of the key that ends there."""
        unit = 0
        for byte in character.encode():
            at = node ^ byte
            unit = self.units[at] if at < len(self.units) else 0
            if unit & 0x800000FF != byte or not byte:
                return -1, None
            node = at ^ _offset(unit)
        return node, self._value(node) if unit & 0x100 else None

    def _value(self, node: int) -> str:
        begin = self.units[node] & 0x7FFFFFFF if node < len(self.units) else len(self.replacements)
        end = self.replacements.find(b"\0", begin)
        try:
            if end >= 0:
                return self.replacements[begin:end].decode()
        except UnicodeDecodeError:
            pass
        raise expected(_WHERE, "replacements of UTF-8 text", f"none at {begin}", kind=FormatError)

    def _single(self, character: str) -> tuple[int, str | None]:
        found = self.nodes.get(character)
        if found is None:
            found = self.nodes[character] = self._step(_offset(self.units[0]), character)
        return found

    def _open(self, character: str) -> bool:
        found = self.opens.get(character)
        if found is None:
            node, units = self._single(character)[0], self.units
            found = node >= 0 and any(
                node ^ byte < len(units) and units[node ^ byte] & 0x800000FF == byte for byte in range(1, 256)
            )
            self.opens[character] = found
        return found

    def _pair(self, pair: tuple[str, str]) -> bool:
        if not self._open(pair[0]):
            return False
        found = self.pairs.get(pair)
        if found is None:
            if len(self.pairs) > 1 << 16:
                self.pairs.clear()
            found = self.pairs[pair] = self._step(self._single(pair[0])[0], pair[1])[0] >= 0
        return found

    def _longest(self, text: str, at: int) -> tuple[int, str | None]:
        node, best = self._single(text[at])
        end = at + 1
        for after in range(at + 1, len(text)):
            node, value = self._step(node, text[after])
            if node < 0:
                break
            if value is not None:
                best, end = value, after + 1
        return end, best


def _offset(unit: int) -> int:
    return (unit >> 10) << ((unit & 0x200) >> 6)


@dataclass(frozen=True)
class Normalizer:
    """The rules of one vocabulary; `protected` are the user-defined pieces."""

    charsmap: Charsmap | None = None
    dummy_prefix: bool = True
    remove_extra: bool = True
    escape: bool = True
    protected: Words = field(default_factory=lambda: Words(()))

    def __call__(self, text: str) -> str:
        """Return the normal form of `text`, spaces as U+2581."""
        if not text:
            return ""
        if self.charsmap is not None:
            text = self.charsmap.replace(text, self.protected)
        if self.remove_extra:
            text = re.sub("  +", " ", text.lstrip(" "))
        space = SPACE if self.escape else " "
        text = space * self.dummy_prefix + text.replace(" ", space)
        return text.rstrip(space) if self.remove_extra else text
