"""A safetensors file that is written tensor by tensor and survives being killed, with a journal of what is in it.

    PLACE.part/journal.jsonl               settings, then a line {tensor, sha256} behind each tensor that is on the disk
    PLACE.part/model/model.safetensors     the file in its full length, its header first
    PLACE.part/model/...                   becomes PLACE in one rename, when all is there

What the journal names is read and compared with its digest before it is believed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np

from lattice.dtypes import Array
from lattice.errors import LatticeError, expected
from lattice.files import sync_directory
from lattice.weights import SafetensorsFile
from lattice.weights.cache import locked

NAME, SETTINGS = "model.safetensors", "settings"
BLOCK = 1 << 22  # bytes hashed at a time


def stage_of(place: Path) -> Path:
    """Return the directory in which `place` is made."""
    return place.with_name(f"{place.name}.part")


def cleared(place: Path) -> bool:
    """Delete what a job left that was killed behind its rename; return whether there was such a thing."""
    stage = stage_of(place)
    ended = stage.is_dir() and not (stage / "model").exists() and (place / NAME).is_file()
    if ended:
        shutil.rmtree(stage, ignore_errors=True)
    return ended


class Partial:
    """The directory that will be `place`, while it is made. `done` are the tensors that are in it."""

    def __init__(self, place: Path, header: bytes, begins: Mapping[str, int], size: int, settings: Mapping[str, Any]):
        self.place, self.stage = place, stage_of(place)
        self.model, self.journal = self.stage / "model", self.stage / "journal.jsonl"
        self._begins, self._stack = begins, ExitStack()
        self.done: set[str] = set()
        settings = json.loads(json.dumps({**settings, "header": hashlib.sha256(header).hexdigest()}))
        try:
            self.model.mkdir(parents=True, exist_ok=True)
            self._stack.enter_context(locked(self.stage / "lock", self._busy))
            lines = self._lines()
            if lines:
                self._check(lines[0].get(SETTINGS), settings)
                self._open(size)
                self._believe(lines[1:])
            else:
                self._begin(header, size, settings)
        except OSError as error:
            raise self._unwritable(error) from error
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Partial:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of files and lock; what is written stays for the next attempt."""
        self._stack.close()

    # ---- beginning -----------------------------------------------------------------------------------------
    def _begin(self, header: bytes, size: int, settings: Mapping[str, Any]) -> None:
        (self.model / NAME).unlink(missing_ok=True)
        (self.model / NAME).touch()
        self._open(size)
        self._file.write(header)
        self._sync(self._file)
        sync_directory(self.model)
        self._log = self._opened(self.journal, "wb")
        self._note({SETTINGS: settings})
        sync_directory(self.stage)

    def _open(self, size: int) -> None:
        self._file = self._opened(self.model / NAME, "r+b")
        self._file.truncate(size)  # not taken yet: what is written takes it
        taken = getattr(os.fstat(self._file.fileno()), "st_blocks", 0) * 512
        free = shutil.disk_usage(self.stage).free
        if free + taken < size:
            raise expected("quantize", f"{size - taken} bytes free beside {self.place}", f"{free} bytes")

    def _opened(self, path: Path, mode: str) -> IO[bytes]:
        return self._stack.enter_context(open(path, mode))  # that closes it

    def _lines(self) -> list[dict[str, Any]]:
        """Return what the journal says; a last line that was cut is none."""
        raw = self.journal.read_bytes() if self.journal.is_file() and (self.model / NAME).is_file() else b""
        whole, lines = raw[: raw.rfind(b"\n") + 1], []
        try:
            lines = [json.loads(line) for line in whole.splitlines()]
        except ValueError as error:
            raise self._other("a damaged journal") from error
        if not all(isinstance(line, dict) for line in lines):
            raise self._other("a damaged journal")
        return lines

    def _check(self, found: Any, settings: Mapping[str, Any]) -> None:
        if found == settings:
            return
        keys = sorted(key for key in settings if not isinstance(found, dict) or found.get(key) != settings[key])
        raise self._other(f"one with another {', '.join(keys)}")

    def _other(self, got: str) -> LatticeError:
        hint = f"run it again as it was begun, or delete {self.stage}"
        return expected("quantize", f"{self.stage.name} to be an earlier part of this job", got, hint=hint)

    def _believe(self, lines: list[dict[str, Any]]) -> None:
        """Take over the tensors whose bytes are those that were written, and go on behind the last whole line."""
        sizes = SafetensorsFile(self.model / NAME)
        for line in lines:
            name = str(line.get("tensor"))
            if name not in self._begins:
                continue
            self._file.seek(self._begins[name])
            left, digest = sizes.size(name), hashlib.sha256()
            while left > 0 and (part := self._file.read(min(left, BLOCK))):
                digest.update(part)
                left -= len(part)
            if digest.hexdigest() == line.get("sha256"):
                self.done.add(name)
        self._log = self._opened(self.journal, "ab")
        end = self.journal.read_bytes().rfind(b"\n") + 1
        self._log.truncate(end)

    def _busy(self) -> None:
        raise expected("quantize", f"nobody else at work on {self.stage}", "another process")

    def _unwritable(self, error: OSError) -> LatticeError:
        self.close()
        return expected("quantize", f"a place that can be written for {self.place}", error.strerror or error)

    # ---- writing -------------------------------------------------------------------------------------------
    def write(self, name: str, parts: Iterable[Array]) -> None:
        """Write a tensor, given whole or in slabs of its first dimension, and note it once it is on the disk."""
        digest = hashlib.sha256()
        try:
            self._file.seek(self._begins[name])
            for part in parts:
                raw = np.ascontiguousarray(part.data).reshape(-1).view(np.uint8).data
                digest.update(raw)
                self._file.write(raw)
            self._sync(self._file)
            self._note({"tensor": name, "sha256": digest.hexdigest()})
        except OSError as error:
            raise self._unwritable(error) from error
        self.done.add(name)

    def read(self, name: str) -> Array:
        """Return a tensor that is done."""
        return SafetensorsFile(self.model / NAME).tensor(name)

    def _note(self, line: Mapping[str, Any]) -> None:
        self._log.write(json.dumps(line).encode() + b"\n")
        self._sync(self._log)

    @staticmethod
    def _sync(file: Any) -> None:
        file.flush()
        os.fsync(file.fileno())

    def finish(self) -> None:
        """Make the directory `place`, whole, in one rename; nothing is left beside it."""
        try:
            for path in sorted(self.model.rglob("*")):
                if path.is_file():
                    with open(path, "rb") as file:
                        os.fsync(file.fileno())
            sync_directory(self.model)
            self.close()
            if self.place.is_dir():
                self.place.rmdir()  # an empty one
            os.replace(self.model, self.place)
            sync_directory(self.place.parent)
        except OSError as error:
            raise self._unwritable(error) from error
        shutil.rmtree(self.stage, ignore_errors=True)
