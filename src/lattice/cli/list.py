"""`lattice list`: the models that have been fetched, and the short names of those that can be."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import typer

from lattice.cli._app import JSON, byte_progress, dim, emit, example, size, style, table


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "list",
        short_help="List the models in the cache, and verify them.",
        epilog=example("lattice list", "lattice list --verify"),
    )(show)


def show(
    verify: bool = typer.Option(False, "--verify", help="Hash every file again and compare; exit code 1 on damage."),
    hub: bool = typer.Option(False, "--hub", help="List the models in the hub's own cache, too."),
    json: bool = JSON,
) -> None:
    """List the models in the cache, what interrupted fetches left, and the short names that Lattice knows."""
    from lattice.weights import sources

    models = [_model(entry, verify) for entry in sources.cached()]
    damaged = [str(error) for error in sources.damaged()]
    report = {
        "home": str(sources.home()),
        "models": models,
        "damaged": damaged,
        "unfinished": [{"source": left.source, "bytes": left.nbytes} for left in sources.unfinished()],
        "aliases": {name: list(alias.sources) for name, alias in sources.ALIASES.items()},
    }
    if hub:
        from lattice.weights.hub_cache import repositories

        found = repositories(sources.hub_settings())
        report["hub"] = [{"source": name, "bytes": held, "path": str(path)} for name, held, path in found]
    if json:
        emit(report)
    else:
        _print(report)
    if damaged or any(model.get("differences") for model in models):
        raise typer.Exit(1)


def _model(entry: Any, verify: bool) -> dict[str, Any]:
    from lattice.weights.cache import compare
    from lattice.weights.sources import ALIASES

    model = {
        "source": entry.source,
        "names": [name for name, alias in ALIASES.items() if entry.source in alias.sources],
        "bytes": entry.nbytes,
        "fetched": datetime.fromtimestamp(entry.fetched, UTC).isoformat(timespec="seconds"),
        "revision": entry.revision or None,
        "path": str(entry.path),
    }
    if verify:
        with byte_progress("hash") as progress:
            model["differences"] = [vars(difference) for difference in compare(entry, progress)]
        model["verified"] = not model["differences"]
    return model


def _print(report: dict[str, Any]) -> None:
    models = report["models"]
    if models:
        _print_models(models)
        total = sum(model["bytes"] for model in models)
        typer.echo(dim(f"\n{len(models)} model{'s' if len(models) > 1 else ''}, {size(total)}, in {report['home']}"))
    else:
        typer.echo(f"no models in {report['home']}; `lattice pull minilm` fetches one")
    for left in report["unfinished"]:
        typer.echo(f"unfinished: {left['source']}, {size(left['bytes'])}; `lattice pull` continues, `rm` deletes it")
    for error in report["damaged"]:
        typer.echo(f"{style('DAMAGED', fg='red', bold=True)} {error}")
    rows = [[model["source"], file["file"], file["wanted"][:24], file["got"][:24]]
            for model in models for file in model.get("differences", [])]  # fmt: skip
    if rows:
        lines = table([["source", "file", "expected", "found"], *rows]).split("\n")
        typer.echo("\n".join(["", dim(lines[0]), *lines[1:]]))
        typer.echo("\n`lattice rm` and `lattice pull` fetch a damaged model anew")
    if report.get("hub") is not None:
        held = [[model["source"], size(model["bytes"])] for model in report["hub"]]
        typer.echo("\n" + dim("the hub's own cache") + "\n" + (table(held, frozenset({1})) if held else "nothing"))
    have = {name for model in models for name in model["names"]}
    rest = [[name, f"{first[:59]}…" if len(first) > 60 else first]
            for name, (first, *_) in report["aliases"].items() if name not in have]  # fmt: skip
    if rest:
        typer.echo("\n" + dim("can be fetched by name") + "\n" + table(rest))


def _print_models(models: list[dict[str, Any]]) -> None:
    rows = []
    for model in models:
        name = ", ".join(model["names"]) or "-"
        row = [name, size(model["bytes"]), model["fetched"][:10], model["source"]]
        if "verified" in model:
            row.insert(0, "ok" if model["verified"] else "DAMAGED")
        rows.append(row)
    head = ["name", "size", "fetched", "source"]
    verified = "verified" in models[0]
    lines = table([["state", *head] if verified else head, *rows], frozenset({2 if verified else 1})).split("\n")
    typer.echo("\n".join([dim(lines[0]), *lines[1:]]))
