"""From token states to one vector a sequence: pooling and unit length."""

from __future__ import annotations

import numpy as np

from lattice.ops._op import expect, op
from lattice.step import Step

POOLINGS = ("mean", "cls", "last")


@op
def pool(x, step, *, mode):
    """Reduce each sequence to one row: its mean, its first token (cls) or its last.      (T, n)   ->   (S, n)"""
    reduce = {"mean": lambda rows: rows.mean(0), "cls": lambda rows: rows[0], "last": lambda rows: rows[-1]}[mode]
    return np.stack([reduce(x[span]) for span in step.spans()])


@pool.shape
def _(x, step, *, mode):
    expect(mode in POOLINGS, f"mode among {', '.join(POOLINGS)}", mode)
    return (*step.slots, *x[1:])


@pool.vjp
def _(needs, dy, x, step, *, mode):
    yield "x", pool_dx(dy, x, step, mode=mode)


@pool.samples
def _(draw):
    for lengths in draw.lengths():
        for mode in POOLINGS:
            yield draw.sample(draw.rows(sum(lengths), 33), Step.of([[0] * n for n in lengths]), mode=mode)


@op
def pool_dx(dy, x, step, *, mode):
    """Gradient of `pool`; of x only the shape is used."""
    dx = np.zeros(x.shape, dy.dtype)
    for row, span in zip(dy, step.spans(), strict=True):
        if mode == "mean":
            dx[span] = row / (span.stop - span.start)
        else:
            dx[span.start if mode == "cls" else span.stop - 1] = row
    return dx


@pool_dx.shape
def _(dy, x, step, *, mode):
    return x


@op
def normalize(x):
    """Divide each row by its Euclidean length (at least 1e-12).      x: (rows, n)

    >>> normalize(np.float32([[3, 4]]))
    array([[0.6, 0.8]], dtype=float32)
    """
    return x / np.maximum(np.sqrt(np.sum(x * x, -1, keepdims=True)), 1e-12)


@normalize.shape
def _(x):
    return x


@normalize.vjp
def _(needs, dy, x):
    yield "x", normalize_dx(dy, x)


@normalize.samples
def _(draw):
    for rows, n in ((1, 1), (3, 33), (5, 384)):
        yield draw.sample(draw.rows(rows, n, count="S"))


@op
def normalize_dx(dy, x):
    """Gradient of `normalize`."""
    length = np.maximum(np.sqrt(np.sum(x * x, -1, keepdims=True)), 1e-12)
    y = x / length
    return (dy - y * np.sum(dy * y, -1, keepdims=True)) / length


@normalize_dx.shape
def _(dy, x):
    return x
