"""Safetensors files, single and sharded: mapped, checked, never copied.

A file is an 8-byte little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, and the
data. The rules are those of the format's reference (a header of at most 100 MB, data without overlap or hole)
and stricter where that costs no honest file: duplicate keys, unknown fields and unprintable names are
refused. Source: https://github.com/huggingface/safetensors. Not here: pickled checkpoints, which are never
read.

Blocks (q8_0, q4_k, ...), which the format has no name for, lie there as U8 of shape (rows, blocks, bytes of a block),
so that any reader opens the file; the entry `lattice.dtypes` of its metadata, JSON {tensor: dtype}, says what they are.
"""

from __future__ import annotations

import json
import math
import mmap
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lattice.dtypes import BF16, BY_NAME, F16, F32, F64, I8, I16, I32, I64, U8, Array, DType
from lattice.errors import FormatError, LatticeError, LatticeWarning, expected
from lattice.files import replacing
from lattice.strict_json import parse_object, read_object
from lattice.weights._files import inside, map_file, release_pages

INDEX_NAME = "model.safetensors.index.json"
BLOCKS = "lattice.dtypes"
MAX_HEADER = 100_000_000
MAX_TENSORS = 1 << 20
MAX_DIMENSIONS = 8
MAX_VALUES = 1 << 48

_DTYPES = {"F64": F64, "F32": F32, "F16": F16, "BF16": BF16, "I64": I64, "I32": I32, "I16": I16, "I8": I8}
_DTYPES |= {"U8": U8, "BOOL": U8}
_NAMES = {dtype.name: name for name, dtype in _DTYPES.items() if name != "BOOL"}
# Types that other software writes: their tensors are listed and measured, but not read.
_UNREAD = {"U16": 2, "U32": 4, "U64": 8, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1}


def _refuse(where: str, wanted: str, got: object, hint: str | None = None) -> LatticeError:
    return expected(where, wanted, got, hint=hint, kind=FormatError)


@dataclass(frozen=True)
class _Entry:
    type_name: str
    shape: tuple[int, ...]
    begin: int  # bytes from the start of the file
    end: int


def check_name(name: str, where: str) -> None:
    """Refuse tensor names that are empty, longer than 1024 characters or not printable."""
    if not 0 < len(name) <= 1024 or not name.isprintable():
        raise _refuse(where, "a printable tensor name of 1 to 1024 characters", ascii(name)[:120])


def _whole_numbers(value: object, where: str, what: str) -> list[int]:
    if type(value) is not list or any(type(item) is not int or item < 0 for item in value):
        raise _refuse(where, f"{what} of whole numbers", f"{value!r:.80}")
    return value


def _entry(name: str, info: object, data_begin: int, data_size: int, where: str) -> _Entry:
    check_name(name, where)
    where = f"{where}: {name[:80]}"
    if type(info) is not dict or info.keys() != {"dtype", "shape", "data_offsets"}:
        raise _refuse(where, "the fields dtype, shape and data_offsets", f"{info!r:.80}")
    type_name = info["dtype"]
    dtype = _DTYPES.get(type_name) if type(type_name) is str else None
    width = dtype.nbytes if dtype else _UNREAD.get(type_name) if type(type_name) is str else None
    if width is None:
        raise _refuse(where, "a known dtype", f"{type_name!r:.40}")
    shape = _whole_numbers(info["shape"], where, "a shape")
    if len(shape) > MAX_DIMENSIONS or math.prod(max(size, 1) for size in shape) > MAX_VALUES:
        raise _refuse(where, f"at most {MAX_DIMENSIONS} dimensions and 2**48 values", f"shape {shape!r:.80}")
    offsets = _whole_numbers(info["data_offsets"], where, "offsets")
    if len(offsets) != 2 or not offsets[0] <= offsets[1] <= data_size:
        raise _refuse(where, f"offsets [begin, end] within {data_size} bytes of data", f"{offsets!r:.80}")
    size = math.prod(shape) * width
    if offsets[1] - offsets[0] != size:
        raise _refuse(where, f"{size} bytes for shape {shape} of {type_name}", offsets[1] - offsets[0])
    return _Entry(type_name, tuple(shape), data_begin + offsets[0], data_begin + offsets[1])


def _check_cover(entries: dict[str, _Entry], data_begin: int, file_size: int, where: str) -> None:
    """Refuse overlaps and holes: sorted by offset, each tensor must begin where the one before ended."""
    end = data_begin
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != end:
            fault = "an overlap" if entry.begin < end else "a hole"
            raise _refuse(where, "data without overlap or hole", f"{fault} before {name[:80]!r}")
        end = entry.end
    if end != file_size:
        raise _refuse(where, f"data that ends with the file at byte {file_size}", f"byte {end}")


def _parse_header(data: np.ndarray, where: str) -> tuple[dict[str, str], dict[str, _Entry]]:
    if len(data) < 8:
        raise _refuse(where, "an 8-byte header length", f"a file of {len(data)} bytes")
    length = int.from_bytes(data[:8].tobytes(), "little")
    if length > min(MAX_HEADER, len(data) - 8):
        raise _refuse(where, f"a header within {MAX_HEADER} bytes and the file's {len(data)}", f"{length} bytes")
    header = data[8 : 8 + length].tobytes()
    if header[:1] != b"{":
        raise _refuse(where, "a header that begins with {", f"{header[:1]!r}")
    # Counted before parsing: each of these becomes a Python object much larger than its text.
    if header.count(b"{") > MAX_TENSORS or header.count(b"[") + header.count(b",") > 16 * MAX_TENSORS:
        raise _refuse(where, f"a header of at most {MAX_TENSORS} tensors", "more")
    infos = parse_object(header, where)
    metadata = infos.pop("__metadata__", {})
    if type(metadata) is not dict or any(type(value) is not str for value in metadata.values()):
        raise _refuse(where, "__metadata__ of strings", f"{metadata!r:.80}")
    begin, size = 8 + length, len(data) - 8 - length
    entries = {name: _entry(name, info, begin, size, where) for name, info in infos.items()}
    _check_cover(entries, begin, len(data), where)
    return metadata, entries


def _block_dtypes(metadata: Mapping[str, str], entries: Mapping[str, _Entry], where: str) -> dict[str, DType]:
    """Return which tensors of bytes are blocks, and of which dtype."""
    given = parse_object(metadata.get(BLOCKS, "{}").encode("utf-8", "surrogatepass"), f"{where}: {BLOCKS}")
    found = {}
    for name, dtype_name in given.items():
        at = f"{where}: {BLOCKS}: {name[:80]}"
        dtype = BY_NAME.get(dtype_name) if type(dtype_name) is str else None
        if dtype is None or dtype.block == 1:
            raise _refuse(at, "a dtype of blocks", f"{dtype_name!r:.40}")
        entry = entries.get(name)
        if entry is None:
            raise _refuse(at, "a tensor of the file", "none of this name")
        shape = entry.shape
        if entry.type_name != "U8" or len(shape) < 2 or shape[-1] != dtype.nbytes:
            raise _refuse(at, f"U8 of shape (..., blocks, {dtype.nbytes}) for {dtype}", f"{entry.type_name} {shape}")
        found[name] = dtype
    return found


class SafetensorsFile:
    """One mapped .safetensors file: `names`, `metadata`, and `tensor(name)`, a read-only view of it."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._where = self.path.name
        self._mapping: mmap.mmap
        self._mapping, self._data = map_file(self.path, self._where)
        self.metadata, self._entries = _parse_header(self._data, self._where)
        self._blocks = _block_dtypes(self.metadata, self._entries, self._where)
        self.names = list(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            raise _refuse(self._where, f"a tensor {name!r:.80}", f"{len(self.names)} other tensors")
        return self._entries[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor without touching its data."""
        shape, blocks = self._entry(name).shape, self._blocks.get(name)
        return shape if blocks is None else (*shape[:-2], shape[-2] * blocks.block)

    def size(self, name: str) -> int:
        """Return the bytes of a tensor."""
        entry = self._entry(name)
        return entry.end - entry.begin

    def tensor(self, name: str) -> Array:
        """Return a tensor as a view of the file (BOOL as u8), or a copy where it is not aligned there."""
        entry = self._entry(name)
        dtype = self._blocks.get(name) or _DTYPES.get(entry.type_name)
        if dtype is None:
            raise _refuse(f"{self._where}: {name}", f"a dtype of {', '.join(_DTYPES)}", entry.type_name)
        raw = self._data[entry.begin : entry.end]
        if entry.begin % dtype.storage.itemsize:
            raw = raw.copy()  # kernels read whole elements
            raw.flags.writeable = False
        return Array(raw.view(dtype.storage).reshape(entry.shape), dtype, self.shape(name))

    def release(self, name: str) -> None:
        """Let the system drop a tensor's pages; they are read again when next touched."""
        entry = self._entry(name)
        release_pages(self._mapping, entry.begin, entry.end)


class ShardedSafetensors:
    """The files that `model.safetensors.index.json` names, as one: the same surface as `SafetensorsFile`."""

    def __init__(self, directory: Path | str, index_name: str = INDEX_NAME) -> None:
        self.path = Path(directory)
        index = read_object(inside(self.path, index_name, "index"), MAX_HEADER)
        self._shard_of = _weight_map(index, index_name)
        self._shards = {}
        for file_name in sorted(set(self._shard_of.values())):
            path = inside(self.path, file_name, index_name)
            if not path.is_file():
                raise _refuse(index_name, f"the shard {file_name}", "no such file")
            self._shards[file_name] = SafetensorsFile(path)
        self.names = list(self._shard_of)
        self.metadata = {k: v for shard in self._shards.values() for k, v in shard.metadata.items()}
        self._check(index, index_name)

    def __contains__(self, name: object) -> bool:
        return name in self._shard_of

    def _check(self, index: dict, index_name: str) -> None:
        for name, file_name in self._shard_of.items():
            if name not in self._shards[file_name]:
                raise _refuse(index_name, f"tensor {name!r:.80} in {file_name}", "a shard without it")
        for file_name, shard in self._shards.items():
            for name in shard.names:
                if self._shard_of.get(name) != file_name:
                    raise _refuse(index_name, f"every tensor of {file_name}", f"an index without its {name!r:.80}")
        metadata = index.get("metadata", {})
        total = metadata.get("total_size") if type(metadata) is dict else None
        actual = sum(self.size(name) for name in self.names)
        if total is not None and total != actual:
            # Some published indexes count tied or converted tensors wrongly, so this alone does not condemn a
            # model.
            message = f"[{index_name}] expected {actual} bytes in all, got total_size {total!r:.40}"
            warnings.warn(message, LatticeWarning, stacklevel=3)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor without touching its data."""
        return self._shard(name).shape(name)

    def size(self, name: str) -> int:
        """Return the bytes of a tensor."""
        return self._shard(name).size(name)

    def tensor(self, name: str) -> Array:
        """Return a tensor as a view of its shard."""
        return self._shard(name).tensor(name)

    def release(self, name: str) -> None:
        """Let the system drop a tensor's pages; they are read again when next touched."""
        self._shard(name).release(name)

    def _shard(self, name: str) -> SafetensorsFile:
        if name not in self._shard_of:
            raise _refuse(self.path.name, f"a tensor {name!r:.80}", f"{len(self.names)} other tensors")
        return self._shards[self._shard_of[name]]


def _weight_map(index: dict, where: str) -> dict[str, str]:
    weight_map = index.get("weight_map")
    if type(weight_map) is not dict or not weight_map:
        raise _refuse(where, "a weight_map of tensor names to files", f"{weight_map!r:.80}")
    for name, file_name in weight_map.items():
        check_name(name, where)
        if type(file_name) is not str or not file_name.endswith(".safetensors"):
            raise _refuse(where, "a .safetensors file name", f"{file_name!r:.80}", "pickled shards are never read")
    return weight_map


def safetensors_header(
    tensors: Mapping[str, tuple[DType, tuple[int, ...]]], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, dict[str, int]]:
    """Return the beginning of a file of such tensors, up to the data, and where in the file each of them begins.

    Wide types come first and names in order, so that every tensor is aligned and the bytes depend on the content only.
    """
    blocks = {name: dtype.name for name, (dtype, _) in sorted(tensors.items()) if dtype.block > 1}
    metadata = {**(metadata or {}), **({BLOCKS: json.dumps(blocks)} if blocks else {})}
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    begins, at = {}, 0
    for name in sorted(tensors, key=lambda name: (-tensors[name][0].storage.itemsize, name)):
        dtype, shape = tensors[name]
        check_name(name, "safetensors")
        if name == "__metadata__" or (dtype.block == 1 and dtype.name not in _NAMES):
            raise expected("safetensors", f"tensors of blocks or {', '.join(_NAMES)}", f"{name}: {dtype.name}")
        end = at + dtype.size(math.prod(shape))
        stored = "U8" if dtype.block > 1 else _NAMES[dtype.name]
        header[name] = {"dtype": stored, "shape": list(dtype.buffer_shape(shape)), "data_offsets": [at, end]}
        begins[name], at = at, end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, {name: 8 + len(text) + begin for name, begin in begins.items()}


def save_safetensors(path: Path | str, tensors: dict[str, Array], metadata: dict[str, str] | None = None) -> None:
    """Write tensors to one file, whole or not at all: written beside, synced, renamed."""
    header, begins = safetensors_header({name: (a.dtype, a.shape) for name, a in tensors.items()}, metadata)
    with replacing(Path(path)) as file:
        file.write(header)
        for name in begins:
            file.write(tensors[name].data.reshape(-1).view(np.uint8).data)
