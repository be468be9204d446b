"""Fixtures of the tests of embedding."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import write_encoder


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Return the directory of a complete tiny encoder, which the test may change."""
    return write_encoder(tmp_path / "tiny")
