"""Ops that no model is written in: fusion puts them where a backend has them (see program/fuse.py).

Each means exactly the ops that it replaces, and its reference is made of theirs.
"""

from __future__ import annotations

from lattice.ops._op import expect, op
from lattice.ops.basic import gated_activation
from lattice.ops.conv import slot_conv1d, slot_steps
from lattice.ops.delta import slot_gated_delta
from lattice.ops.norm import rms_norm

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
