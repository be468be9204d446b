"""The one place where a device's name becomes a backend."""

from __future__ import annotations

from lattice.backends._backend import Backend
from lattice.backends.cpu import CpuBackend
from lattice.errors import expected


def select(device: str) -> Backend:
    """Return the backend of `device`: "auto", "cpu" or "gpu"; LatticeError for others, and where there is no card."""
    if device in ("auto", "cpu"):
        return CpuBackend()
    if device == "gpu":
        from lattice.backends.wgpu import WgpuBackend

        return WgpuBackend()
    raise expected("load", "device auto, cpu or gpu", repr(device))
