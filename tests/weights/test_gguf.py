"""GGUF: what is written is read back; every value type; dimensions reversed; odd tokens survive."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattice.dtypes import BF16, F32, Q4_0, Q4_1, Q8_0, dense, encode
from lattice.errors import LatticeError
from lattice.weights import GGUFFile, write_gguf

from .conftest import gguf_entry, gguf_string, ones, raw_gguf

SCALARS = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
)


@given(metadata=st.dictionaries(st.text("ab._", min_size=1, max_size=12), SCALARS, max_size=6))
def test_scalars_round_trip(metadata: dict, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    write_gguf(path, metadata, {})
    got = GGUFFile(path).metadata
    assert got == metadata
    assert [type(value) for value in got.values()] == [type(value) for value in metadata.values()]


@pytest.mark.parametrize("code", "bBhHiIqQfd")
def test_numbers_of_every_type_alone_and_in_arrays(tmp_path: Path, code: str) -> None:
    values = np.array([1, 2, 100], np.dtype("<" + code))
    write_gguf(tmp_path / "m.gguf", {"one": values[2], "all": values}, {})
    metadata = GGUFFile(tmp_path / "m.gguf").metadata
    assert metadata["one"] == 100
    assert metadata["all"].dtype == values.dtype
    assert metadata["all"].tolist() == [1, 2, 100]
    assert not metadata["all"].flags.writeable


def test_arrays_of_bools_strings_and_arrays(tmp_path: Path) -> None:
    nested = [["a", "b"], ["c"]]
    flags = np.array([True, False])
    write_gguf(tmp_path / "m.gguf", {"flags": flags, "nested": nested, "numbers": [1, -2], "floats": [0.5]}, {})
    metadata = GGUFFile(tmp_path / "m.gguf").metadata
    assert metadata["flags"].tolist() == [True, False]
    assert metadata["nested"] == nested
    assert metadata["numbers"].tolist() == [1, -2]
    assert metadata["floats"].dtype == np.float32


def test_tensors_are_row_major_views(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    tensors = {kind.name: encode(values, kind) for kind in (F32, BF16, Q8_0, Q4_0, Q4_1)}
    tensors["vector"] = ones(5)
    write_gguf(tmp_path / "m.gguf", {"general.alignment": 64}, tensors)
    file = GGUFFile(tmp_path / "m.gguf")
    assert file.names == list(tensors)
    for name, array in tensors.items():
        got = file.tensor(name)
        assert (got.dtype, got.shape) == (array.dtype, array.shape)
        assert np.array_equal(got.data, array.data)
        assert not got.data.flags.writeable
        assert file.size(name) == array.nbytes
    file.release("f32")
    assert np.array_equal(dense(file.tensor("f32")), values)


def test_dimensions_are_stored_fastest_first(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", {}, {"w": ones(2, 3)})
    raw = (tmp_path / "m.gguf").read_bytes()
    assert struct.pack("<IQQ", 2, 3, 2) in raw


def test_version_2_is_the_same(tmp_path: Path, tiny_gguf: Path) -> None:
    raw = bytearray(tiny_gguf.read_bytes())
    raw[4] = 2
    (tmp_path / "v2.gguf").write_bytes(raw)
    assert GGUFFile(tmp_path / "v2.gguf").tensor("w").shape == (2, 3)


def test_tokens_that_are_not_utf8_keep_their_bytes(tmp_path: Path) -> None:
    tokens = [b"plain", b"\xe2\x96", b"\xff", "▁é".encode()]
    body = struct.pack("<IQ", 8, len(tokens)) + b"".join(map(gguf_string, tokens))
    (tmp_path / "m.gguf").write_bytes(raw_gguf([gguf_entry("tokens", 9, body)]))
    got = GGUFFile(tmp_path / "m.gguf").metadata["tokens"]
    assert [token.encode("utf-8", "surrogateescape") for token in got] == tokens
    write_gguf(tmp_path / "again.gguf", {"tokens": got}, {})
    assert GGUFFile(tmp_path / "again.gguf").metadata["tokens"] == got


def test_strings_are_a_sequence_that_is_decoded_when_used(tmp_path: Path) -> None:
    texts = ["a", "", "é"]
    write_gguf(tmp_path / "m.gguf", {"texts": texts}, {})
    got = GGUFFile(tmp_path / "m.gguf").metadata["texts"]
    assert (len(got), "_decoded" in vars(got)) == (3, False)
    assert got == texts and got == GGUFFile(tmp_path / "m.gguf").metadata["texts"] and got != ["a"]
    assert (list(got), got[2], got[-3:-1], "é" in got) == (texts, "é", ["a", ""], True)


def test_strings_of_all_lengths(tmp_path: Path) -> None:
    texts = ["x" * 700_000, "y" * 3_000_000, "", "z" * 700_000, *(str(n) for n in range(200_000))]
    write_gguf(tmp_path / "m.gguf", {"texts": texts, "after": 7}, {})
    metadata = GGUFFile(tmp_path / "m.gguf").metadata
    assert metadata["texts"] == texts
    assert metadata["after"] == 7


@pytest.mark.parametrize(
    ("metadata", "fragment"),
    [
        ({"x": 2**64}, "an integer of at most 64 bits"),
        ({"x": object()}, "a number, string or flat array for x"),
        ({"x": ["a", [1]]}, "one type of values in x"),
        ({"general.alignment": 24}, "a power of two"),
    ],
)
def test_writer_refuses(tmp_path: Path, metadata: dict, fragment: str) -> None:
    with pytest.raises(LatticeError) as caught:
        write_gguf(tmp_path / "m.gguf", metadata, {})
    assert fragment in str(caught.value)
    assert not list(tmp_path.iterdir())
