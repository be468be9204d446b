"""Inverse frequencies of rotary embeddings, and the ways checkpoints stretch them to longer contexts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from lattice.errors import expected

# What a scaling may say, and what each kind adds to that; a further key would change what is computed.
COMMON = {"rope_type", "type", "rope_theta", "original_max_position_embeddings", "max_position_embeddings"}
KINDS: dict[str, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor"},
    "yarn": {"factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"},
}


def inverse_frequencies(rotary_dim: int, theta: float | None, scaling: Mapping[str, Any] | None = None) -> np.ndarray:
    """Return theta^(-2i / rotary_dim), i < rotary_dim / 2, scaled as `scaling` says: float32, (rotary_dim / 2,).

    `scaling` is config.json's rope_scaling: type "default", "linear" (all divided by factor), "llama3" (long waves
    divided, short ones kept, smoothly between; Llama 3.1's model card) or "yarn" (Peng et al., 2023, arXiv:2309.00071:
    the same idea, linear in the dimension; see also `attention_factor`). Without `theta` its own rope_theta holds.
    """
    scaling = scaling or {}
    kind, theta = _kind(scaling), float(scaling["rope_theta"] if theta is None else theta)
    frequencies = theta ** (-np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim)
    if kind == "linear":
        frequencies = frequencies / float(scaling["factor"])
    elif kind == "llama3":
        frequencies = frequencies / _llama3_factors(frequencies, scaling)
    elif kind == "yarn":
        kept = _yarn_kept(rotary_dim, theta, scaling)
        frequencies = frequencies * (kept + (1 - kept) / float(scaling["factor"]))
    return frequencies.astype(np.float32)


def attention_factor(scaling: Mapping[str, Any] | None = None) -> float:
    """Return what rotated queries and keys are each multiplied by: 1 but for yarn, 1 + ln(factor) / 10 there.

    A product of the two carries its square, which an attention's scale takes in.
    """
    scaling = scaling or {}
    if _kind(scaling) != "yarn":
        return 1.0
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])
    factor, mscale, whole = float(scaling["factor"]), scaling.get("mscale"), scaling.get("mscale_all_dim")
    growth = 0.1 * math.log(max(1.0, factor))
    return (growth * mscale + 1) / (growth * whole + 1) if mscale and whole else growth + 1


def _kind(scaling: Mapping[str, Any]) -> str:
    """Return the type of a scaling, or raise for one that is not known or says more than is understood."""
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in KINDS:
        raise expected("rope", "rope scaling default, linear, llama3 or yarn", kind)
    known = COMMON | KINDS[kind]
    unknown = {key: value for key, value in scaling.items() if key not in known and value is not None}
    if unknown.pop("partial_rotary_factor", 1) != 1 or unknown:
        listed = ", ".join(f"{key}={str(scaling[key])[:60]}" for key in scaling if key not in known)
        raise expected("rope", f"{kind} scaling of {', '.join(sorted(known))}", listed)
    return kind


def _llama3_factors(frequencies: np.ndarray, scaling: Mapping[str, Any]) -> np.ndarray:
    factor, low, high = (float(scaling[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    turns = float(scaling["original_max_position_embeddings"]) * frequencies / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return 1 / ((1 - smooth) / factor + smooth)


def _yarn_kept(rotary_dim: int, theta: float, scaling: Mapping[str, Any]) -> np.ndarray:
    """Return how much of each frequency is kept: 1 above beta_fast turns in the original context, 0 below beta_slow."""
    original = float(scaling["original_max_position_embeddings"])

    def pair(turns: float) -> float:  # the index at which a wave makes so many turns
        return rotary_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair(float(scaling.get("beta_fast") or 32)), pair(float(scaling.get("beta_slow") or 1))
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    return 1 - np.clip((np.arange(rotary_dim // 2) - low) / (high - low or 0.001), 0, 1)
