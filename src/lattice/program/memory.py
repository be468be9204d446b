"""Placing the values of a program into one arena: lifetimes to offsets, so that the peak is known before anything runs.

Greedy by size (Pisarchyk and Lee, 2020, arXiv:2001.03288): the largest value first, each at the lowest offset where no
value that lives at the same time lies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lattice.ops import Symbol
from lattice.program.ir import Program

ALIGNMENT = 64  # bytes: a cache line, a vector register


@dataclass(frozen=True)
class Layout:
    """Offsets of the values in the arena, by id of the symbol, and the arena's size in bytes."""

    offsets: dict[int, int]
    peak: int


@dataclass(frozen=True)
class _Life:
    symbol: Symbol
    bytes: int
    first: int  # node that makes it
    last: int  # last node that reads it


def place(program: Program, size: Callable[[Symbol], int]) -> Layout:
    """Return the layout of all values that nodes make, given each one's size in bytes at the plan's capacity.

    Outputs of the program live to its end; state is not in the arena.
    """
    placed: list[tuple[int, _Life]] = []
    for life in sorted(_lives(program, size), key=lambda life: -life.bytes):
        first, last = life.first, life.last
        neighbours = sorted((at, other.bytes) for at, other in placed if first <= other.last and other.first <= last)
        offset = 0
        for at, taken in neighbours:
            if offset + life.bytes <= at:
                break
            offset = max(offset, at + taken)
        placed.append((offset, life))
    peak = max((offset + life.bytes for offset, life in placed), default=0)
    return Layout({id(life.symbol): offset for offset, life in placed}, peak)


def _lives(program: Program, size: Callable[[Symbol], int]) -> list[_Life]:
    born: dict[int, tuple[Symbol, int]] = {}
    last: dict[int, int] = {}
    for index, node in enumerate(program.nodes):
        for symbol in node.reads():
            last[id(symbol)] = index
        born.update({id(o): (o, index) for o in node.outputs if o.kind == "value"})
    end = len(program.nodes)
    last.update({id(symbol): end for symbol in program.outputs.values()})
    lives = []
    for key, (symbol, first) in born.items():
        rounded = -(-size(symbol) // ALIGNMENT) * ALIGNMENT
        lives.append(_Life(symbol, rounded, first, last.get(key, first)))
    return lives
