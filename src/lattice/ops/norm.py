"""Normalisation of rows: root mean square (RMSNorm) and mean and variance (LayerNorm)."""

from __future__ import annotations

import numpy as np

from lattice.dtypes import dense
from lattice.ops._op import expect, op
from lattice.ops.basic import sum_rows

WIDTHS = ((1, 1), (3, 7), (2, 8), (3, 33), (5, 64), (2, 384))


@op
def rms_norm(x, weight, *, eps):
    """Scale every group of n values to unit root mean square, then by `weight`.

        x: (..., groups * n)   weight: (n,)        x / sqrt(mean(x^2) + eps) * weight

    One group is the usual RMSNorm; several are the per-head norms of queries and keys.

    >>> rms_norm(np.float32([[3, 4]]), np.ones(2, np.float32), eps=0).round(3)
    array([[0.849, 1.131]], dtype=float32)
    """
    weight = dense(weight)
    groups = x.reshape(*x.shape[:-1], -1, weight.shape[0])
    return (groups * _scale(groups, eps) * weight).reshape(x.shape)


def _scale(groups, eps):
    return 1 / np.sqrt(np.mean(groups * groups, -1, keepdims=True) + eps)


@rms_norm.shape
def _(x, weight, *, eps):
    expect(len(weight) == 1 and x[-1] % weight[0] == 0, f"weight of shape (n,), n dividing {x[-1]}", weight)
    return x


@rms_norm.vjp
def _(needs, dy, x, weight, *, eps):
    if "x" in needs:
        yield "x", rms_norm_dx(dy, x, weight, eps=eps)
    if "weight" in needs:
        yield "weight", rms_norm_dw(dy, x, weight, eps=eps)


@rms_norm.samples
def _(draw):
    for rows, n in WIDTHS:
        yield draw.sample(draw.rows(rows, n), draw.weight(n, offset=1), eps=1e-5)
        yield draw.sample(draw.rows(rows, 3 * n), draw.weight(n, offset=1), eps=1e-6)


@op
def rms_norm_dx(dy, x, weight, *, eps):
    """Gradient of `rms_norm` with respect to x."""
    weight = dense(weight)
    shape = (*x.shape[:-1], -1, weight.shape[0])
    groups, g = x.reshape(shape), dy.reshape(shape) * weight
    r = _scale(groups, eps)
    return (r * g - groups * r**3 * np.mean(g * groups, -1, keepdims=True)).reshape(x.shape)


@rms_norm_dx.shape
def _(dy, x, weight, *, eps):
    return x


@op
def rms_norm_dw(dy, x, weight, *, eps):
    """Gradient of `rms_norm` with respect to weight; of weight only the shape is used."""
    n = weight.shape[0]
    groups = x.reshape(-1, n)
    return np.sum(dy.reshape(-1, n) * groups * _scale(groups, eps), 0)


@rms_norm_dw.shape
def _(dy, x, weight, *, eps):
    return weight


@op
def layer_norm(x, weight, bias, *, eps):
    """Shift every row to zero mean, scale it to unit variance, then apply `weight` and `bias`.

        x: (..., n)   weight, bias: (n,)        (x - mean) / sqrt(variance + eps) * weight + bias

    >>> layer_norm(np.float32([[1, 3]]), np.ones(2, np.float32), np.zeros(2, np.float32), eps=0)
    array([[-1.,  1.]], dtype=float32)
    """
    return _standardize(x, eps)[0] * dense(weight) + dense(bias)


def _standardize(x, eps):
    centred = x - x.mean(-1, keepdims=True)
    r = 1 / np.sqrt(np.mean(centred * centred, -1, keepdims=True) + eps)
    return centred * r, r


@layer_norm.shape
def _(x, weight, bias, *, eps):
    expect(weight == x[-1:] and bias == x[-1:], f"weight and bias of shape {x[-1:]}", (weight, bias))
    return x


@layer_norm.vjp
def _(needs, dy, x, weight, bias, *, eps):
    if "x" in needs:
        yield "x", layer_norm_dx(dy, x, weight, eps=eps)
    if "weight" in needs:
        yield "weight", layer_norm_dw(dy, x, eps=eps)
    if "bias" in needs:
        yield "bias", sum_rows(dy)


@layer_norm.samples
def _(draw):
    for rows, n in WIDTHS:
        yield draw.sample(draw.rows(rows, n), draw.weight(n, offset=1), draw.weight(n), eps=1e-5)


@op
def layer_norm_dx(dy, x, weight, *, eps):
    """Gradient of `layer_norm` with respect to x."""
    unit, r = _standardize(x, eps)
    g = dy * dense(weight)
    return r * (g - g.mean(-1, keepdims=True) - unit * np.mean(g * unit, -1, keepdims=True))


@layer_norm_dx.shape
def _(dy, x, weight, *, eps):
    return x


@op
def layer_norm_dw(dy, x, *, eps):
    """Gradient of `layer_norm` with respect to weight."""
    n = x.shape[-1]
    return np.sum((dy * _standardize(x, eps)[0]).reshape(-1, n), 0)


@layer_norm_dw.shape
def _(dy, x, *, eps):
    return x[-1:]


def normalize_rows(x, weight, bias, norm, eps):
    """Return x normalised as the prologue of `project` does it: norm is "rms" or "layer"."""
    if norm == "rms":
        return rms_norm.body(x, weight, eps=eps)
    return layer_norm.body(x, weight, bias, eps=eps)
