"""Texts of all lengths into ragged steps: as many sequences as a token budget holds, none of them padded.

Sequences are taken from the longest to the shortest, so that those of one step are about equally long and the
last steps are the cheap ones. A sequence's vector does not depend on the step it is in; only speed does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import Any, TypeVar

import numpy as np

from lattice.step import Step

NONE = np.empty(0, np.int32)
T = TypeVar("T")


def batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Yield lists of indices into `lengths`, longest first, whose lengths sum to at most `budget` each.

    >>> list(batches([3, 9, 5, 2], 10))
    [[1], [2, 0, 3]]
    """
    batch: list[int] = []
    used = 0
    for index in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if batch and used + lengths[index] > budget:
            yield batch
            batch, used = [], 0
        batch.append(index)
        used += lengths[index]
    if batch:
        yield batch


def full_batches(pieces: Iterable[Sequence[list[int]]], budget: int) -> Iterator[tuple[list[int], list[list[int]]]]:
    """Yield the batches of sequences that come in pieces: indices among all of them, and the sequences.

    What does not fill a step waits for the next piece.
    """
    waiting: list[tuple[int, list[int]]] = []
    seen = 0
    for piece in pieces:
        waiting += enumerate(piece, seen)
        seen += len(piece)
        *full, rest = batches([len(tokens) for _, tokens in waiting], budget)
        for batch in full:
            yield [waiting[index][0] for index in batch], [waiting[index][1] for index in batch]
        waiting = [waiting[index] for index in rest]
    if waiting:
        yield [index for index, _ in waiting], [tokens for _, tokens in waiting]


def ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield items, each made by a thread while the one before it is used."""
    none: list[T] = []
    with ThreadPoolExecutor(1) as thread:
        coming: Future[Any] = thread.submit(next, items, none)
        while (item := coming.result()) is not none:
            coming = thread.submit(next, items, none)
            yield item


class Packer:
    """Makes steps of whole sequences; what is the same in all of them is made once."""

    def __init__(self, tokens: int):
        self.counting = np.arange(tokens, dtype=np.int32)
        self.zeros, self.unsaved = np.zeros(tokens, np.int32), np.full(tokens, -1, np.int32)
        self.pages = np.zeros((tokens, 1), np.int32)

    def step(self, sequences: Sequence[Sequence[int] | np.ndarray]) -> Step:
        """Return the step of these sequences, each from position 0; together at most the packer's tokens."""
        if len(sequences) == 1:
            tokens = np.array(sequences[0], np.int32)
            total = len(tokens)
            offsets, positions = np.array((0, total), np.int32), self.counting[:total]
        else:
            lengths = np.fromiter(map(len, sequences), np.int32, len(sequences))
            offsets = np.zeros(len(sequences) + 1, np.int32)
            np.cumsum(lengths, out=offsets[1:])
            total = int(offsets[-1])
            tokens = np.fromiter(chain.from_iterable(sequences), np.int32, total)
            positions = self.counting[:total] - np.repeat(offsets[:-1], lengths)
        count = len(sequences)
        zeros, pages, slots = self.zeros[:total], self.pages[:count], self.zeros[:count]
        return Step(tokens, zeros, positions, offsets, NONE, pages, slots, zeros, self.unsaved[:total])
