"""Block formats of 32 values: q4_0, q4_1, q5_0, q5_1, q8_0 (read and written) and q8_1 (read).

    *_0:  x = scale * (q - zero)      zero = 8 (q4_0), 16 (q5_0), 0 (q8_0, q signed)
    *_1:  x = scale * q + low

`scale` and `low` are f16. Formats and rounding are those of ggml's `quantize_row_*_ref`: the inverse scale is
taken in float32 before the scale is rounded to f16, and quants are rounded half up (q8_0: half away from
zero).
"""

from __future__ import annotations

import numpy as np

from lattice.dtypes._dtype import DType, Pack, Unpack, declare_blocks
from lattice.dtypes._planes import as_bytes, inverse, layout, pack_planes, planes, to_f16, view

VALUES = 32

Q4_0_LAYOUT = layout(("scale", "<f2"), ("quants", "u1", 16))
Q4_1_LAYOUT = layout(("scale", "<f2"), ("low", "<f2"), ("quants", "u1", 16))
Q5_0_LAYOUT = layout(("scale", "<f2"), ("high", "u1", 4), ("quants", "u1", 16))
Q5_1_LAYOUT = layout(("scale", "<f2"), ("low", "<f2"), ("high", "u1", 4), ("quants", "u1", 16))
Q8_0_LAYOUT = layout(("scale", "<f2"), ("quants", "i1", 32))
# `sum` is scale times the sum of the quants: a shortcut for dot products, not needed to unpack.
Q8_1_LAYOUT = layout(("scale", "<f2"), ("sum", "<f2"), ("quants", "i1", 32))


def _column(field: np.ndarray) -> np.ndarray:
    return field.astype(np.float32)[:, None]


def _has_high_bits(block_layout: np.dtype) -> bool:
    return "high" in (block_layout.names or ())


def _quants(block: np.ndarray) -> np.ndarray:
    """Return the unsigned quants (n, 32) of 4- and 5-bit blocks."""
    low = planes(block["quants"], 16, 4)
    if _has_high_bits(block.dtype):
        low |= planes(block["high"], 1, 1) << 4  # bit i of the 32 belongs to value i
    return low


def _unpack_centred(block_layout: np.dtype, zero: int) -> Unpack:
    def unpack(blocks: np.ndarray, out: np.ndarray) -> None:
        block = view(blocks, block_layout)
        out[...] = _quants(block)
        out -= zero
        out *= _column(block["scale"])

    return unpack


def _unpack_affine(block_layout: np.dtype) -> Unpack:
    def unpack(blocks: np.ndarray, out: np.ndarray) -> None:
        block = view(blocks, block_layout)
        out[...] = _quants(block)
        out *= _column(block["scale"])
        out += _column(block["low"])

    return unpack


def _unpack_bytes(block_layout: np.dtype) -> Unpack:
    def unpack(blocks: np.ndarray, out: np.ndarray) -> None:
        block = view(blocks, block_layout)
        out[...] = block["quants"]
        out *= _column(block["scale"])

    return unpack


def _store_quants(block: np.ndarray, quants: np.ndarray) -> None:
    block["quants"] = pack_planes(quants & 15, 16, 4)
    if _has_high_bits(block.dtype):
        block["high"] = pack_planes(quants >> 4, 1, 1)


def _pack_centred(name: str, block_layout: np.dtype, zero: int) -> Pack:
    def pack(values: np.ndarray) -> np.ndarray:
        # The value of largest magnitude, sign and all, becomes exactly -zero, the end with one step more.
        furthest = np.take_along_axis(values, np.abs(values).argmax(axis=1)[:, None], axis=1)
        scale = furthest / np.float32(-zero)
        quants = np.trunc(values * inverse(scale) + np.float32(zero + 0.5))
        block = np.zeros(len(values), block_layout)
        block["scale"] = to_f16(name, scale[:, 0])
        _store_quants(block, quants.clip(0, 2 * zero - 1).astype(np.uint8))
        return as_bytes(block)

    return pack


def _pack_affine(name: str, block_layout: np.dtype, steps: int) -> Pack:
    def pack(values: np.ndarray) -> np.ndarray:
        low = values.min(axis=1, keepdims=True)
        with np.errstate(over="ignore", invalid="ignore"):
            scale = (values.max(axis=1, keepdims=True) - low) / np.float32(steps)
            block = np.zeros(len(values), block_layout)
            block["scale"] = to_f16(name, scale[:, 0])
            block["low"] = to_f16(name, low[:, 0])
            quants = np.trunc((values - low) * inverse(scale) + np.float32(0.5))
        _store_quants(block, quants.clip(0, steps).astype(np.uint8))
        return as_bytes(block)

    return pack


def _pack_q8_0(values: np.ndarray) -> np.ndarray:
    scale = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
    exact = values * inverse(scale)
    whole = np.trunc(exact)
    whole += np.trunc(2 * (exact - whole))  # half away from zero; both steps are exact
    block = np.zeros(len(values), Q8_0_LAYOUT)
    block["scale"] = to_f16("q8_0", scale[:, 0])
    block["quants"] = whole
    return as_bytes(block)


def _centred(name: str, block_layout: np.dtype, zero: int) -> DType:
    return declare_blocks(
        name,
        VALUES,
        block_layout,
        _unpack_centred(block_layout, zero),
        _pack_centred(name, block_layout, zero),
    )


def _affine(name: str, block_layout: np.dtype, steps: int) -> DType:
    return declare_blocks(
        name, VALUES, block_layout, _unpack_affine(block_layout), _pack_affine(name, block_layout, steps)
    )


Q4_0 = _centred("q4_0", Q4_0_LAYOUT, 8)
Q4_1 = _affine("q4_1", Q4_1_LAYOUT, 15)
Q5_0 = _centred("q5_0", Q5_0_LAYOUT, 16)
Q5_1 = _affine("q5_1", Q5_1_LAYOUT, 31)
Q8_0 = declare_blocks("q8_0", VALUES, Q8_0_LAYOUT, _unpack_bytes(Q8_0_LAYOUT), _pack_q8_0)
Q8_1 = declare_blocks("q8_1", VALUES, Q8_1_LAYOUT, _unpack_bytes(Q8_1_LAYOUT))
