"""Calls into the `tokenizers` library, whose errors and panics become errors of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from lattice.errors import LatticeError, expected

Result = TypeVar("Result")


def guarded(where: str, wanted: str, work: Callable[[], Result], kind: type[LatticeError] = LatticeError) -> Result:
    """Return `work()`, turning what the library raises into an error of `kind`; a panic in Rust is a BaseException."""
    try:
        return work()
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError, LatticeError):
        raise
    except BaseException as error:
        raise expected(where, wanted, f"{type(error).__name__}: {str(error)[:200]}", kind=kind) from None
