"""Prefixes on disk, so that a process that starts finds what the last one had run.

    path/<model>/<tokens>.page.safetensors    keys and values of one full page
    path/<model>/<tokens>.safetensors         a prefix: its tokens, its last page if that is not full, recurrent state

<model> is a digest of everything that the bits of keys, values and state follow from: weights, configuration, types
and the target that computes. <tokens> is a digest of every token up to the end of what the file holds, so pages that
prefixes share are one file, and a prefix names its pages by its tokens. Each file carries a digest of its tensors.
A file is written beside, synced and renamed; it never changes afterwards, and nothing is ever deleted here.

What is read is checked before a byte of it is kept: names, types, shapes, the range of the tokens, both digests. That
finds damage and files of another model; it is no signature: whoever may write to the directory decides what the model
believes it has read.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lattice.dtypes import BY_NAME, I32, Array
from lattice.errors import FormatError, LatticeError, LatticeWarning, expected
from lattice.generate.cache import Held
from lattice.generate.prefix import Entry
from lattice.step import PAGE_TOKENS
from lattice.weights import SafetensorsFile, save_safetensors

if TYPE_CHECKING:
    from lattice.generate.engine import Engine

FORMAT = "lattice prefix 1"  # changes with the layout of pages and slots
PAGE, PREFIX = ".page.safetensors", ".safetensors"
BEHIND = {"k_pages": -1, "v_pages": -2}  # axis of the positions
Pages = Mapping[str, np.ndarray]


def model_digest(engine: Engine) -> str:
    """Return a digest of what state follows from; reads every weight once."""
    opened = engine.opened
    state = [(name, array.dtype.str, array.shape[1:]) for name, array in {**engine.paged, **engine.slotted}.items()]
    said = FORMAT, opened.family.__name__, opened.config, engine.dtype, engine.target, state
    digest = hashlib.sha256(repr(said).encode())
    for name in sorted({source.tensor for source in opened.weights.sources.values()}):
        tensor = opened.checkpoint.tensor(name)
        digest.update(repr((name, tensor.dtype.name, tensor.shape)).encode())
        digest.update(np.ascontiguousarray(tensor.data).reshape(-1).view(np.uint8).data)
        opened.checkpoint.release(name)
    return digest.hexdigest()


def names_of(model: str, tokens: np.ndarray) -> list[str]:
    """Return the names of a prefix's full pages, each a digest of all tokens up to its end, and that of the prefix."""
    digest, names = bytes.fromhex(model), []
    tokens = tokens.astype("<i4")
    full = len(tokens) // PAGE_TOKENS * PAGE_TOKENS
    for start in range(0, full, PAGE_TOKENS):
        digest = hashlib.sha256(digest + tokens[start : start + PAGE_TOKENS].tobytes()).digest()
        names.append(digest.hex())
    return [*names, hashlib.sha256(digest + b"end" + tokens[full:].tobytes()).hexdigest()]


# ---- saving ------------------------------------------------------------------------------------------------
def save(engine: Engine, path: Path) -> int:
    """Write every prefix below the directory `path`, unless it is there; return how many there are."""
    folder = path / engine.digest
    with engine.pool.lock:
        entries = sorted(engine.prefixes.entries, key=lambda entry: entry.priority)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for entry in entries:  # pages and slots of an entry do not change, whoever runs meanwhile
            *pages, name = names_of(engine.digest, entry.tokens)
            for page, held in zip(pages, entry.pages, strict=False):
                _write(folder / f"{page}{PAGE}", engine, partial(_values, engine.paged, held))
            _write(folder / f"{name}{PREFIX}", engine, partial(_prefix_tensors, engine, entry))
    except OSError as error:
        raise expected("save_cache", "a directory that can be written", f"{path}: {error.strerror or error}") from None
    return len(entries)


def _values(buffers: Pages, held: Held) -> dict[str, np.ndarray]:
    return {name: buffer[held.index].copy() for name, buffer in buffers.items()}


def _prefix_tensors(engine: Engine, entry: Entry) -> dict[str, np.ndarray]:
    tensors = {"tokens": entry.tokens}
    behind = len(entry) % PAGE_TOKENS
    if behind:
        tensors.update(_values(engine.paged, entry.pages[-1]))
        for name in engine.paged:
            np.moveaxis(tensors[name], BEHIND[name.rpartition(".")[2]], 0)[behind:] = 0  # others may write there
    return tensors if entry.slot is None else {**tensors, **_values(engine.slotted, entry.slot)}


def _write(path: Path, engine: Engine, read: Callable[[], Pages]) -> None:
    if path.exists():
        os.utime(path)  # what was saved last is loaded first
        return
    arrays, tensors = {}, read()
    for name, values in tensors.items():
        dtype = I32 if name == "tokens" else BY_NAME[{"f2": "f16", "f4": "f32", "i1": "i8"}[values.dtype.str[1:]]]
        arrays[name] = Array(np.ascontiguousarray(values), dtype, values.shape)
    save_safetensors(path, arrays, {"format": FORMAT, "model": engine.digest, "digest": _digest(tensors)})


def _digest(tensors: Pages) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


# ---- loading -----------------------------------------------------------------------------------------------
def load(engine: Engine, path: Path) -> int:
    """Read the prefixes of this model below `path`, the last saved first, while there is room; return how many.

    What is damaged is skipped with a warning.
    """
    if not path.is_dir():
        raise expected("load_cache", "a directory that save_cache made", str(path))
    folder = path / engine.digest
    if folder.is_symlink() or not folder.is_dir():
        others = sum(1 for each in path.iterdir() if each.is_dir())
        message = (
            f"[load_cache] expected prefixes of this model, its dtype and processor in {path}, got {others} others"
        )
        warnings.warn(message, LatticeWarning, stacklevel=3)
        return 0
    found = [file for file in os.scandir(folder) if re.fullmatch(r"[0-9a-f]{64}\.safetensors", file.name)]
    times = {Path(file.path): file.stat(follow_symlinks=False).st_mtime_ns for file in found}
    loaded, damaged = 0, []
    known: dict[str, Held] = {}  # pages that several prefixes share, by name
    for file in sorted(times, key=lambda file: times[file], reverse=True):
        try:
            loaded += _load_prefix(engine, file, known)
        except (LatticeError, OSError) as error:
            damaged.append(str(error))
    if damaged:
        message = f"[load_cache] expected {len(times)} sound prefixes, got {len(damaged)} that are not; {damaged[0]}"
        warnings.warn(message, LatticeWarning, stacklevel=3)
    return loaded


def _load_prefix(engine: Engine, file: Path, known: dict[str, Held]) -> bool:
    """Put a prefix into the pools; return whether there was room."""
    found = _open(engine, file)
    tokens = _tokens(engine, found, file.name)
    *names, name = names_of(engine.digest, tokens)
    if f"{name}{PREFIX}" != file.name:
        raise _refuse(file, "a name that follows from the tokens", "another")
    begun = {n: buffer[0] for n, buffer in engine.paged.items()} if len(tokens) % PAGE_TOKENS else {}
    state = {n: buffer[0] for n, buffer in engine.slotted.items()}
    tensors = _tensors(found, {"tokens": tokens, **begun, **state}, file)
    pages: list[Held] = []
    for page in names:
        if page not in known:
            path = file.with_name(f"{page}{PAGE}")
            values = _tensors(_open(engine, path), {n: buffer[0] for n, buffer in engine.paged.items()}, path)
            if (held := _place(engine, engine.paged, values)) is None:
                return False
            known[page] = held
        pages.append(known[page])
    slot = None
    if begun:
        if (held := _place(engine, engine.paged, tensors)) is None:
            return False
        pages.append(held)
    if state and (slot := _place(engine, engine.slotted, tensors)) is None:
        return False
    with engine.pool.lock:
        engine.prefixes.insert(tokens, pages, slot)
    return True


def _place(engine: Engine, buffers: dict[str, np.ndarray], values: Pages) -> Held | None:
    """Copy values into a free page or slot; None where none is free: nothing has to go for what comes from disk."""
    pool = engine.pool
    wanted = (1, 0) if buffers is engine.paged else (0, 1)
    with pool.lock:
        if not pool.room(*wanted):
            return None
        held = (pool.pages if wanted[0] else pool.slots).take()
    for name, buffer in buffers.items():
        buffer[held.index] = values[name]
    return held


def _open(engine: Engine, path: Path) -> SafetensorsFile:
    if path.is_symlink() or not path.is_file():
        raise _refuse(path, "a regular file", "none, a link or something else")
    file = SafetensorsFile(path)
    if (file.metadata.get("format"), file.metadata.get("model")) != (FORMAT, engine.digest):
        raise _refuse(path, f"a file of this model, {FORMAT}", f"one of {file.metadata!r:.120}")
    return file


def _tokens(engine: Engine, file: SafetensorsFile, name: str) -> np.ndarray:
    if "tokens" not in file or len(file.shape("tokens")) != 1 or not 0 < file.shape("tokens")[0] <= engine.context:
        raise expected(name, f"1 to {engine.context} tokens", "none, or more", kind=FormatError)
    array = file.tensor("tokens")
    if array.dtype is not I32 or array.data.min() < 0 or array.data.max() >= engine.vocab:
        raise expected(name, f"i32 tokens from 0 to {engine.vocab - 1}", "others", kind=FormatError)
    return array.data.copy()


def _tensors(file: SafetensorsFile, wanted: Pages, path: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a file if they are those that are wanted, in type and shape, and undamaged."""
    if set(file.names) != set(wanted):
        raise _refuse(path, f"the tensors {sorted(wanted)}"[:200], f"{sorted(file.names)}"[:200])
    tensors = {name: file.tensor(name).data for name in wanted}
    for name, values in tensors.items():
        if (values.dtype, values.shape) != (wanted[name].dtype, wanted[name].shape):
            like = f"{name} as {wanted[name].dtype} {wanted[name].shape}"
            raise _refuse(path, like, f"{values.dtype} {values.shape}")
    if _digest(tensors) != file.metadata.get("digest"):
        raise _refuse(path, "tensors as they were saved", "other bytes")
    return tensors


def _refuse(path: Path, wanted: str, got: str) -> LatticeError:
    return expected(path.name, wanted, got, kind=FormatError)
