"""Models from the Hugging Face hub: which files a model needs, their bytes, and proof that they are the right ones.

The hub's library makes requests (names, tokens, proxies, redirects); what it does not promise is done here. A download
goes into a file named after its content, so that whatever stopped it, the next one continues it, and the content is
hashed before anything may read it: by SHA-256 where the hub knows it (large files), else as git does (small ones):

    git's name of a file = SHA-1("blob <bytes>\\0" + content)

Files that the hub's own cache holds are linked from there, not fetched. Transfer is plain HTTP, also where the library
would use Xet: that has no partial file that can be continued.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from lattice.errors import LatticeError, SourceError, expected
from lattice.strict_json import read_object
from lattice.weights._files import check_relative
from lattice.weights.cache import CHUNK, Filled, Progress, sha256_of
from lattice.weights.hub_cache import MAX_INDEX, Name, Settings, library
from lattice.weights.safetensors import INDEX_NAME

DEFAULT_ENDPOINT = "https://huggingface.co"
MAX_FILES = 10_000
MAX_SMALL = 256 << 20  # bytes of any file that is no weights
SPARE = 64 << 20  # bytes of a disk that a download leaves free
ATTEMPTS = 3  # that bring nothing new, before a download gives up
# What a model needs beside its weights; pictures, code and other formats stay on the hub.
SMALL = re.compile(
    r"[^/]+\.(json|txt|model|jinja|tiktoken)|(LICENSE|LICENCE|NOTICE|README)[^/]*|[0-9]+_[A-Za-z]+/[^/]+\.json",
    re.ASCII | re.IGNORECASE,
)
# A layer of an encoder that follows its pooling.
_DENSE = re.compile(r"[0-9]+_Dense/.*", re.ASCII)
_SHA256, _SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Remote:
    """One file of a repository: `digest` is its SHA-256, or git's SHA-1 of it."""

    name: str
    size: int
    digest: str


class Unreachable(SourceError):
    """The hub did not answer: what was fetched before may still serve."""


# ---- fetching -------------------------------------------------------------------------------------------------------
def fetch(name: Name, settings: Settings, files: Path, scratch: Path, progress: Progress | None) -> Filled:
    """Download the files of a model into `files`; what lies in `scratch` from an earlier call is continued."""
    with _explained(name, scratch):
        commit, listing = _list(name, settings)
        wanted = _wanted(name, listing)
        _check_space(name, wanted, scratch)
        get = _Getter(name, settings, commit, scratch, progress)
        for remote in wanted:
            get(remote)
        if INDEX_NAME in {remote.name for remote in wanted}:
            index = next(remote for remote in wanted if remote.name == INDEX_NAME)
            shards = _shards(name, scratch / index.digest, listing)
            _check_space(name, shards, scratch)
            for remote in shards:
                get(remote)
            wanted += shards
        digests = {}
        for remote in wanted:
            target = files / remote.name
            target.parent.mkdir(parents=True, exist_ok=True)
            _place(scratch / remote.digest, target)
            digests[remote.name] = remote.digest if len(remote.digest) == 64 else sha256_of(target)
    return Filled(files / name.file if name.file else _model_path(files, wanted), digests, commit)


def _list(name: Name, settings: Settings) -> tuple[str, dict[str, Remote]]:
    """Return the commit that a revision is now, and the files of it."""
    hub = library(str(name))
    if settings.offline:
        raise expected(str(name), "a hub that may be asked", "HF_HUB_OFFLINE", kind=Unreachable)
    info = hub.HfApi(endpoint=settings.endpoint).model_info(name.repo, revision=name.revision, files_metadata=True)
    siblings, commit = info.siblings or [], str(info.sha)
    if not _SHA1.fullmatch(commit) or len(siblings) > MAX_FILES:
        got = f"commit {commit[:80]!r} of {len(siblings)} files"
        raise expected(str(name), f"a commit and at most {MAX_FILES} files", got, kind=SourceError)
    listing = {}
    for sibling in siblings:
        path, size, lfs = sibling.rfilename, sibling.size, sibling.lfs
        digest = lfs["sha256"] if isinstance(lfs, dict) else lfs.sha256 if lfs is not None else sibling.blob_id
        listing[path] = Remote(path, size if type(size) is int else -1, str(digest or ""))
    return commit, listing


def _wanted(name: Name, listing: dict[str, Remote]) -> list[Remote]:
    """Return the files to fetch, small ones first; shards are known once their index is here."""
    if name.file:
        if name.file not in listing:
            offered = ", ".join(sorted(path for path in listing if path.endswith(".gguf"))) or "none"
            hint = f"its GGUF files: {offered[:400]}"
            raise expected(str(name), "a file of the repository", f"no {name.file}", hint=hint, kind=SourceError)
        return [_checked(name, listing[name.file])]
    plain = [path for path in listing if path.endswith(".safetensors") and "/" not in path]
    ggufs = [path for path in listing if path.endswith(".gguf") and "mmproj" not in path.lower()]
    small = sorted(path for path in listing if SMALL.fullmatch(path) and path != INDEX_NAME)
    if "config.json" in listing and INDEX_NAME in listing:
        weights = [INDEX_NAME]
    elif "config.json" in listing and "model.safetensors" in listing:
        weights = ["model.safetensors"]
    elif "config.json" in listing and len(plain) == 1:
        weights = plain
    elif len(ggufs) == 1:
        small, weights = [path for path in small if not path.endswith((".json", ".jinja", ".model"))], ggufs
    else:
        raise _no_model(name, listing, ggufs)
    heavy = [path for path in listing if _DENSE.fullmatch(path) and path.endswith(".safetensors")]
    return [_checked(name, listing[path], small=path in small) for path in small + sorted(heavy) + weights]


def _no_model(name: Name, listing: dict[str, Remote], ggufs: list[str]) -> LatticeError:
    wanted, got = "config.json and safetensors, or one GGUF file", "a repository without"
    hint = None
    if ggufs:
        got, hint = f"{len(ggufs)} GGUF files", f"name one: {name.repo}:{min(ggufs)}; all: {', '.join(sorted(ggufs))}"
    elif any(path.endswith((".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")) for path in listing):
        hint = "its weights are in a format that can run code, and are never read; look for a safetensors version"
    return expected(str(name), wanted, got, hint=hint[:1000] if hint else None, kind=SourceError)


def _checked(name: Name, remote: Remote, *, small: bool = False) -> Remote:
    check_relative(remote.name, str(name))
    if small and remote.size > MAX_SMALL:
        raise expected(f"{name}: {remote.name}", f"at most {MAX_SMALL} bytes", remote.size, kind=SourceError)
    return remote


def _shards(name: Name, index: Path, listing: dict[str, Remote]) -> list[Remote]:
    weight_map = read_object(index, MAX_INDEX).get("weight_map")
    shards = set(weight_map.values()) if isinstance(weight_map, dict) and weight_map else {None}
    found = sorted(shard for shard in shards if isinstance(shard, str) and shard in listing)
    if len(found) != len(shards):
        got = ", ".join(sorted(map(repr, shards - set(found))))[:200]
        raise expected(f"{name}: {INDEX_NAME}", "shards that the repository has", got, kind=SourceError)
    return [_checked(name, listing[shard]) for shard in found]


def _model_path(files: Path, wanted: list[Remote]) -> Path:
    gguf = next((remote.name for remote in wanted if remote.name.endswith(".gguf")), None)
    return files / gguf if gguf else files


def _place(blob: Path, target: Path) -> None:
    """Give verified content its name; the blob stays where others of the same content may need it too."""
    try:
        os.link(blob, target)
    except OSError:  # another file system, or one without links
        beside = target.with_name(f".{target.name}.copy")
        shutil.copyfile(blob, beside)
        os.replace(beside, target)
    with open(target, "rb") as file:
        os.fsync(file.fileno())


def _check_space(name: Name, wanted: list[Remote], scratch: Path) -> None:
    here = {path.name.removesuffix(".part"): path.stat().st_size for path in scratch.iterdir()}
    needed = sum(max(remote.size - here.get(remote.digest, 0), 0) for remote in wanted)
    free = shutil.disk_usage(scratch).free
    if needed and needed + SPARE > free:
        raise _disk_full(name, f"{needed / 1e9:.2f} GB free at {scratch.parents[1]}", f"{free / 1e9:.2f} GB")


def _disk_full(name: Name, wanted: str, got: str) -> LatticeError:
    hint = "free some, `lattice list` and `lattice rm` help, or set LATTICE_HOME; what was fetched is kept"
    return expected(str(name), wanted, got, hint=hint, kind=SourceError)


@dataclass(frozen=True)
class _Getter:
    """Puts one file after the other into scratch, under its digest."""

    name: Name
    settings: Settings
    commit: str
    scratch: Path
    progress: Progress | None

    def __call__(self, remote: Remote) -> None:
        if not (_SHA256.fullmatch(remote.digest) or _SHA1.fullmatch(remote.digest)) or remote.size < 0:
            raise expected(f"{self.name}: {remote.name}", "a digest and size from the hub", "none", kind=SourceError)
        whole = self.scratch / remote.digest
        if whole.is_file() or self._from_cache(remote, whole):
            return
        part = self.scratch / f"{remote.digest}.part"
        continued = part.exists()
        self._download(remote, part)
        if (got := _digest(part, remote)) != remote.digest and continued:
            part.unlink()  # perhaps what was there before is to blame: once more, from the start
            self._download(remote, part)
            got = _digest(part, remote)
        if got != remote.digest:
            part.unlink()
            hint = "the download was changed on its way, or the hub is wrong; nothing of it is kept"
            where, kind = f"{self.name}: {remote.name}", "SHA-256" if len(remote.digest) == 64 else "git SHA-1"
            raise expected(where, f"{kind} {remote.digest}", got, hint=hint, kind=SourceError)
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, whole)

    def _from_cache(self, remote: Remote, whole: Path) -> bool:
        """Link the file from the hub's own cache, if it is there and what it should be."""
        hub, cache = library(str(self.name)), self.settings.cache
        from huggingface_hub import constants

        options = {} if cache is None else {"cache_dir": str(cache)}
        found = hub.try_to_load_from_cache(self.name.repo, remote.name, revision=self.commit, **options)
        folder = (cache or Path(constants.HF_HUB_CACHE)) / f"models--{self.name.repo.replace('/', '--')}"
        for path in ([Path(found)] if isinstance(found, str) else []) + [folder / "blobs" / remote.digest]:
            if path.is_file() and path.stat().st_size == remote.size and _digest(path, remote) == remote.digest:
                _place(path.resolve(), whole)
                return True
        return False

    def _download(self, remote: Remote, part: Path) -> None:
        """Bring `part` to its full size, from where it is; network failures are met by trying again."""
        hub, fails, anew = library(str(self.name)), 0, False
        url = hub.hf_hub_url(self.name.repo, remote.name, revision=self.commit, endpoint=self.settings.endpoint)
        while True:
            before = part.stat().st_size if part.exists() else 0
            if before > remote.size:
                part.unlink()
                before = 0
            try:
                return self._request(url, remote, part, before)
            except LatticeError:  # more than there should be: a server, and a library, that know no ranges
                if not before or anew:
                    raise
                part.unlink()
                anew = True
            except Exception as error:
                if _status(error) == 416 and not anew:  # the server has nothing behind what is here
                    part.unlink()
                    anew = True
                elif type(error) is OSError and error.errno is None:  # the library's word for another length
                    got, hint = f"{part.stat().st_size}", "what was fetched so far is kept: try again later"
                    where = f"{self.name}: {remote.name}"
                    raise expected(where, f"{remote.size} bytes", got, hint=hint, kind=SourceError) from error
                elif _status(error) is not None or _errno(error) is not None:
                    raise
                else:
                    fails = 0 if part.stat().st_size > before else fails + 1
                    if fails == ATTEMPTS:
                        raise

    def _request(self, url: str, remote: Remote, part: Path, before: int) -> None:
        from huggingface_hub.file_download import http_get

        bar = _Bar(f"fetch {remote.name}", before, remote, self.progress)
        with open(part, "ab") as file:
            if before == remote.size:
                bar.update(0)
                return
            headers = import_module("huggingface_hub.utils").build_hf_headers(library_name="lattice") | {
                "Accept-Encoding": "identity"
            }
            http_get(
                url, file, resume_size=before, headers=headers, expected_size=remote.size, _tqdm_bar=bar,
                displayed_filename=remote.name,
            )  # fmt: skip


class _Bar:
    """What the hub's library takes for its progress bar: counts, tells, and stops a body that does not end."""

    def __init__(self, what: str, done: int, remote: Remote, progress: Progress | None):
        self.what, self.done, self.remote, self.progress = what, done, remote, progress

    def update(self, count: float | None = 1) -> None:
        """Count bytes, fewer than none where a transfer begins anew."""
        self.done += int(count or 0)
        if self.done > self.remote.size:
            raise expected(self.remote.name, f"{self.remote.size} bytes", "more", kind=SourceError)
        if self.progress:
            self.progress(self.what, self.done, self.remote.size)


def _digest(path: Path, remote: Remote) -> str:
    if len(remote.digest) == 64:
        return sha256_of(path)
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


# ---- what went wrong ------------------------------------------------------------------------------------------------
def _status(error: BaseException) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _errno(error: BaseException) -> int | None:
    """Return the number of an error of the file system, None for anything else (network errors are OSErrors too)."""
    if isinstance(error, OSError) and type(error) in (OSError, PermissionError, FileNotFoundError):
        return error.errno
    return None


@contextlib.contextmanager
def _explained(name: Name, scratch: Path) -> Iterator[None]:
    """Turn what the library and its transports raise, dozens of unrelated types, into one kind with a hint."""
    try:
        yield
    except LatticeError:
        raise
    except Exception as error:
        raise _explain(name, error, scratch) from error


def _explain(name: Name, error: Exception, scratch: Path) -> LatticeError:
    if _errno(error) in (errno.ENOSPC, errno.EDQUOT):
        return _disk_full(name, f"space for its files at {scratch.parents[1]}", "a full disk")
    if _errno(error) is not None:
        hint = "set LATTICE_HOME to a place that can be written"
        wanted = f"a cache that can be written at {scratch.parents[1]}"
        return expected(str(name), wanted, error, hint=hint, kind=SourceError)
    status, kinds = _status(error), {kind.__name__ for kind in type(error).__mro__}
    if status == 401 and not kinds & _REASONS.keys():
        kinds.add("RepositoryNotFoundError")  # what the hub says to strangers of any name
    for kind, (wanted, got, hint) in _REASONS.items():
        if kind in kinds:
            values = {"repo": name.repo, "revision": name.revision, "file": name.file}
            return expected(str(name), wanted, got.format(**values), hint=hint.format(**values), kind=SourceError)
    if status == 403:
        hint = "set HF_TOKEN to a token that may read it"
        return expected(str(name), "a model that may be read", "HTTP 403", hint=hint, kind=SourceError)
    if status is not None and status < 500 and status != 429:
        return expected(str(name), "a hub that gives the file", f"HTTP {status}", kind=SourceError)
    got = f"HTTP {status}" if status else f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    hint = "what was fetched so far is kept: try again later" + ("" if status else ", or look at the network")
    return expected(str(name), "a hub that answers", got, hint=hint, kind=Unreachable)


# By the name of the library's exception, the more special first.
_REASONS: dict[str, tuple[str, str, str]] = {
    "GatedRepoError": (
        "a model that may be read", "a gated one: its owner asks for consent",
        "accept its terms at https://huggingface.co/{repo}, then set HF_TOKEN or run `hf auth login`",
    ),
    "RepositoryNotFoundError": (
        "a repository of the hub", "none called {repo}, or a private one",
        "check the name; for a private one set HF_TOKEN or run `hf auth login`",
    ),
    "RevisionNotFoundError": ("a revision of the repository", "no {revision}", "a branch, a tag or a whole commit"),
    "EntryNotFoundError": ("a file of the repository", "one that the hub lists and does not give", "try again later"),
    "OfflineModeIsEnabled": ("a hub that may be asked", "HF_HUB_OFFLINE", "unset HF_HUB_OFFLINE"),
    "HFValidationError": ("org/name", "{repo}", "letters, digits, - . and _"),
}  # fmt: skip
