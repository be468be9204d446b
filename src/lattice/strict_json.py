"""Strict JSON for files from outside: no duplicate keys, no NaN or infinity, bounded size and depth.

Duplicate keys matter: two readers that keep different ones of them see two different files. Not here: what the
values mean to whoever reads them.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from lattice.errors import FormatError, expected

MAX_DEPTH = 64


class _Refused(ValueError):
    pass


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _Refused(f"duplicate key {key!r:.80}")
            seen.add(key)
    return result


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _Refused(f"the number {text:.40}, which is infinite")
    return value


def _no_constant(text: str) -> float:
    raise _Refused(f"the constant {text}, which is not JSON")


def _check_depth(value: object, where: str) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for parent in level
            if isinstance(parent, (dict, list))
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
        if not level:
            return
    raise expected(where, f"JSON of at most {MAX_DEPTH} levels", "deeper nesting", kind=FormatError)


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """Return the JSON object in `data` (UTF-8), or raise FormatError naming `where`."""
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_no_duplicates,
            parse_float=_finite,
            parse_constant=_no_constant,
        )
    except _Refused as refused:
        raise expected(where, "strict JSON", str(refused), kind=FormatError) from None
    except RecursionError:
        raise expected(where, f"JSON of at most {MAX_DEPTH} levels", "deeper nesting", kind=FormatError) from None
    except ValueError as error:  # bad UTF-8, bad syntax, an integer of thousands of digits
        raise expected(where, "valid JSON in UTF-8", str(error)[:200], kind=FormatError) from None
    if not isinstance(value, dict):
        raise expected(where, "a JSON object", type(value).__name__, kind=FormatError)
    _check_depth(value, where)
    return value


def read_bytes(path: Path, limit: int) -> bytes:
    """Return a regular file's bytes; FormatError where it is missing, unreadable or larger than `limit` bytes."""
    try:
        if not path.is_file():  # opening a pipe would wait for its writer
            got = "something else" if path.exists() else "nothing"
            raise expected(path.name, "a regular file", got, kind=FormatError)
        with open(path, "rb") as file:
            # Not read(limit + 1), which takes that much memory at once, whatever the file's size.
            data = file.read(min(os.fstat(file.fileno()).st_size, limit) + 1)
    except OSError as error:
        raise expected(path.name, "a readable file", error.strerror or error, kind=FormatError) from None
    if len(data) > limit:
        raise expected(path.name, f"at most {limit} bytes", "a larger file", kind=FormatError)
    return data


def read_object(path: Path, limit: int) -> dict[str, Any]:
    """Return the JSON object in the file at `path`, refusing files larger than `limit` bytes."""
    return parse_object(read_bytes(path, limit), path.name)
