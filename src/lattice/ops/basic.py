"""Element-wise ops and row selection."""

from __future__ import annotations

import math

import numpy as np

from lattice.ops._op import expect, op

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "sigmoid")


@op
def add(x, y):
    """Return x + y.      x, y: the same shape"""
    return x + y


@add.shape
def _(x, y):
    expect(x == y, f"y of shape {x}", y)
    return x


@add.vjp
def _(needs, dy, x, y):
    yield "x", dy
    yield "y", dy


@add.samples
def _(draw):
    for rows, n in ((1, 1), (3, 33), (64, 384)):
        yield draw.sample(draw.rows(rows, n), draw.rows(rows, n))


@op
def mul(x, y):
    """Return x * y.      x, y: the same shape"""
    return x * y


@mul.shape
def _(x, y):
    expect(x == y, f"y of shape {x}", y)
    return x


@mul.vjp
def _(needs, dy, x, y):
    if "x" in needs:
        yield "x", mul(dy, y)
    if "y" in needs:
        yield "y", mul(dy, x)


@mul.samples
def _(draw):
    for rows, n in ((1, 1), (3, 33)):
        yield draw.sample(draw.rows(rows, n), draw.rows(rows, n))


@op
def scale(x, *, factor):
    """Return x * factor, a number.      x: any shape"""
    return x * np.float32(factor)


@scale.shape
def _(x, *, factor):
    return x


@scale.vjp
def _(needs, dy, x, *, factor):
    yield "x", scale(dy, factor=factor)


@scale.samples
def _(draw):
    for rows, n in ((1, 1), (3, 33), (64, 384)):
        yield draw.sample(draw.rows(rows, n), factor=25.298221281347036)


def erf(x: np.ndarray) -> np.ndarray:
    """Return the error function to about 1e-16, by `math.erf`: exact, slow, a reference."""
    return np.frompyfunc(math.erf, 1, 1)(x).astype(x.dtype)


def activate(x: np.ndarray, kind: str) -> np.ndarray:
    """Return the activation `kind` of x; gelu is the exact one, gelu_tanh its usual approximation."""
    if kind == "silu":
        return x / (1 + np.exp(-x))
    if kind == "sigmoid":
        return 1 / (1 + np.exp(-x))
    if kind == "relu":
        return np.maximum(x, 0)
    if kind == "gelu":
        return 0.5 * x * (1 + erf(x / math.sqrt(2)))
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def slope(x: np.ndarray, kind: str) -> np.ndarray:
    """Return the derivative of `activate`."""
    if kind in ("silu", "sigmoid"):
        sigmoid = 1 / (1 + np.exp(-x))
        return sigmoid * (1 + x * (1 - sigmoid)) if kind == "silu" else sigmoid * (1 - sigmoid)
    if kind == "relu":
        return (x > 0).astype(x.dtype)
    if kind == "gelu":
        return 0.5 * (1 + erf(x / math.sqrt(2))) + x * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    tanh = np.tanh(inner)
    return 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh**2) * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)


@op
def activation(x, *, kind):
    """Apply a nonlinearity to every element.      x: any shape; kind: one of ACTIVATIONS

    >>> activation(np.float32([-1, 0, 2]), kind="relu")
    array([0., 0., 2.], dtype=float32)
    """
    return activate(x, kind)


@activation.shape
def _(x, *, kind):
    expect(kind in ACTIVATIONS, f"kind among {', '.join(ACTIVATIONS)}", kind)
    return x


@activation.vjp
def _(needs, dy, x, *, kind):
    yield "x", activation_dx(dy, x, kind=kind)


@activation.samples
def _(draw):
    for kind in ACTIVATIONS:
        for rows, n in ((1, 1), (3, 33), (5, 384)):
            yield draw.sample(draw.rows(rows, n), kind=kind)


@op
def activation_dx(dy, x, *, kind):
    """Gradient of `activation` with respect to x."""
    return dy * slope(x, kind)


@activation_dx.shape
def _(dy, x, *, kind):
    return x


@op
def gated_activation(gate, up, *, kind):
    """Return activation(gate) * up, the gate of SwiGLU, GeGLU and gated attention (sigmoid).

    gate, up: the same shape
    """
    return activate(gate, kind) * up


@gated_activation.shape
def _(gate, up, *, kind):
    expect(gate == up, f"up of shape {gate}", up)
    return gate


@gated_activation.vjp
def _(needs, dy, gate, up, *, kind):
    if "gate" in needs:
        yield "gate", activation_dx(mul(dy, up), gate, kind=kind)
    if "up" in needs:
        yield "up", mul(dy, activation(gate, kind=kind))


@gated_activation.samples
def _(draw):
    for kind in ACTIVATIONS:
        yield draw.sample(draw.rows(3, 33), draw.rows(3, 33), kind=kind)


@op
def concat(x, y):
    """Return the rows of x, each with the same row of y behind it.      x, y: (T, n)   ->   (T, 2n)"""
    return np.concatenate([x, y], -1)


@concat.shape
def _(x, y):
    expect(x == y, f"y of shape {x}", y)
    return (*x[:-1], 2 * x[-1])


@concat.vjp
def _(needs, dy, x, y):
    yield from zip(("x", "y"), split_heads(dy, head_dim=x.shape[-1]), strict=True)


@concat.samples
def _(draw):
    for rows, n in ((1, 1), (3, 33), (5, 64)):
        yield draw.sample(draw.rows(rows, n), draw.rows(rows, n))


@op
def take_rows(x, rows):
    """Return the rows of x that `rows` names.      x: (T, n)   rows: (R,) int32   ->   (R, n)"""
    return x[rows]


@take_rows.shape
def _(x, rows):
    return (*rows, *x[1:])


@take_rows.vjp
def _(needs, dy, x, rows):
    yield "x", take_rows_dx(dy, x, rows)


@take_rows.samples
def _(draw):
    for total, wanted, n in ((1, 1, 1), (7, 3, 33), (130, 5, 64)):
        yield draw.sample(draw.rows(total, n), draw.ids(wanted, total, "R"))


@op
def take_rows_dx(dy, x, rows):
    """Gradient of `take_rows`: dy summed into the rows it came from; of x only the shape is used."""
    dx = np.zeros(x.shape, dy.dtype)
    np.add.at(dx, rows, dy)
    return dx


@take_rows_dx.shape
def _(dy, x, rows):
    return x


@op
def sum_rows(x):
    """Return the sum over the leading dimension.      x: (rows, n)   ->   (n,)"""
    return x.sum(0)


@sum_rows.shape
def _(x):
    return x[1:]


@op
def split_heads(x, *, head_dim):
    """Part a projection whose heads are pairs [Q_h | gate_h] into all queries and all gates.

    x: (T, heads * 2 * head_dim)   ->   two of (T, heads * head_dim)
    """
    pairs = x.reshape(x.shape[0], -1, 2, head_dim)
    return pairs[:, :, 0].reshape(x.shape[0], -1), pairs[:, :, 1].reshape(x.shape[0], -1)


@split_heads.shape
def _(x, *, head_dim):
    expect(x[-1] % (2 * head_dim) == 0, f"whole pairs of heads of {head_dim}", x)
    return [(*x[:-1], x[-1] // 2)] * 2


@split_heads.vjp
def _(needs, dy, x, *, head_dim):
    yield "x", split_heads_dx(*dy, head_dim=head_dim)


@split_heads.samples
def _(draw):
    for rows, heads, head_dim in ((1, 1, 1), (3, 2, 20), (7, 3, 64)):
        yield draw.sample(draw.rows(rows, heads * 2 * head_dim), head_dim=head_dim)


@op
def split_heads_dx(dq=None, dgate=None, *, head_dim):
    """Gradient of `split_heads`; one that is absent is zero."""
    given = dq if dq is not None else dgate
    parts = [np.zeros_like(given) if d is None else d for d in (dq, dgate)]
    return np.stack([d.reshape(d.shape[0], -1, head_dim) for d in parts], 2).reshape(given.shape[0], -1)


@split_heads_dx.shape
def _(dq, dgate, *, head_dim):
    given = dq if dq is not None else dgate
    return (*given[:-1], 2 * given[-1])
