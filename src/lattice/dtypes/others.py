"""Smaller families, read only: 4-bit tables (iq4_nl, iq4_xs, mxfp4, nvfp4) and ternary (tq1_0, tq2_0).

    iq4_nl, mxfp4:  x = scale * TABLE[q]              iq4_xs, nvfp4:  x = (scale * s[group]) * TABLE[q]
    tq1_0, tq2_0:   x = scale * (q - 1),  q in 0, 1, 2

Sources: ggml's `dequantize_row_*`; mxfp4 is the OCP Microscaling format (e2m1 values, one e8m0 scale per 32).
"""

from __future__ import annotations

import numpy as np

from lattice.dtypes._dtype import declare_blocks
from lattice.dtypes._planes import layout, planes, scale_groups, view

IQ4_NL_LAYOUT = layout(("scale", "<f2"), ("quants", "u1", 16))
IQ4_XS_LAYOUT = layout(("scale", "<f2"), ("scales_high", "u1", 2), ("scales_low", "u1", 4), ("quants", "u1", 128))
MXFP4_LAYOUT = layout(("exponent", "u1"), ("quants", "u1", 16))
NVFP4_LAYOUT = layout(("scales", "u1", 4), ("quants", "u1", 32))
TQ1_0_LAYOUT = layout(("quants", "u1", 48), ("rest", "u1", 4), ("scale", "<f2"))
TQ2_0_LAYOUT = layout(("quants", "u1", 64), ("scale", "<f2"))

# Sixteen levels placed where the weights of trained models lie.
_IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
# e2m1 times two, so that all are whole numbers; the scales below are halved for it. The second zero stays
# positive.
_E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)


def _f32(field: np.ndarray) -> np.ndarray:
    return field.astype(np.float32)[:, None]


def _unpack_iq4_nl(blocks: np.ndarray, out: np.ndarray) -> None:
    block = view(blocks, IQ4_NL_LAYOUT)
    np.multiply(_f32(block["scale"]), _IQ4[planes(block["quants"], 16, 4)], out=out)


def _unpack_iq4_xs(blocks: np.ndarray, out: np.ndarray) -> None:
    block = view(blocks, IQ4_XS_LAYOUT)
    s = planes(block["scales_low"], 1, 4) | (planes(block["scales_high"], 1, 2) << 4)
    scale_groups(_f32(block["scale"]) * (s.astype(np.int8) - 32), _IQ4[planes(block["quants"], 16, 4)], out)


def _half_power_of_two(exponent: np.ndarray) -> np.ndarray:
    """Return 2 ** (exponent - 128) in float32; exponents 0 and 1 give subnormal numbers."""
    return np.ldexp(np.float32(1), exponent.astype(np.int32) - 128)


def _unpack_mxfp4(blocks: np.ndarray, out: np.ndarray) -> None:
    block = view(blocks, MXFP4_LAYOUT)
    np.multiply(_half_power_of_two(block["exponent"])[:, None], _E2M1[planes(block["quants"], 16, 4)], out=out)


def _half_e4m3(code: np.ndarray) -> np.ndarray:
    """Return half the value of unsigned e4m3 codes (bias 7; code 0x7f is read as 0, the top bit ignored)."""
    exponent, mantissa = ((code >> 3) & 15).astype(np.int32), (code & 7).astype(np.float32)
    normal = np.ldexp(1 + mantissa / 8, exponent - 8)
    value = np.where(exponent == 0, np.ldexp(mantissa, -10), normal)
    return np.where(code == 0x7F, np.float32(0), value).astype(np.float32)


def _unpack_nvfp4(blocks: np.ndarray, out: np.ndarray) -> None:
    block = view(blocks, NVFP4_LAYOUT)
    scale_groups(_half_e4m3(block["scales"]), _E2M1[planes(block["quants"], 8, 4)], out)


def _trits(packed: np.ndarray, width: int, count: int) -> np.ndarray:
    """Return `count` base-3 digits of each byte, most significant first, in planes of `width` bytes.

    A byte holds n as ceil(n * 256 / 243), so that a digit is the carry out of 8 bits when multiplied by 3.
    """
    powers = np.array([1, 3, 9, 27, 81][:count], np.uint8)[:, None]
    shifted = packed.reshape(len(packed), -1, 1, width) * powers  # wraps: digits already taken fall off
    return ((shifted.astype(np.uint16) * 3) >> 8).reshape(len(packed), -1)


def _unpack_tq1_0(blocks: np.ndarray, out: np.ndarray) -> None:
    block = view(blocks, TQ1_0_LAYOUT)
    quants = block["quants"]
    out[:, :160] = _trits(quants[:, :32], 32, 5)
    out[:, 160:240] = _trits(quants[:, 32:], 16, 5)
    out[:, 240:] = _trits(block["rest"], 4, 4)
    out -= 1
    out *= _f32(block["scale"])


def _unpack_tq2_0(blocks: np.ndarray, out: np.ndarray) -> None:
    block = view(blocks, TQ2_0_LAYOUT)
    out[...] = planes(block["quants"], 32, 2)
    out -= 1
    out *= _f32(block["scale"])


IQ4_NL = declare_blocks("iq4_nl", 32, IQ4_NL_LAYOUT, _unpack_iq4_nl)
IQ4_XS = declare_blocks("iq4_xs", 256, IQ4_XS_LAYOUT, _unpack_iq4_xs)
MXFP4 = declare_blocks("mxfp4", 32, MXFP4_LAYOUT, _unpack_mxfp4)
NVFP4 = declare_blocks("nvfp4", 64, NVFP4_LAYOUT, _unpack_nvfp4)
TQ1_0 = declare_blocks("tq1_0", 256, TQ1_0_LAYOUT, _unpack_tq1_0)
TQ2_0 = declare_blocks("tq2_0", 256, TQ2_0_LAYOUT, _unpack_tq2_0)
