"""Perplexity: exp of the mean negative log-likelihood of a text's tokens, in windows.

    ppl = exp(-1/n * sum log p(token_i | the tokens before it in its window))

The text is tokenised once and cut into consecutive windows of `context` tokens; where the tokenizer adds a
BOS, it replaces the first token of each. The second half of each window is scored, so that every scored token
has at least half a window before it: rows context/2 to context-2 predict the tokens behind them, 255 of 512,
as llama.cpp's `perplexity` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import exp, sqrt

import numpy as np

from lattice.errors import expected
from lattice.generate.engine import Engine

Progress = Callable[[int, int], object]  # windows done, of how many


@dataclass(frozen=True)
class Perplexity:
    """The result: `error` is the standard error of `perplexity`, `tokens` are those that were scored."""

    perplexity: float
    error: float
    tokens: int
    windows: int
    context: int


def measure(
    engine: Engine,
    tokens: list[int],
    *,
    context: int = 512,
    chunks: int | None = None,
    bos: int | None = None,
    progress: Progress | None = None,
) -> Perplexity:
    """Return the perplexity of the first `chunks` (all) windows of `tokens`; `bos`: None if none is added."""
    losses = []
    windows = windows_of(engine, tokens, context=context, chunks=chunks, bos=bos)
    for index, window in enumerate(windows):
        losses += [losses_of(logits, targets) for logits, targets in scored(engine, window)]
        if progress is not None:
            progress(index + 1, len(windows))
    return _result(np.concatenate(losses), len(windows), context)


def windows_of(
    engine: Engine, tokens: list[int], *, context: int = 512, chunks: int | None = None, bos: int | None = None
) -> list[list[int]]:
    """Return the first `chunks` (all) windows of `tokens`; LatticeError where there is none, or the engine is small."""
    if isinstance(context, bool) or not isinstance(context, int) or not 4 <= context <= engine.context:
        raise expected("perplexity", f"a context from 4 to {engine.context}", repr(context))
    if chunks is not None and (isinstance(chunks, bool) or not isinstance(chunks, int) or chunks < 1):
        raise expected("perplexity", "chunks of at least 1", repr(chunks))
    windows = len(tokens) // context
    if not windows:
        raise expected("perplexity", f"a text of at least {context} tokens", len(tokens), hint="lower the context")
    starts = range(0, min(windows, chunks or windows) * context, context)
    cut = [tokens[start : start + context] for start in starts]
    return cut if bos is None else [[bos, *window[1:]] for window in cut]


def scored(engine: Engine, window: list[int], rows: int | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the logits of a window's second half, (n, vocab) with n up to `rows`, and the tokens that came behind."""
    first, end = len(window) // 2, len(window) - 1
    sequence = engine.sequence()
    engine.reserve(sequence, len(window))
    engine.append(sequence, window[:first])
    for start in range(first, end, rows or end):
        for logits in engine.score(sequence, window[start : min(end, start + (rows or end))]):
            yield logits, np.asarray(window[len(sequence) - len(logits) + 1 : len(sequence) + 1])
    sequence.clear()


def losses_of(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return -log softmax(logits)[target] of every row, summed in float64.    (n, vocab), (n,) -> (n,)"""
    highest = logits.max(1, keepdims=True)
    sums = np.exp(logits - highest).sum(1, dtype=np.float64)
    chosen = np.take_along_axis(logits, targets[:, None], 1) - highest
    return np.log(sums) - chosen[:, 0]


def _result(losses: np.ndarray, windows: int, context: int) -> Perplexity:
    mean = float(losses.mean())
    value = exp(mean) if mean < 700 else float("inf")
    spread = float(losses.std(ddof=1)) / sqrt(len(losses)) if len(losses) > 1 else 0.0
    return Perplexity(value, value * spread, len(losses), windows, context)
