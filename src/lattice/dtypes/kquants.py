"""K-quants: super-blocks of 256 values cut into groups of 16 or 32, whose scales are themselves quantised.
Read only.

    q2_k, q4_k, q5_k:  x = (scale * s[group]) * q - (low * m[group])
    q3_k, q6_k:        x = (scale * s[group]) * (q - zero)             zero = 4 (q3_k), 32 (q6_k)
    q8_k:              x = scale * q

`scale` and `low` are f16 (q8_k: f32). Formats are those of ggml's `dequantize_row_*_K`.
"""

from __future__ import annotations

import numpy as np

from lattice.dtypes._dtype import declare_blocks
from lattice.dtypes._planes import layout, planes, scale_groups, view

VALUES = 256

Q2_K_LAYOUT = layout(("scales", "u1", 16), ("quants", "u1", 64), ("scale", "<f2"), ("low", "<f2"))
Q3_K_LAYOUT = layout(("high", "u1", 32), ("quants", "u1", 64), ("scales", "u1", 12), ("scale", "<f2"))
Q4_K_LAYOUT = layout(("scale", "<f2"), ("low", "<f2"), ("scales", "u1", 12), ("quants", "u1", 128))
Q5_K_LAYOUT = layout(("scale", "<f2"), ("low", "<f2"), ("scales", "u1", 12), ("high", "u1", 32), ("quants", "u1", 128))
Q6_K_LAYOUT = layout(("quants", "u1", 128), ("high", "u1", 64), ("scales", "i1", 16), ("scale", "<f2"))
# `sums` (of each 16 quants) is a shortcut for dot products, not needed to unpack.
Q8_K_LAYOUT = layout(("scale", "<f4"), ("quants", "i1", 256), ("sums", "<i2", 16))


def _f32(field: np.ndarray) -> np.ndarray:
    return field.astype(np.float32)[:, None]


def _affine(block: np.ndarray, s: np.ndarray, m: np.ndarray, quants: np.ndarray, out: np.ndarray) -> None:
    grouped = scale_groups(_f32(block["scale"]) * s, quants, out)
    grouped -= (_f32(block["low"]) * m)[:, :, None]


def _scales_and_mins(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the eight 6-bit scales and eight 6-bit mins of q4_k and q5_k from their 12 bytes.

    Bytes 0-3 hold scales 0-3 and bytes 4-7 mins 0-3 in their low 6 bits; their top 2 bits are the top bits of
    scales and mins 4-7, whose low 4 bits are the low and high nibbles of bytes 8-11.
    """
    first_s, first_m, rest = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    s = np.concatenate([first_s & 63, (rest & 15) | ((first_s >> 6) << 4)], axis=1)
    m = np.concatenate([first_m & 63, (rest >> 4) | ((first_m >> 6) << 4)], axis=1)
    return s, m


def _unpack_q2_k(blocks: np.ndarray, out: np.ndarray) -> None:
    block = view(blocks, Q2_K_LAYOUT)
    s, m = block["scales"] & 15, block["scales"] >> 4
    _affine(block, s, m, planes(block["quants"], 32, 2), out)


def _unpack_q3_k(blocks: np.ndarray, out: np.ndarray) -> None:
    block = view(blocks, Q3_K_LAYOUT)
    packed = block["scales"]
    s = planes(packed[:, :8], 8, 4) | (planes(packed[:, 8:], 4, 2) << 4)
    quants = planes(block["quants"], 32, 2) | (planes(block["high"], 32, 1) << 2)
    scale_groups(_f32(block["scale"]) * (s.astype(np.int8) - 32), quants.astype(np.int8) - 4, out)


def _unpack_q4_k(blocks: np.ndarray, out: np.ndarray) -> None:
    block = view(blocks, Q4_K_LAYOUT)
    s, m = _scales_and_mins(block["scales"])
    _affine(block, s, m, planes(block["quants"], 32, 4), out)


def _unpack_q5_k(blocks: np.ndarray, out: np.ndarray) -> None:
    block = view(blocks, Q5_K_LAYOUT)
    s, m = _scales_and_mins(block["scales"])
    quants = planes(block["quants"], 32, 4) | (planes(block["high"], 32, 1) << 4)
    _affine(block, s, m, quants, out)


def _unpack_q6_k(blocks: np.ndarray, out: np.ndarray) -> None:
    block = view(blocks, Q6_K_LAYOUT)
    quants = planes(block["quants"], 64, 4) | (planes(block["high"], 32, 2) << 4)
    scale_groups(_f32(block["scale"]) * block["scales"], quants.astype(np.int8) - 32, out)


def _unpack_q8_k(blocks: np.ndarray, out: np.ndarray) -> None:
    block = view(blocks, Q8_K_LAYOUT)
    np.multiply(block["scale"][:, None], block["quants"], out=out, dtype=np.float32)


Q2_K = declare_blocks("q2_k", VALUES, Q2_K_LAYOUT, _unpack_q2_k)
Q3_K = declare_blocks("q3_k", VALUES, Q3_K_LAYOUT, _unpack_q3_k)
Q4_K = declare_blocks("q4_k", VALUES, Q4_K_LAYOUT, _unpack_q4_k)
Q5_K = declare_blocks("q5_k", VALUES, Q5_K_LAYOUT, _unpack_q5_k)
Q6_K = declare_blocks("q6_k", VALUES, Q6_K_LAYOUT, _unpack_q6_k)
Q8_K = declare_blocks("q8_k", VALUES, Q8_K_LAYOUT, _unpack_q8_k)
