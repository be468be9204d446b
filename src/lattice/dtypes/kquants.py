"""K-quants: super-blocks of 256 values cut into groups of 16 or 32, whose scales are themselves quantised.
Read; q4_k, q5_k and q6_k are also written.

    q2_k, q4_k, q5_k:  x = (scale * s[group]) * q - (low * m[group])
    q3_k, q6_k:        x = (scale * s[group]) * (q - zero)             zero = 4 (q3_k), 32 (q6_k)
    q8_k:              x = scale * q

`scale` and `low` are f16 (q8_k: f32). Formats are those of ggml's `dequantize_row_*_K`.

Writing: for each group some steps near the one that spans its values are tried, each with the scale (and low end) of
least squares for the quants that it gives; the best is kept. Then the groups' scales are rounded to the super-block's,
and the quants are taken again from what was stored. No value counts more than another.
"""

from __future__ import annotations

import numpy as np

from lattice.dtypes._dtype import Pack, declare_blocks
from lattice.dtypes._planes import as_bytes, inverse, layout, pack_planes, planes, scale_groups, to_f16, view

VALUES = 256
TRIED = np.linspace(-1, 1, 11, dtype=np.float32)  # steps more or fewer than those that span a group

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


def scales_and_mins(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the eight 6-bit scales and eight 6-bit mins of q4_k and q5_k from their 12 bytes.

    Bytes 0-3 hold scales 0-3 and bytes 4-7 mins 0-3 in their low 6 bits; their top 2 bits are the top bits of
    scales and mins 4-7, whose low 4 bits are the low and high nibbles of bytes 8-11.
    """
    first_s, first_m, rest = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    s = np.concatenate([first_s & 63, (rest & 15) | ((first_s >> 6) << 4)], axis=1)
    m = np.concatenate([first_m & 63, (rest >> 4) | ((first_m >> 6) << 4)], axis=1)
    return s, m


def pack_scales_and_mins(s: np.ndarray, m: np.ndarray) -> np.ndarray:
    """Return the 12 bytes of scales and mins (n, 8) below 64: the inverse of `scales_and_mins`."""
    high = [s[:, 4:] >> 4 << 6, m[:, 4:] >> 4 << 6]
    return np.concatenate([s[:, :4] | high[0], m[:, :4] | high[1], s[:, 4:] & 15 | m[:, 4:] << 4], axis=1)


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
    s, m = scales_and_mins(block["scales"])
    _affine(block, s, m, planes(block["quants"], 32, 4), out)


def _unpack_q5_k(blocks: np.ndarray, out: np.ndarray) -> None:
    block = view(blocks, Q5_K_LAYOUT)
    s, m = scales_and_mins(block["scales"])
    quants = planes(block["quants"], 32, 4) | (planes(block["high"], 32, 1) << 4)
    _affine(block, s, m, quants, out)


def _unpack_q6_k(blocks: np.ndarray, out: np.ndarray) -> None:
    block = view(blocks, Q6_K_LAYOUT)
    quants = planes(block["quants"], 64, 4) | (planes(block["high"], 32, 2) << 4)
    scale_groups(_f32(block["scale"]) * block["scales"], quants.astype(np.int8) - 32, out)


def _unpack_q8_k(blocks: np.ndarray, out: np.ndarray) -> None:
    block = view(blocks, Q8_K_LAYOUT)
    np.multiply(block["scale"][:, None], block["quants"], out=out, dtype=np.float32)


def _normalised(values: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Return x (n, groups, each) and m (n, 1) with values = x * m, max|x| = 1, so that no square overflows.

    What is too small to matter beside the largest becomes 0, so that inverses stay finite too.
    """
    magnitude = np.abs(values).max(axis=1, keepdims=True)
    magnitude[magnitude == 0] = 1
    x = values / magnitude
    x[np.abs(x) < 1e-9] = 0
    return x.reshape(len(values), groups, -1), magnitude


def _keep_better(best: list[np.ndarray], trial: list[np.ndarray]) -> list[np.ndarray]:
    """Return, group by group, the trial where its error (the last entry) is smaller."""
    better = trial[-1] < best[-1]
    return [np.where(better, new, old) for new, old in zip(trial, best, strict=True)]


def _fit_affine(x: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return scale and low >= 0 (n, groups) such that x (n, groups, 32) is near scale * q - low, q in 0..steps."""
    low = np.minimum(x.min(axis=2), 0)
    span = x.max(axis=2) - low
    total, count = x.sum(axis=2), np.float32(x.shape[2])
    best = [span / steps, low, np.full_like(low, np.inf)]
    for more in TRIED:
        q = np.rint((x - low[..., None]) * ((steps + more) * inverse(span))[..., None]).clip(0, steps)
        sum_q, sum_qq, sum_xq = q.sum(axis=2), (q * q).sum(axis=2), (x * q).sum(axis=2)
        determinant = count * sum_qq - sum_q * sum_q
        scale = (count * sum_xq - total * sum_q) * inverse(determinant)
        end = (sum_qq * total - sum_q * sum_xq) * inverse(determinant)
        scale, end = np.where(end > 0, sum_xq * inverse(sum_qq), scale), np.minimum(end, 0)
        scale, end = np.where(determinant > 0, scale, span / steps), np.where(determinant > 0, end, low)
        error = np.square(scale[..., None] * q + end[..., None] - x).sum(axis=2)
        best = _keep_better(best, [scale, end, error])
    return np.maximum(best[0], 0), -best[1]


def _fit_centred(x: np.ndarray, zero: int) -> np.ndarray:
    """Return the signed scale (n, groups) such that x (n, groups, 16) is near scale * q, q in -zero..zero - 1."""
    furthest = np.take_along_axis(x, np.abs(x).argmax(axis=2)[..., None], axis=2)[..., 0]
    best = [furthest / -zero, np.full_like(furthest, np.inf)]
    for more in TRIED:
        q = np.rint(x * (-(zero + more) * inverse(furthest))[..., None]).clip(-zero, zero - 1)
        scale = (x * q).sum(axis=2) * inverse((q * q).sum(axis=2))
        best = _keep_better(best, [scale, np.square(scale[..., None] * q - x).sum(axis=2)])
    return best[0]


def _pack_affine(name: str, block_layout: np.dtype, steps: int) -> Pack:
    def pack(values: np.ndarray) -> np.ndarray:
        x, magnitude = _normalised(values, 8)
        block = np.zeros(len(values), block_layout)
        rounded = []
        for field, part in zip(("scale", "low"), _fit_affine(x, steps), strict=True):
            part = part * magnitude
            block[field] = to_f16(name, part.max(axis=1) / 63)
            stored = _f32(block[field])
            rounded.append(np.rint(part * inverse(stored)).clip(0, 63).astype(np.uint8))
        s, m = rounded
        scale, low = _f32(block["scale"]) * s, _f32(block["low"]) * m
        x = values.reshape(x.shape)
        quants = np.rint((x + low[..., None]) * inverse(scale)[..., None]).clip(0, steps).astype(np.uint8)
        quants = quants.reshape(values.shape)
        block["scales"] = pack_scales_and_mins(s, m)
        block["quants"] = pack_planes(quants & 15, 32, 4)
        if steps > 15:
            block["high"] = pack_planes(quants >> 4, 32, 1)
        return as_bytes(block)

    return pack


def _pack_q6_k(values: np.ndarray) -> np.ndarray:
    x, magnitude = _normalised(values, 16)
    scales = _fit_centred(x, 32) * magnitude
    furthest = np.take_along_axis(scales, np.abs(scales).argmax(axis=1)[:, None], axis=1)
    block = np.zeros(len(values), Q6_K_LAYOUT)
    block["scale"] = to_f16("q6_k", furthest[:, 0] / -128)
    block["scales"] = np.rint(scales * inverse(_f32(block["scale"]))).clip(-128, 127)
    scale = _f32(block["scale"]) * block["scales"]
    quants = np.rint(values.reshape(x.shape) * inverse(scale)[..., None]).clip(-32, 31) + 32
    quants = quants.astype(np.uint8).reshape(values.shape)
    block["quants"] = pack_planes(quants & 15, 64, 4)
    block["high"] = pack_planes(quants >> 4, 32, 2)
    return as_bytes(block)


Q2_K = declare_blocks("q2_k", VALUES, Q2_K_LAYOUT, _unpack_q2_k)
Q3_K = declare_blocks("q3_k", VALUES, Q3_K_LAYOUT, _unpack_q3_k)
Q4_K = declare_blocks("q4_k", VALUES, Q4_K_LAYOUT, _unpack_q4_k, _pack_affine("q4_k", Q4_K_LAYOUT, 15))
Q5_K = declare_blocks("q5_k", VALUES, Q5_K_LAYOUT, _unpack_q5_k, _pack_affine("q5_k", Q5_K_LAYOUT, 31))
Q6_K = declare_blocks("q6_k", VALUES, Q6_K_LAYOUT, _unpack_q6_k, _pack_q6_k)
Q8_K = declare_blocks("q8_k", VALUES, Q8_K_LAYOUT, _unpack_q8_k)
