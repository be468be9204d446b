"""Prefixes on disk: another process goes on from them with the same bits; nothing foreign or damaged is believed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_models import copy_model, draw_tokens, hybrid_model

from lattice.dtypes import F32, I32, Array, encode
from lattice.errors import LatticeError, LatticeWarning
from lattice.generate import LanguageModel, load
from lattice.weights import SafetensorsFile, save_safetensors

PROMPT = draw_tokens(150)
KINDS = ("f32", "f16", "hybrid-f32", "hybrid-f16")
OTHER = """
import json, sys, numpy
from lattice.generate import load
lm = load(sys.argv[1])
loaded = lm.load_cache(sys.argv[2])
prompt = json.loads(sys.argv[3])
sequence = lm.engine.begin(prompt, len(prompt))
reused = sequence.reused
logits = numpy.concatenate(list(lm.engine.score(sequence, prompt[reused:])))
numpy.save(sys.argv[4], logits)
print(json.dumps([loaded, reused]))
"""


def make(to: Path, kind: str, **config) -> Path:
    if kind.startswith("hybrid"):
        return hybrid_model(to, bf16=kind.endswith("f16"), **config)
    return copy_model(to, {"f32": "llama-untied", "f16": "llama-bf16"}[kind], **config)


@pytest.fixture(params=KINDS)
def saved(request, tmp_path) -> tuple[Path, Path, LanguageModel]:
    """Return a model's path, a directory of its prefixes, and the model that wrote them."""
    lm = load(make(tmp_path, request.param))
    lm.generate(PROMPT[:100], max_tokens=20)
    lm.generate(PROMPT, max_tokens=3)
    assert lm.save_cache(tmp_path / "kept") == len(lm.engine.prefixes.entries)
    return lm._engine.opened.checkpoint.path, tmp_path / "kept", lm


def files(kept: Path, pages: bool = False) -> list[Path]:
    found = sorted(kept.glob("*/*.safetensors"))
    return [file for file in found if (".page." in file.name) == pages]


def test_another_process_goes_on_with_the_same_bits(saved, tmp_path):
    path, kept, lm = saved
    prompt = [*PROMPT[:140], *draw_tokens(30, 7)]
    arguments = [str(path), str(kept), json.dumps(prompt), str(tmp_path / "logits.npy")]
    ran = subprocess.run([sys.executable, "-c", OTHER, *arguments], capture_output=True, text=True, check=True)
    loaded, reused = json.loads(ran.stdout)
    assert loaded == len(lm.engine.prefixes.entries)
    assert reused == (118 if lm.engine.recurrent else 140)
    assert np.array_equal(np.load(tmp_path / "logits.npy"), lm.logits(prompt)[reused:])


def test_what_is_loaded_is_what_was_saved_and_saving_again_writes_nothing(saved):
    path, kept, lm = saved
    before = {file: (file.read_bytes(), file.stat().st_ino) for file in files(kept) + files(kept, pages=True)}
    other = load(path)
    assert other.load_cache(kept) == len(lm.engine.prefixes.entries)
    assert sorted(map(len, other.engine.prefixes.entries)) == sorted(map(len, lm.engine.prefixes.entries))
    begun = len(lm.engine.prefixes.entries)  # full pages are shared again, those that are not full are not
    assert other.engine.pool.pages.held <= lm.engine.pool.pages.held + begun
    other.save_cache(kept)
    assert {file: (file.read_bytes(), file.stat().st_ino) for file in before} == before
    assert set(before) == {*files(kept), *files(kept, pages=True)}
    assert other.generate(PROMPT, max_tokens=9).tokens == lm.generate(PROMPT, max_tokens=9).tokens
    other.engine.forget()
    assert other.engine.pool.used == 0


def test_files_do_not_hold_what_lies_behind_their_tokens(tmp_path):
    lm = load(make(tmp_path, "f32"))
    stream = lm.stream(PROMPT[:70], max_tokens=9)
    for _ in range(5):
        next(stream)  # the prompt's last page goes on to be written
    lm.save_cache(tmp_path / "kept")
    (file,) = files(tmp_path / "kept")
    tensors = SafetensorsFile(file)
    assert tensors.shape("tokens") == (70,)
    assert not tensors.tensor("layers.0.k_pages").data[..., 6:].any()
    assert not tensors.tensor("layers.1.v_pages").data[:, 6:].any()
    assert tensors.tensor("layers.1.v_pages").data[:, :6].all()


def test_what_was_saved_last_is_loaded_first_and_only_what_has_room(tmp_path):
    path = make(tmp_path, "f32", max_position_embeddings=256)
    lm = load(path)
    for seed in (1, 2, 3, 4):
        lm.generate(draw_tokens(120, seed), max_tokens=1)
        lm.save_cache(tmp_path / "kept")
    for place, file in enumerate(sorted(files(tmp_path / "kept"), key=lambda file: file.stat().st_mtime_ns)):
        os.utime(file, (place, place))
    small = load(path, cache_bytes=lm.engine.pool.pages.nbytes * 5)
    assert small.load_cache(tmp_path / "kept") == 2
    assert small.stream(draw_tokens(120, 4), max_tokens=1).usage.reused_tokens == 119


@pytest.mark.parametrize("change", ["weights", "config", "dtype", "kind"])
def test_another_model_loads_nothing(tmp_path, change):
    path = make(tmp_path, "hybrid-f32")
    lm = load(path)
    lm.generate(PROMPT, max_tokens=2)
    lm.save_cache(tmp_path / "kept")
    dtype = "auto"
    if change == "weights":
        path = shutil.copytree(path, tmp_path / "other")
        file = SafetensorsFile(path / "model.safetensors")
        tensors = {name: file.tensor(name) for name in file.names}
        values = tensors["model.norm.weight"].data.copy()
        values[-1] += 1e-6
        save_safetensors(path / "model.safetensors", {**tensors, "model.norm.weight": encode(values, F32)})
    elif change == "config":
        path = make(tmp_path, "hybrid-f32", rope_theta=10001.0)
    elif change == "dtype":
        dtype = "f16"
    else:
        path = make(tmp_path, "f32")
    other = load(path, dtype=dtype)
    with pytest.warns(LatticeWarning, match="this model, its dtype and processor .* got 1 others"):
        assert other.load_cache(tmp_path / "kept") == 0
    # and where somebody renames the directory:
    os.rename(tmp_path / "kept" / lm.engine.digest, tmp_path / "kept" / other.engine.digest)
    with pytest.warns(LatticeWarning, match="a file of this model"):
        assert other.load_cache(tmp_path / "kept") == 0
    assert other.engine.pool.used == 0


def rewrite(file: Path, *, metadata: dict | None = None, **tensors) -> None:
    """Write a file anew with other tensors (None: without), and the digest that they have now, unless it is given."""
    from lattice.generate.saved import _digest

    old = SafetensorsFile(file)
    arrays = {name: old.tensor(name) for name in old.names} | tensors
    arrays = {name: array for name, array in arrays.items() if array is not None}
    digest = {"digest": _digest({name: array.data for name, array in arrays.items()})}
    save_safetensors(file, arrays, {**old.metadata, **digest, **(metadata or {})})


def ids(values: list) -> Array:
    array = np.array(values, np.int32)
    return Array(array, I32, array.shape)


def zeros(*shape: int) -> Array:
    return encode(np.zeros(shape, np.float32), F32)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-3] ^= 4
    file.write_bytes(data)


def link(file: Path) -> None:
    os.rename(file, file.with_suffix(".moved"))
    file.symlink_to(file.with_suffix(".moved"))


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGE = {
    "cut": cut,
    "flipped bit": flip,
    "empty": lambda file: file.write_bytes(b""),
    "noise": lambda file: file.write_bytes(np.random.default_rng(0).bytes(5000)),
    "huge header": lambda file: file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:]),
    "link": link,
    "folder": folder,
    "no tokens": lambda file: rewrite(file, tokens=None),
    "other tokens": lambda file: rewrite(file, tokens=ids([1, 2, 3])),
    "tokens below": lambda file: rewrite(file, tokens=ids([-1] * 70)),
    "tokens above": lambda file: rewrite(file, tokens=ids([70] * 70)),
    "no token": lambda file: rewrite(file, tokens=ids([])),
    "many tokens": lambda file: rewrite(file, tokens=ids([0] * 5000)),
    "tokens in rows": lambda file: rewrite(file, tokens=ids([[0], [1]])),
    "float tokens": lambda file: rewrite(file, tokens=zeros(150)),
    "another shape": lambda file: rewrite(file, **{"layers.3.k_pages": zeros(2, 16, 63)}),
    "another type": lambda file: rewrite(file, **{"layers.3.k_pages": ids([[[0] * 64] * 16] * 2)}),
    "a tensor less": lambda file: rewrite(file, **{"layers.0.delta": None}),
    "a tensor more": lambda file: rewrite(file, **{"layers.9.delta": zeros(4, 8, 16)}),
    "another format": lambda file: rewrite(file, metadata={"format": "lattice prefix 0"}),
    "another digest": lambda file: rewrite(file, metadata={"digest": "00" * 32}),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> tuple[LanguageModel, Path]:
    to = tmp_path_factory.mktemp("sound")
    lm = load(hybrid_model(to))
    lm.generate(PROMPT, max_tokens=1)
    lm.engine.forget([entry for entry in lm.engine.prefixes.entries if len(entry) != 149])
    lm.save_cache(to / "kept")
    return lm, to / "kept"


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_prefix_is_skipped_with_a_warning(sound, tmp_path, damage):
    lm, kept = sound
    shutil.copytree(kept, tmp_path / "kept")
    (file,) = files(tmp_path / "kept")
    DAMAGE[damage](file)
    lm.engine.forget()
    with pytest.warns(LatticeWarning, match=r"\[load_cache\] expected 1 sound prefixes, got 1 that are not; \["):
        assert lm.load_cache(tmp_path / "kept") == 0
    assert lm.engine.pool.used == 0
    assert lm.load_cache(kept) == 1


@pytest.mark.parametrize("damage", ["cut", "flipped bit", "link", "folder", "missing", "of another prefix"])
def test_a_damaged_page_is_not_taken(sound, tmp_path, damage):
    lm, kept = sound
    shutil.copytree(kept, tmp_path / "kept")
    first, second = files(tmp_path / "kept", pages=True)
    if damage == "missing":
        first.unlink()
    elif damage == "of another prefix":
        rewrite(first, **{"layers.3.v_pages": None})
    else:
        DAMAGE[damage](first)
    lm.engine.forget()
    with pytest.warns(LatticeWarning, match="1 that are not"):
        assert lm.load_cache(tmp_path / "kept") == 0
    assert lm.engine.pool.used == 0 and second.exists()


def test_other_files_are_left_alone(sound, tmp_path):
    lm, kept = sound
    shutil.copytree(kept, tmp_path / "kept")
    (file,) = files(tmp_path / "kept")
    for name in ("notes.txt", f".{file.name}.12-34.tmp", "00" * 32 + ".page.safetensors"):
        file.with_name(name).write_bytes(b"other")
    lm.engine.forget()
    assert lm.load_cache(tmp_path / "kept") == 1


def test_places_that_cannot_be_used(sound, tmp_path):
    lm, _ = sound
    (tmp_path / "file").write_text("x")
    with pytest.raises(LatticeError, match=r"\[load_cache\] expected a directory"):
        lm.load_cache(tmp_path / "none")
    with pytest.raises(LatticeError, match=r"\[load_cache\] expected a directory"):
        lm.load_cache(tmp_path / "file")
    with pytest.raises(LatticeError, match=r"\[save_cache\] expected a directory"):
        lm.save_cache(tmp_path / "file")
