"""What the tests of embedding share: encoders on every backend of this machine, and comparisons."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lattice.backends.cpu import CpuBackend, runnable_targets
from lattice.backends.reference import ReferenceBackend
from lattice.embed import Encoder
from lattice.models import family
from lattice.weights.load import open_model

RUNNABLE = runnable_targets()
BACKENDS: dict[str, Any] = {"reference": ReferenceBackend, **{name: partial(CpuBackend, name) for name in RUNNABLE}}


def open_encoder(path: Path, backend: str = "reference", **options: Any) -> Encoder:
    """Return the encoder of a directory or .gguf file on one of BACKENDS."""
    return Encoder(open_model(path, family), BACKENDS[backend](), **options)


def arrays(path: Path) -> dict[str, np.ndarray]:
    """Return all arrays of an .npz file."""
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Return whether two arrays are one another's bytes."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
