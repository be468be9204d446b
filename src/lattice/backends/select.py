"""The one place where a device's name becomes a backend."""

from __future__ import annotations

from pathlib import Path

from lattice.backends._backend import Backend
from lattice.backends.auto import choose
from lattice.backends.cpu import CpuBackend
from lattice.errors import LatticeError, expected


def select(device: str, home: Path | None = None) -> Backend:
    """Return the backend of `device`: "auto", "cpu" or "gpu"; LatticeError for others, and where there is no card.

    "auto" remembers in the directory `home` whether the card is worth it (auto.py), and is the processor without one.
    """
    if device == "gpu" or (device == "auto" and choose(home).gpu):
        from lattice.backends.wgpu import WgpuBackend

        try:
            return WgpuBackend()
        except LatticeError:
            if device == "gpu":
                raise
    elif device not in ("auto", "cpu"):
        raise expected("load", "device auto, cpu or gpu", repr(device))
    return CpuBackend()
