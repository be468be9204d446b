"""Reverse mode over whole models, against torch: goldens made by golden/make_gradients.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from op_harness import close

from lattice.backends.reference import ReferenceBackend
from lattice.errors import LatticeError
from lattice.models import family
from lattice.nn import KV
from lattice.ops import activation, cross_entropy, normalize, pool
from lattice.program import gradients, trace
from lattice.step import Step
from lattice.weights.load import open_model

GOLDEN = Path(__file__).parents[1] / "golden" / "gradients"


def run(name, build):
    """Trace loss and gradients of every parameter, run them, and compare with the golden."""
    opened, golden = open_model(GOLDEN / name, family), np.load(GOLDEN / name / "golden.npz")
    sequences = [golden[f"tokens_{i}"] for i in range(2)]
    inputs = {}

    def program(p):
        y, dy = build(p, opened.model, golden, inputs)
        symbols = {parameter.name: symbol for parameter, symbol in p.parameters.values()}
        made = gradients(p, y, list(symbols.values()), dy)
        return {"y": y, **dict(zip(symbols, made, strict=True))}

    traced, backend = trace(program), ReferenceBackend()
    outputs = backend.compile(traced, backend.load(traced, opened.weights)).run(Step.of(sequences), **inputs)
    wanted = {key[len("grad/") :]: golden[key].squeeze() for key in golden if key.startswith("grad/")}
    assert set(wanted) == set(outputs) - {"y"}
    largest = max(np.abs(value).max() for value in wanted.values())
    for key, value in wanted.items():
        # relative to the gradient's own size; a key's bias has gradient 0 in exact arithmetic, hence the floor
        assert np.abs(outputs[key].squeeze() - value).max() <= 1e-4 * max(np.abs(value).max(), 1e-3 * largest), key
    return outputs["y"], golden


@pytest.mark.parametrize("name", ["llama-tied", "llama-untied", "qwen35-dense", "qwen35-moe"])
def test_decoders(name):
    def build(p, model, golden, inputs):
        logits = model.head(model(p.step())[0])
        inputs["targets"] = np.concatenate([golden["targets_0"], golden["targets_1"]])
        return cross_entropy(logits, p.input("targets", "T", dtype="i32")), None

    loss, golden = run(name, build)
    assert close(loss, golden["loss"].reshape(1), 1e-5)


def test_bert_hidden_states():
    def build(p, model, golden, inputs):
        hidden = model(p.step())[0]
        inputs["dy"] = np.concatenate([golden["weights_0"], golden["weights_1"]])
        return hidden, p.input("dy", "T", hidden.shape[1])

    run("bert-hidden", build)


def test_bert_embeddings():
    def build(p, model, golden, inputs):
        step = p.step()
        pooled = normalize(pool(model(step)[0], step, mode="mean"))
        inputs["dy"] = np.stack([golden["weights_0"], golden["weights_1"]])
        return pooled, p.input("dy", "S", pooled.shape[1])

    run("bert-pooled", build)


def test_only_what_is_wanted_is_differentiated():
    """A frozen weight is never asked for its gradient: no node for it appears."""
    opened = open_model(GOLDEN / "llama-untied", family)

    def program(p):
        loss = cross_entropy(opened.model.head(opened.model(p.step())[0]), p.input("targets", "T", dtype="i32"))
        frozen_but = [s for parameter, s in p.parameters.values() if parameter.name == "model.norm.weight"]
        return {"loss": loss, "gradient": gradients(p, loss, frozen_but)[0]}

    made = [node.op.name for node in trace(program).nodes]
    assert "linear_dw" not in made and "attention_grad" not in made and made.count("rms_norm_dw") == 1


def test_errors():
    def paged(p):
        model = open_model(GOLDEN / "llama-tied", family).model
        state = [
            KV(*(p.input(f"{i}.{n}", *s, kind="state") for n, s in kv._asdict().items()))
            for i, kv in enumerate(model.state_shapes(2))
        ]
        x, _ = model(p.step(), state)
        return {"g": gradients(p, x, [p.of_kind("weight")[0]], x)[0]}

    with pytest.raises(LatticeError, match=r"expected ops that have a gradient, got paged_attention\nhint"):
        trace(paged)

    def vector(p):
        x = p.input("x", "T", 4)
        return {"g": gradients(p, activation(x, kind="silu"), [x])[0]}

    with pytest.raises(LatticeError, match=r"a loss of shape \(1,\)"):
        trace(vector)

    def apart(p):
        x, y = p.input("x", "T", 4), p.input("y", "T", 4)
        return {"g": gradients(p, activation(x, kind="silu"), [y], x)[0]}

    with pytest.raises(LatticeError, match="symbols that influence y, got y"):
        trace(apart)
