"""GGUF files (version 2 and 3, little-endian): metadata, tensor table, and tensors as views of the mapped
file.

    magic "GGUF" | version u32 | tensors u64 | entries u64 | entries: key, type u32, value | tensor table |
    data

Every count is held against the bytes that remain before anything is made of it, every tensor against the
file's end and its neighbours. Dimensions are stored fastest first; `Array.shape` is row-major, so they are
reversed here. Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Not here: what the metadata
means to a model.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lattice.dtypes import BY_NAME, Array, DType
from lattice.errors import FormatError, LatticeError, expected
from lattice.weights._files import map_file, release_pages

MAX_DIMENSIONS = 4
MAX_VALUES = 1 << 48
MAX_ARRAY_DEPTH = 4
# Entries, strings and tensors of one file together: each costs ~100 bytes of Python objects. Real files hold
# < 1M.
MAX_OBJECTS = 1 << 21
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 16

# The type ids of ggml that name a format in use; ids missing here were removed from ggml or never given.
TENSOR_TYPES = {
    0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 6: "q5_0", 7: "q5_1", 8: "q8_0", 9: "q8_1", 10: "q2_k",
    11: "q3_k", 12: "q4_k", 13: "q5_k", 14: "q6_k", 15: "q8_k", 16: "iq2_xxs", 17: "iq2_xs",
    18: "iq3_xxs", 19: "iq1_s", 20: "iq4_nl", 21: "iq3_s", 22: "iq2_s", 23: "iq4_xs", 24: "i8", 25: "i16",
    26: "i32", 27: "i64", 28: "f64", 29: "iq1_m", 30: "bf16", 34: "tq1_0", 35: "tq2_0", 39: "mxfp4",
    40: "nvfp4", 41: "q1_0",
}  # fmt: skip

# Value types of the metadata: id -> little-endian struct code of the numbers; 7 bool, 8 string, 9 array.
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}
BOOL, STRING, ARRAY = 7, 8, 9
_SMALLEST = {BOOL: 1, STRING: 8, ARRAY: 12} | {kind: struct.calcsize("<" + c) for kind, c in NUMBERS.items()}


@dataclass(frozen=True)
class _Entry:
    dtype: DType
    shape: tuple[int, ...]
    begin: int  # bytes from the start of the file
    end: int


class Strings(Sequence[str]):
    """An array of strings, within the file by what the reader checked; decoded when first used.

    A start with a cached tokenizer never asks for the vocabulary, which costs more than the rest of the file together.
    A token may be bytes that are not UTF-8 by themselves: those become U+DC80 to U+DCFF (surrogateescape), and
    `token.encode("utf-8", "surrogateescape")` gives the file's bytes back.
    """

    def __init__(self, mapping: mmap.mmap, begin: int, end: int, count: int) -> None:
        self._place, self._count = (mapping, begin, end), count

    @cached_property
    def _decoded(self) -> list[str]:
        mapping, begin, end = self._place
        raw, length_at, at, result = mapping[begin:end], struct.Struct("<Q").unpack_from, 0, []
        for _ in range(self._count):
            start = at + 8
            at = start + length_at(raw, at)[0]
            try:
                result.append(raw[start:at].decode())
            except UnicodeDecodeError:
                result.append(raw[start:at].decode("utf-8", "surrogateescape"))
        return result

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        return self._decoded[index]

    def __iter__(self) -> Iterator[str]:
        return iter(self._decoded)

    def __eq__(self, other: object) -> bool:
        return self._decoded == (other._decoded if isinstance(other, Strings) else other)

    __hash__ = None  # type: ignore[assignment]  # as a list's

    def __repr__(self) -> str:
        return f"<Strings: {self._count}>"


class _Reader:
    """A cursor over the mapped bytes; every read is checked against the end of the file first."""

    def __init__(self, mapping: mmap.mmap, where: str) -> None:
        self.mapping, self.where, self.end, self.at = mapping, where, len(mapping), 0
        self.objects = 0

    def refuse(self, wanted: str, got: object, hint: str | None = None) -> LatticeError:
        return expected(self.where, wanted, f"{got} at byte {self.at}", hint=hint, kind=FormatError)

    def take(self, size: int, what: str) -> bytes:
        if size > self.end - self.at:
            raise self.refuse(f"{what} of {size} bytes", f"a file with {self.end - self.at} bytes left")
        self.at += size
        return self.mapping[self.at - size : self.at]

    def integer(self, code: str, what: str) -> int:
        return int(self.number(code, what))

    def number(self, code: str, what: str) -> int | float:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code), what))[0]

    def count(self, smallest: int, what: str) -> int:
        """Read a u64 count of things of at least `smallest` bytes each."""
        count = self.integer("Q", what)
        if count > (self.end - self.at) // smallest:
            raise self.refuse(f"{what} that fits the file", count)
        return count

    def spend(self, count: int) -> None:
        self.objects += count
        if self.objects > MAX_OBJECTS:
            raise self.refuse(f"at most {MAX_OBJECTS} entries, strings and tensors", "more")

    def name(self, what: str, longest: int) -> str:
        """Read a key or tensor name: short, printable, strict UTF-8."""
        raw = self.take(self.count(1, f"{what} length"), what)
        try:
            name = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.refuse(f"{what} in UTF-8", f"{raw[:60]!r}") from None
        if not 0 < len(raw) <= longest or not name.isprintable():
            raise self.refuse(f"a printable {what} of 1 to {longest} bytes", ascii(name)[:80])
        return name

    def value(self, kind: int, key: str, depth: int = 0) -> object:
        if kind in NUMBERS:
            number = self.number(NUMBERS[kind], key)
            if not math.isfinite(number):
                raise self.refuse(f"a finite number for {key}", number)
            return number
        if kind == BOOL:
            return bool(self._bools(self.take(1, key), key)[0])
        if kind == STRING:
            raw = self.take(self.count(1, f"string length of {key}"), key)
            try:
                return raw.decode("utf-8")
            except UnicodeDecodeError:
                raise self.refuse(f"a string in UTF-8 for {key}", f"{raw[:60]!r}") from None
        if kind == ARRAY:
            return self._array(key, depth + 1)
        raise self.refuse(f"a value type of 0 to 12 for {key}", kind)

    def _bools(self, raw: bytes, key: str) -> np.ndarray:
        values = np.frombuffer(raw, np.uint8)
        if (values > 1).any():
            raise self.refuse(f"booleans of 0 or 1 for {key}", values.max())
        return values.astype(bool)

    def _array(self, key: str, depth: int) -> object:
        kind = self.integer("I", f"array type of {key}")
        if kind not in _SMALLEST:
            raise self.refuse(f"a value type of 0 to 12 for {key}", kind)
        if depth > MAX_ARRAY_DEPTH:
            raise self.refuse(f"arrays nested at most {MAX_ARRAY_DEPTH} deep for {key}", "deeper ones")
        count = self.count(_SMALLEST[kind], f"array length of {key}")
        if kind in NUMBERS:
            dtype = np.dtype("<" + NUMBERS[kind])
            return np.frombuffer(self.take(count * dtype.itemsize, key), dtype)
        if kind == BOOL:
            return self._bools(self.take(count, key), key)
        self.spend(count)
        if kind == STRING:
            return self._strings(count, key)
        return [self.value(ARRAY, key, depth) for _ in range(count)]

    def _strings(self, count: int, key: str) -> Strings:
        """Walk over the strings of a vocabulary: one tight loop, since a file has hundreds of thousands."""
        length_at, begin, at, done = struct.Struct("<Q").unpack_from, self.at, self.at, 0
        try:
            for done in range(count):  # noqa: B007  # the error says how far it came
                at += 8 + length_at(self.mapping, at)[0]
        except (struct.error, OverflowError, IndexError):  # beyond the end, some far beyond
            at = self.end + 1
        if at > self.end:
            raise self.refuse(f"{count} strings within the file for {key}", f"at most {done} that fit")
        self.at = at
        return Strings(self.mapping, begin, at, count)


def _read_preamble(reader: _Reader) -> tuple[int, int, int]:
    """Return version, tensor count and entry count."""
    magic = reader.take(4, "magic")
    if magic != b"GGUF":
        raise reader.refuse("the magic GGUF", repr(magic))
    version = reader.integer("I", "version")
    if version in (0x02000000, 0x03000000):
        raise reader.refuse("a little-endian file", "a big-endian one", "convert it on a little-endian machine")
    if version not in (2, 3):
        raise reader.refuse("GGUF version 2 or 3", version, "convert the model again with current tools")
    tensors = reader.count(24, "tensor count")
    entries = reader.count(13, "metadata count")
    reader.spend(tensors + entries)
    return version, tensors, entries


def _read_metadata(reader: _Reader, entries: int) -> dict[str, object]:
    metadata: dict[str, object] = {}
    for _ in range(entries):
        key = reader.name("key", 65535)
        if key in metadata:
            raise reader.refuse("metadata keys once each", f"{key!r:.80} again")
        metadata[key] = reader.value(reader.integer("I", f"type of {key}"), key)
    return metadata


def valid_alignment(alignment: int) -> bool:
    """Return whether tensors may be aligned so: a power of two from 8 up to 65536."""
    return 8 <= alignment <= MAX_ALIGNMENT and alignment & (alignment - 1) == 0


def _alignment(reader: _Reader, metadata: dict[str, object]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not valid_alignment(alignment):
        raise reader.refuse(f"general.alignment a power of two, 8 to {MAX_ALIGNMENT}", f"{alignment!r:.40}")
    return alignment


def _check_split(reader: _Reader, metadata: dict[str, object]) -> None:
    count = metadata.get("split.count", 1)
    if type(count) is not int or count > 1:
        raise reader.refuse(
            "a whole model",
            f"one of {count!r:.20} split files",
            "join them first, for example with llama.cpp's `llama-gguf-split --merge`",
        )


def _read_tensor_info(reader: _Reader) -> tuple[str, tuple[int, ...], DType, int]:
    """Return name, row-major shape, dtype and offset within the data section."""
    name = reader.name("tensor name", 1024)
    dimensions = reader.integer("I", f"dimension count of {name}")
    if dimensions > MAX_DIMENSIONS:
        raise reader.refuse(f"at most {MAX_DIMENSIONS} dimensions for {name}", dimensions)
    sizes = [reader.integer("Q", f"dimensions of {name}") for _ in range(dimensions)]
    if 0 in sizes or math.prod(sizes) > MAX_VALUES:
        raise reader.refuse(f"dimensions of at least 1 and at most 2**48 values for {name}", sizes)
    type_id = reader.integer("I", f"type of {name}")
    dtype = BY_NAME.get(TENSOR_TYPES.get(type_id, ""))
    if dtype is None:
        raise reader.refuse(f"a supported type for {name}", f"type {type_id} ({TENSOR_TYPES.get(type_id, 'unknown')})")
    shape = tuple(reversed(sizes))
    if dtype.block > 1 and (not shape or shape[-1] % dtype.block):
        raise reader.refuse(f"rows of a multiple of {dtype.block} values for {name} in {dtype}", f"shape {shape}")
    return name, shape, dtype, reader.integer("Q", f"offset of {name}")


def _read_table(reader: _Reader, tensors: int, alignment: int) -> dict[str, _Entry]:
    infos = [_read_tensor_info(reader) for _ in range(tensors)]
    data_begin = -(-reader.at // alignment) * alignment
    table: dict[str, _Entry] = {}
    for name, shape, dtype, offset in infos:
        if name in table:
            raise reader.refuse("tensor names once each", f"{name!r:.80} again")
        if offset % alignment:
            raise reader.refuse(f"an offset of a multiple of {alignment} for {name}", offset)
        size = dtype.size(math.prod(shape))
        if size > reader.end - data_begin - offset:
            got = f"{max(reader.end - data_begin, 0)} bytes of data"
            raise reader.refuse(f"{size} bytes from offset {offset} for {name}", got, "is the file whole?")
        table[name] = _Entry(dtype, shape, data_begin + offset, data_begin + offset + size)
    before, end = "", data_begin
    for name, entry in sorted(table.items(), key=lambda item: item[1].begin):
        if entry.begin < end:
            raise reader.refuse(f"tensors that do not overlap, but {name} begins inside {before}", entry.begin)
        before, end = name, entry.end
    return table


class GGUFFile:
    """One mapped .gguf file: `metadata`, `names`, and `tensor(name)`, a read-only view of the mapping.

    Metadata values are Python numbers, bools and strings; arrays of numbers and bools are read-only NumPy
    arrays, arrays of strings `Strings` (decoded when first used), arrays of arrays lists.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._where = self.path.name
        self._mapping, self._data = map_file(self.path, self._where)
        reader = _Reader(self._mapping, self._where)
        self.version, tensors, entries = _read_preamble(reader)
        self.metadata = _read_metadata(reader, entries)
        _check_split(reader, self.metadata)
        self._entries = _read_table(reader, tensors, _alignment(reader, self.metadata))
        self.names = list(self._entries)
        release_pages(self._mapping, 0, reader.at)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            raise expected(self._where, f"a tensor {name!r:.80}", f"{len(self.names)} others", kind=FormatError)
        return self._entries[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the row-major shape of a tensor without touching its data."""
        return self._entry(name).shape

    def size(self, name: str) -> int:
        """Return the bytes of a tensor."""
        entry = self._entry(name)
        return entry.end - entry.begin

    def tensor(self, name: str) -> Array:
        """Return a tensor as a view of the file."""
        entry = self._entry(name)
        raw = self._data[entry.begin : entry.end].view(entry.dtype.storage)
        return Array(raw.reshape(entry.dtype.buffer_shape(entry.shape)), entry.dtype, entry.shape)

    def release_all(self) -> None:
        """Let the system drop every page; those that are used where they lie come back when next touched."""
        release_pages(self._mapping, 0, len(self._mapping))

    def release(self, name: str) -> None:
        """Let the system drop a tensor's pages; they are read again when next touched."""
        entry = self._entry(name)
        release_pages(self._mapping, entry.begin, entry.end)
