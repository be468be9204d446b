"""The one unpacking pattern of the block formats, the shorthand for their layouts, and what quantisers share."""

from __future__ import annotations

import numpy as np

from lattice.dtypes._dtype import too_large


def layout(*fields: tuple) -> np.dtype:
    """Return a packed little-endian structured dtype: the bytes of one block, in order."""
    return np.dtype(list(fields))


def view(blocks: np.ndarray, block_layout: np.dtype) -> np.ndarray:
    """Return (n, nbytes) bytes as n records of `block_layout`, without a copy."""
    return blocks.view(block_layout)[:, 0]


def planes(packed: np.ndarray, width: int, bits: int) -> np.ndarray:
    """Return fields of `bits` bits of bytes (n, m) as (n, m * 8 / bits) uint8.

    Bytes come in groups of `width`; a group gives first the lowest field of each of its bytes, then the next
    field of each, and so on. Every ggml format packs its quants so, each with a width of its own.

    >>> packed = np.array([[0x21, 0x43]], np.uint8)
    >>> planes(packed, 2, 4).tolist(), planes(packed, 1, 4).tolist()
    ([[1, 3, 2, 4]], [[1, 2, 3, 4]])
    """
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    groups = packed.reshape(len(packed), -1, 1, width) >> shifts
    groups &= np.uint8((1 << bits) - 1)
    return groups.reshape(len(packed), -1)


def pack_planes(fields: np.ndarray, width: int, bits: int) -> np.ndarray:
    """Return the bytes of `fields` (n, m) uint8: the inverse of `planes`."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    groups = fields.reshape(len(fields), -1, 8 // bits, width) << shifts
    return np.bitwise_or.reduce(groups, axis=2).reshape(len(fields), -1)


def scale_groups(scale: np.ndarray, quants: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Write scale (n, groups) times quants (n, values) into `out`; return that as (n, groups, each)."""
    n, groups = scale.shape
    grouped = out.reshape(n, groups, -1)
    np.multiply(scale[:, :, None], quants.reshape(grouped.shape), out=grouped, casting="unsafe", dtype=np.float32)
    return grouped


def inverse(scale: np.ndarray) -> np.ndarray:
    """Return 1 / scale, and 0 where that is infinite: such a scale is 0 in f16 as well."""
    with np.errstate(divide="ignore", over="ignore"):
        result = np.float32(1) / scale
    return np.where(np.isinf(result), np.float32(0), result)


def to_f16(name: str, values: np.ndarray) -> np.ndarray:
    """Return the f16 numbers that a block of format `name` keeps, refusing those beyond its range."""
    with np.errstate(over="ignore"):
        result = values.astype(np.float16)
    if not np.isfinite(result).all():
        raise too_large(name, "the scale of a block is f16, which ends at 65504")
    return result


def as_bytes(block: np.ndarray) -> np.ndarray:
    """Return n records as (n, nbytes) bytes."""
    return block.view(np.uint8).reshape(len(block), -1)
