"""`lattice list`: the models that have been fetched."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Any

import typer

from lattice.cli._app import JSON, byte_progress, dim, emit, example, size, style, table
from lattice.errors import LatticeError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "list",
        short_help="List the models in the cache, and verify them.",
        epilog=example("lattice list", "lattice list --verify"),
    )(show)


def show(
    verify: bool = typer.Option(False, "--verify", help="Hash every file again and compare."),
    json: bool = JSON,
) -> None:
    """List the models in the cache; models in the hub's own cache are not among them."""
    from lattice.weights.sources import cached, home

    models, errors = [], []
    for entry in cached():
        model = {
            "source": entry.source,
            "names": _names(entry.source),
            "bytes": entry.nbytes,
            "fetched": datetime.fromtimestamp(entry.fetched, UTC).isoformat(timespec="seconds"),
            "path": str(entry.path),
        }
        if verify:
            error = _verify(entry)
            model["verified"] = error is None
            errors += [] if error is None else [error]
        models.append(model)
    if json:
        emit({"home": str(home()), "models": models})
    elif not models:
        typer.echo(f"no models in {home()}; `lattice pull minilm` fetches one")
    else:
        _print(models, str(home()))
    for error in errors:
        typer.echo(f"{style('error:', sys.stderr, fg='red', bold=True)} {error}", err=True)
    if errors:
        raise typer.Exit(1)


def _names(source: str) -> list[str]:
    """Return the short names of a source."""
    from lattice.weights.sources import ALIASES

    return [name for name, alias in ALIASES.items() if source in alias.sources]


def _verify(entry: Any) -> LatticeError | None:
    from lattice.weights.sources import verify

    try:
        with byte_progress("hash") as progress:
            verify(entry.path, progress)
    except LatticeError as error:
        return error
    return None


def _print(models: list[dict[str, Any]], home: str) -> None:
    rows = []
    for model in models:
        name = ", ".join(model["names"]) or "-"
        row = [name, size(model["bytes"]), model["fetched"][:10], model["source"]]
        if "verified" in model:
            row.append("verified" if model["verified"] else "DAMAGED")
        rows.append(row)
    head = ["name", "size", "fetched", "source", "state"][: len(rows[0])]
    lines = table([head, *rows], frozenset({1})).split("\n")
    typer.echo("\n".join([dim(lines[0]), *lines[1:]]))
    total = sum(model["bytes"] for model in models)
    typer.echo(dim(f"\n{len(models)} model{'s' if len(models) > 1 else ''}, {size(total)}, in {home}"))
