"""safetensors: what is written is read back, views do not copy, shards are one checkpoint."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lattice.dtypes import BF16, BY_NAME, F16, F32, I64, Q4_K, Q8_0, U8, Array, dense, encode
from lattice.errors import FormatError, LatticeError, LatticeWarning
from lattice.weights import SafetensorsFile, ShardedSafetensors, save_safetensors

from .conftest import ones, raw_safetensors

PLAIN = ["f32", "f16", "bf16", "f64", "i8", "i16", "i32", "i64", "u8"]


@given(data=st.data())
def test_round_trip(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("safetensors") / "model.safetensors"
    names = data.draw(st.lists(st.text("abc.0é", min_size=1, max_size=8), unique=True, max_size=4))
    tensors = {}
    for name in names:
        dtype = BY_NAME[data.draw(st.sampled_from(PLAIN))]
        shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
        raw = data.draw(hnp.arrays(np.uint8, int(np.prod(shape)) * dtype.nbytes))
        tensors[name] = Array(raw.view(dtype.storage).reshape(shape), dtype, shape)
    save_safetensors(path, tensors, {"made by": "test"} if names else None)
    file = SafetensorsFile(path)
    assert sorted(file.names) == sorted(names)
    for name, array in tensors.items():
        got = file.tensor(name)
        assert (got.dtype, got.shape, file.shape(name)) == (array.dtype, array.shape, array.shape)
        assert got.data.tobytes() == array.data.tobytes()


def test_tensors_are_read_only_views_and_aligned(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    big = np.zeros((1024, 1024), np.float32)
    save_safetensors(path, {"b": encode(big[0, :3], F16), "a": encode(big, F32), "c": encode(big[0], BF16)})
    file = SafetensorsFile(path)
    tracemalloc.start()
    arrays = [file.tensor(name) for name in "abc"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 16
    for array in arrays:
        assert not array.data.flags.writeable
        assert array.data.flags.aligned
    assert dense(arrays[0]) is arrays[0].data
    file.release("a")
    assert not dense(file.tensor("a")).any()


def test_unaligned_data_is_copied(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    header = '{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    header += " " * ((1 - len(header)) % 4)
    path.write_bytes(raw_safetensors(header, np.array([1, 2], np.float32).tobytes()))
    got = SafetensorsFile(path).tensor("w").data
    assert got.tolist() == [1, 2]
    assert got.flags.aligned
    assert not got.flags.writeable


def test_bool_is_u8_and_unread_types_are_listed_but_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    header = {
        "mask": {"dtype": "BOOL", "shape": [2], "data_offsets": [0, 2]},
        "f8": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [2, 4]},
    }
    path.write_bytes(raw_safetensors(header, b"\x01\x00\x00\x00"))
    file = SafetensorsFile(path)
    assert dense(file.tensor("mask")).tolist() == [1, 0]
    assert file.shape("f8") == (2,)
    with pytest.raises(FormatError, match="got F8_E4M3"):
        file.tensor("f8")
    with pytest.raises(FormatError, match="expected a tensor 'none'"):
        file.tensor("none")


def test_blocks_are_bytes_for_other_readers_and_arrays_for_us(tmp_path: Path) -> None:
    path, rng = tmp_path / "model.safetensors", np.random.default_rng(0)
    arrays = {
        "a": encode(rng.standard_normal((3, 64)), Q8_0),
        "b": encode(rng.standard_normal((2, 3, 256)), Q4_K),
        "c": encode(rng.standard_normal(3), F32),
    }
    save_safetensors(path, arrays, {"format": "pt"})
    header = json.loads(path.read_bytes()[8:].split(b"}}", 1)[0].decode() + "}}")
    assert header["a"] == {"dtype": "U8", "shape": [3, 2, 34], "data_offsets": [12, 216]}
    assert header["__metadata__"]["format"] == "pt"
    file = SafetensorsFile(path)
    assert file.shape("b") == (2, 3, 256)
    for name, array in arrays.items():
        read = file.tensor(name)
        assert (read.dtype, read.shape) == (array.dtype, array.shape)
        assert read.data.tobytes() == array.data.tobytes()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[", "lattice.dtypes] expected valid JSON"),
        ("[]", "lattice.dtypes] expected a JSON object, got list"),
        ('{"w": "q8_0", "w": "q4_0"}', "duplicate key 'w'"),
        ('{"w": "q9_9"}', "lattice.dtypes: w] expected a dtype of blocks, got 'q9_9'"),
        ('{"w": "f32"}', "expected a dtype of blocks, got 'f32'"),
        ('{"w": ["q8_0"]}', "expected a dtype of blocks"),
        ('{"w": "q4_0"}', r"U8 of shape \(..., blocks, 18\) for q4_0, got U8 \(2, 1, 34\)"),
        ('{"v": "q8_0"}', "got F32"),
        ('{"flat": "q8_0"}', r"got U8 \(34,\)"),
        ('{"none": "q8_0"}', "expected a tensor of the file, got none of this name"),
        ('{"\\ud800": "q8_0"}', "expected a tensor of the file"),
    ],
)
def test_metadata_that_says_what_is_not_so_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "model.safetensors"
    bytes_of = lambda *shape: Array(np.zeros(shape, np.uint8), U8, shape)  # noqa: E731
    tensors = {"v": ones(34), "w": bytes_of(2, 1, 34), "flat": bytes_of(34)}
    save_safetensors(path, tensors, {"lattice.dtypes": text})
    with pytest.raises(FormatError, match=said):
        SafetensorsFile(path)


def test_writer_refuses_a_name_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_safetensors(path, {"w": ones(2)})
    before = path.read_bytes()
    with pytest.raises(LatticeError, match="got __metadata__: f32"):
        save_safetensors(path, {"__metadata__": ones(2)})
    with pytest.raises(LatticeError, match="printable tensor name"):
        save_safetensors(path, {"a\nb": ones(2)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_mapped_file_that_is_replaced_keeps_its_old_content(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_safetensors(path, {"w": ones(2)})
    old = SafetensorsFile(path).tensor("w")
    save_safetensors(path, {"w": encode(np.zeros(2), F32)})
    assert old.data.tolist() == [1, 1]
    assert SafetensorsFile(path).tensor("w").data.tolist() == [0, 0]


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    save_safetensors(tmp_path / "one.safetensors", {"a": ones(2), "b": ones(3)})
    ids = Array(np.arange(3), I64, (3,))
    save_safetensors(tmp_path / "two.safetensors", {"c": ids})
    write_index(tmp_path, {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}, 44)
    return tmp_path


def write_index(directory: Path, weight_map: dict, total: int | None = None) -> None:
    metadata = {} if total is None else {"total_size": total}
    text = json.dumps({"metadata": metadata, "weight_map": weight_map})
    (directory / "model.safetensors.index.json").write_text(text)


def test_shards_are_one_checkpoint(sharded: Path) -> None:
    files = ShardedSafetensors(sharded)
    assert files.names == ["a", "b", "c"]
    assert files.tensor("c").data.tolist() == [0, 1, 2]
    assert files.size("b") == 12
    assert "a" in files
    assert "d" not in files


@pytest.mark.parametrize(
    ("weight_map", "fragment"),
    [
        ({"a": "../one.safetensors"}, "expected a plain file name"),
        ({"a": "/etc/one.safetensors"}, "expected a plain file name"),
        ({"a": "sub\\one.safetensors"}, "expected a plain file name"),
        ({"a": "C:one.safetensors"}, "expected a plain file name"),
        ({"a": "one\0.safetensors"}, "expected a plain file name"),
        ({"a": "one.bin"}, "a .safetensors file name, got 'one.bin'"),
        ({"a": 3}, "a .safetensors file name, got 3"),
        ({"a": "none.safetensors"}, "the shard none.safetensors, got no such file"),
        ({"a": "one.safetensors"}, "every tensor of one.safetensors, got an index without its 'b'"),
        ({"a": "one.safetensors", "b": "two.safetensors"}, "tensor 'b' in two.safetensors"),
        ({}, "a weight_map of tensor names to files"),
        ([], "a weight_map of tensor names to files"),
    ],
)
def test_hostile_index(sharded: Path, weight_map: object, fragment: str) -> None:
    write_index(sharded, weight_map)
    with pytest.raises(FormatError) as caught:
        ShardedSafetensors(sharded)
    assert fragment in str(caught.value)


def test_links_may_not_leave_the_directory_but_for_the_hubs_blobs(sharded: Path, tmp_path_factory) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (sharded / "one.safetensors").rename(outside / "one.safetensors")
    (sharded / "one.safetensors").symlink_to(outside / "one.safetensors")
    with pytest.raises(FormatError, match="a link that leaves it"):
        ShardedSafetensors(sharded)
    repository = tmp_path_factory.mktemp("models--org--name")
    (repository / "blobs").mkdir()
    (outside / "one.safetensors").rename(repository / "blobs" / "0123")
    snapshot = repository / "snapshots" / "main"
    snapshot.parent.mkdir()
    sharded.rename(snapshot)
    (snapshot / "one.safetensors").unlink()
    (snapshot / "one.safetensors").symlink_to(Path("..", "..", "blobs", "0123"))
    assert ShardedSafetensors(snapshot).tensor("a").data.tolist() == [1, 1]


def test_a_wrong_total_warns(sharded: Path) -> None:
    write_index(sharded, {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}, 45)
    with pytest.warns(LatticeWarning, match="expected 44 bytes in all, got total_size 45"):
        ShardedSafetensors(sharded)
