"""How likely the drawn tokens were, and what else was likely: entries of log softmax(logits).

These are the model's own probabilities, of the logits as `forward` made them: no bias, penalty, temperature or limit is
in them, so they do not depend on how a token was drawn.
"""

from __future__ import annotations

import numpy as np

from lattice.ops._op import expect, op


@op(dtype=("f32", "i32", "f32"))
def logprobs(logits, tokens, *, top):
    """Return log softmax(logits)[token], and the ids of the `top` largest logits of each row and theirs.

    logits: (R, vocab)   tokens: (R,) int32   ->   (R,), (R, top) int32, (R, top)

    The largest come first, equal ones by id; NaN counts as -inf. A row whose largest logit is not finite has no
    probabilities: it gets NaN.
    """
    x = np.where(np.isnan(logits), -np.inf, logits).astype(np.float64)
    largest = x.max(-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        total = largest + np.log(np.exp(x - largest).sum(-1, keepdims=True))
        x = np.where(np.isfinite(largest), x - total, np.nan)
    ids = np.argsort(-np.where(np.isnan(logits), -np.inf, logits), axis=-1, kind="stable")[:, :top]
    chosen = np.take_along_axis(x, tokens[:, None], -1)[:, 0]
    return chosen.astype(np.float32), ids.astype(np.int32), np.take_along_axis(x, ids, -1).astype(np.float32)


@logprobs.shape
def _(logits, tokens, *, top):
    expect(len(logits) == 2 and tokens == logits[:1], f"tokens of shape {logits[:1]}", tokens)
    expect(1 <= top <= logits[1], f"top from 1 to {logits[1]}", top)
    return [logits[:1], (logits[0], top), (logits[0], top)]


@logprobs.samples
def _(draw):
    for rows, vocab, top in ((1, 1, 1), (2, 7, 7), (3, 1000, 20), (1, 8192, 1), (2, 20011, 5)):
        yield draw.sample(draw.rows(rows, vocab, count="R"), draw.ids(rows, vocab, "R"), top=top)
