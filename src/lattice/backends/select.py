"""The one place where a device's name becomes a backend."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lattice.backends._backend import Backend
from lattice.backends.auto import choose
from lattice.backends.cpu import CpuBackend
from lattice.errors import LatticeError, LatticeWarning, expected

Made = TypeVar("Made")


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


def load_on(device: str, home: Path | None, make: Callable[[Backend], Made]) -> Made:
    """Return what `make` loads with the backend of `device`.

    Where "auto" is a card that cannot hold the model, it is loaded with the processor instead, with a LatticeWarning.
    """
    backend = select(device, home)
    try:
        return make(backend)
    except LatticeError as error:
        reason = str(error).partition("\n")[0]
        # Errors of the card begin so; what is wrong with the model or the settings is wrong on the processor, too.
        if device != "auto" or backend.name != "gpu" or not reason.startswith("[gpu]"):
            raise
    # Behind the handler, where nothing holds what the card was given any more.
    warnings.warn(f"{reason}; the model runs on the processor (device cpu)", LatticeWarning, stacklevel=3)
    return make(CpuBackend())
