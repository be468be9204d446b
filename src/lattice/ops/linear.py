"""Products with a weight matrix: `linear`, its gradients, and `project`, the fused form that backends run.

A weight is stored (outputs, inputs), as checkpoints do: y = x W^T + b.
"""

from __future__ import annotations

import numpy as np

from lattice.dtypes import dense
from lattice.ops._op import expect, op
from lattice.ops.basic import activate, sum_rows
from lattice.ops.norm import normalize_rows

SIZES = ((1, 1, 1), (1, 33, 64), (3, 17, 33), (7, 48, 96), (64, 40, 40))  # (rows, outputs, inputs)


@op
def linear(x, weight, bias=None):
    """Return x @ weight.T + bias.      x: (..., k)   weight: (n, k)   bias: (n,)   ->   (..., n)

    >>> linear(np.float32([[1, 2]]), np.float32([[1, 0], [0, 1], [1, 1]]), np.float32([0, 0, 10]))
    array([[ 1.,  2., 13.]], dtype=float32)
    """
    y = x @ dense(weight).T
    return y if bias is None else y + dense(bias)


@linear.shape
def _(x, weight, bias):
    expect(len(weight) == 2 and x[-1] == weight[1], f"weight of shape (n, {x[-1]})", weight)
    expect(bias is None or bias == weight[:1], f"bias of shape {weight[:1]}", bias)
    return (*x[:-1], weight[0])


@linear.vjp
def _(needs, dy, x, weight, bias):
    if "x" in needs:
        yield "x", linear_dx(dy, weight)
    if "weight" in needs:
        yield "weight", linear_dw(dy, x)
    if "bias" in needs:
        yield "bias", sum_rows(dy)


@linear.samples
def _(draw):
    for rows, n, k in SIZES:
        yield draw.sample(draw.rows(rows, k), draw.weight(n, k))
        yield draw.sample(draw.rows(rows, k), draw.weight(n, k), draw.weight(n))


@linear.flops
def _(x, weight, bias):
    return 2 * int(np.prod(x[:-1])) * weight[0] * weight[1]


@op
def linear_dx(dy, weight):
    """Gradient of `linear` with respect to x: dy @ weight.      dy: (..., n)   weight: (n, k)   ->   (..., k)"""
    return dy @ dense(weight)


@linear_dx.shape
def _(dy, weight):
    return (*dy[:-1], weight[1])


@op
def linear_dw(dy, x):
    """Gradient of `linear` with respect to weight: dy.T @ x.      dy: (rows, n)   x: (rows, k)   ->   (n, k)"""
    return dy.T @ x


@linear_dw.shape
def _(dy, x):
    return (dy[-1], x[-1])


@op
def project(
    x, norm_weight, norm_bias, residual, w1, b1=None, w2=None, b2=None, w3=None, b3=None, w4=None, b4=None,
    *, norm, eps, kind, gated,
):  # fmt: skip
    """Several products of one (normalised) input with what follows them: the fused form of `linear`.

    x' = norm(x) ("rms", "layer" or None); y_i = x' w_i^T + b_i. Gated: the one result is activation(y_1) * y_2.
    Otherwise every y_i passes the activation `kind` (None: identity), and `residual` is added to the only result.
    Siblings share the normalised, quantised x; nothing between the steps is ever stored.

        x: (rows, k)   w_i: (n_i, k)   b_i: (n_i,)   residual: (rows, n_1)   ->   y_i: (rows, n_i)
    """
    if norm:
        x = normalize_rows(x, dense(norm_weight), None if norm_bias is None else dense(norm_bias), norm, eps)
    pairs = [(w, b) for w, b in ((w1, b1), (w2, b2), (w3, b3), (w4, b4)) if w is not None]
    results = [linear.body(x, w, b) for w, b in pairs]
    if gated:
        results = [activate(results[0], kind) * results[1]]
    elif kind:
        results = [activate(y, kind) for y in results]
    if residual is not None:
        results = [results[0] + residual]
    return results[0] if len(results) == 1 else tuple(results)


@project.shape
def _(x, norm_weight, norm_bias, residual, w1, b1, w2, b2, w3, b3, w4, b4, *, norm, eps, kind, gated):
    weights = [w for w in (w1, w2, w3, w4) if w is not None]
    for w in weights:
        expect(len(w) == 2 and w[1] == x[-1], f"weights of shape (n, {x[-1]})", w)
    shapes = [(*x[:-1], w[0]) for w in weights]
    if gated:
        expect(len(shapes) == 2 and shapes[0] == shapes[1], "two equal weights for a gated product", weights)
        shapes = shapes[:1]
    if residual is not None:
        expect(shapes == [residual], f"a residual of shape {shapes[0]}", residual)
    return shapes


@project.flops
def _(x, norm_weight, norm_bias, residual, w1, b1, w2, b2, w3, b3, w4, b4, *, norm, eps, kind, gated):
    return sum(linear.rules["flops"](x, w, None) for w in (w1, w2, w3, w4) if w is not None)


@project.samples
def _(draw):
    for rows, n, k in SIZES:
        x, norm, shift, residual = (draw.rows(rows, k), draw.weight(k, offset=1), draw.weight(k), draw.rows(rows, n))
        w, b = draw.weight(n, k), draw.weight(n)
        plain = {"norm": None, "eps": 1e-6, "kind": None, "gated": False}
        yield draw.sample(x, None, None, None, w, b, draw.weight(n + 1, k), None, draw.weight(5, k), None, **plain)
        yield draw.sample(x, norm, None, None, w, None, w, b, **plain | {"norm": "rms"})
        four = w, b, draw.weight(n + 1, k), None, draw.weight(5, k), None, draw.weight(1, k), draw.weight(1)
        yield draw.sample(x, norm, None, None, *four, **plain | {"norm": "rms"})
        yield draw.sample(x, norm, None, None, w, b, w, None, **plain | {"norm": "rms", "kind": "silu", "gated": True})
        yield draw.sample(x, norm, shift, None, w, b, **plain | {"norm": "layer", "kind": "gelu"})
        yield draw.sample(x, None, None, residual, w, b, **plain)
