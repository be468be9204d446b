"""The walk comes to every matrix of every family once, with the rows that it is really multiplied with."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from lattice.backends.reference import ReferenceBackend
from lattice.dtypes import dense
from lattice.models import family
from lattice.ops import Symbol
from lattice.program import trace
from lattice.quant.walk import walk
from lattice.step import Step
from lattice.weights.load import open_model

MODELS = Path(__file__).parents[1] / "golden" / "models"
NAMES = ("bert-gelu", "xlm-roberta-gelu", "llama-biases", "llama-tied", "qwen3-embedding", "gemma3-old", "qwen35-mtp",
         "qwen35-moe", "qwen35-untied")  # fmt: skip
SEQUENCES = [[1, 5, 7, 9, 3, 4], [2, 8], [6]]


def opened(name: str):
    """Return a golden model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return open_model(MODELS / name, family)


def direct(model, weights) -> dict[str, np.ndarray]:
    """Return X of every `linear` of a model's trunk and head, by a plain run."""
    found = {}

    def build(program):
        hidden, _ = model(program.step())
        return {"out": model.head(hidden) if getattr(model, "head", None) else hidden}

    program = trace(build)
    made = {}
    backend = ReferenceBackend()

    def hook(node, outputs):
        made.update({id(s): v for s, v in zip(node.outputs, outputs, strict=True)})
        if node.op.name == "linear":
            found[node.args[1].name] = made[id(node.args[0])]

    backend.compile(program, backend.load(program, weights)).run(Step.of(SEQUENCES), hook=hook)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_matrix_is_visited_once_with_its_own_inputs(name):
    model = opened(name)
    seen = {}

    def visit(product):
        assert product.name not in seen
        seen[product.name] = product.kind, product.moments()
        assert product.values.shape == model.weights[product.name].shape
        return product.values

    walk(model.model, model.weights, SEQUENCES, visit)
    shapes = {n: p.shape for n, p in model.model.parameters().items() if len(p.shape) > 1 and "conv1d" not in n}
    assert set(seen) == set(shapes)
    for parameter, x in direct(model.model, model.weights).items():
        kind, (moments, rows) = seen[parameter]
        assert kind == "linear" and rows == len(x) == 9
        np.testing.assert_allclose(moments, x.T.astype(np.float64) @ x, rtol=1e-4, atol=1e-5)


def test_later_matrices_see_what_the_earlier_ones_became():
    model = opened("llama-untied")
    changed = dict(model.weights)
    first = "model.layers.0.self_attn.v_proj.weight"
    changed[first] = dense(changed[first]) * 0.5
    seen = {}

    def visit(product):
        seen[product.name] = product.moments()[0]
        return dense(product.values) * 0.5 if product.name == first else product.values

    walk(model.model, model.weights, SEQUENCES, visit)
    for name, x in direct(model.model, changed).items():
        np.testing.assert_allclose(seen[name], x.T.astype(np.float64) @ x, rtol=1e-4, atol=1e-5)


def test_experts_see_the_tokens_that_were_routed_to_them():
    model, rows = opened("qwen35-moe"), {}

    def visit(product):
        if product.kind == "mixture":
            experts = range(product.values.shape[0])
            rows[product.name] = sum(product.moments(e)[1] for e in experts)
            assert all(product.moments(e)[0].shape == (product.values.shape[2],) * 2 for e in experts)
        return product.values

    walk(model.model, model.weights, SEQUENCES, visit)
    assert any("gate" in name for name in rows) and any("down" in name for name in rows)
    for name, routed in rows.items():
        assert routed == (6 if name.startswith("mtp") else 9) * model.config.num_experts_per_tok, name


def test_the_draft_head_reads_the_states_and_the_tokens_ahead():
    model, seen = opened("qwen35-mtp"), {}

    def visit(product):
        seen[product.name] = product
        return product.values

    walk(model.model, model.weights, SEQUENCES, visit)
    x, width = seen["mtp.fc.weight"].inputs(0), model.config.hidden_size
    embedded = dense(model.weights["model.embed_tokens.weight"])[[5, 7, 9, 3, 4, 8]]
    eps, norm = model.config.rms_norm_eps, dense(model.weights["mtp.pre_fc_norm_embedding.weight"])
    expected = embedded / np.sqrt((embedded**2).mean(1, keepdims=True) + eps) * norm
    np.testing.assert_allclose(x[:, :width], expected, rtol=1e-4, atol=1e-5)
    states = seen["lm_head.weight"].inputs(0) if "lm_head.weight" in seen else None
    states = seen["model.embed_tokens.weight"].inputs(0) if states is None else states
    norm = dense(model.weights["mtp.pre_fc_norm_hidden.weight"])
    kept = states[[0, 1, 2, 3, 4, 6]]
    expected = kept / np.sqrt((kept**2).mean(1, keepdims=True) + eps) * norm
    np.testing.assert_allclose(x[:, width:], expected, rtol=1e-4, atol=1e-5)


def test_no_weight_is_read_before_its_turn():
    model, order = opened("llama-tied"), []

    class Watched(dict):
        def __getitem__(self, name):
            order.append(name)
            return super().__getitem__(name)

    visits = []

    def visit(product):
        visits.append(product.name)
        assert order[-1] == product.name
        return product.values

    walk(model.model, Watched(model.weights), SEQUENCES, visit)
    assert visits[-1] == "model.embed_tokens.weight"  # a tied table's turn comes at the head
    assert isinstance(visits[0], str) and not any(isinstance(name, Symbol) for name in order)
