"""Pages of keys and values, slots of recurrent state, and the sequences that live in them.

A page holds 64 positions of every attention layer; a slot holds the state of every recurrent layer behind one
token. Both are drawn from one budget of bytes. Pages are shared: a sequence only ever writes behind its last
token, so positions that others rely on never change, and a full page never changes at all. What lies behind the
last token of its owner is never read: a page or a slot needs no clearing before its next owner writes it.

Who holds a page holds a `Held`. It is given back when nobody refers to it any more, in any thread, at any moment
(a garbage collector does it): one list operation and no lock. So an abandoned stream gives everything back by
itself. Taking is done under the pool's lock.
"""

from __future__ import annotations

from threading import Lock
from typing import Any, Protocol
from weakref import WeakSet

import numpy as np

from lattice.step import PAGE_TOKENS

MOST = 1 << 20  # pages or slots of a pool, however small they are


def pages_for(tokens: int) -> int:
    """Return how many pages `tokens` positions need.

    >>> pages_for(64), pages_for(65)
    (1, 2)
    """
    return -(-tokens // PAGE_TOKENS)


class Held:
    """A page or slot in use: `index` says which."""

    __slots__ = ("_free", "index")

    def __init__(self, index: int, free: list[int]):
        self.index, self._free = index, free

    def __del__(self) -> None:
        self._free.append(self.index)


class Shelf:
    """Indices from 0 to `count` - 1 that are handed out; the last one given back goes first: it is warm."""

    def __init__(self, count: int, nbytes: int):
        self.count, self.nbytes = count, nbytes  # nbytes: of each
        self._free: list[int] = []
        self._fresh = 0  # those from here on were never handed out

    @property
    def held(self) -> int:
        """How many are in use."""
        return self._fresh - len(self._free)

    @property
    def free(self) -> int:
        """How many are not in use."""
        return self.count - self.held

    def take(self) -> Held:
        """Return one that is free; there must be one."""
        if self._free:
            return Held(self._free.pop(), self._free)
        self._fresh += 1
        return Held(self._fresh - 1, self._free)


class StatePool:
    """The pages and slots of one engine, which together stay within `budget` bytes."""

    def __init__(self, budget: int, page_bytes: int, slot_bytes: int = 0):
        self.budget, self.lock = budget, Lock()
        self.pages = Shelf(min(MOST, budget // max(page_bytes, 1)), page_bytes)
        self.slots = Shelf(min(MOST, budget // slot_bytes) if slot_bytes else 0, slot_bytes)

    @property
    def used(self) -> int:
        """Bytes of everything in use."""
        return self.pages.held * self.pages.nbytes + self.slots.held * self.slots.nbytes

    def room(self, pages: int = 0, slots: int = 0) -> bool:
        """Return whether so many pages and slots can be taken now; under the lock."""
        more = pages * self.pages.nbytes + slots * self.slots.nbytes
        return pages <= self.pages.free and slots <= self.slots.free and self.used + more <= self.budget


class Trail(Protocol):
    """Whoever wants to know the hidden states behind tokens: rows from position `start` on, to be copied."""

    def add(self, start: int, rows: np.ndarray) -> None:
        """Take in rows, (tokens, hidden)."""


class Sequence:
    """Tokens whose state lies in pages and a slot; made by `Engine.sequence` or `Engine.begin`.

    `tokens` are those that have been run. `slot` is where the recurrent state behind them lies, perhaps one that
    others read, too; `own` is where this sequence may save. A model without recurrent state has neither.
    """

    def __init__(self, width: int):
        self.tokens: list[int] = []
        self.table = np.zeros((1, width), np.int32)  # page of each 64 positions
        self.pages: list[Held] = []
        self.slot: Held | None = None  # None: nothing was run, or the last step was interrupted
        self.own: Held | None = None
        self.marks: list[int] = []  # lengths, ascending, at which a prefix is to be kept
        self.prompt = np.empty(0, np.int32)
        self.reused = 0  # tokens that were not run because their state was known
        self.kept = 0  # length of the longest prefix of it that is kept
        self.entries: WeakSet[Any] = WeakSet()  # those prefixes, as long as they are
        self.trail: Trail | None = None  # told the hidden states behind the tokens that are run
        self.ahead: Any = None  # the step behind these tokens, if it is under way (ahead.py)

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, pages: list[Held]) -> None:
        """Own more pages."""
        held = len(self.pages)
        self.pages += pages
        self.table[0, held : len(self.pages)] = [page.index for page in pages]

    def cut(self, count: int, slot: Held | None = None) -> None:
        """Forget the tokens behind the first `count`, none of which is kept; `slot` has the state behind those."""
        if count < self.kept:
            raise ValueError(f"{self.kept} tokens are kept, more than {count}")
        del self.tokens[count:]
        self.slot, self.ahead = slot, None

    def clear(self) -> None:
        """Forget the tokens and give everything back; may be called again."""
        self.tokens, self.pages, self.marks = [], [], []
        self.slot = self.own = self.ahead = None
