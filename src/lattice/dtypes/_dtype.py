"""What a dtype is, what an `Array` is, and the two conversions between an `Array` and float32.

A dtype says how values lie in bytes: plain (f32, bf16, ...) or in blocks of a fixed number of values that
share scales (q4_0, q6_k, ...). The layout of every block format is data (a NumPy structured dtype in the file
of its family); this file knows none of them. Not here: arithmetic on quantised values, which belongs to the
backends.

    value[row, column] = unpack(block[row, column // dtype.block])[column % dtype.block]
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lattice.errors import LatticeError, expected

# Values per slab of a conversion: small enough that a slab and its temporaries stay in a core's cache, large
# enough that NumPy's cost per call vanishes. A conversion therefore needs its result plus a few MB, whatever
# its size.
SLAB = 1 << 17


@dataclass(frozen=True)
class DType:
    """A storage format: `block` values lie in `nbytes` bytes; `storage` is the type of the flat buffer.

    Plain formats have block 1; block formats are stored as uint8. bf16 is stored as uint16, since NumPy has
    none.
    """

    name: str
    block: int
    nbytes: int
    storage: np.dtype

    def size(self, count: int) -> int:
        """Return the bytes of `count` values, which must be whole blocks."""
        if count % self.block:
            raise expected(f"dtype {self.name}", f"a multiple of {self.block} values", count)
        return count // self.block * self.nbytes

    def buffer_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the storage buffer of an array of logical `shape`."""
        if self.block == 1:
            return shape
        if not shape or shape[-1] % self.block:
            raise expected(f"dtype {self.name}", f"rows of a multiple of {self.block} values", f"shape {shape}")
        return (*shape[:-1], shape[-1] // self.block, self.nbytes)

    def __repr__(self) -> str:
        return self.name


@dataclass(frozen=True, eq=False)
class Array:
    """A NumPy buffer and the dtype that says what it means; `shape` is the logical one, row-major.

    Plain dtypes: `data` has shape `shape`. Block dtypes: `data` is uint8 of shape (rows..., blocks per row,
    bytes per block). The buffer is C-contiguous and may be a read-only view of a mapped file; an Array never
    writes to it.
    """

    data: np.ndarray
    dtype: DType
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        shape = tuple(int(size) for size in self.shape)
        object.__setattr__(self, "shape", shape)
        where = f"Array {self.dtype.name}"
        if any(size < 0 for size in shape):
            raise expected(where, "sizes of at least 0", f"shape {shape}")
        if self.data.dtype != self.dtype.storage:
            raise expected(where, f"a buffer of {self.dtype.storage}", self.data.dtype)
        buffer_shape = self.dtype.buffer_shape(shape)
        if self.data.shape != buffer_shape:
            raise expected(where, f"a buffer of shape {buffer_shape} for shape {shape}", self.data.shape)
        if not self.data.flags.c_contiguous:
            raise expected(where, "a C-contiguous buffer", f"strides {self.data.strides}")

    @property
    def ndim(self) -> int:
        """Return the number of logical dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Return the number of values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Return the bytes of the storage buffer."""
        return self.data.nbytes

    def rows(self, index: slice | np.ndarray) -> Array:
        """Return the rows `index` (a slice: a view; an integer array: a gathered copy) of the first
        dimension.

        >>> encode(np.arange(6.0).reshape(3, 2), BY_NAME["f32"]).rows(np.array([2, 0])).data.tolist()
        [[4.0, 5.0], [0.0, 1.0]]
        """
        if self.ndim < (1 if self.dtype.block == 1 else 2):
            raise expected(f"Array {self.dtype.name}", "at least one dimension of rows", f"shape {self.shape}")
        data = np.ascontiguousarray(self.data[index])
        return Array(data, self.dtype, (data.shape[0], *self.shape[1:]))

    def __repr__(self) -> str:
        return f"Array({self.dtype.name}, {self.shape})"


# unpack: (blocks (n, nbytes) uint8, out (n, block) float32) -> None; for plain types (values (n,), out (n,)).
Unpack = Callable[[np.ndarray, np.ndarray], None]
# pack: blocks (n, block) float32 -> (n, nbytes) uint8; for plain types (n,) -> (n,) of the storage type.
Pack = Callable[[np.ndarray], np.ndarray]

BY_NAME: dict[str, DType] = {}
_UNPACK: dict[str, Unpack] = {}
_PACK: dict[str, Pack] = {}


def declare(dtype: DType, unpack: Unpack, pack: Pack | None = None) -> DType:
    """Enter a format into the table of all formats; only the files of this package call it."""
    BY_NAME[dtype.name] = dtype
    _UNPACK[dtype.name] = unpack
    if pack is not None:
        _PACK[dtype.name] = pack
    return dtype


def declare_blocks(name: str, block: int, layout: np.dtype, unpack: Unpack, pack: Pack | None = None) -> DType:
    """Enter a block format whose bytes are described by a packed structured `layout`."""
    return declare(DType(name, block, layout.itemsize, np.dtype(np.uint8)), unpack, pack)


def _flat(data: np.ndarray, dtype: DType) -> np.ndarray:
    """Return a storage buffer as (n,) values or (n, nbytes) blocks."""
    return data.reshape(-1) if dtype.block == 1 else data.reshape(-1, dtype.nbytes)


def _by_block(values: np.ndarray, dtype: DType) -> np.ndarray:
    """Return float32 values as (n,) or (n, block)."""
    return values.reshape(-1) if dtype.block == 1 else values.reshape(-1, dtype.block)


def dense(x: Array | np.ndarray) -> np.ndarray:
    """Return the float32 values of an `Array`, shaped as its logical shape; a plain ndarray passes unchanged.

    An f32 Array gives its own buffer, not a copy, and read-only where that is (a mapped file).

    >>> dense(encode(np.array([1.0, 1.0078125]), BY_NAME["bf16"])).tolist()
    [1.0, 1.0078125]
    """
    if isinstance(x, np.ndarray):
        return x
    dtype, data = x.dtype, x.data
    if data.dtype == np.float32:
        return data
    result = np.empty(x.shape, np.float32)
    unpack = _UNPACK[dtype.name]
    source, target = _flat(data, dtype), _by_block(result, dtype)
    step = SLAB // dtype.block
    # Scales that are infinite or NaN belong to the file; their products are not ours to warn about.
    with np.errstate(all="ignore"):
        for start in range(0, len(source), step):
            unpack(source[start : start + step], target[start : start + step])
    return result


def encode(values: np.ndarray, dtype: DType) -> Array:
    """Return `values` (any shape, last dimension whole blocks) rounded into `dtype` as its reference
    quantiser does.

    Values are taken as float32 first. Raises LatticeError where the format has no quantiser here, where a
    block format is given NaN or infinity, and where a finite value or its scale is too large for the format.
    """
    values = np.asarray(values, dtype=np.float32, order="C")
    shape = values.shape
    if dtype.name not in _PACK:
        able = ", ".join(_PACK)
        raise expected("encode", f"a format that can be written ({able})", dtype.name)
    if dtype.block == 1 and dtype.storage == np.float32:
        return Array(values, dtype, shape)
    data = np.empty(dtype.buffer_shape(shape), dtype.storage)
    pack = _PACK[dtype.name]
    source, target = _by_block(values, dtype), _flat(data, dtype)
    step = SLAB // dtype.block
    for start in range(0, len(source), step):
        slab = source[start : start + step]
        if dtype.block > 1 and not np.isfinite(slab).all():
            raise expected(f"encode {dtype.name}", "finite values", "NaN or infinity")
        target[start : start + step] = pack(slab)
    return Array(data, dtype, shape)


def too_large(name: str, hint: str) -> LatticeError:
    """Return the error of a quantiser whose scale leaves the range of its format."""
    return expected(f"encode {name}", "values in the format's range", "larger ones", hint=hint)
