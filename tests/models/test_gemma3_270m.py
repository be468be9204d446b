"""Gemma 3 270M against transformers in float32 on the same (dequantised) weights: windows of 512 in 640 tokens."""

from __future__ import annotations

import numpy as np
import pytest

from lattice.backends.cpu import CpuBackend
from lattice.generate.engine import Engine
from lattice.generate.perplexity import losses_of
from lattice.models import family
from lattice.weights.load import open_model

pytestmark = [
    pytest.mark.real,
    # formats without kernels of their own are held as f32, and say so
    pytest.mark.filterwarnings("ignore:.*tensors without a kernel of their format:lattice.errors.LatticeWarning"),
]


@pytest.fixture(scope="module")
def opened(real_model):
    return open_model(real_model("gemma3-270m"), family)


def score(opened, tokens, first, dtype):
    """Return the logits of all tokens from `first` on."""
    engine = Engine(opened, CpuBackend(), dtype=dtype, context=640)
    sequence = engine.sequence()
    engine.reserve(sequence, len(tokens))
    engine.append(sequence, tokens[:first])
    return np.concatenate(list(engine.score(sequence, tokens[first:])))


def test_logits_in_float32_are_those_of_transformers(opened, golden):
    wanted = np.load(golden / "gemma3_270m.npz")
    late = wanted["rows"] >= 511
    logits = score(opened, wanted["tokens"].tolist(), 511, "f32")
    for row, ids, values in zip(wanted["rows"][late], wanted["ids"][late], wanted["logits"][late], strict=True):
        assert np.abs(logits[row - 511][ids] - values).max() <= 1e-3 * np.abs(values).max()
        assert logits[row - 511].argmax() == ids[0]


def test_losses_with_the_files_own_blocks_are_close(opened, golden):
    wanted = np.load(golden / "gemma3_270m.npz")
    tokens = wanted["tokens"].tolist()
    losses = losses_of(score(opened, tokens, 320, "auto")[:-1], np.asarray(tokens[321:]))
    assert abs(losses.mean() - wanted["losses"].mean()) < 0.02  # 2 % of the perplexity
