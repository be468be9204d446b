"""Unigram segmentation: the pieces of a text whose scores have the largest sum.

best(end) = max over pieces that end there of best(start) + score, the earlier start where two are equal. Sums are
rounded to float32 where they are stored, as the `sentencepiece` library rounds them: in long or repetitive texts many
ways are equally good, and only the same rounding takes the same one. That is why the `tokenizers` library, which sums
in float64, is not used for it.

Source: Kudo 2018, https://arxiv.org/abs/1804.10959.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

UNKNOWN_PENALTY = 10.0
_MEMORY = 1 << 16  # windows of text whose pieces are remembered


class Unigram:
    """The pieces that may be found (id, text, score; `user` ids are user-defined) and how a text is cut into them.

    An unknown character is its `bytes`, 256 ids, or, where there are none, `unknown`, once for a run of them.
    """

    def __init__(
        self, pieces: Sequence[tuple[int, str, float]], user: frozenset[int], unknown: int, bytes_: Sequence[int] = ()
    ):
        scores = [score for number, _, score in pieces if number not in user] or [0.0]
        highest = max(scores)
        self.bytes, self.unknown, self.unknown_score = bytes_, unknown, _single(min(scores) - UNKNOWN_PENALTY)
        self.scores: dict[str, tuple[int, float]] = {}
        self.longest: dict[str, int] = {}  # by the first two characters (one: pieces of one)
        for number, text, score in pieces:
            if number in user:
                score = _single(len(text.encode()) * highest) - 0.1
            self.scores[text] = number, score
            self.longest[text[:2]] = max(self.longest.get(text[:2], 1), len(text))
        self.memory: dict[str, tuple[tuple[int, int, float], ...]] = {}

    def encode(self, text: str) -> list[int]:
        """Return the ids of a normalised text."""
        count = len(text)
        best, back, token = [-math.inf] * (count + 1), [0] * (count + 1), [0] * (count + 1)
        best[0] = 0.0
        low = high = shift = 0.0  # low < x <= high: (x + shift) - shift is x in float32
        longest, memory, seen = self.longest, self.memory, ""
        found: tuple[tuple[int, int, float], ...] = ()
        for start in range(count):
            base = best[start]
            if not seen or not text.startswith(seen, start):  # in a run of one character, what was found stays
                reach = longest.get(text[start : start + 2], 1)
                window, seen = text[start : start + reach], text[start : start + max(reach, 2)]
                found = memory.get(window) or self._found(window)
            for length, number, score in found:
                value, end = base + score, start + length
                if value <= best[end]:  # rounding keeps order: it would not win rounded either
                    continue
                if low < value <= high:
                    value = (value + shift) - shift
                else:
                    value = _single(value)
                    if -1e30 < value < 0:
                        exponent = math.frexp(value)[1]
                        low, high, shift = -(2.0**exponent), -(2.0 ** (exponent - 1)), 1.5 * 2.0 ** (exponent + 28)
                if value > best[end]:
                    best[end], back[end], token[end] = value, start, number
        ids: list[int] = []
        end = count
        while end:
            start = back[end]
            if token[end] != self.unknown:
                ids.append(token[end])
            elif self.bytes:
                ids.extend(self.bytes[byte] for byte in reversed(text[start:end].encode()))
            elif ids[-1:] != [self.unknown]:
                ids.append(self.unknown)
            end = start
        return ids[::-1]

    def _found(self, window: str) -> tuple[tuple[int, int, float], ...]:
        found = [
            (length, *piece)
            for length in range(1, len(window) + 1)
            if (piece := self.scores.get(window[:length])) is not None
        ]
        if not found or found[0][0] != 1:
            found.append((1, self.unknown, self.unknown_score))
        if len(self.memory) > _MEMORY:
            self.memory.clear()
        result = self.memory[window] = tuple(found)
        return result


def _single(value: float) -> float:
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)
