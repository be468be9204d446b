"""Weights as the CPU kernels read them: matrices of products in tiles, tables, experts and vectors in rows.

Every matrix is streamed from its file into tiles once and then owned here; the peak is the model plus one band of it.
Tables and experts stay in the mapped file, of which a step touches the rows it needs; vectors are copied. How a
weight will be held is decided from its header alone (`held`), so that what a model takes is known before it is read.
"""

from __future__ import annotations

import math
import mmap
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lattice.backends.cpu.native import DTYPES, ROW_DTYPES, ROWS, TILES, WEIGHT_DTYPES, Core, Memory
from lattice.dtypes import BY_NAME, F32, Array, dense
from lattice.errors import LatticeWarning, expected
from lattice.ops import Symbol
from lattice.program import Program

PRODUCTS = {"linear": ("weight",), "project": ("w1", "w2", "w3", "w4")}
BAND = 16 << 20  # bytes of a file that are tiled before their pages are let go
MAPPED = {"embedding": ("table",), "mixture": ("gate", "up", "down")}


@dataclass(frozen=True)
class Placed:
    """A weight in memory: where (0: not yet anywhere), in which dtype and layout, for which use."""

    address: int
    dtype: str
    layout: int
    shape: tuple[int, ...]
    bytes: int
    owner: Any  # keeps the memory alive
    use: str
    mapped: bool  # lies in the pages of its file, which the system may drop and read again


class CpuWeights:
    """All weights of a model, by name."""

    def __init__(self, core: Core, placed: Mapping[str, Placed]):
        self.core, self.placed = core, placed

    @property
    def bytes(self) -> int:
        """Return the bytes that all weights take together, those in pages of the file among them."""
        return sum(weight.bytes for weight in self.placed.values())

    @property
    def mapped(self) -> int:
        """Return the bytes of the weights that lie in pages of the file."""
        return sum(weight.bytes for weight in self.placed.values() if weight.mapped)


class _Slabs:
    """Hands out native memory from large pieces, so that huge pages serve small matrices too.

    Huge pages make decoding about 5 % faster. But their first touch is slow where the machine is virtual and its host
    has to find them (0.1 to 0.5 s per 100 MB): a model of fewer than HUGE values starts in ordinary pages, and sooner.
    """

    PIECE = 64 << 20
    HUGE = 1 << 28

    def __init__(self, core: Core, values: int):
        self.core, self.memory, self.used = core, core.memory(0), 0
        self.huge = values >= self.HUGE

    def take(self, size: int) -> tuple[Memory, int]:
        """Return memory and the address of `size` bytes in it, 64-byte aligned."""
        size = -(-size // 64) * 64
        if self.used + size > self.memory.size:
            self.memory, self.used = self.core.memory(max(size, self.PIECE), huge=self.huge), 0
        self.used += size
        return self.memory, self.memory.address + self.used - size


def load_weights(core: Core, program: Program, weights: Mapping[str, Array], products: str | None = None) -> CpuWeights:
    """Place every weight of a program. Formats without a kernel are dequantised to f32, with a notice."""
    uses = _uses(program)
    slabs = _Slabs(core, sum(math.prod(s.shape) for s in program.of_kind("weight") if uses[s.name] == "product"))
    placed: dict[str, Placed] = {}
    dequantised: Counter[str] = Counter()
    for symbol in program.of_kind("weight"):
        array = _fetch(weights, symbol)
        use, mapped = uses[symbol.name], not array.data.flags.writeable
        place = held(core, array.shape, products if products and use == "product" else array.dtype.name, use, mapped)
        if array.dtype.block > 1 and place.dtype == "f32":
            dequantised[array.dtype.name] += 1
        placed[symbol.name] = _tile(core, slabs, array, place) if place.layout == TILES else _rows(array, place)
    if dequantised:
        listed = ", ".join(f"{count} of {name}" for name, count in sorted(dequantised.items()))
        message = f"tensors without a kernel of their format yet are held as f32 ({listed}): more memory, same values"
        warnings.warn(f"[cpu] {message}", LatticeWarning, stacklevel=2)
    return CpuWeights(core, placed)


def _fetch(weights: Mapping[str, Array], symbol: Symbol) -> Array:
    if symbol.name not in weights:
        raise expected("load", f"a tensor {symbol.name}", "none")
    given: Any = weights[symbol.name]
    array: Array = Array(given, F32, given.shape) if isinstance(given, np.ndarray) else given
    if array.shape != symbol.shape:
        raise expected("load", f"{symbol.name} of shape {symbol.shape}", array.shape)
    return array


def _uses(program: Program) -> dict[str, str]:
    """Return for each weight "product", "mapped" or "vector"; a tied head is a product, whose tiles serve the table."""
    uses = {symbol.name: "vector" for symbol in program.of_kind("weight")}
    for kind, roles in (("mapped", MAPPED), ("product", PRODUCTS)):
        for node in program.nodes:
            for name, symbol in node.inputs():
                if symbol.kind == "weight" and name in roles.get(node.op.name, ()):
                    uses[symbol.name] = kind
    return uses


def held(core: Core, shape: tuple[int, ...], dtype: str, use: str, mapped: bool) -> Placed:
    """Return how a weight of a stored `dtype` will be held; `mapped`: it comes straight from the file's pages."""
    kept = dtype if (dtype in WEIGHT_DTYPES and use != "vector") or dtype in ROW_DTYPES else "f32"
    if use != "product":
        size = BY_NAME[kept].size(math.prod(shape))
        return Placed(0, kept, ROWS, shape, size, None, use, mapped and kept == dtype and use == "mapped")
    size = core.functions.lattice_tiled_bytes(DTYPES[kept], *shape)
    if size < 0:
        raise expected("cpu", f"a matrix that {kept} tiles can hold", shape)
    return Placed(0, kept, TILES, shape, size, None, use, False)


def _tile(core: Core, slabs: _Slabs, array: Array, place: Placed) -> Placed:
    as_it_is = array.dtype.name == place.dtype
    source = array.data if as_it_is else np.ascontiguousarray(dense(array), np.float32)
    memory, address = slabs.take(place.bytes)
    read, made = DTYPES[place.dtype if as_it_is or place.dtype not in ROW_DTYPES else "f32"], DTYPES[place.dtype]
    rows, columns = array.shape
    band, filled = max(1, BAND * rows // source.nbytes // 64) * 64, address  # 64 rows: whole panels of tiles
    for begin in range(0, rows, band):
        part = source.reshape(rows, -1)[begin : begin + band]
        if core.functions.lattice_tile(core.pool, read, part.ctypes.data, made, len(part), columns, filled) < 0:
            raise core.error("a matrix to tile")
        filled += core.functions.lattice_tiled_bytes(made, len(part), columns)
        _let_go(part)
    return replace(place, address=address, owner=memory)


def _let_go(rows: np.ndarray) -> None:
    """Let the system drop the pages of a mapped file under rows that were read, where it can."""
    root: Any = rows
    while isinstance(root.base, np.ndarray):
        root = root.base
    mapping = root.base.obj if isinstance(root.base, memoryview) else None
    advice = getattr(mmap, "MADV_DONTNEED", None)  # absent on Windows
    if isinstance(mapping, mmap.mmap) and advice is not None:
        begin = rows.ctypes.data - root.ctypes.data
        first = begin // mmap.PAGESIZE * mmap.PAGESIZE
        mapping.madvise(advice, first, begin + rows.nbytes - first)


def _rows(array: Array, place: Placed) -> Placed:
    """Place rows. Vectors are copied: they lie all over the file, and each would bring the pages around it."""
    data = array.data if array.dtype.name == place.dtype else np.ascontiguousarray(dense(array), np.float32)
    data = data if place.mapped or data.flags.writeable else data.copy()
    return replace(place, address=data.ctypes.data, owner=data)
