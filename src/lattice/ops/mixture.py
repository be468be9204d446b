"""Mixture of experts: `route` chooses the experts of every token, `mixture` is what they make of it, `gate_rows` scales
rows by a gate, as the shared expert's is.

    route:    p = softmax(logits); the top_k largest (equal ones: the lower id), divided by their sum
    mixture:  y = sum_j weights_j * down_e (activation(gate_e x) * up_e x),  e = ids_j, in the order of j

A token whose logits are not all finite has no routed part: its weights are 0, and an expert of weight 0 adds nothing,
not even the NaN that 0 times infinity would be. (Shazeer et al., 2017; Fedus et al., 2021; renormalised as Qwen does.)
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lattice.dtypes import Array, dense
from lattice.ops._op import Drawn, expect, op
from lattice.ops.basic import activate, slope


@op(dtype=("i32", "f32"))
def route(logits, *, top_k):
    """Return the experts of every token and their weights.

        logits: (T, experts)   ->   ids (T, top_k) int32, weights (T, top_k), largest first, of sum 1

    A row with a logit that is not finite gets the ids 0 to top_k - 1 and weights 0.

    >>> ids, weights = route(np.log(np.float32([[1, 6, 1, 2]])), top_k=2)
    >>> ids, weights.round(3)
    (array([[1, 3]], dtype=int32), array([[0.75, 0.25]], dtype=float32))
    """
    finite = np.isfinite(logits).all(-1, keepdims=True)
    x = np.where(finite, logits, 0)
    ids = np.argsort(-x, axis=-1, kind="stable")[:, :top_k]
    chosen = np.take_along_axis(x, ids, -1)
    with np.errstate(over="ignore"):
        weights = np.exp(chosen - chosen[:, :1])
    return ids.astype(np.int32), np.where(finite, weights / weights.sum(-1, keepdims=True), 0).astype(logits.dtype)


@route.shape
def _(logits, *, top_k):
    expect(len(logits) == 2, "logits of shape (T, experts)", logits)
    expect(1 <= top_k <= logits[1], f"top_k from 1 to {logits[1]}", top_k)
    return [(logits[0], top_k), (logits[0], top_k)]


@route.vjp
def _(needs, dy, logits, *, top_k):
    yield "logits", route_dx(dy[1], logits, top_k=top_k)


@route.samples
def _(draw):
    for rows, experts, top_k in ((1, 1, 1), (3, 8, 2), (5, 33, 33), (64, 256, 8), (7, 17, 3)):
        yield draw.sample(draw.rows(rows, experts), top_k=top_k)
    ties = draw.rows(6, 20)
    ties.value[:] = np.round(ties.value)
    ties.value[0], ties.value[1], ties.value[2, 5] = 0, -3e38, 3e38
    yield draw.sample(ties, top_k=6)
    broken = draw.rows(5, 40)
    broken.value[0, 39], broken.value[1], broken.value[3, 0], broken.value[4, 7] = np.nan, np.nan, np.inf, -np.inf
    yield draw.sample(broken, top_k=4)


@op
def route_dx(dweights, logits, *, top_k):
    """Gradient of `route` with respect to logits: that of a softmax over the chosen ones."""
    ids, weights = route.body(logits, top_k=top_k)
    dx = np.zeros_like(logits)
    np.put_along_axis(dx, ids, weights * (dweights - (weights * dweights).sum(-1, keepdims=True)), -1)
    return dx


@route_dx.shape
def _(dweights, logits, *, top_k):
    return logits


def _groups(ids: np.ndarray, chosen: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield every expert that has `chosen` (token, place) pairs, and these."""
    for expert in np.unique(ids[chosen]):
        tokens, places = np.nonzero((ids == expert) & chosen)
        yield int(expert), tokens, places


def _of(weight: Array | np.ndarray, expert: int) -> np.ndarray:
    """Return one expert's matrix; the others of an Array are not unpacked."""
    if isinstance(weight, Array):
        return dense(weight.rows(slice(expert, expert + 1)))[0]
    return weight[expert]


def _halves(gate, up, expert):
    return np.split(_of(gate, expert), 2) if up is None else (_of(gate, expert), _of(up, expert))


@op
def mixture(x, ids, weights, gate, up, down, *, kind):
    """Return the weighted sum of what each token's experts make of it.

    x: (T, n)   ids: (T, top_k) int32   weights: (T, top_k)   gate, up: (experts, m, n)   down: (experts, n, m)
    up may be None: then gate is (experts, 2m, n), the rows of gate and then those of up.
    """
    y = np.zeros((*ids.shape, x.shape[-1]), x.dtype)
    for expert, tokens, places in _groups(ids, weights != 0):
        gated, raised = (x[tokens] @ w.T for w in _halves(gate, up, expert))
        made = (activate(gated, kind) * raised) @ _of(down, expert).T
        y[tokens, places] = weights[tokens, places, None] * made
    return y.sum(1)


@mixture.shape
def _(x, ids, weights, gate, up, down, *, kind):
    expect(len(ids) == 2 and ids[0] == x[0] and ids == weights, f"ids and weights of ({x[0]}, top_k)", (ids, weights))
    expect(len(gate) == 3 and gate[2] == x[-1], f"gate of shape (experts, m, {x[-1]})", gate)
    expect(up is None or up == gate, f"up of shape {gate}", up)
    expect(up is not None or gate[1] % 2 == 0, "gate and up as two halves", gate)
    wanted = (gate[0], x[-1], gate[1] // (2 if up is None else 1))
    expect(down == wanted, f"down of shape {wanted}", down)
    return x


@mixture.flops
def _(x, ids, weights, gate, up, down, *, kind):
    return 6 * int(np.prod(ids)) * down[1] * down[2]


@mixture.vjp
def _(needs, dy, x, ids, weights, gate, up, down, *, kind):
    if needs & {"x", "weights"}:
        dx, dweights = mixture_dx(dy, x, ids, weights, gate, up, down, kind=kind)
        yield "x", dx
        yield "weights", dweights
    if needs & {"gate", "up", "down"}:
        names = [name for name, w in (("gate", gate), ("up", up), ("down", down)) if w is not None]
        yield from zip(names, mixture_dw(dy, x, ids, weights, gate, up, down, kind=kind), strict=True)


@mixture.samples
def _(draw):
    shapes = (
        (1, 1, 1, 4, 8, "silu"),
        (1, 3, 8, 33, 64, "silu"),
        (7, 4, 2, 24, 17, "gelu"),
        (40, 16, 4, 16, 96, "silu"),
    )
    for rows, experts, top_k, m, n, kind in shapes:
        x, weights, down = draw.rows(rows, n), draw.rows(rows, top_k), draw.weight(experts, n, m)
        ids = Drawn("input", draw.random.integers(0, experts, (rows, top_k)).astype(np.int32), "T")
        yield draw.sample(x, ids, weights, draw.weight(experts, m, n), draw.weight(experts, m, n), down, kind=kind)
        yield draw.sample(x, ids, weights, draw.weight(experts, 2 * m, n), None, down, kind=kind)
    # One expert has every token, the others none; some weights are 0.
    ids, weights = Drawn("input", np.full((9, 1), 2, np.int32), "T"), draw.rows(9, 1)
    weights.value[3:5] = 0
    yield draw.sample(draw.rows(9, 32), ids, weights, draw.weight(3, 40, 32), None, draw.weight(3, 32, 20), kind="silu")


@op
def mixture_dx(dy, x, ids, weights, gate, up, down, *, kind):
    """Gradients of `mixture` with respect to x and weights."""
    dx, dweights = np.zeros_like(x), np.zeros_like(weights)
    for expert, tokens, places in _groups(ids, np.ones(ids.shape, bool)):
        matrices, back = _halves(gate, up, expert), dy[tokens] @ _of(down, expert)
        gated, raised = (x[tokens] @ w.T for w in matrices)
        dweights[tokens, places] = (back * activate(gated, kind) * raised).sum(-1)
        back = back * weights[tokens, places, None]
        np.add.at(dx, tokens, (back * slope(gated, kind) * raised) @ matrices[0])
        np.add.at(dx, tokens, (back * activate(gated, kind)) @ matrices[1])
    return dx, dweights


@mixture_dx.shape
def _(dy, x, ids, weights, gate, up, down, *, kind):
    return [x, weights]


@op
def mixture_dw(dy, x, ids, weights, gate, up, down, *, kind):
    """Gradients of `mixture` with respect to the experts: gate, up unless it is None, and down."""
    made = [np.zeros(w.shape, x.dtype) for w in (gate, up, down) if w is not None]
    for expert, tokens, places in _groups(ids, weights != 0):
        gated, raised = (x[tokens] @ w.T for w in _halves(gate, up, expert))
        arriving = dy[tokens] * weights[tokens, places, None]
        back = arriving @ _of(down, expert)
        halves = (back * slope(gated, kind) * raised).T @ x[tokens], (back * activate(gated, kind)).T @ x[tokens]
        for gradient, value in zip(made, (np.concatenate(halves),) if up is None else halves, strict=False):
            gradient[expert] = value
        made[-1][expert] = arriving.T @ (activate(gated, kind) * raised)
    return tuple(made)


@mixture_dw.shape
def _(dy, x, ids, weights, gate, up, down, *, kind):
    return [w for w in (gate, up, down) if w is not None]


@op
def gate_rows(x, gate):
    """Return x * sigmoid(gate), one gate a row.      x: (T, n)   gate: (T, 1)"""
    return x * _sigmoid(gate)


def _sigmoid(x):
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


@gate_rows.shape
def _(x, gate):
    expect(gate == (x[0], 1), f"gate of shape ({x[0]}, 1)", gate)
    return x


@gate_rows.vjp
def _(needs, dy, x, gate):
    if "x" in needs:
        yield "x", gate_rows(dy, gate)
    if "gate" in needs:
        yield "gate", gate_rows_dgate(dy, x, gate)


@gate_rows.samples
def _(draw):
    for rows, n in ((1, 1), (3, 33), (64, 384)):
        yield draw.sample(draw.rows(rows, n), draw.rows(rows, 1))
    large = draw.rows(4, 1)
    large.value[:, 0] = -1000, 1000, -90, 50
    yield draw.sample(draw.rows(4, 20), large)


@op
def gate_rows_dgate(dy, x, gate):
    """Gradient of `gate_rows` with respect to gate."""
    s = _sigmoid(gate)
    return (dy * x).sum(-1, keepdims=True) * s * (1 - s)


@gate_rows_dgate.shape
def _(dy, x, gate):
    return gate
