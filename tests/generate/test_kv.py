"""How keys and values are kept: 8 bits cost a little exactness, and none of what holds bit for bit otherwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_models import copy_model, draw_tokens, hybrid_model
from speculation import Always

from lattice.errors import LatticeError
from lattice.generate import LanguageModel, load

PROMPT = draw_tokens(200)


@pytest.fixture(scope="module", params=["attention", "hybrid"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp(request.param)
    return copy_model(to) if request.param == "attention" else hybrid_model(to, mtp_num_hidden_layers=1)


@pytest.fixture(scope="module")
def q8(path: Path) -> LanguageModel:
    return load(path, kv="q8")


@pytest.mark.parametrize(("kv", "dtype", "error"), [("f16", np.float16, 2e-3), ("q8", np.int8, 2e-2)])
def test_fewer_bits_are_close_to_f32(path, kv, dtype, error):
    exact, kept = load(path, kv="f32"), load(path, kv=kv)
    assert {array.dtype for array in exact.engine.paged.values()} == {np.dtype(np.float32)}
    assert {array.dtype for array in kept.engine.paged.values()} == {np.dtype(dtype)}
    assert {array.dtype for array in kept.engine.slotted.values()} <= {np.dtype(np.float32)}
    wanted, found = exact.logits(PROMPT), kept.logits(PROMPT)
    assert 0 < np.abs(found - wanted).max() <= error * max(1, np.abs(wanted).max())
    values = kept.engine.pool.pages.nbytes / exact.engine.pool.pages.nbytes
    assert values == 0.5 if kv == "f16" else 0.25 < values <= 0.5  # heads here are 8 wide, a factor 4 bytes


def test_cuts_change_no_bit(q8):
    engine, wanted = q8.engine, q8.logits(PROMPT)
    for size in (1, 63, 64, 65):
        sequence = engine.sequence()
        engine.reserve(sequence, len(PROMPT))
        for start in range(0, len(PROMPT), size):
            found = np.concatenate(list(engine.score(sequence, PROMPT[start : start + size])))
            assert np.array_equal(found, wanted[start : start + size])
        sequence.clear()


def test_drafts_change_no_token(q8):
    costs, q8.drafting.costs = q8.drafting.costs, Always(3)
    for options in ({}, {"temperature": 1.1, "seed": 3}):
        plain = q8.generate(PROMPT, max_tokens=60, draft="off", **options)
        assert q8.generate(PROMPT, max_tokens=60, draft="auto", **options).tokens == plain.tokens
    q8.drafting.costs = costs


def test_prefixes_are_saved_and_loaded(q8, path, tmp_path):
    plain = q8.generate(PROMPT, max_tokens=5)
    assert q8.save_cache(tmp_path / "kept") >= 1
    other = load(path, kv="q8")
    assert other.load_cache(tmp_path / "kept") >= 1
    again = other.generate(PROMPT, max_tokens=5)
    assert again.tokens == plain.tokens and again.usage.reused_tokens > 0
    with pytest.warns(match="expected prefixes of this model"):
        assert load(path, kv="f16").load_cache(tmp_path / "kept") == 0


def test_what_there_is_not_is_refused_by_name(path):
    with pytest.raises(LatticeError, match="keys and values as one of auto, f32, f16, q8, got 'q4'"):
        load(path, kv="q4")
