"""Hostile files: each is refused with an error that says what is wrong, at once and in little memory."""

from __future__ import annotations

import json
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lattice.dtypes import Array
from lattice.errors import FormatError
from lattice.strict_json import read_object
from lattice.weights import GGUFFile, SafetensorsFile, open_checkpoint, save_safetensors

from .conftest import gguf_entry, gguf_string, gguf_tensor, ones, raw_gguf, raw_safetensors, write_model

MEMORY = 1 << 20  # bytes that refusing a file of a few hundred bytes may take


def refused(open_it: Callable[[Path], object], path: Path, fragment: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(FormatError) as caught:
            open_it(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert fragment in str(caught.value)
    assert peak < MEMORY


def f32(shape: object, offsets: object, dtype: object = "F32", **extra: object) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **extra}


W = f32([2], [0, 8])
SAFETENSORS = {
    "empty file": (b"", "a file with a header, got 0 bytes"),
    "no length": (b"\x01\x02", "an 8-byte header length, got a file of 2 bytes"),
    "length beyond file": (raw_safetensors("{}", length=1 << 20), "got 1048576 bytes"),
    "length of 2**64 - 1": (raw_safetensors("{}", length=2**64 - 1), "got 18446744073709551615 bytes"),
    "length of 0": (raw_safetensors(""), "a header that begins with {"),
    "not an object": (raw_safetensors("[]"), "a header that begins with {"),
    "leading space": (raw_safetensors(" {}"), "a header that begins with {"),
    "not UTF-8": (raw_safetensors(b'{"\xff":1}'), "valid JSON in UTF-8"),
    "cut JSON": (raw_safetensors('{"w":'), "valid JSON in UTF-8"),
    "NaN": (raw_safetensors('{"w":NaN}'), "the constant NaN, which is not JSON"),
    "infinite": (raw_safetensors('{"w":1e999}'), "which is infinite"),
    "huge integer": (raw_safetensors('{"w":' + "9" * 5000 + "}"), "valid JSON in UTF-8"),
    "deep": (raw_safetensors('{"w":' + "[" * 5000 + "]" * 5000 + "}"), "JSON of at most 64 levels"),
    "duplicate tensor": (
        raw_safetensors('{"w":' + json.dumps(W) + ',"w":' + json.dumps(W) + "}", bytes(8)),
        "duplicate key 'w'",
    ),
    "duplicate field": (
        raw_safetensors('{"w":{"dtype":"F32","dtype":"I32","shape":[2],"data_offsets":[0,8]}}', bytes(8)),
        "duplicate key 'dtype'",
    ),
    "metadata of numbers": (raw_safetensors({"__metadata__": {"a": 1}}), "__metadata__ of strings"),
    "no fields": (raw_safetensors({"w": 1}), "the fields dtype, shape and data_offsets"),
    "extra field": (raw_safetensors({"w": f32([2], [0, 8], x=1)}, bytes(8)), "the fields dtype, shape"),
    "unknown dtype": (raw_safetensors({"w": f32([2], [0, 8], "Q4")}, bytes(8)), "a known dtype, got 'Q4'"),
    "dtype a list": (raw_safetensors({"w": f32([2], [0, 8], [1])}, bytes(8)), "a known dtype, got [1]"),
    "negative size": (raw_safetensors({"w": f32([-2], [0, 8])}, bytes(8)), "a shape of whole numbers"),
    "boolean size": (raw_safetensors({"w": f32([True], [0, 4])}, bytes(4)), "a shape of whole numbers"),
    "float size": (raw_safetensors({"w": f32([2.0], [0, 8])}, bytes(8)), "a shape of whole numbers"),
    "product of 2**64": (raw_safetensors({"w": f32([2**32, 2**32], [0, 0])}), "2**48 values"),
    "zero times huge": (raw_safetensors({"w": f32([0, 2**62], [0, 0])}), "2**48 values"),
    "many dimensions": (raw_safetensors({"w": f32([1] * 9, [0, 4])}, bytes(4)), "at most 8 dimensions"),
    "offsets reversed": (raw_safetensors({"w": f32([2], [8, 0])}, bytes(8)), "offsets [begin, end]"),
    "offsets beyond": (raw_safetensors({"w": f32([2], [8, 16])}, bytes(8)), "within 8 bytes of data"),
    "three offsets": (raw_safetensors({"w": f32([2], [0, 8, 8])}, bytes(8)), "offsets [begin, end]"),
    "size mismatch": (
        raw_safetensors({"w": f32([3], [0, 8])}, bytes(8)),
        "12 bytes for shape [3] of F32, got 8",
    ),
    "overlap": (raw_safetensors({"v": W, "w": f32([2], [4, 12])}, bytes(12)), "an overlap before 'w'"),
    "same bytes twice": (raw_safetensors({"v": W, "w": W}, bytes(8)), "an overlap before"),
    "hole": (raw_safetensors({"w": f32([2], [4, 12])}, bytes(12)), "a hole before 'w'"),
    "trailing bytes": (raw_safetensors({"w": W}, bytes(9)), "data that ends with the file"),
    "empty name": (raw_safetensors({"": W}, bytes(8)), "a printable tensor name"),
    "NUL in a name": (raw_safetensors({"a\0b": W}, bytes(8)), "a printable tensor name"),
    "offsets of 2**64": (raw_safetensors({"w": f32([2], [2**64 - 8, 2**64])}, bytes(8)), "offsets [begin, end]"),
    "offsets that wrap": (raw_safetensors({"w": f32([2], [2**63, 2**63 + 8])}, bytes(8)), "offsets [begin, end]"),
    "exabyte": (raw_safetensors({"w": f32([2**46, 4], [0, 2**50])}, bytes(8)), "within 8 bytes of data"),
    "sizes that sum beyond 2**64": (
        raw_safetensors({f"w{n}": f32([2**46], [n << 48, (n + 1) << 48]) for n in range(4)}, bytes(8)),
        "within 8 bytes of data",
    ),
    "another file behind the data": (raw_safetensors({"w": W}, bytes(8) + b"PK\3\4" + bytes(18)), "ends with the file"),
    "a zip before it": (b"PK\3\4" + raw_safetensors({"w": W}, bytes(8)), "a header within"),
    "metadata twice": (
        raw_safetensors('{"__metadata__":{"a":"b"},"__metadata__":{"a":"c"}}'),
        "duplicate key '__metadata__'",
    ),
    "metadata a tensor": (raw_safetensors({"__metadata__": W}, bytes(8)), "__metadata__ of strings"),
    "offsets of empty tensors within others": (
        raw_safetensors({"v": W, "w": f32([0], [4, 4])}, bytes(8)),
        "an overlap before 'w'",
    ),
    "comment": (raw_safetensors('{/**/"w":' + json.dumps(W) + "}", bytes(8)), "valid JSON in UTF-8"),
    "byte order mark": (raw_safetensors("\ufeff{}"), "a header that begins with {"),
    "NUL behind the header": (raw_safetensors('{"w":' + json.dumps(W) + "}\0", bytes(8)), "valid JSON in UTF-8"),
    "lone surrogate": (
        raw_safetensors('{"\\ud800":' + json.dumps(W) + "}", bytes(8)),
        "a printable tensor name",
    ),
}


@pytest.mark.parametrize("case", SAFETENSORS)
def test_safetensors(tmp_path: Path, case: str) -> None:
    raw, fragment = SAFETENSORS[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw)
    refused(SafetensorsFile, path, fragment)


def test_safetensors_header_of_more_tensors_than_any_model(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw_safetensors(b"{" * (1 << 20) + b"{}"))
    tracemalloc.start()
    with pytest.raises(FormatError, match="at most 1048576 tensors"):
        SafetensorsFile(path)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def array_of(kind: int, count: int, raw: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + raw


def nested(depth: int) -> bytes:
    return array_of(9, 1, nested(depth - 1)) if depth else array_of(4, 0)


ENTRY = gguf_entry("a", 4, bytes(4))
FLOATS = bytes(64)
GGUF = {
    "wrong magic": (b"GGML" + bytes(28), "the magic GGUF, got b'GGML'"),
    "version 1": (raw_gguf(version=1), "GGUF version 2 or 3, got 1"),
    "version 4": (raw_gguf(version=4), "GGUF version 2 or 3, got 4"),
    "big-endian": (raw_gguf(version=0x03000000), "a little-endian file, got a big-endian one"),
    "tensor count of 2**64 - 1": (raw_gguf(counts=(2**64 - 1, 0)), "tensor count that fits the file"),
    "entry count of 2**63": (raw_gguf(counts=(0, 2**63)), "metadata count that fits the file"),
    "key longer than file": (
        raw_gguf([struct.pack("<Q", 2**60) + bytes(8)]),
        "key length that fits the file",
    ),
    "empty key": (raw_gguf([gguf_entry("", 4, bytes(4))]), "a printable key"),
    "key not UTF-8": (raw_gguf([gguf_entry(b"\xff", 4, bytes(4))]), "key in UTF-8"),
    "key with a newline": (raw_gguf([gguf_entry("a\nb", 4, bytes(4))]), "a printable key"),
    "duplicate key": (raw_gguf([ENTRY, ENTRY]), "metadata keys once each, got 'a' again"),
    "unknown value type": (
        raw_gguf([gguf_entry("a", 13, bytes(8))]),
        "a value type of 0 to 12 for a, got 13",
    ),
    "boolean of 2": (raw_gguf([gguf_entry("a", 7, b"\x02")]), "booleans of 0 or 1"),
    "string not UTF-8": (raw_gguf([gguf_entry("a", 8, gguf_string(b"\xff"))]), "a string in UTF-8 for a"),
    "string beyond file": (raw_gguf([gguf_entry("a", 8, struct.pack("<Q", 2**40))]), "string length of a"),
    "array beyond file": (raw_gguf([gguf_entry("a", 9, array_of(5, 2**61))]), "array length of a that fits"),
    "strings beyond file": (
        raw_gguf([gguf_entry("a", 9, array_of(8, 2**50))]),
        "array length of a that fits",
    ),
    "array of unknown type": (
        raw_gguf([gguf_entry("a", 9, array_of(77, 0))]),
        "a value type of 0 to 12 for a",
    ),
    "string in array beyond file": (
        raw_gguf([gguf_entry("a", 9, array_of(8, 1, struct.pack("<Q", 2**63)))]),
        "1 strings within the file for a",
    ),
    "arrays nested deep": (raw_gguf([gguf_entry("a", 9, nested(900))]), "nested at most 4 deep"),
    "alignment 0": (
        raw_gguf([gguf_entry("general.alignment", 4, bytes(4))]),
        "general.alignment a power of two",
    ),
    "alignment 24": (raw_gguf([gguf_entry("general.alignment", 4, b"\x18\0\0\0")]), "a power of two"),
    "alignment a string": (
        raw_gguf([gguf_entry("general.alignment", 8, gguf_string("32"))]),
        "a power of two",
    ),
    "one of a split": (
        raw_gguf([gguf_entry("split.count", 2, b"\x03\0")]),
        "a whole model, got one of 3 split",
    ),
    "five dimensions": (
        raw_gguf([], [gguf_tensor("w", [1] * 5)], FLOATS),
        "at most 4 dimensions for w, got 5",
    ),
    "dimension of 0": (raw_gguf([], [gguf_tensor("w", [4, 0])], FLOATS), "dimensions of at least 1"),
    "product of 2**64": (raw_gguf([], [gguf_tensor("w", [2**32, 2**32])], FLOATS), "at most 2**48 values"),
    "unknown tensor type": (raw_gguf([], [gguf_tensor("w", [4], 99)], FLOATS), "type 99 (unknown)"),
    "removed tensor type": (raw_gguf([], [gguf_tensor("w", [4], 4)], FLOATS), "type 4 (unknown)"),
    "type without a reader": (raw_gguf([], [gguf_tensor("w", [128], 41)], FLOATS), "type 41 (q1_0)"),
    "rows of part blocks": (raw_gguf([], [gguf_tensor("w", [33, 2], 2)], FLOATS), "a multiple of 32 values"),
    "scalar of blocks": (raw_gguf([], [gguf_tensor("w", [], 2)], FLOATS), "a multiple of 32 values"),
    "offset not aligned": (
        raw_gguf([], [gguf_tensor("w", [4], 0, 4)], FLOATS),
        "a multiple of 32 for w, got 4",
    ),
    "offset beyond file": (raw_gguf([], [gguf_tensor("w", [4], 0, 2**63)], FLOATS), "got 64 bytes of data"),
    "tensor beyond file": (raw_gguf([], [gguf_tensor("w", [17])], FLOATS), "68 bytes from offset 0 for w"),
    "overlap": (
        raw_gguf([], [gguf_tensor("v", [9]), gguf_tensor("w", [4], 0, 32)], FLOATS),
        "w begins inside v",
    ),
    "duplicate tensor": (
        raw_gguf([], [gguf_tensor("w", [4]), gguf_tensor("w", [4], 0, 32)], FLOATS),
        "tensor names once each, got 'w' again",
    ),
    # CVE-2024-21802, -21825, -21836, -23496, -23605: a count times a size, beyond 2**64
    "tensors that wrap": (raw_gguf(counts=(2**64 // 24 + 1, 0)), "tensor count that fits the file"),
    "entries that wrap": (raw_gguf(counts=(0, 2**64 // 13 + 1)), "metadata count that fits the file"),
    "array that wraps": (raw_gguf([gguf_entry("a", 9, array_of(10, 2**61 + 1))]), "array length of a that fits"),
    "strings that wrap": (raw_gguf([gguf_entry("a", 9, array_of(8, 2**61 + 1))]), "array length of a that fits"),
    "key of 2**64 - 1": (raw_gguf([struct.pack("<Q", 2**64 - 1) + bytes(16)]), "key length that fits the file"),
    "string of 2**64 - 1": (raw_gguf([gguf_entry("a", 8, struct.pack("<Q", 2**64 - 1))]), "string length of a"),
    "tensor name of 2**64 - 1": (raw_gguf([], [struct.pack("<Q", 2**64 - 1) + bytes(24)]), "tensor name length"),
    # CVE-2025-49847: the length of a token, cast to 32 bits
    "token of 2**31": (
        raw_gguf([gguf_entry("a", 9, array_of(8, 1, struct.pack("<Q", 2**31) + bytes(64)))]),
        "1 strings within the file",
    ),
    "token of 2**32 + 1": (
        raw_gguf([gguf_entry("a", 9, array_of(8, 1, struct.pack("<Q", 2**32 + 1) + bytes(64)))]),
        "1 strings within the file",
    ),
    # CVE-2025-53630, CVE-2026-27940: sizes whose sum wraps, each of them in bounds
    "offset and size that wrap": (
        raw_gguf([], [gguf_tensor("w", [4], 0, 2**64 - 32)], FLOATS),
        "16 bytes from offset 18446744073709551584",
    ),
    "sizes that sum beyond 2**64": (
        raw_gguf([], [gguf_tensor(f"w{n}", [2**48], 0, n << 50) for n in range(4)], FLOATS),
        "1125899906842624 bytes from offset 0",
    ),
    # CVE-2026-33298: a size that wraps to a small one
    "exabyte as 4 MB": (raw_gguf([], [gguf_tensor("w", [2**20, 2**44])], FLOATS), "at most 2**48 values"),
    "dimensions that wrap to 4": (raw_gguf([], [gguf_tensor("w", [2**62 + 1, 4])], FLOATS), "at most 2**48 values"),
    "dimension of 2**63": (raw_gguf([], [gguf_tensor("w", [2**63])], FLOATS), "at most 2**48 values"),
    "dimension of -1": (raw_gguf([], [gguf_tensor("w", [2**64 - 1])], FLOATS), "at most 2**48 values"),
    "dimension count of 2**32 - 1": (
        raw_gguf([], [gguf_string("w") + struct.pack("<I", 2**32 - 1) + bytes(24)], FLOATS),
        "at most 4 dimensions",
    ),
    "alignment 2**31": (raw_gguf([gguf_entry("general.alignment", 4, struct.pack("<I", 2**31))]), "a power of two"),
    "alignment -32": (raw_gguf([gguf_entry("general.alignment", 5, struct.pack("<i", -32))]), "a power of two"),
    "alignment an array": (raw_gguf([gguf_entry("general.alignment", 9, array_of(4, 1, bytes(4)))]), "a power of two"),
    "array of arrays that are cut": (
        raw_gguf([gguf_entry("a", 9, array_of(9, 3, array_of(4, 0)))]),
        "array length of a that fits",
    ),
    "split count a string": (raw_gguf([gguf_entry("split.count", 8, gguf_string("2"))]), "a whole model"),
    "tensor type 2**32 - 1": (raw_gguf([], [gguf_tensor("w", [4], 2**32 - 1)], FLOATS), "(unknown)"),
    "tensor name not UTF-8": (raw_gguf([], [gguf_tensor(b"\xc3", [4])], FLOATS), "tensor name in UTF-8"),
}


@pytest.mark.parametrize("case", GGUF)
def test_gguf(tmp_path: Path, case: str) -> None:
    raw, fragment = GGUF[case]
    path = tmp_path / "model.gguf"
    path.write_bytes(raw)
    refused(GGUFFile, path, fragment)


def test_gguf_of_more_strings_than_any_model(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    count = (1 << 21) + 1
    path.write_bytes(raw_gguf([gguf_entry("a", 9, array_of(8, count, bytes(8 * count)))]))
    refused(GGUFFile, path, "at most 2097152 entries, strings and tensors")


def test_a_gguf_cut_at_any_byte_is_refused(tmp_path: Path, tiny_gguf: Path) -> None:
    raw = tiny_gguf.read_bytes()
    path = tmp_path / "cut.gguf"
    needed = len(raw) - (-24 % 32)  # the padding behind the last tensor, 24 bytes, carries nothing
    for end in range(needed):
        path.write_bytes(raw[:end])
        with pytest.raises(FormatError):
            GGUFFile(path)
    path.write_bytes(raw[:needed])
    assert GGUFFile(path).tensor("w").data.tolist() == [[1, 1, 1], [1, 1, 1]]


def test_a_safetensors_cut_at_any_byte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensors: dict[str, Array] = {"v": ones(3), "w": ones(2, 2)}
    save_safetensors(path, tensors, {"a": "b"})
    raw = path.read_bytes()
    for end in range(len(raw)):
        path.write_bytes(raw[:end])
        with pytest.raises(FormatError):
            SafetensorsFile(path)


def test_single_spoiled_bytes_never_end_otherwise_than_in_a_format_error(tmp_path: Path, tiny_gguf: Path) -> None:
    rng = np.random.default_rng(3)
    save_safetensors(tmp_path / "m.safetensors", {"v": ones(3), "w": ones(2, 2)}, {"a": "b"})
    readers = ((tiny_gguf, GGUFFile), (tmp_path / "m.safetensors", SafetensorsFile))
    for path, reader in readers:
        raw = np.frombuffer(path.read_bytes(), np.uint8)
        for position in range(len(raw)):
            spoiled = raw.copy()
            spoiled[position] = rng.integers(256)
            path.write_bytes(spoiled.tobytes())
            try:
                file = reader(path)
                values = [file.tensor(name).data.sum() for name in file.names]
            except FormatError:
                continue
            assert len(values) == len(file.names)


@pytest.mark.parametrize(
    ("config", "fragment"),
    [
        (b'{"a":1,"a":2}', "duplicate key 'a'"),
        (b'{"a":Infinity}', "the constant Infinity"),
        (b"[1]", "a JSON object, got list"),
        (b"\xff", "valid JSON in UTF-8"),
        (b'{"a":"' + b"x" * (8 << 20) + b'"}', "at most 8388608 bytes, got a larger file"),
    ],
)
def test_config(tmp_path: Path, config: bytes, fragment: str) -> None:
    write_model(tmp_path)
    (tmp_path / "config.json").write_bytes(config)
    with pytest.raises(FormatError) as caught:
        open_checkpoint(tmp_path)
    assert fragment in str(caught.value)


NAMES = {
    "parent": "../a.safetensors",
    "absolute": "/etc/passwd.safetensors",
    "folder": "sub/a.safetensors",
    "here": "./a.safetensors",
    "backslash": "..\\a.safetensors",
    "drive": "C:a.safetensors",
    "share": "\\\\host\\a.safetensors",
    "NUL": "a\0.safetensors",
    "newline": "a\n.safetensors",
    "override": "\u202esrosnetefas.safetensors",
    "surrogate": "\ud800.safetensors",
    "stream": "a.safetensors::$DATA.safetensors",
    "long": "a" * 300 + ".safetensors",
    "pickle": "pytorch_model.bin",
    "nothing": "",
    "number": 3,
    "list": ["a.safetensors"],
}


def index(weight_map: object, **more: object) -> bytes:
    return json.dumps({"weight_map": weight_map, **more}).encode()


INDEXES = {
    **{
        f"file name: {case}": (index({"w": name}), "a plain file name|a .safetensors file")
        for case, name in NAMES.items()
    },
    "file that is not there": (index({"w": "b.safetensors"}), "the shard b.safetensors, got no such file"),
    "link that leaves": (index({"w": "link.safetensors"}), "a link that leaves it"),
    "folder as file": (index({"w": "folder.safetensors"}), "no such file"),
    "pipe as file": (index({"w": "pipe.safetensors"}), "no such file"),
    "tensor not in its file": (index({"w": "a.safetensors", "x": "a.safetensors"}), "a shard without it"),
    "file's tensor not named": (index({"x": "a.safetensors"}), "a shard without it"),
    "tensor twice": (b'{"weight_map":{"w":"a.safetensors","w":"b.safetensors"}}', "duplicate key 'w'"),
    "no tensors": (index({}), "a weight_map of tensor names"),
    "no map": (index([1]), "a weight_map of tensor names"),
    "no key": (b"{}", "a weight_map of tensor names"),
    "not an object": (b"[]", "a JSON object"),
    "deep": (b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}", "at most 64 levels"),
    "tensor without name": (index({"": "a.safetensors"}), "a printable tensor name"),
    "tensor of a control name": (index({"w\0": "a.safetensors"}), "a printable tensor name"),
}


@pytest.mark.parametrize("case", INDEXES)
def test_index(tmp_path: Path, case: str) -> None:
    raw, fragments = INDEXES[case]
    model = tmp_path / "model"
    write_model(model)
    (model / "model.safetensors").rename(model / "a.safetensors")
    save_safetensors(tmp_path / "outside.safetensors", {"w": ones(2, 3)})
    save_safetensors(tmp_path / "a.safetensors", {"w": ones(2, 3)})  # what `..` would reach
    (model / "link.safetensors").symlink_to(tmp_path / "outside.safetensors")
    (model / "folder.safetensors").mkdir()
    (model / "sub").mkdir()
    save_safetensors(model / "sub" / "a.safetensors", {"w": ones(2, 3)})
    os.mkfifo(model / "pipe.safetensors")
    (model / "model.safetensors.index.json").write_bytes(raw)
    with pytest.raises(FormatError) as caught:
        open_checkpoint(model)
    assert any(fragment in str(caught.value) for fragment in fragments.split("|")), caught.value


def test_a_settings_file_takes_the_memory_of_its_size_and_not_of_its_limit(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    tracemalloc.start()
    read_object(tmp_path / "config.json", 1 << 30)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
