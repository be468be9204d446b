"""Lattice: embed text and chat with transformer models, on plain CPUs, from one small package.

>>> import lattice
>>> encoder = lattice.load_encoder("minilm")        # doctest: +SKIP
>>> model = lattice.load("smollm2-135m")            # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from lattice.errors import LatticeError, LatticeWarning

__version__ = "0.1.0"
__all__ = ["LatticeError", "LatticeWarning", "__version__", "load", "load_encoder", "quantize"]

# Public functions and where they live: imported when first used, so that `import lattice` stays quick.
_HOMES = {"load": "lattice.generate", "load_encoder": "lattice.embed", "quantize": "lattice.quant"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lattice' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
