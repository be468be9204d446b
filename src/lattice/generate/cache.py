"""Pages of keys and values, and the sequences that live in them.

A page holds 64 positions of every layer. A sequence owns its pages until it is cleared or nobody refers to it
any more, so an abandoned stream gives its pages back by itself. What lies behind a sequence's last token is
never read: cutting a sequence back costs nothing, and a page needs no clearing before its next owner writes
it.

Giving pages back may happen in any thread, at any moment (a garbage collector does it): it is made of single
list operations and takes no lock. Taking pages is done under the engine's lock.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence as Row

import numpy as np

from lattice.errors import expected
from lattice.step import PAGE_TOKENS


def pages_for(tokens: int) -> int:
    """Return how many pages `tokens` positions need.

    >>> pages_for(64), pages_for(65)
    (1, 2)
    """
    return -(-tokens // PAGE_TOKENS)


class PagePool:
    """The free pages of one engine. Idle sequences keep theirs until somebody else needs them."""

    def __init__(self, pages: int):
        self.pages = pages
        self.free = list(range(pages - 1, -1, -1))  # the last one given back is taken first: it is warm
        self._idle: dict[int, weakref.ref[Sequence]] = {}  # by id, the longest idle first

    def take(self, count: int) -> list[int]:
        """Return `count` pages, those of idle sequences if need be; LatticeError where there are too few."""
        while len(self.free) < count and self._idle:
            oldest = self._idle.pop(next(iter(self._idle)))()
            if oldest is not None:
                oldest.clear()
        if len(self.free) < count:
            wanted = f"{count} free pages of {PAGE_TOKENS} tokens"
            hint = "finish or close a stream that is still open, lower max_tokens, or load with a larger context"
            raise expected("cache", wanted, f"{len(self.free)} of {self.pages}", hint=hint)
        return [self.free.pop() for _ in range(count)]

    def set_idle(self, sequence: Sequence, idle: bool) -> None:
        """Say whether a sequence's pages may be taken from it."""
        self._idle.pop(id(sequence), None)
        if idle:
            self._idle[id(sequence)] = weakref.ref(sequence)


class Sequence:
    """Tokens whose keys and values lie in pages; made by `Engine.sequence`.

    `tokens` are those that have been run; `turn` counts the answers that were begun on it, so that an older
    one notices that it was overtaken.
    """

    def __init__(self, pool: PagePool, width: int):
        self.tokens: list[int] = []
        self.table = np.zeros((1, width), np.int32)  # page of each 64 positions
        self.turn = 0
        self._pool = pool
        self._pages: list[int] = []

    def __len__(self) -> int:
        return len(self.tokens)

    def reserve(self, positions: int) -> None:
        """Own pages for `positions` tokens in all, under the engine's lock; LatticeError if too few."""
        held = len(self._pages)
        missing = pages_for(positions) - held
        if missing > 0:
            taken = self._pool.take(missing)
            self._pages += taken
            self.table[0, held : held + missing] = taken

    def keep(self, tokens: Row[int]) -> int:
        """Cut back to what is shared with `tokens`, all but the last of them; return the shared length."""
        most = min(len(self.tokens), len(tokens) - 1)
        shared = next((i for i in range(most) if self.tokens[i] != tokens[i]), most)
        del self.tokens[shared:]
        return shared

    def cut(self, count: int) -> None:
        """Forget the tokens behind the first `count`; as if they had never been run."""
        del self.tokens[count:]

    def shrink(self) -> None:
        """Give back the pages behind the last token."""
        needed = pages_for(len(self.tokens))
        while len(self._pages) > needed:
            self._pool.free.append(self._pages.pop())

    def clear(self) -> None:
        """Forget the tokens and give back every page; may be called again."""
        self.tokens = []
        while self._pages:
            self._pool.free.append(self._pages.pop())

    def __del__(self) -> None:
        self.clear()
