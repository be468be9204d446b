"""Ops that no model is written in: fusion puts them where a backend has them (see program/fuse.py).

Each means exactly the ops that it replaces, and its reference is made of theirs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lattice.ops._op import expect, op
from lattice.ops.attention import FACTOR, PAGED, append_kv, draw_pages, paged_attention, paged_step
from lattice.ops.basic import gated_activation, split_heads
from lattice.ops.conv import slot_conv1d, slot_steps
from lattice.ops.delta import slot_gated_delta
from lattice.ops.norm import rms_norm
from lattice.ops.rope import rope

COLUMNS = 256  # of a head's matrix at most: kernels keep them side by side


@op(writes=("conv_state", "state"))
def delta_net(
    conv_state, state, x, z, a, b, conv_weight, a_log, dt_bias, norm_weight, step,
    *, key_heads, value_heads, key_dim=0, tiled=False, eps,
):  # fmt: skip
    """Do what a gated delta net does between its products; returns the new version of both states, and y.

        y = silu(z) * rms_norm(slot_gated_delta(state, silu(slot_conv1d(conv_state, x)), a, b, ...))

    x: (T, 2 * key_heads * dk + value_heads * dv)   z: (T, value_heads * dv)   a, b: (T, value_heads)
    conv_state: (slots, channels, width - 1)   state: (slots, value_heads, dk, dv)   conv_weight: (channels, width)
    a_log, dt_bias: (value_heads,)   norm_weight: (dv,)   ->   (T, value_heads * dv)
    """
    conv_state, mixed = slot_conv1d.body(conv_state, x, conv_weight, step, kind="silu")
    heads = {"key_heads": key_heads, "value_heads": value_heads, "key_dim": key_dim, "tiled": tiled}
    state, answers = slot_gated_delta.body(state, mixed, a, b, a_log, dt_bias, step, **heads)
    return conv_state, state, gated_activation.body(z, rms_norm.body(answers, norm_weight, eps=eps), kind="silu")


@delta_net.shape
def _(
    conv_state, state, x, z, a, b, conv_weight, a_log, dt_bias, norm_weight, step,
    *, key_heads, value_heads, key_dim, tiled, eps,
):  # fmt: skip
    heads = {"key_heads": key_heads, "value_heads": value_heads, "key_dim": key_dim, "tiled": tiled}
    slot_conv1d.rules["shape"](conv_state, x, conv_weight, step, kind="silu")
    _, out = slot_gated_delta.rules["shape"](state, x, a, b, a_log, dt_bias, step, **heads)
    expect(z == out, f"z of shape {out}", z)
    expect(norm_weight == state[-1:], f"norm_weight of shape {state[-1:]}", norm_weight)
    expect(state[-1] <= COLUMNS, f"at most {COLUMNS} columns of a head", state[-1])
    return [conv_state, state, out]


# Heads, dk, dv, width, tiled: single ones, groups in both orders, what fills no vector, and what a model has.
NETS = (
    (1, 1, 1, 1, 2, False), (2, 6, 8, 20, 4, False), (2, 4, 20, 40, 3, True), (1, 2, 128, 128, 4, False),
    (3, 3, 33, 256, 4, True),
)  # fmt: skip


@delta_net.samples
def _(draw):
    for step, slots in slot_steps():
        for key_heads, value_heads, dk, dv, width, tiled in NETS:
            tokens, channels = len(step.tokens), 2 * key_heads * dk + value_heads * dv
            states = draw.state(slots, channels, width - 1), draw.state(slots, value_heads, dk, dv)
            inputs = [draw.rows(tokens, n) for n in (channels, value_heads * dv, value_heads, value_heads)]
            weights = [draw.weight(*shape) for shape in ((channels, width), (value_heads,), (value_heads,))]
            yield draw.sample(
                *states, *inputs, *weights, draw.weight(dv, offset=1), step, eps=1e-6,
                key_heads=key_heads, value_heads=value_heads, key_dim=0 if dk == dv else dk, tiled=tiled,
            )  # fmt: skip


@op(writes=("k_pages", "v_pages"))
def rotated_kv(
    k_pages, v_pages, q, k, v, q_norm, k_norm, angles, step, *, head_dim, gated=False, eps=0.0, interleaved=False
):  # fmt: skip
    """Norm and turn queries and keys, write keys and values to their pages; returns the new pools, and q.

    q: (T, heads * head_dim), or, `gated`, (T, heads * 2 * head_dim), pairs of a query and a gate that stays unread
    q_norm, k_norm: (head_dim,) or None   angles as in `rope`   k, v and pages as in `append_kv`
    ->   (T, heads * head_dim)
    """
    q = split_heads.body(q, head_dim=head_dim)[0] if gated else q
    q, k = (x if w is None else rms_norm.body(x, w, eps=eps) for x, w in ((q, q_norm), (k, k_norm)))
    q, k = (rope.body(x, angles, head_dim=head_dim, interleaved=interleaved) for x in (q, k))
    return *append_kv.body(k_pages, v_pages, k, v, step), q


@rotated_kv.shape
def _(k_pages, v_pages, q, k, v, q_norm, k_norm, angles, step, *, head_dim, gated, eps, interleaved):
    expect(q[-1] % ((1 + gated) * head_dim) == 0, f"q of whole heads of {head_dim}, gated: {gated}", q)
    q = (*q[:-1], q[-1] // (1 + gated))
    for x, norm in ((q, q_norm), (k, k_norm)):
        rope.rules["shape"](x, angles, head_dim=head_dim, interleaved=interleaved, inverse=False)
        expect(norm in (None, (head_dim,)), f"norms of shape ({head_dim},)", norm)
    expect(q[-1] % k[-1] == 0, "k whose heads divide those of q", (q, k))
    return [*append_kv.rules["shape"](k_pages, v_pages, k, v, step), q]


# Heads, of keys, head_dim, dimensions that turn, norms of q and of k, and whether gates stand between, or pairs turn.
ROTATED: tuple[tuple[Any, ...], ...] = (
    (1, 1, 8, 8, (False, False), {}), (6, 3, 20, 10, (True, True), {"gated": True}),
    (4, 2, 80, 80, (True, False), {"interleaved": True}), (2, 2, 16, 4, (False, True), {"gated": True}),
)  # fmt: skip


@rotated_kv.samples
def _(draw):
    for starts, lengths in PAGED:
        for dtype in (np.float32, np.float16, np.int8):
            for heads, kv_heads, head_dim, turning, normed, attributes in ROTATED:
                step, pages = paged_step(draw, starts, lengths)
                pools, total = draw_pages(draw, pages, kv_heads, head_dim, dtype), sum(lengths)
                pairs = 1 + attributes.get("gated", False)
                q, k, v = (draw.rows(total, n * head_dim) for n in (pairs * heads, kv_heads, kv_heads))
                norms = [draw.weight(head_dim, offset=1) if norm else None for norm in normed]
                angles = draw.rows(total, turning)
                yield draw.sample(*pools, q, k, v, *norms, angles, step, head_dim=head_dim, eps=1e-6, **attributes)


def width_of(k_pages, dtype):
    """Return head_dim of pages of this shape."""
    return k_pages[2] - FACTOR * (dtype == "i8")


@op
def gated_attention(q, k_pages, v_pages, gate, step, *, scale, window=0):
    """Return paged_attention(q, ...) times the sigmoid of the gates.

    q, pages as in `paged_attention`   gate: (T, heads * 2 * head_dim), of every head a query, not read here, and a gate
    """
    head_dim = width_of(k_pages.shape, "i8" if k_pages.dtype == np.int8 else "")
    mixed = paged_attention.body(q, k_pages, v_pages, step, scale=scale, window=window)
    return gated_activation.body(split_heads.body(gate, head_dim=head_dim)[1], mixed, kind="sigmoid")


@gated_attention.shape
def _(q, k_pages, v_pages, gate, step, *, scale, window):
    expect(gate == (*q[:-1], 2 * q[-1]), f"gate of shape {(*q[:-1], 2 * q[-1])}", gate)
    return paged_attention.rules["shape"](q, k_pages, v_pages, step, scale=scale, window=window)


@gated_attention.samples
def _(draw):
    for starts, lengths in PAGED:
        for dtype, window in ((np.float32, 0), (np.float16, 5), (np.int8, 65)):
            for heads, kv_heads, head_dim in ((1, 1, 8), (9, 3, 80)):
                step, pages = paged_step(draw, starts, lengths)
                pools, width = draw_pages(draw, pages, kv_heads, head_dim, dtype), heads * head_dim
                q, gate = draw.rows(sum(lengths), width), draw.rows(sum(lengths), 2 * width)
                yield draw.sample(q, *pools, gate, step, scale=head_dim**-0.5, window=window)
