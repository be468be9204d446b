"""From logits to tokens: penalty, temperature, top-k, min-p, top-p and the draw, in this order.

Random numbers are a hash of (seed, position), so a token depends on nothing but its row: not on the rows beside it, nor
on the backend, nor on how often a step was repeated. The hash is splitmix64's finaliser (Steele, Lea and Flood, 2014).
"""

from __future__ import annotations

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


def _penalized(logits, sampling, row):
    logits = np.where(np.isnan(logits), np.float32(-np.inf), logits)
    factor = np.float32(sampling.repetition[row])
    if factor != 1:
        seen = sampling.history[sampling.history_offsets[row] : sampling.history_offsets[row + 1]]
        logits[seen] = np.where(logits[seen] > 0, logits[seen] / factor, logits[seen] * factor)
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
        penalized = _penalized(logits[row], sampling, row)
        temperature = float(sampling.temperature[row])
        if temperature <= 0 or not np.isfinite(penalized.max()):
            tokens[row] = int(np.argmax(penalized))
        else:
            limits = (int(sampling.top_k[row]), float(sampling.min_p[row]), float(sampling.top_p[row]))
            u = uniform(sampling.seed[row], sampling.position[row])
            tokens[row] = _draw(penalized, temperature, *limits, u)
    return tokens


@sample.shape
def _(logits, sampling):
    expect(len(logits) == 2 and sampling.temperature == logits[:1], "one sampling entry a row", sampling.temperature)
    return logits[:1]


@sample.samples
def _(draw):
    for rows, vocab in ((1, 7), (3, 1000), (2, 5003)):
        random = draw.random
        settings = (
            (0.0, 0, 1.0, 0.0, 1.0), (1.0, 0, 1.0, 0.0, 1.0), (0.7, 5, 0.9, 0.0, 1.3), (1.5, 0, 0.5, 0.1, 1.0),
            (0.8, 40, 1.0, 0.05, 0.9),
        )  # fmt: skip
        for temperature, top_k, top_p, min_p, repetition in settings:
            seen = [np.unique(random.integers(0, vocab, 9)).astype(np.int32) for _ in range(rows)]
            full = lambda value, dtype, rows=rows: np.full(rows, value, dtype)  # noqa: E731
            yield draw.sample(
                draw.rows(rows, vocab, count="R"),
                Sampling(
                    full(temperature, np.float32), full(top_k, np.int32), full(top_p, np.float32),
                    full(min_p, np.float32), full(repetition, np.float32),
                    random.integers(0, 2**62, rows), random.integers(0, 9999, rows).astype(np.int32),
                    np.cumsum([0, *map(len, seen)]).astype(np.int32), np.concatenate(seen),
                ),
            )  # fmt: skip
