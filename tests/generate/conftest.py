"""Small language models: see small_models.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from small_models import copy_model

from lattice.generate import Completion, LanguageModel, load


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Return `copy_model` into this test's folder."""
    return partial(copy_model, tmp_path)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """Return a small model without tokenizer or stop tokens; keys and values are f32."""
    return load(copy_model(tmp_path_factory.mktemp("small")))


@pytest.fixture(scope="module")
def small_text(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """Return a small model with a tokenizer and a chat template."""
    return load(copy_model(tmp_path_factory.mktemp("text"), text=True))


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Completion]:
    """Return what generates with the weights of `small` and knows no prefix."""
    lm = load(copy_model(tmp_path_factory.mktemp("fresh")))

    def run(*args, **options) -> Completion:
        lm.engine.forget()
        return lm.generate(*args, **options)

    return run


@pytest.fixture(autouse=True)
def all_pages_come_back(request: pytest.FixtureRequest):
    """Whatever a test does with a shared model, every page is free afterwards, but for those of prefixes."""
    yield
    for name in {"small", "small_text"} & set(request.fixturenames):
        engine = request.getfixturevalue(name).engine
        engine.forget()
        assert engine.pool.used == 0 and engine.pool.pages.free == engine.pool.pages.count
