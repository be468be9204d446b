"""Perplexity, against its definition written out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lattice.errors import LatticeError
from lattice.generate import load
from lattice.generate.perplexity import losses_of

TEXT = "the quick brown fox jumps over the lazy dog " * 6  # 35 tokens each time: spaces have none


def by_definition(lm, context, chunks=None, bos=None):
    tokens = lm.tokenizer.encode(TEXT)
    losses = []
    for start in list(range(0, len(tokens) - context + 1, context))[:chunks]:
        window = tokens[start : start + context]
        if bos is not None:
            window[0] = bos
        logits = lm.logits(window).astype(np.float64)
        for row in range(context // 2, context - 1):
            shifted = logits[row] - logits[row].max()
            losses.append(math.log(np.exp(shifted).sum()) - shifted[window[row + 1]])
    return math.exp(np.mean(losses)), len(losses)


@pytest.mark.parametrize(("context", "chunks"), [(16, None), (33, 2), (64, 3), (200, None), (4, 9)])
def test_it_is_what_the_definition_says(small_text, context, chunks):
    wanted, count = by_definition(small_text, context, chunks)
    result = small_text.measure_perplexity(TEXT, context=context, chunks=chunks)
    assert result.perplexity == pytest.approx(wanted, rel=1e-5)
    assert result.tokens == count and result.context == context
    assert small_text.perplexity(TEXT, context=context, chunks=chunks) == result.perplexity
    assert 0 < result.error < result.perplexity


def test_where_the_tokenizer_adds_a_bos_it_begins_every_window(make):
    lm = load(make(text=True, bos=True))
    assert lm.tokenizer.encode("a")[0] == 1
    result = lm.perplexity(TEXT, context=16)
    assert result == pytest.approx(by_definition(lm, 16, bos=1)[0], rel=1e-5)
    assert result != pytest.approx(by_definition(lm, 16)[0], rel=1e-3)


def test_progress_is_told(small_text):
    seen = []
    small_text.measure_perplexity(TEXT, context=32, progress=lambda done, windows: seen.append((done, windows)))
    assert seen == [(i + 1, 6) for i in range(6)]


@pytest.mark.parametrize(
    "given",
    [
        dict(context=3),
        dict(context=2000),
        dict(context=16.0),
        dict(chunks=0),
        dict(chunks="2"),
        dict(context=True),
    ],
)
def test_what_is_refused(small_text, given):
    with pytest.raises(LatticeError, match=r"\[perplexity\] expected"):
        small_text.perplexity(TEXT, **given)


def test_a_text_shorter_than_a_window_is_refused(small_text):
    with pytest.raises(LatticeError, match="at least 512 tokens, got 210"):
        small_text.perplexity(TEXT)


def test_losses_of_large_logits_are_finite():
    logits = np.float32([[1e4, 0, -1e4], [0, 0, 0]])
    assert losses_of(logits, np.array([1, 2])) == pytest.approx([1e4, math.log(3)])
