"""The small files beside a tokenizer: bounded JSON in, whole files out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lattice.files import replacing
from lattice.strict_json import read_bytes, read_object

__all__ = ["LIMIT", "read_bytes", "read_settings", "write_bytes"]

LIMIT = 16 << 20  # bytes of a settings file; tokenizer_config.json lists added tokens


def read_settings(path: Path) -> dict[str, Any]:
    """Return a JSON object from a file, an empty one where there is no such file."""
    return read_object(path, LIMIT) if path.exists() else {}


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file whole: readers see the old one or the new one."""
    with replacing(path) as file:
        file.write(data)
