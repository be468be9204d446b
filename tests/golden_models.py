"""The checkpoints of golden/models, for tests of models: opened, copied with another config, run by the engine."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np

from lattice.errors import LatticeWarning
from lattice.generate.engine import Engine
from lattice.models import family
from lattice.weights.load import open_model

MODELS = Path(__file__).parent / "golden" / "models"


def open_golden(name):
    """Return the opened model and its golden arrays."""
    directory = MODELS / name
    ggufs = list(directory.glob("*.gguf"))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*of the vision part are skipped", LatticeWarning)
        return open_model(ggufs[0] if ggufs else directory, family), np.load(directory / "golden.npz")


def copy(name: str, to: Path, **config: object) -> Path:
    """Copy a golden model, with other config values."""
    directory = shutil.copytree(MODELS / name, to / name)
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return directory


def scores(engine: Engine, tokens: list[int], size: int) -> np.ndarray:
    """Return the logits of all tokens, run in parts of `size`."""
    sequence = engine.sequence()
    engine.reserve(sequence, len(tokens))
    parts = [np.concatenate(list(engine.score(sequence, tokens[i : i + size]))) for i in range(0, len(tokens), size)]
    sequence.clear()
    return np.concatenate(parts)


def close(got, wanted, tolerance):
    """Return whether no value is off by more than `tolerance` of the largest, or of 1."""
    return np.abs(got - wanted).max() <= tolerance * max(1.0, np.abs(wanted).max())
