"""Models against transformers (and llama.cpp's GGUF conventions), on the checkpoints of golden/make_*.py."""

from __future__ import annotations

import numpy as np
import pytest
from golden_models import MODELS, close, open_golden

from lattice.backends._backend import Capacity
from lattice.backends.cpu import CpuBackend
from lattice.backends.reference import ReferenceBackend
from lattice.ops import take_rows
from lattice.program import trace
from lattice.step import Step

NAMES = sorted(path.name for path in MODELS.iterdir() if path.is_dir())


def sequences(golden):
    """Yield (tokens, the rows whose results are known, those results)."""
    kind = "hidden" if "hidden_0" in golden else "logits"
    for index in range(sum(key.startswith("tokens_") for key in golden)):
        tokens = golden[f"tokens_{index}"]
        rows = golden[f"rows_{index}"] if f"rows_{index}" in golden else np.arange(len(tokens))
        yield tokens, rows, golden[f"{kind}_{index}"]


def build(model, is_encoder):
    def program(p):
        step = p.step()
        hidden = take_rows(model(step)[0], step.rows)
        return {"out": hidden if is_encoder else model.head(hidden)}

    return trace(program)


@pytest.mark.parametrize("name", NAMES)
def test_reference_agrees_with_transformers(name):
    opened, golden = open_golden(name)
    program = build(opened.model, "hidden_0" in golden)
    backend = ReferenceBackend()
    plan = backend.compile(program, backend.load(program, opened.weights))
    for tokens, rows, wanted in sequences(golden):
        assert close(plan.run(Step.of([tokens], rows=rows))["out"], wanted, 1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_eager_call_is_the_program(name):
    """A model called with arrays runs at once and means the same."""
    opened, golden = open_golden(name)
    opened.model.bind(opened.weights)
    tokens, rows, wanted = next(iter(sequences(golden)))
    hidden = opened.model(Step.of([tokens]))[0][rows]
    assert close(hidden if "hidden_0" in golden else opened.model.head(hidden), wanted, 1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_cpu_agrees_with_transformers(name, cpu_target):
    opened, golden = open_golden(name)
    program = build(opened.model, "hidden_0" in golden)
    backend = CpuBackend(cpu_target)
    weights = backend.load(program, opened.weights)
    cases = list(sequences(golden))
    total = sum(len(tokens) for tokens, _, _ in cases)
    plan = backend.compile(program, weights, Capacity(total, total, len(cases)))
    together = plan.run(Step.of([tokens for tokens, _, _ in cases]))["out"]
    # 8-bit blocks round their activations too, which transformers does not
    tolerance = 2e-2 if "q8_0" in name else 1e-3
    start = 0
    for tokens, rows, wanted in cases:
        alone = plan.run(Step.of([tokens], rows=rows))["out"]
        assert close(alone, wanted, tolerance)
        assert np.array_equal(together[start + rows], alone)  # the same bits in company
        start += len(tokens)
