"""Plain dtypes: one value, one element. bf16 is the upper half of a float32, kept as uint16.

bf16 is rounded to the nearest, ties to even, and a NaN stays a (quiet) NaN; f16 follows IEEE 754 binary16.
Integer types exist because checkpoints hold them (position ids, masks); `dense` gives their nearest float32.
"""

from __future__ import annotations

import numpy as np

from lattice.dtypes._dtype import DType, Pack, Unpack, declare, too_large


def _copy(values: np.ndarray, out: np.ndarray) -> None:
    out[...] = values


def _unpack_bf16(values: np.ndarray, out: np.ndarray) -> None:
    bits = out.view(np.uint32)
    bits[...] = values
    bits <<= 16


def _pack_bf16(values: np.ndarray) -> np.ndarray:
    bits = values.view(np.uint32)
    # Half of the last kept bit, less one where that bit is even: the carry makes ties go to even.
    rounded = (bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16
    # The carry could turn a NaN into infinity: keep its upper half and set the quiet bit instead.
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def _pack_f16(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        result = values.astype(np.float16)
    if (np.isinf(result) & np.isfinite(values)).any():
        raise too_large("f16", "f16 ends at 65504; use bf16 or f32")
    return result


def _plain(name: str, storage: type, unpack: Unpack = _copy, pack: Pack | None = None) -> DType:
    stored = np.dtype(storage).newbyteorder("<")
    return declare(DType(name, 1, stored.itemsize, stored), unpack, pack)


def _identity(values: np.ndarray) -> np.ndarray:
    return values


F32 = _plain("f32", np.float32, pack=_identity)
F16 = _plain("f16", np.float16, pack=_pack_f16)
BF16 = _plain("bf16", np.uint16, _unpack_bf16, _pack_bf16)
F64 = _plain("f64", np.float64)
I8 = _plain("i8", np.int8)
I16 = _plain("i16", np.int16)
I32 = _plain("i32", np.int32)
I64 = _plain("i64", np.int64)
U8 = _plain("u8", np.uint8)
