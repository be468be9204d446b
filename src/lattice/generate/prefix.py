"""Prefixes: beginnings of prompts whose keys, values and recurrent state are kept, so that a prompt that begins
alike runs only what is new.

An entry is a list of tokens with the pages that hold them and, for a model with recurrent state, the slot with the
state behind the last of them. Keys and values can be taken up at any length that is shared; recurrent state only
where it was kept, so there an entry counts only whole.

What goes when memory is needed is GreedyDual: an entry's priority is the tokens that losing it would have run again,
for each byte it holds, on top of a clock that stands at the priority of whatever went last. So what is cheap to make
again goes first, and what nobody asks for grows old. Source: Cao and Irani, "Cost-Aware WWW Proxy Caching
Algorithms" (1997).

Everything here is done under the pool's lock.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from lattice.errors import expected
from lattice.generate.cache import Held, StatePool, pages_for
from lattice.step import PAGE_TOKENS


def shared_length(a: np.ndarray, b: np.ndarray) -> int:
    """Return how many tokens two lists have in common from the start.

    >>> shared_length(np.array([1, 2, 3]), np.array([1, 2, 4, 5]))
    2
    """
    length = min(len(a), len(b))
    differs = a[:length] != b[:length]
    first = int(differs.argmax()) if length else 0
    return first if length and differs[first] else length


@dataclass(eq=False, slots=True, weakref_slot=True)
class Entry:
    """A kept prefix; `base` is the length of the longest other entry that it begins with, which losing it leaves."""

    tokens: np.ndarray
    pages: list[Held]
    slot: Held | None
    base: int = 0
    priority: float = 0.0

    def __len__(self) -> int:
        return len(self.tokens)


class Prefixes:
    """The entries of one engine, and what it takes from the pool at their expense."""

    def __init__(self, pool: StatePool):
        self.entries: list[Entry] = []
        self._pool = pool
        self._clock = 0.0

    # ---- finding and keeping -------------------------------------------------------------------------------
    def find(self, tokens: np.ndarray) -> tuple[Entry | None, int, int]:
        """Return the entry to resume from, how many of its tokens to take, and how many tokens any entry shares.

        At least one token is left to run.
        """
        best, resumed, known = None, 0, 0
        for entry in self.entries:
            shared = shared_length(entry.tokens, tokens[:-1])
            known = max(known, shared)
            if shared > resumed and (entry.slot is None or shared == len(entry)):
                best, resumed = entry, shared
        if best is not None:
            best.priority = self._clock + self._worth(best)
        return best, resumed, known

    def insert(self, tokens: np.ndarray, pages: list[Held], slot: Held | None) -> Entry:
        """Keep a prefix, unless it is kept already; return its entry."""
        made = Entry(tokens, pages[: pages_for(len(tokens))], slot)
        longer = []
        for other in list(self.entries):
            shared = shared_length(other.tokens, tokens)
            if shared == len(tokens) and (slot is None or shared == len(other)):
                other.priority = max(other.priority, self._clock + self._worth(other))
                return other
            if slot is None and shared == len(other):
                self.entries.remove(other)  # the new one serves whatever this one served
            elif shared == len(other):
                made.base = max(made.base, shared)
            elif shared == len(tokens):
                longer.append(other)
        for other in longer:
            self._rebase(other, max(other.base, len(tokens)))
        made.priority = self._clock + self._worth(made)
        self.entries.append(made)
        return made

    def forget(self, entries: Iterable[Entry]) -> None:
        """Drop entries, those of them that are still here."""
        for entry in [each for each in entries if each in self.entries]:
            self.entries.remove(entry)
            for other in self.entries:
                if other.base == len(entry) == shared_length(other.tokens, entry.tokens):
                    self._rebase(other, entry.base)

    def _worth(self, entry: Entry) -> float:
        """Return the tokens that an entry saves for each byte it holds."""
        slot = 0 if entry.slot is None else self._pool.slots.nbytes
        pages = max(1, len(entry.pages) - entry.base // PAGE_TOKENS)
        return (len(entry) - entry.base) / max(1, slot + pages * self._pool.pages.nbytes)

    def _rebase(self, entry: Entry, base: int) -> None:
        before = self._worth(entry)
        entry.base = base
        entry.priority += self._worth(entry) - before

    # ---- room ----------------------------------------------------------------------------------------------
    def take(self, pages: int, slots: int = 0) -> tuple[list[Held], list[Held]]:
        """Return so many pages and slots, at the expense of entries if need be; LatticeError if they do not suffice."""
        pool = self._pool
        while not pool.room(pages, slots) and self._evict():
            pass
        if not pool.room(pages, slots):
            wanted = f"{pages} free pages of {PAGE_TOKENS} tokens" + (f" and {slots} slots of state" if slots else "")
            got = f"{pool.pages.free} of {pool.pages.count}"
            if slots:
                got += f", {pool.slots.free} of {pool.slots.count}, and {pool.budget - pool.used} bytes"
            hint = "finish or close a stream that is still open, lower max_tokens, or load with more cache_bytes"
            raise expected("cache", wanted, got, hint=hint)
        return [pool.pages.take() for _ in range(pages)], [pool.slots.take() for _ in range(slots)]

    def slot_for(self, saved: int) -> Held | None:
        """Return a slot for a snapshot that saves so many tokens, if it is worth more than what would have to go."""
        pool = self._pool
        priority = self._clock + saved / max(1, pool.slots.nbytes + pool.pages.nbytes)
        while not pool.room(slots=1):
            if not self._evict(priority):
                self._clock = max(self._clock, priority)  # as if it had been kept and had gone: the others grow older
                return None
        return pool.slots.take()

    def _evict(self, most: float = math.inf) -> bool:
        """Drop the entry of the lowest priority, if that is at most `most`; return whether one went."""
        least = min(self.entries, key=lambda entry: entry.priority, default=None)
        if least is None or least.priority > most:
            return False
        self._clock = max(self._clock, least.priority)
        self.forget([least])
        return True
