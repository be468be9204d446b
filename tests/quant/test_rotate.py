"""A turned model computes what the original does, and what cannot be turned is refused with the reason."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattice.backends.reference import ReferenceBackend
from lattice.dtypes import dense
from lattice.errors import LatticeError
from lattice.models import family
from lattice.ops import add, embedding, linear, rms_norm
from lattice.program import trace
from lattice.quant.rotate import _Tags, rotate, signs, turn
from lattice.quant.walk import walk
from lattice.step import Step
from lattice.weights.load import open_model

MODELS = Path(__file__).parents[1] / "golden" / "models"
TURNED = ("llama-untied", "llama-tied", "llama-biases", "llama-head-dim", "qwen3-tied", "qwen3-untied", "qwen35-tied",
          "qwen35-mtp", "qwen35-moe", "qwen35-bias", "qwen35-multimodal", "llama-9q3kv")  # fmt: skip


def opened(name: str):
    """Return a golden model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return open_model(MODELS / name, family)


def logits(model) -> np.ndarray:
    """Return a model's logits of two sequences."""
    program = trace(lambda p: {"logits": model.model.head(model.model(p.step())[0])})
    backend = ReferenceBackend()
    step = Step.of([[1, 5, 7, 9, 3, 4], [2, 8]])
    return backend.compile(program, backend.load(program, model.weights)).run(step)["logits"]


@pytest.mark.parametrize("name", TURNED)
def test_the_function_stays(name):
    model = opened(name)
    turned = rotate(model)
    before, after = logits(model), logits(turned)
    assert np.abs(before - after).max() <= 1e-5 * np.abs(before).max()
    assert not turned.config.tie_word_embeddings and "lm_head.weight" in turned.weights
    assert set(turned.weights) == set(turned.model.parameters())
    for norm in ("model.norm.weight", "model.layers.0.input_layernorm.weight"):
        assert (dense(turned.weights[norm]) == 1).all()


def test_the_residual_stream_is_turned():
    model = opened("llama-untied")
    table, turned = (dense(m.weights["model.embed_tokens.weight"]) for m in (model, rotate(model)))
    np.testing.assert_allclose(turned, turn(table.astype(np.float64)), atol=1e-6)
    assert np.abs(turned - table).max() > 0.1 * np.abs(table).max()


def test_a_turned_model_can_be_walked():
    turned, seen = rotate(opened("qwen35-moe")), []
    walk(turned.model, turned.weights, [[1, 2, 3]], lambda product: seen.append(product.name) or product.values)
    assert len(seen) == len(set(seen)) and "lm_head.weight" in seen


def test_a_draft_head_is_left_out():
    turned = rotate(opened("qwen35-mtp"))
    assert turned.model.mtp is None and turned.config.mtp_num_hidden_layers == 0


def test_norms_before_the_residual_are_refused():
    with pytest.raises(LatticeError, match="rms_norm between the products and the residual"):
        rotate(opened("gemma3-old"))


def test_models_without_a_head_are_refused():
    for name in ("bert-gelu", "qwen3-embedding"):
        with pytest.raises(LatticeError, match="without a head"):
            rotate(opened(name))


def tags(build) -> dict:
    """Return what becomes of the weights of a program that starts with an embedding of width 8."""

    def start(program):
        weight = lambda name, *shape: program.input(name, *shape, kind="weight")  # noqa: E731
        x = embedding(weight("table", 20, 8), program.step().tokens)
        return {"y": build(x, weight)}

    return _Tags(trace(start), 8).turns()


def test_what_the_program_does_not_show_is_refused():
    def twice(x, weight):  # one matrix reads the stream and writes it, at different places
        w = weight("w", 8, 8)
        return linear(linear(add(x, linear(linear(x, weight("a", 8, 8)), w)), w), weight("b", 4, 8))

    def beside(x, weight):  # what is added is read elsewhere, too
        y = linear(linear(x, weight("a", 4, 8)), weight("b", 8, 4))
        return add(linear(add(x, y), weight("c", 8, 8)), y)

    for build, reason in (
        (twice, "two roles"),
        (beside, "read beside"),
        (lambda x, weight: x, "output"),
        (lambda x, weight: add(x, rms_norm(x, weight("n", 8), eps=0)), "add of"),
        (lambda x, weight: linear(rms_norm(x, weight("n", 4), eps=0), weight("a", 4, 8)), "rms_norm of"),
    ):
        with pytest.raises(LatticeError, match=reason):
            tags(build)


@given(st.sampled_from([1, 2, 3, 24, 64, 96, 576, 640, 5120]), st.integers(0, 2**63))
def test_turning_is_orthogonal_and_mixes_all_channels(width, seed):
    x = np.random.default_rng(seed).normal(size=(3, width))
    turned = turn(x, seed)
    np.testing.assert_allclose(turned @ turned.T, x @ x.T, rtol=1e-9, atol=1e-9)
    spike = turn(np.eye(1, width), seed)
    assert np.abs(spike).max() <= np.sqrt(2 / width) * (1 + 1e-9) and (np.abs(spike) > 0).all()
    np.testing.assert_array_equal(turn(x, seed), turned)


def test_signs_are_those_of_splitmix64():
    known = (10451216379200822465, 13757245211066428519, 17911839290282890590, 8196980753821780235, 8195237237126968761)
    assert signs(5, 1).tolist() == [1 - 2 * (number >> 63) for number in known]
    assert abs(signs(4096, 7).mean()) < 0.05
