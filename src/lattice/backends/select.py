"""The one place where a device's name becomes a backend."""

from __future__ import annotations

from lattice.backends.cpu import CpuBackend
from lattice.errors import expected


def select(device: str) -> CpuBackend:
    """Return the backend of `device`: "auto" or "cpu"; LatticeError for others."""
    if device in ("auto", "cpu"):
        return CpuBackend()
    hint = "the GPU backend is not in this version" if device == "gpu" else None
    raise expected("load", "device auto or cpu", repr(device), hint=hint)
