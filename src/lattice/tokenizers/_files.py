"""The small files beside a tokenizer: bounded JSON in, whole files out."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

from lattice.errors import FormatError, expected

LIMIT = 16 << 20  # bytes of a settings file; tokenizer_config.json lists added tokens


def read_bytes(path: Path, limit: int) -> bytes:
    """Return a regular file's bytes, or raise FormatError where it is missing, unreadable or larger than
    `limit`."""
    try:
        if not path.is_file():
            raise expected(
                path.name,
                "a regular file",
                "nothing" if not path.exists() else "something else",
                kind=FormatError,
            )
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise expected(path.name, "a readable file", error.strerror or error, kind=FormatError) from None
    if len(data) > limit:
        raise expected(path.name, f"at most {limit} bytes", "a larger file", kind=FormatError)
    return data


def read_settings(path: Path) -> dict[str, Any]:
    """Return a JSON object from a file, an empty one where there is no such file."""
    if not path.exists():
        return {}
    data = read_bytes(path, LIMIT)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise expected(path.name, "valid JSON", str(error)[:200], kind=FormatError) from None
    if not isinstance(value, dict):
        raise expected(path.name, "a JSON object", type(value).__name__, kind=FormatError)
    return value


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file whole: readers see the old one or the new one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
