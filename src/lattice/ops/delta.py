"""The gated delta rule, the recurrence of linear attention: each value head keeps a matrix S (dk, dv) and each token

    S = decay * S;   S = S + k (beta * (v - S^T k))^T;   o = S^T q
    decay = exp(-exp(a_log) * softplus(a + dt_bias)),  beta = sigmoid(b)

with q and k scaled to length 1 within their head, x / sqrt(sum(x^2) + 1e-6), and q by 1 / sqrt(dk) as well.
Yang, Kautz, Hatamizadeh, "Gated Delta Networks", 2024; as Qwen3.5 computes it.

A token that holds no numbers does no harm to those behind it: a q or k of no finite length counts as zero, a decay that
is not a number as 1, a beta as 0, and a value of beta * (v - S^T k) that is not finite as 0.
"""

from __future__ import annotations

import numpy as np

from lattice.dtypes import dense
from lattice.ops._op import expect, op
from lattice.ops.conv import slot_steps
from lattice.step import Step

EPSILON = 1e-6


class _Tokens:
    """What the recurrence needs of every token: q, k (T, value_heads, dk), v (.., dv), decay, beta (T, value_heads)."""

    def __init__(self, qkv, a, b, a_log, dt_bias, key_heads, value_heads, key_dim, tiled):
        tokens, width = qkv.shape
        key_dim = key_dim or width // (2 * key_heads + value_heads)
        heads = np.arange(value_heads)
        self.key_head = heads % key_heads if tiled else heads // (value_heads // key_heads)
        parts = np.split(qkv, [key_heads * key_dim, 2 * key_heads * key_dim], 1)
        self.raw = [x.reshape(tokens, key_heads, key_dim) for x in parts[:2]]  # q and k before they are scaled
        q, k = (x * _inverse_length(x) for x in map(_finite, self.raw))
        self.q, self.k = (q * key_dim**-0.5)[:, self.key_head], k[:, self.key_head]
        self.v = parts[2].reshape(tokens, value_heads, -1)
        self.gate = a + dense(dt_bias)
        self.log_decay = -np.exp(dense(a_log)) * np.logaddexp(0, self.gate)
        decay, beta = np.exp(self.log_decay), np.exp(-np.logaddexp(0, -b))
        self.decay, self.beta = np.where(np.isnan(decay), 1, decay), np.where(np.isnan(beta), 0, beta)

    def advance(self, state, t):
        """Return the state behind token t, and what the token added along k.      state: (value_heads, dk, dv)"""
        state = self.decay[t][:, None, None] * state
        error = self.v[t] - np.einsum("hkv,hk->hv", state, self.k[t])
        change = self.beta[t][:, None] * error
        change = np.where(np.isfinite(change), change, 0)
        return state + self.k[t][:, :, None] * change[:, None, :], change

    def run(self, state, span, out, keep):
        """Go through the tokens of `span`, fill their rows of `out`, and call keep(t, state) behind each."""
        for t in range(span.start, span.stop):
            state, _ = self.advance(state, t)
            out[t] = np.einsum("hkv,hk->hv", state, self.q[t]).reshape(-1)
            keep(t, state)

    def empty(self):
        """Return the state before the first token."""
        return np.zeros((*self.k.shape[1:], self.v.shape[2]), self.v.dtype)


def _finite(x):
    """Return x with zeros for vectors whose length is not finite."""
    return np.where(np.isfinite(np.sum(x * x, -1, keepdims=True)), x, 0)


def _inverse_length(x):
    return 1 / np.sqrt(np.sum(x * x, -1, keepdims=True) + EPSILON)


def _expect(qkv, a, b, a_log, dt_bias, key_heads, value_heads, key_dim):
    """Check the shapes and return (dk, dv)."""
    expect(value_heads % key_heads == 0, f"value heads that {key_heads} key heads divide", value_heads)
    key_dim = key_dim or qkv[-1] // (2 * key_heads + value_heads)
    values = qkv[-1] - 2 * key_heads * key_dim
    wanted = f"qkv of width 2 * {key_heads} * {key_dim} + {value_heads} * value_dim"
    expect(values > 0 and values % value_heads == 0, wanted, qkv)
    expect(a == (*qkv[:-1], value_heads) and a == b, f"a and b of shape {(*qkv[:-1], value_heads)}", (a, b))
    expect(a_log == dt_bias == (value_heads,), f"a_log and dt_bias of shape ({value_heads},)", (a_log, dt_bias))
    return key_dim, values // value_heads


@op
def gated_delta(qkv, a, b, a_log, dt_bias, step, *, key_heads, value_heads, key_dim=0, tiled=False):
    """Run the gated delta rule over each sequence of the step from a state of zeros.

    qkv: (T, 2 * key_heads * dk + value_heads * dv), Q | K | V   a, b: (T, value_heads)   a_log, dt_bias: (value_heads,)
    ->   (T, value_heads * dv)

    `key_dim` is dk; 0 says that dk = dv. Value head h uses key head h // (value_heads / key_heads), or, if `tiled`,
    h % key_heads.
    """
    tokens = _Tokens(qkv, a, b, a_log, dt_bias, key_heads, value_heads, key_dim, tiled)
    out = np.zeros((qkv.shape[0], tokens.v[0].size), qkv.dtype)
    for span in step.spans():
        tokens.run(tokens.empty(), span, out, lambda t, state: None)
    return out


@gated_delta.shape
def _(qkv, a, b, a_log, dt_bias, step, *, key_heads, value_heads, key_dim, tiled):
    _, dv = _expect(qkv, a, b, a_log, dt_bias, key_heads, value_heads, key_dim)
    return (*qkv[:-1], value_heads * dv)


@gated_delta.vjp
def _(needs, dy, qkv, a, b, a_log, dt_bias, step, **attributes):
    gradients = gated_delta_grad(dy, qkv, a, b, a_log, dt_bias, step, **attributes)
    yield from zip(("qkv", "a", "b", "a_log", "dt_bias"), gradients, strict=True)


SIZES = ((1, 1, 1, 1, False), (2, 2, 8, 20, False), (1, 3, 16, 8, False), (2, 4, 20, 40, True))  # heads, dk, dv, tiled


def _inputs(draw, tokens, key_heads, value_heads, dk, dv):
    qkv = draw.rows(tokens, 2 * key_heads * dk + value_heads * dv)
    a, b = (draw.rows(tokens, value_heads) for _ in range(2))
    return qkv, a, b, draw.weight(value_heads), draw.weight(value_heads)


@gated_delta.samples
def _(draw):
    for lengths in draw.lengths():
        step = Step.of([[0] * n for n in lengths])
        for key_heads, value_heads, dk, dv, tiled in SIZES:
            inputs = _inputs(draw, sum(lengths), key_heads, value_heads, dk, dv)
            heads = {"key_heads": key_heads, "value_heads": value_heads}
            yield draw.sample(*inputs, step, **heads, key_dim=0 if dk == dv else dk, tiled=tiled)


@gated_delta.flops
def _(qkv, a, b, a_log, dt_bias, step, *, key_heads, value_heads, key_dim, tiled):
    key_dim = key_dim or qkv[1] // (2 * key_heads + value_heads)
    return 7 * qkv[0] * key_dim * (qkv[1] - 2 * key_heads * key_dim)


@op
def gated_delta_grad(dy, qkv, a, b, a_log, dt_bias, step, *, key_heads, value_heads, key_dim=0, tiled=False):
    """Gradients of `gated_delta` with respect to qkv, a, b, a_log and dt_bias, making the states anew in blocks."""
    tokens = _Tokens(qkv, a, b, a_log, dt_bias, key_heads, value_heads, key_dim, tiled)
    dy = dy.reshape(tokens.v.shape)
    dq, dk, dv = (np.zeros_like(x) for x in (tokens.q, tokens.k, tokens.v))
    ddecay, dbeta = np.zeros_like(tokens.decay), np.zeros_like(tokens.beta)

    def back(t, before, dstate):
        """Take token t back: fill its gradients and return that of the state before it."""
        q, k, decay, beta = tokens.q[t], tokens.k[t], tokens.decay[t][:, None], tokens.beta[t][:, None]
        state, change = tokens.advance(before, t)
        dstate = dstate + q[:, :, None] * dy[t][:, None, :]
        dq[t] = np.einsum("hkv,hv->hk", state, dy[t])
        dchange = np.einsum("hkv,hk->hv", dstate, k)
        decayed = decay[:, :, None] * before
        dbeta[t] = np.sum(dchange * (tokens.v[t] - np.einsum("hkv,hk->hv", decayed, k)), -1)
        dv[t] = beta * dchange
        dk[t] = np.einsum("hkv,hv->hk", dstate, change) - np.einsum("hkv,hv->hk", decayed, dv[t])
        dstate = dstate - k[:, :, None] * dv[t][:, None, :]
        ddecay[t] = np.sum(dstate * before, (1, 2))
        return decay[:, :, None] * dstate

    for span in step.spans():
        dstate = tokens.empty()
        starts = range(span.start, span.stop, BLOCK)
        entering = _states(tokens, tokens.empty(), span.start, span.stop, BLOCK)
        for start, state in reversed(list(zip(starts, entering, strict=True))):
            befores = _states(tokens, state, start, min(start + BLOCK, span.stop), 1)
            for t, before in reversed(list(enumerate(befores, start))):
                dstate = back(t, before, dstate)
    return _to_inputs(tokens, dq, dk, dv, ddecay, dbeta, dense(a_log))


BLOCK = 64  # tokens whose states are held at once


def _states(tokens, state, start, stop, every):
    """Return the state before each `every`-th token."""
    found = []
    for t in range(start, stop):
        if (t - start) % every == 0:
            found.append(state)
        state, _ = tokens.advance(state, t)
    return found


def _to_inputs(tokens, dq, dk, dv, ddecay, dbeta, a_log):
    """Take the gradients of q, k, v, decay and beta back to qkv, a, b, a_log and dt_bias."""
    dq = dq * tokens.q.shape[-1] ** -0.5
    parts = []
    for x, heads in zip(tokens.raw, (dq, dk), strict=True):
        x, dunit = _finite(x), np.zeros_like(x)
        for head, key_head in enumerate(tokens.key_head):
            dunit[:, key_head] += heads[:, head]
        r = _inverse_length(x)
        parts.append(r * dunit - x * r**3 * np.sum(x * dunit, -1, keepdims=True))
    rows = len(dv)
    dqkv = np.concatenate([d.reshape(rows, -1) for d in (*parts, dv)], 1)
    dlog = ddecay * tokens.decay
    da = -np.exp(a_log) * dlog * np.exp(-np.logaddexp(0, -tokens.gate))
    db = dbeta * tokens.beta * (1 - tokens.beta)
    return dqkv, da, db, np.sum(dlog * tokens.log_decay, 0), np.sum(da, 0)


@gated_delta_grad.shape
def _(dy, qkv, a, b, a_log, dt_bias, step, *, key_heads, value_heads, key_dim, tiled):
    return [qkv, a, b, a_log, dt_bias]


@op(writes=("state",))
def slot_gated_delta(
    state, qkv, a, b, a_log, dt_bias, step, *, key_heads, value_heads, key_dim=0, tiled=False
):  # fmt: skip
    """Run the gated delta rule, each sequence going on from its slot; returns the new version of the slots, and y.

    state: (slots, value_heads, dk, dv); all else as in `gated_delta`

    A sequence whose first token stands at position 0 begins with zeros. The state behind token t goes to slot
    `step.saves[t]`. No sequence may save to a slot that another one of the same step reads or saves to.
    """
    tokens = _Tokens(qkv, a, b, a_log, dt_bias, key_heads, value_heads, key_dim, tiled)
    out = np.zeros((qkv.shape[0], tokens.v[0].size), qkv.dtype)

    def keep(t, behind):
        if step.saves[t] >= 0:
            state[step.saves[t]] = behind

    for s, span in enumerate(step.spans()):
        if span.stop > span.start:
            before = state[step.slots[s]] if step.positions[span.start] else tokens.empty()
            tokens.run(before, span, out, keep)
    return state, out


@slot_gated_delta.shape
def _(state, qkv, a, b, a_log, dt_bias, step, *, key_heads, value_heads, key_dim, tiled):
    wanted = (value_heads, *_expect(qkv, a, b, a_log, dt_bias, key_heads, value_heads, key_dim))
    expect(state[1:] == wanted, f"state of {wanted} a slot", state)
    return [state, (*qkv[:-1], wanted[0] * wanted[2])]


@slot_gated_delta.samples
def _(draw):
    for step, slots in slot_steps():
        for key_heads, value_heads, dk, dv, tiled in SIZES:
            inputs = _inputs(draw, len(step.tokens), key_heads, value_heads, dk, dv)
            heads = {"key_heads": key_heads, "value_heads": value_heads}
            state = draw.state(slots, value_heads, dk, dv)
            yield draw.sample(state, *inputs, step, **heads, key_dim=0 if dk == dv else dk, tiled=tiled)
