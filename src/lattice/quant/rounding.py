"""Rounding of matrices into block formats, with less error than the formats' own quantisers.

`nearest` chooses the scale (and minimum) of every group of a row by least squares, `compensated` also lets each column
make up for the errors of those before it. Which tensor becomes which format is not decided here, and nothing here runs
a model.

    nearest       min  sum_j w_j (W_ij - V_ij)^2        for each block of row i; w: the importance of a column
    compensated   min  tr((W - V) H (W - V)^T)          H = X^T X of the rows X that the matrix is multiplied with

With H + damping = M D M^T, M unit upper triangular, the second is  sum_j D_j |(W - V) M|_j^2: column j is rounded to
V_j near W_j + sum over i < j of (W - V)_i M_ij, in order. That is LDLQ (Chee et al., 2023, arXiv:2307.13304) and GPTQ
(Frantar et al., 2022, arXiv:2210.17323). Then sweeps of coordinate descent go over all quants under the same scales.
Scales are chosen when the first column of a block comes up, from what the columns before it left to make up.

Both are deterministic, and rows never see one another.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from lattice.dtypes import BY_NAME, Array, DType, dense, encode
from lattice.dtypes._planes import as_bytes, inverse, pack_planes, to_f16
from lattice.dtypes.blocks import Q4_0_LAYOUT, Q4_1_LAYOUT, Q5_0_LAYOUT, Q5_1_LAYOUT, Q8_0_LAYOUT
from lattice.dtypes.kquants import Q4_K_LAYOUT, Q5_K_LAYOUT, Q6_K_LAYOUT, pack_scales_and_mins
from lattice.errors import LatticeWarning, expected

SLAB = 1 << 18  # values that are looked at together
TRIED = np.linspace(-1.5, 1.5, 13, dtype=np.float32)  # steps more or fewer than those that span a group
DAMPING = 0.01  # of the mean of H's diagonal
SWEEPS = 2  # of coordinate descent
ROWS = 1024  # rows that are compensated together


@dataclass(frozen=True)
class _Form:
    """How a format writes x = scale * q - low: q in lowest..highest, `groups` scales a block, lows if `affine`."""

    layout: np.dtype
    lowest: int
    highest: int
    affine: bool = False
    groups: int = 1
    widths: tuple[int, int, int] = (16, 1, 1)  # of planes of the low 4 bits and of the high bits; how many these are


FORMS = {
    "q8_0": _Form(Q8_0_LAYOUT, -127, 127),
    "q4_0": _Form(Q4_0_LAYOUT, -8, 7),
    "q5_0": _Form(Q5_0_LAYOUT, -16, 15),
    "q4_1": _Form(Q4_1_LAYOUT, 0, 15, True),
    "q5_1": _Form(Q5_1_LAYOUT, 0, 31, True),
    "q4_k": _Form(Q4_K_LAYOUT, 0, 15, True, 8, (32, 32, 1)),
    "q5_k": _Form(Q5_K_LAYOUT, 0, 31, True, 8, (32, 32, 1)),
    "q6_k": _Form(Q6_K_LAYOUT, -32, 31, False, 16, (64, 32, 2)),
}


@dataclass
class _Grid:
    """The values that blocks can hold once their scales are stored: scale * q - low.   scale, low: (..., groups)"""

    block: np.ndarray  # (...,) records whose quants are still empty
    scale: np.ndarray
    low: np.ndarray | None

    def quants(self, x: np.ndarray, form: _Form) -> np.ndarray:
        """Return the nearest quants of x (..., groups, each)."""
        shifted = x if self.low is None else x + self.low[..., None]
        return np.rint(shifted * inverse(self.scale)[..., None]).clip(form.lowest, form.highest)

    def values(self, quants: np.ndarray) -> np.ndarray:
        """Return what quants (..., groups, each) stand for."""
        made = quants * self.scale[..., None]
        return made if self.low is None else made - self.low[..., None]

    def pack(self, name: str, quants: np.ndarray) -> np.ndarray:
        """Return the blocks' bytes, (n, nbytes)."""
        form, block = FORMS[name], self.block.reshape(-1)
        if name == "q8_0":
            block["quants"] = quants.reshape(len(block), -1)
            return as_bytes(block)
        codes = (quants - form.lowest if not form.affine else quants).astype(np.uint8).reshape(len(block), -1)
        low, high, bits = form.widths
        block["quants"] = pack_planes(codes & 15, low, 4)
        if "high" in (form.layout.names or ()):
            block["high"] = pack_planes(codes >> 4, high, bits)
        return as_bytes(block)


def nearest(values: np.ndarray | Array, dtype: DType | str, importance: np.ndarray | None = None) -> Array:
    """Return a matrix (..., k) rounded into `dtype`, every group by the scale of least squared error found.

    `importance` (k,), at least 0, weighs the columns: the diagonal of H, or the mean square of what each is multiplied
    with. The error so weighed is in no block above that of `encode`; formats other than the 4- to 6-bit ones are
    `encode`'s own. Raises LatticeError as `encode` does.
    """
    dtype = BY_NAME[dtype] if isinstance(dtype, str) else dtype
    values = dense(values)
    if dtype.name not in FORMS or dtype.name == "q8_0":
        return encode(values, dtype)
    weights = _importance(importance, values.shape[-1], dtype)
    rows = values.reshape(-1, values.shape[-1])
    data = np.empty((len(rows), *dtype.buffer_shape(values.shape)[-2:]), np.uint8)
    step = max(1, SLAB // values.shape[-1])
    for start in range(0, len(rows), step):
        slab = rows[start : start + step]
        data[start : start + step] = _nearest(slab, dtype, weights)
    return Array(data.reshape(dtype.buffer_shape(values.shape)), dtype, values.shape)


def _importance(importance: np.ndarray | None, columns: int, dtype: DType) -> np.ndarray:
    """Return weights (blocks, groups, each) of mean 1, none of them 0."""
    form = FORMS[dtype.name]
    weights = np.ones(columns) if importance is None else np.asarray(importance, np.float64)
    if weights.shape != (columns,) or not np.isfinite(weights).all() or weights.min() < 0:
        raise expected("nearest", f"an importance of {columns} finite numbers of at least 0", weights.shape)
    weights = weights / (weights.mean() or 1) + 1e-4
    return weights.astype(np.float32).reshape(-1, form.groups, dtype.block // form.groups)


def _nearest(slab: np.ndarray, dtype: DType, weights: np.ndarray) -> np.ndarray:
    plain = encode(slab, dtype)  # refuses what does not fit
    form = FORMS[dtype.name]
    x = slab.reshape(len(slab), *weights.shape)
    grid = _grid(x, weights, dtype.name)
    quants = grid.quants(x, form)
    made = grid.pack(dtype.name, quants).reshape(plain.data.shape)
    ours, theirs = (_error(x - v, weights) for v in (grid.values(quants), dense(plain).reshape(x.shape)))
    return np.where((ours < theirs)[..., None], made, plain.data)


def _error(difference: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.einsum("...ge,...ge,...ge->...", difference, difference, weights, dtype=np.float64)


# ---- scales ----------------------------------------------------------------------------------------------------
def _grid(x: np.ndarray, weights: np.ndarray, name: str) -> _Grid:
    """Return the grid on which blocks x (..., groups, each) lie best; weights broadcast to x."""
    form = FORMS[name]
    magnitude = np.abs(x).max(axis=(-1, -2), keepdims=True)
    magnitude[magnitude == 0] = 1
    unit = x / magnitude
    unit[np.abs(unit) < 1e-9] = 0  # so that inverses stay finite
    block, magnitude = np.zeros(x.shape[:-2], form.layout), magnitude[..., 0]
    if name == "q8_0":
        block["scale"] = to_f16(name, magnitude[..., 0] / np.float32(127))
        return _Grid(block, _field(block, "scale"), None)
    if not form.affine:
        scale = _fit_centred(unit, weights, form) * magnitude
        if form.groups == 1:
            block["scale"] = to_f16(name, scale[..., 0])
            return _Grid(block, _field(block, "scale"), None)
        furthest = np.take_along_axis(scale, np.abs(scale).argmax(-1)[..., None], -1)[..., 0]
        block["scale"] = to_f16(name, furthest / -128)
        block["scales"] = np.rint(scale * inverse(_field(block, "scale"))).clip(-128, 127)
        return _Grid(block, _field(block, "scale") * block["scales"], None)
    scale, low = _fit_affine(unit, weights, form.highest, bounded=form.groups > 1)
    scale, low = scale * magnitude, low * magnitude
    if form.groups == 1:
        block["scale"], block["low"] = to_f16(name, scale[..., 0]), to_f16(name, -low[..., 0])
        return _Grid(block, _field(block, "scale"), -_field(block, "low"))
    s, scale = _two_level(block, "scale", scale, name)
    # The best minimum for the scale as stored.
    q = _Grid(block, scale, low).quants(x, form)
    spared = scale[..., None] * q - x
    low = np.maximum((spared * weights).sum(-1) / np.broadcast_to(weights, x.shape).sum(-1), 0)
    m, low = _two_level(block, "low", low, name)
    block["scales"] = pack_scales_and_mins(s.reshape(-1, 8), m.reshape(-1, 8)).reshape(*s.shape[:-1], 12)
    return _Grid(block, scale, low)


def _field(block: np.ndarray, name: str) -> np.ndarray:
    return block[name].astype(np.float32)[..., None]


def _two_level(block: np.ndarray, field: str, part: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Store the largest of a super-block's parts as 63 steps; return the codes of all and what they stand for."""
    block[field] = to_f16(name, part.max(-1) / 63)
    stored = _field(block, field)
    codes = np.rint(part * inverse(stored)).clip(0, 63).astype(np.uint8)
    return codes, stored * codes


def _sum(*factors: np.ndarray) -> np.ndarray:
    return np.einsum(",".join(["...i"] * len(factors)) + "->...", *factors)


def _fit_centred(x: np.ndarray, weights: np.ndarray, form: _Form) -> np.ndarray:
    """Return the signed scales (..., groups) such that x (..., groups, each) is near scale * q."""
    furthest = np.take_along_axis(x, np.abs(x).argmax(-1)[..., None], -1)
    back, weighted = inverse(furthest), x * weights
    best, gain = furthest[..., 0] / form.lowest, np.zeros(x.shape[:-1], np.float32)
    for end in (form.lowest, form.highest):
        for more in TRIED:
            q = np.rint(x * (back * (end + (more if end > 0 else -more)))).clip(form.lowest, form.highest)
            along, square = _sum(weighted, q), _sum(weights * q, q)
            scale = along * inverse(square)
            better = along * scale > gain
            best, gain = np.where(better, scale, best), np.where(better, along * scale, gain)
    return best


def _fit_affine(x: np.ndarray, weights: np.ndarray, steps: int, bounded: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return scales and lows (..., groups) such that x is near scale * q - low; bounded: no low is below 0."""
    least = np.minimum(x.min(-1), 0) if bounded else x.min(-1)
    span = x.max(-1) - least
    back, weighted = inverse(span), x * weights
    count, total = np.broadcast_to(weights, x.shape).sum(-1), weighted.sum(-1)
    best = [span / steps, -least, np.full_like(least, np.inf)]
    for more in TRIED:
        q = np.rint((x - least[..., None]) * ((steps + more) * back)[..., None]).clip(0, steps)
        weighed = weights * q
        sum_q, sum_qq, sum_xq = weighed.sum(-1), _sum(weighed, q), _sum(weighted, q)
        determinant = inverse(count * sum_qq - sum_q * sum_q)
        scale = (count * sum_xq - total * sum_q) * determinant
        low = (sum_q * sum_xq - sum_qq * total) * determinant
        if bounded:
            scale, low = np.where(low < 0, sum_xq * inverse(sum_qq), scale), np.maximum(low, 0)
        difference = scale[..., None] * q - low[..., None] - x
        error = _sum(difference * weights, difference)
        better = (error < best[2]) & (scale > 0)
        best = [np.where(better, new, old) for new, old in zip((scale, low, error), best, strict=True)]
    return best[0], best[1]


# ---- compensation ----------------------------------------------------------------------------------------------
def compensated(values: np.ndarray | Array, dtype: DType | str, hessian: np.ndarray, *, sweeps: int = SWEEPS) -> Array:
    """Return a matrix (n, k) rounded into `dtype` so that what it makes of its inputs changes least.

    `hessian` (k, k) is X^T X of the inputs X (rows, k), in any scale. Inputs that were never active (H_jj = 0) are
    rounded like any other, without pull on the rest. Where H is all 0, not finite or not positive even when damped,
    the matrix is rounded by `nearest`, with a LatticeWarning.
    """
    dtype = BY_NAME[dtype] if isinstance(dtype, str) else dtype
    values = dense(values)
    if dtype.name not in FORMS:
        raise expected("compensated", f"a format among {', '.join(FORMS)}", dtype.name)
    if values.ndim != 2 or hessian.shape != (values.shape[1],) * 2:
        raise expected("compensated", "a matrix (n, k) and its H (k, k)", f"{values.shape} and {hessian.shape}")
    if not np.isfinite(values).all():
        raise expected("compensated", "finite values", "NaN or infinity")
    damped, factor = _factor(np.asarray(hessian, np.float64))
    if factor is None:
        warnings.warn("[compensated] H is not usable: rounded to nearest", LatticeWarning, stacklevel=2)
        return nearest(values, dtype)
    plan = _Plan.of(dtype, damped, factor)
    parts = [plan.round(values[start : start + ROWS], sweeps) for start in range(0, len(values), ROWS)]
    return Array(np.concatenate(parts), dtype, values.shape)


def _factor(hessian: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return damped H of mean diagonal 1 and its upper factor U, H = U U^T; None where there is none."""
    mean = hessian.diagonal().mean()
    if not np.isfinite(hessian).all() or not mean > 0:
        return hessian, None
    damped = hessian / mean
    damped[np.diag_indices_from(damped)] += DAMPING
    try:
        return damped, np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
    except np.linalg.LinAlgError:
        return damped, None


@dataclass(frozen=True)
class _Plan:
    """What all rows of a matrix share."""

    dtype: DType
    hessian: np.ndarray  # (k, k) float32, damped
    pull: np.ndarray  # M (k, k) float32
    weights: np.ndarray  # D (blocks, groups, each)

    @classmethod
    def of(cls, dtype: DType, hessian: np.ndarray, factor: np.ndarray) -> _Plan:
        diagonal = factor.diagonal()
        pull = (factor / diagonal).astype(np.float32)
        return cls(dtype, hessian.astype(np.float32), pull, _importance(diagonal**2, len(diagonal), dtype))

    def round(self, rows: np.ndarray, sweeps: int) -> np.ndarray:
        """Return the bytes (n, blocks, nbytes) of rows (n, k)."""
        name, size = self.dtype.name, self.dtype.block
        columns = np.ascontiguousarray(rows.T, np.float32)  # a column of the matrix is a row here
        errors, quants, grids = np.zeros_like(columns), np.empty_like(columns), []
        for start in range(0, len(columns), size):
            span = slice(start, start + size)
            target = columns[span] + self.pull[:start, span].T @ errors[:start]
            weights = self.weights[start // size]
            grid = _grid(np.ascontiguousarray(target.T).reshape(-1, *weights.shape), weights, name)
            grids.append(grid)
            stepper = _Stepper(grid, FORMS[name], size)
            pull = self.pull[span, span]
            for j in range(size):
                wanted = target[j] + pull[:j, j] @ errors[start : start + j]
                quants[start + j], made = stepper(j, wanted)
                errors[start + j] = columns[start + j] - made
        for _ in range(sweeps):
            self._sweep(columns, errors, quants, grids)
        packed = [
            grid.pack(name, np.ascontiguousarray(quants[i * size : (i + 1) * size].T)) for i, grid in enumerate(grids)
        ]
        return np.stack(packed, 1)

    def _sweep(self, columns: np.ndarray, errors: np.ndarray, quants: np.ndarray, grids: list[_Grid]) -> None:
        """Move every quant in turn to where the whole error is least, all others held."""
        size = self.dtype.block
        for index, grid in enumerate(grids):
            start, span = index * size, slice(index * size, (index + 1) * size)
            stepper, local = _Stepper(grid, FORMS[self.dtype.name], size), self.hessian[span, span]
            before = errors[span].copy()
            outside = self.hessian[span] @ errors - local @ before
            for j in range(size):
                own = local[j, j] * errors[start + j]
                pulled = outside[j] + local[j] @ errors[span] - own
                wanted = columns[start + j] + pulled / local[j, j]
                quants[start + j], made = stepper(j, wanted)
                errors[start + j] = columns[start + j] - made


class _Stepper:
    """Rounds one column of a block at a time."""

    def __init__(self, grid: _Grid, form: _Form, size: int):
        self.form, self.each = form, size // form.groups
        self.scale = np.ascontiguousarray(grid.scale.T)
        self.back = inverse(self.scale)
        self.low = None if grid.low is None else np.ascontiguousarray(grid.low.T)

    def __call__(self, j: int, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the quants of column j, and what they stand for."""
        group = j // self.each
        if self.low is None:
            q = np.rint(wanted * self.back[group]).clip(self.form.lowest, self.form.highest)
            return q, q * self.scale[group]
        q = np.rint((wanted + self.low[group]) * self.back[group]).clip(self.form.lowest, self.form.highest)
        return q, q * self.scale[group] - self.low[group]
