"""The short causal convolution in front of linear attention, of each channel for itself.

    y[t, c] = f(sum over j of weight[c, j] * x[t - (width - 1) + j, c])

within a sequence of the step, with zeros before its first token; or going on from a slot, which holds the last
width - 1 inputs of each channel, the oldest first.
"""

from __future__ import annotations

import numpy as np

from lattice.dtypes import dense
from lattice.ops._op import expect, op
from lattice.ops.basic import ACTIVATIONS, activate, slope
from lattice.step import Step


def _convolve(rows, weight):
    """Return the sums of every `width` consecutive rows.      rows: (width - 1 + n, channels)   ->   (n, channels)"""
    width = weight.shape[1]
    tokens = rows.shape[0] - width + 1
    return sum(rows[j : j + tokens] * weight[:, j] for j in range(width))


def _expect(x, weight, kind):
    expect(len(weight) == 2 and weight[0] == x[-1] and weight[1] > 0, f"weight of shape ({x[-1]}, width)", weight)
    expect(kind is None or kind in ACTIVATIONS, f"kind None or among {', '.join(ACTIVATIONS)}", kind)


@op
def conv1d(x, weight, step, *, kind):
    """Convolve each channel of each sequence of the step from its beginning, then apply the activation `kind`, or None.

    x: (T, channels)   weight: (channels, width)   ->   (T, channels)
    """
    weight, y = dense(weight), np.zeros_like(x)
    past = np.zeros((weight.shape[1] - 1, x.shape[1]), x.dtype)
    for span in step.spans():
        y[span] = _convolve(np.concatenate([past, x[span]]), weight)
    return activate(y, kind) if kind else y


@conv1d.shape
def _(x, weight, step, *, kind):
    _expect(x, weight, kind)
    return x


@conv1d.vjp
def _(needs, dy, x, weight, step, *, kind):
    yield from zip(("x", "weight"), conv1d_grad(dy, x, weight, step, kind=kind), strict=True)


SIZES = ((1, 4, None), (20, 2, "silu"), (80, 4, "silu"))  # channels, width, kind


@conv1d.samples
def _(draw):
    for lengths in draw.lengths():
        step = Step.of([[0] * n for n in lengths])
        for channels, width, kind in SIZES:
            yield draw.sample(draw.rows(sum(lengths), channels), draw.weight(channels, width), step, kind=kind)


@op
def conv1d_grad(dy, x, weight, step, *, kind):
    """Gradients of `conv1d` with respect to x and weight."""
    weight = dense(weight)
    width, dx, dweight = weight.shape[1], np.zeros_like(x), np.zeros_like(weight)
    for span in step.spans():
        tokens = span.stop - span.start
        rows = np.concatenate([np.zeros((width - 1, x.shape[1]), x.dtype), x[span]])
        g, drows = dy[span] * (slope(_convolve(rows, weight), kind) if kind else 1), np.zeros_like(rows)
        for j in range(width):
            dweight[:, j] += np.sum(g * rows[j : j + tokens], 0)
            drows[j : j + tokens] += g * weight[:, j]
        dx[span] = drows[width - 1 :]
    return dx, dweight


@conv1d_grad.shape
def _(dy, x, weight, step, *, kind):
    return [x, weight]


@op(writes=("state",))
def slot_conv1d(state, x, weight, step, *, kind):
    """Convolve as `conv1d`, each sequence going on from its slot; returns the new version of the slots, and y.

    state: (slots, channels, width - 1)   x: (T, channels)   weight: (channels, width)

    A sequence whose first token stands at position 0 begins with zeros. The state behind token t goes to slot
    `step.saves[t]`. No sequence may save to a slot that another one of the same step reads or saves to.
    """
    weight, y = dense(weight), np.zeros_like(x)
    width = weight.shape[1]
    for s, span in enumerate(step.spans()):
        if span.stop == span.start:
            continue
        past = state[step.slots[s]].T if step.positions[span.start] else np.zeros((width - 1, x.shape[1]), x.dtype)
        rows = np.concatenate([past, x[span]])
        y[span] = _convolve(rows, weight)
        for t, slot in enumerate(step.saves[span]):
            if slot >= 0:
                state[slot] = rows[t + 1 : t + width].T
    return state, activate(y, kind) if kind else y


@slot_conv1d.shape
def _(state, x, weight, step, *, kind):
    _expect(x, weight, kind)
    wanted = (weight[0], weight[1] - 1)
    expect(state[1:] == wanted, f"state of {wanted} a slot", state)
    return [state, x]


@slot_conv1d.samples
def _(draw):
    for step, slots in slot_steps():
        for channels, width, kind in SIZES:
            state, weight = draw.state(slots, channels, width - 1), draw.weight(channels, width)
            yield draw.sample(state, draw.rows(len(step.tokens), channels), weight, step, kind=kind)


def slot_steps():
    """Yield steps over slots, with how many: fresh, going on, in place and elsewhere, with saves inside a sequence."""

    def step(starts, lengths, slots, **saved):
        made = Step.of([[0] * n for n in lengths], starts=starts, slots=slots)
        for token, slot in saved.get("saves", {}).items():
            made.saves[token] = slot
        return made

    yield step((0,), (1,), (0,)), 1
    yield step((7,), (1,), (2,)), 3
    yield step((0, 5, 2), (3, 1, 5), (3, 0, 4), saves={0: 1, 6: 4}), 5  # inside: elsewhere, and to the slot it read
    yield step((64, 0), (70, 20), (1, 2), saves={2: 0, 63: 4, 69: 3, 89: -1}), 5  # one goes elsewhere, one is not kept
