"""Inverse frequencies of rotary embeddings, and the ways checkpoints stretch them to longer contexts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from lattice.errors import expected


def inverse_frequencies(rotary_dim: int, theta: float, scaling: Mapping[str, Any] | None = None) -> np.ndarray:
    """Return theta^(-2i / rotary_dim), i < rotary_dim / 2, scaled as `scaling` says: float32, (rotary_dim / 2,).

    `scaling` is config.json's rope_scaling: type "default", "linear" (all divided by factor) or "llama3" (long waves
    divided, short ones kept, smoothly between; Llama 3.1's model card).
    """
    scaling = scaling or {}
    frequencies = theta ** (-np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "linear":
        frequencies = frequencies / float(scaling["factor"])
    elif kind == "llama3":
        frequencies = frequencies / _llama3_factors(frequencies, scaling)
    elif kind != "default":
        raise expected("rope", "rope scaling default, linear or llama3", kind)
    return frequencies.astype(np.float32)


def _llama3_factors(frequencies: np.ndarray, scaling: Mapping[str, Any]) -> np.ndarray:
    factor, low, high = (float(scaling[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    turns = float(scaling["original_max_position_embeddings"]) * frequencies / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return 1 / ((1 - smooth) / factor + smooth)
