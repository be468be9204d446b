"""Mapping files for reading, names from outside: what all of weights shares."""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path

import numpy as np

from lattice.errors import FormatError, expected


def map_file(path: Path, where: str) -> tuple[mmap.mmap, np.ndarray]:
    """Return the read-only mapping of a regular file and its bytes as a uint8 array that keeps it alive."""
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise expected(where, "a regular file", str(path), kind=FormatError)
            if status.st_size == 0:
                raise expected(where, "a file with a header", "0 bytes", kind=FormatError)
            mapping = mmap.mmap(file.fileno(), status.st_size, access=mmap.ACCESS_READ)
    except OSError as error:
        raise expected(where, "a readable file", f"{path}: {error.strerror or error}", kind=FormatError) from None
    return mapping, np.frombuffer(mapping, np.uint8)


def release_pages(mapping: mmap.mmap, begin: int, end: int) -> None:
    """Tell the system that the pages wholly inside [begin, end) of a mapping need not stay in memory."""
    first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
    length = end // mmap.PAGESIZE * mmap.PAGESIZE - first
    advice = getattr(mmap, "MADV_DONTNEED", None)  # absent on Windows, where the advice does not exist
    if length > 0 and advice is not None:
        mapping.madvise(advice, first, length)


def check_relative(name: str, where: str) -> None:
    """Refuse a path from outside, with `/` between its parts, that does not stay inside the directory it is for."""
    odd = "\\" in name or ":" in name or not name.isprintable() or len(name) > 400
    if odd or any(part in ("", ".", "..") for part in name.split("/")):
        raise expected(where, "entries inside their directory", repr(name)[:120], kind=FormatError)


def inside(directory: Path, name: str, where: str) -> Path:
    """Return `directory / name` for a file name that came from a file, refusing every way out of the
    directory.

    A symbolic link may point within the directory, or to `blobs` where the directory is a snapshot in the
    layout of the hub's own cache.
    """
    bad = not name or name in (".", "..") or any(c in "/\\:" or not c.isprintable() for c in name)
    if bad or len(name) > 255 or os.path.isabs(name):
        raise expected(where, "a plain file name", repr(name)[:120], kind=FormatError)
    path = directory / name
    roots = [directory.resolve()]
    if directory.parent.name == "snapshots":
        roots.append(directory.parent.parent.resolve() / "blobs")
    if path.is_symlink() and not any(path.resolve().is_relative_to(root) for root in roots):
        raise expected(
            where,
            "files inside the model's directory",
            f"{name!r}, a link that leaves it",
            hint="open the directory that really holds the files",
            kind=FormatError,
        )
    return path
