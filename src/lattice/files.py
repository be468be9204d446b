"""Replacing files whole: what everything that writes one shares."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from lattice.errors import LatticeError, expected


def sync_directory(directory: Path) -> None:
    """Make renames in `directory` durable, where the system lets a directory be opened."""
    if os.name == "nt":
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file beside `path` for writing; on success it is synced and renamed to `path`, else removed.

    A reader sees the old file or the whole new one, never a part, and a file that is mapped is never written
    to.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        try:
            with open(beside, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
            sync_directory(path.parent)
        except OSError as error:
            raise expected(
                "write",
                "a place that can be written",
                f"{path}: {error.strerror or error}",
                kind=LatticeError,
            ) from error
    finally:
        beside.unlink(missing_ok=True)
