"""Hand-made files: safetensors, GGUF and wheels whose every byte a test may spoil."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lattice.dtypes import F32, Array, encode
from lattice.weights import save_safetensors, write_gguf


def raw_safetensors(header: bytes | str | dict, data: bytes = b"", length: int | None = None) -> bytes:
    """Return the bytes of a file with this header, however wrong."""
    text = json.dumps(header) if isinstance(header, dict) else header
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def gguf_string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def gguf_entry(key: str | bytes, kind: int, raw: bytes) -> bytes:
    return gguf_string(key) + struct.pack("<I", kind) + raw


def gguf_tensor(name: str | bytes, sizes: list[int], kind: int = 0, offset: int = 0) -> bytes:
    head = gguf_string(name) + struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
    return head + struct.pack("<IQ", kind, offset)


def raw_gguf(
    entries: list[bytes] = (),
    tensors: list[bytes] = (),
    data: bytes = b"",
    version: int = 3,
    counts: tuple[int, int] | None = None,
) -> bytes:
    """Return the bytes of a GGUF file with these entries and tensor infos, however wrong."""
    count = counts or (len(tensors), len(entries))
    head = b"GGUF" + struct.pack("<IQQ", version, *count) + b"".join(entries) + b"".join(tensors)
    return head + (bytes(-len(head) % 32) + data if data else b"")


def ones(*shape: int) -> Array:
    return encode(np.ones(shape, np.float32), F32)


def write_model(directory: Path, config: dict | None = None) -> Path:
    """Write a tiny model directory: config.json and model.safetensors."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config or {"model_type": "bert"}))
    save_safetensors(directory / "model.safetensors", {"w": ones(2, 3)})
    return directory


def write_wheel(path: Path, files: dict[str, bytes], *, spoil: Callable[[zipfile.ZipFile], None] | None = None) -> Path:
    """Write a wheel of `files` with its dist-info and RECORD; `spoil` may add what no wheel should hold."""
    name, version = path.name.split("-")[:2]
    info = f"{name}-{version}.dist-info"
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        rows = []
        for file_name, data in files.items():
            archive.writestr(file_name, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            rows.append(f"{file_name},sha256={digest},{len(data)}")
        archive.writestr(f"{info}/RECORD", "\n".join([*rows, f"{info}/RECORD,,\n"]))
        if spoil:
            spoil(archive)
    return path


@pytest.fixture
def tiny_gguf(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, {"general.architecture": "llama", "tokens": ["a", "bc"]}, {"w": ones(2, 3)})
    return path
