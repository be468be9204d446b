"""Writing GGUF version 3, whole or not at all. The counterpart of gguf.py, for quantising and for tests."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from lattice.dtypes import Array, DType
from lattice.errors import expected
from lattice.files import replacing
from lattice.weights.gguf import (
    ARRAY,
    BOOL,
    DEFAULT_ALIGNMENT,
    MAX_DIMENSIONS,
    NUMBERS,
    STRING,
    TENSOR_TYPES,
    Strings,
    valid_alignment,
)

Layout = Mapping[str, tuple[DType, tuple[int, ...]]]
_TYPE_IDS = {name: type_id for type_id, name in TENSOR_TYPES.items()}
_KINDS = {np.dtype("<" + code): kind for kind, code in NUMBERS.items()} | {np.dtype(bool): BOOL}


def _string(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(raw)) + raw


def _python_number(value: bool | int | float) -> np.generic:
    if isinstance(value, bool):
        return np.bool_(value)
    if isinstance(value, float):
        return np.float32(value)
    for kind in (np.uint32, np.int32, np.int64, np.uint64):
        if np.iinfo(kind).min <= value <= np.iinfo(kind).max:
            return kind(value)
    raise expected("write_gguf", "an integer of at most 64 bits", value)


def _value(key: str, value: object) -> tuple[int, bytes]:
    """Return the value type and bytes of one metadata value.

    Python integers become u32 where they fit, else i32, i64, u64; floats f32; a NumPy scalar or array keeps
    its type.
    """
    if isinstance(value, str):
        return STRING, _string(value)
    if isinstance(value, (bool, int, float)) and not isinstance(value, np.generic):
        value = _python_number(value)
    if isinstance(value, np.generic) and value.dtype in _KINDS:
        return _KINDS[value.dtype], value.tobytes()
    if isinstance(value, Strings):
        value = list(value)
    if isinstance(value, (list, tuple)) and any(isinstance(item, (str, list, tuple, np.ndarray)) for item in value):
        items = [_value(key, item) for item in value]
        if len({kind for kind, _ in items}) != 1:
            raise expected("write_gguf", f"one type of values in {key}", "several")
        return ARRAY, struct.pack("<IQ", items[0][0], len(items)) + b"".join(raw for _, raw in items)
    if isinstance(value, (list, tuple)):
        value = np.array(value, dtype=np.int32 if all(type(item) is int for item in value) else None)
        value = value.astype(np.float32) if value.dtype == np.float64 else value
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype in _KINDS:
        return ARRAY, struct.pack("<IQ", _KINDS[value.dtype], len(value)) + value.tobytes()
    raise expected("write_gguf", f"a number, string or flat array for {key}", type(value).__name__)


def _tensor_info(name: str, dtype: DType, shape: tuple[int, ...], offset: int) -> bytes:
    if dtype.name not in _TYPE_IDS or len(shape) > MAX_DIMENSIONS or 0 in shape:
        raise expected("write_gguf", f"a GGUF type and 1 to {MAX_DIMENSIONS} dimensions for {name}", f"{dtype} {shape}")
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
    return _string(name) + sizes + struct.pack("<IQ", _TYPE_IDS[dtype.name], offset)


def write_gguf(path: Path | str, metadata: dict[str, object], tensors: dict[str, Array]) -> None:
    """Write metadata and tensors (in the order given); `general.alignment` is honoured, 32 if absent."""
    layout = {name: (array.dtype, array.shape) for name, array in tensors.items()}
    write_gguf_parts(path, metadata, layout, lambda name: (tensors[name],))


def write_gguf_parts(
    path: Path | str,
    metadata: dict[str, object],
    layout: Layout,
    parts: Callable[[str], Iterable[Array]],
    check: Callable[[Path], object] = lambda path: None,
) -> None:
    """Write a file whose tensors are made one by one, each in parts of its first dimension.

    `check` sees the written file before it gets its name; what it raises leaves nothing behind.
    """
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or not valid_alignment(alignment):
        raise expected("write_gguf", "general.alignment a power of two, 8 to 65536", alignment)
    head = [b"GGUF", struct.pack("<IQQ", 3, len(layout), len(metadata))]
    for key, value in metadata.items():
        kind, raw = _value(key, value)
        head += [_string(key), struct.pack("<I", kind), raw]
    offset = 0
    for name, (dtype, shape) in layout.items():
        head.append(_tensor_info(name, dtype, shape, offset))
        offset += -(-dtype.size(math.prod(shape)) // alignment) * alignment
    header = b"".join(head)
    with replacing(Path(path)) as file:
        file.write(header + bytes(-len(header) % alignment))
        for name, (dtype, shape) in layout.items():
            for array in parts(name):
                file.write(array.data.reshape(-1).view(np.uint8).data)
            file.write(bytes(-dtype.size(math.prod(shape)) % alignment))
        file.flush()
        check(Path(file.name))
