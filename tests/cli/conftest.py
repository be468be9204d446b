"""Fixtures of the tests of the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import write_chat_model, write_encoder
from typer.testing import CliRunner

from lattice.cli import app


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the directory of a tiny encoder."""
    return str(write_encoder(tmp_path_factory.mktemp("models") / "encoder"))


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the directory of a tiny language model with a chat template."""
    return str(write_chat_model(tmp_path_factory.mktemp("models") / "chat"))


@pytest.fixture
def base_model(golden: Path) -> str:
    """Return the directory of a tiny language model without tokenizer and template."""
    return str(golden / "models" / "llama-tied")


@pytest.fixture
def cli() -> Callable[..., Any]:
    """Return a function that runs a command line in this process."""

    def run(*arguments: str, input: str | None = None) -> Any:
        return CliRunner().invoke(app, [str(argument) for argument in arguments], input=input)

    return run
