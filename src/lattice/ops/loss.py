"""Training losses."""

from __future__ import annotations

import numpy as np

from lattice.ops._op import expect, op

IGNORED = -100  # target of a row that does not count


def _log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@op
def cross_entropy(logits, targets):
    """Return the mean of -log softmax(logits)[target] over the rows whose target is not -100.

    logits: (R, vocab)   targets: (R,) int32   ->   (1,)        no row counts: 0
    """
    counted = np.flatnonzero(targets != IGNORED)
    picked = _log_softmax(logits[counted])[np.arange(len(counted)), targets[counted]]
    return np.array([-picked.sum() / max(1, len(counted))], logits.dtype)


@cross_entropy.shape
def _(logits, targets):
    expect(targets == logits[:1], f"targets of shape {logits[:1]}", targets)
    return (1,)


@cross_entropy.vjp
def _(needs, dy, logits, targets):
    yield "logits", cross_entropy_dx(dy, logits, targets)


@cross_entropy.samples
def _(draw):
    for rows, vocab in ((1, 2), (7, 33)):
        yield draw.sample(draw.rows(rows, vocab, count="R"), draw.ids(rows, vocab, "R"))


@op
def cross_entropy_dx(dy, logits, targets):
    """Gradient of `cross_entropy`: (softmax - one-hot) / counted rows, times the scalar dy."""
    counted = np.flatnonzero(targets != IGNORED)
    dx = np.zeros(logits.shape, logits.dtype)
    dx[counted] = np.exp(_log_softmax(logits[counted]))
    dx[counted, targets[counted]] -= 1
    return dx * (dy / max(1, len(counted)))


@cross_entropy_dx.shape
def _(dy, logits, targets):
    return logits
