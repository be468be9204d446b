"""From logits to tokens: bias, penalties, temperature, top-k, min-p, top-p and the draw, in this order.

A token that the row's edits list has its logit x changed, with c the times that the answer so far holds it:

    x += bias                                              -inf forbids the token
    x = x / repetition if x > 0 else x * repetition        if prompt or answer hold it (Keskar et al., 2019)
    x -= presence * [c > 0] + frequency * c                as OpenAI defines both: the answer alone counts

Random numbers are a hash of (seed, position), so a token depends on nothing but its row: not on the rows beside it, nor
on the backend, nor on how often a step was repeated. The hash is splitmix64's finaliser (Steele, Lea and Flood, 2014).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lattice.ops._op import expect, op
from lattice.step import Sampling

MASK = (1 << 64) - 1


def uniform(seed: int, position: int) -> float:
    """Return the number in [0, 1), a multiple of 2^-24, that belongs to (seed, position)."""
    z = (int(seed) + 0x9E3779B97F4A7C15 * (int(position) + 1)) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    z ^= z >> 31
    return (z >> 40) * 2.0**-24


def _clean(x):
    return np.where(np.isnan(x), np.float32(-np.inf), x)


def _edited(logits, sampling, row):
    logits = _clean(logits)
    span = slice(sampling.edit_offsets[row], sampling.edit_offsets[row + 1])
    ids, counts = sampling.edit_ids[span], sampling.edit_counts[span]
    factor, presence, frequency = (a[row] for a in (sampling.repetition, sampling.presence, sampling.frequency))
    with np.errstate(invalid="ignore", over="ignore"):
        x = logits[ids] + sampling.edit_bias[span]
        x = np.where(counts < 0, x, np.where(x > 0, x / factor, x * factor))
        less = float(presence) * (counts > 0) + float(frequency) * np.maximum(counts, 0)
        logits[ids] = _clean(x - less.astype(np.float32))
    return logits


def _draw(logits, temperature, top_k, min_p, top_p, u):
    scaled = logits / np.float32(temperature)
    order = np.lexsort((np.arange(len(scaled)), -scaled))  # descending, ties to the lower id
    if top_k > 0:
        order = order[:top_k]
    weights = np.exp((scaled[order] - scaled[order[0]]).astype(np.float64))
    kept = weights >= min_p * weights[0]
    order, weights = order[kept], weights[kept]
    if top_p < 1:
        sums = np.cumsum(weights)
        keep = int(np.searchsorted(sums, top_p * sums[-1])) + 1
        order, weights = order[:keep], weights[:keep]
    sums = np.cumsum(weights)
    return order[min(int(np.searchsorted(sums, u * sums[-1], side="right")), len(order) - 1)]


@op(dtype="i32")
def sample(logits, sampling):
    """Choose one token a row.      logits: (R, vocab)   ->   (R,) int32

    A temperature of 0 takes the largest logit; equal ones go to the lower id, and NaN never wins.
    """
    tokens = np.zeros(len(logits), np.int32)
    for row in range(len(logits)):
        edited = _edited(logits[row], sampling, row)
        temperature = float(sampling.temperature[row])
        if temperature <= 0 or not np.isfinite(edited.max()):
            tokens[row] = int(np.argmax(edited))
        else:
            limits = (int(sampling.top_k[row]), float(sampling.min_p[row]), float(sampling.top_p[row]))
            u = uniform(sampling.seed[row], sampling.position[row])
            tokens[row] = _draw(edited, temperature, *limits, u)
    return tokens


@sample.shape
def _(logits, sampling):
    expect(len(logits) == 2 and sampling.temperature == logits[:1], "one sampling entry a row", sampling.temperature)
    return logits[:1]


@sample.samples
def _(draw):
    settings = (
        dict(temperature=0.0), dict(temperature=1.0), dict(temperature=0.0, repetition=1.3, presence=0.5),
        dict(temperature=0.7, top_k=5, top_p=0.9, repetition=1.3), dict(temperature=1.5, top_p=0.5, min_p=0.1),
        dict(temperature=0.8, top_k=40, min_p=0.05, repetition=0.9, frequency=-0.4),
        dict(temperature=1.1, top_p=0.8, presence=1.5, frequency=0.3),
    )  # fmt: skip
    for rows, vocab in ((1, 7), (3, 1000), (2, 5003)):
        for each in settings:
            edits = [np.unique(draw.random.integers(0, vocab, 9)).astype(np.int32) for _ in range(rows)]
            count = sum(map(len, edits))
            bias = draw.random.choice([0.0, 2.0, -3.0, -np.inf], count).astype(np.float32)
            given = dict(
                edit_offsets=np.cumsum([0, *map(len, edits)]).astype(np.int32), edit_ids=np.concatenate(edits),
                edit_bias=bias, edit_counts=draw.random.integers(-1, 4, count).astype(np.int32),
                seed=draw.random.integers(0, 2**62, rows),
                position=draw.random.integers(0, 9999, rows).astype(np.int32),
            )  # fmt: skip
            plain = Sampling.greedy(rows)
            given |= {name: np.full_like(getattr(plain, name), value) for name, value in each.items()}
            yield draw.sample(draw.rows(rows, vocab, count="R"), replace(plain, **given))
