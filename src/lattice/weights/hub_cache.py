"""The hub's own cache, which other programs share: what is in it, used as it is, and deleted only when asked for.

Nothing here touches a network. What a source on the hub is called, and where its cache is, is said here, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lattice.errors import SourceError, expected
from lattice.strict_json import read_object
from lattice.weights.safetensors import INDEX_NAME

MAX_INDEX = 64 << 20  # bytes of an index of shards


@dataclass(frozen=True)
class Settings:
    """Where the hub and its cache are; None is the library's own default."""

    endpoint: str | None = None
    cache: Path | None = None
    offline: bool = False


@dataclass(frozen=True)
class Name:
    """One source on the hub: a repository, a revision of it, one file of it."""

    repo: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf:{self.repo}{revision}" + (f":{self.file}" if self.file else "")


def library(where: str) -> Any:
    """Return the hub's library, imported when first needed: it is slow to, and paths and wheels do without."""
    try:
        import huggingface_hub
    except ImportError:
        hint = "pip install huggingface-hub"
        raise expected(where, "the package huggingface-hub", "none installed", hint=hint, kind=SourceError) from None
    return huggingface_hub


def snapshot(name: Name, settings: Settings) -> Path | None:
    """Return the model in the hub's own cache without any network, None where it is not there or not whole."""
    hub = library(str(name))
    options = {} if settings.cache is None else {"cache_dir": str(settings.cache)}
    found = hub.try_to_load_from_cache(name.repo, name.file or "config.json", revision=name.revision, **options)
    if not isinstance(found, str):
        return None
    if name.file:
        return Path(found)
    return Path(found).parent if _is_whole(Path(found).parent) else None


def _is_whole(directory: Path) -> bool:
    index = directory / INDEX_NAME
    if not index.is_file():
        return any(directory.glob("*.safetensors"))
    weight_map = read_object(index, MAX_INDEX).get("weight_map")
    shards = weight_map.values() if isinstance(weight_map, dict) else [""]
    return all(isinstance(shard, str) and (directory / shard).is_file() for shard in set(shards))


def repositories(settings: Settings) -> list[tuple[str, int, Path]]:
    """Return the models in the hub's own cache: name, bytes, directory."""
    hub = library("hub")
    try:
        found = hub.scan_cache_dir(str(settings.cache) if settings.cache else None).repos
    except (hub.CacheNotFound, ValueError):
        return []
    return sorted((repo.repo_id, repo.size_on_disk, repo.repo_path) for repo in found if repo.repo_type == "model")


def remove(repo: str, settings: Settings) -> int | None:
    """Delete a model from the hub's own cache, which other programs share; return the bytes freed, None if absent."""
    hub = library("hub")
    try:
        info = hub.scan_cache_dir(str(settings.cache) if settings.cache else None)
    except (hub.CacheNotFound, ValueError):
        return None
    for found in info.repos:
        if (found.repo_type, found.repo_id) == ("model", repo):
            plan = info.delete_revisions(*(revision.commit_hash for revision in found.revisions))
            plan.execute()
            return int(plan.expected_freed_size)
    return None
