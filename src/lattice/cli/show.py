"""`lattice show`: what a model is, from its files: nothing is loaded, nothing is fetched unless it must be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from lattice.cli._app import JSON, MODEL_HELP, byte_progress, count, dim, emit, example, fetch, size, style, table

SHORT = 16  # hexadecimal digits of a digest in the table; --json has them all


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "show",
        short_help="Describe a model: family, layers, parts, dtypes, tokenizer, files; or its program.",
        epilog=example(
            "lattice show minilm",
            "lattice show ./model.gguf --hash",
            "lattice show --model DIR --program",
            "lattice show --model DIR --program --device gpu",
        ),
    )(show)


def show(
    name: str | None = typer.Argument(None, metavar="[MODEL]", help=f"{MODEL_HELP} minilm."),
    model: str | None = typer.Option(None, "--model", help="The same as MODEL."),
    hash: bool = typer.Option(False, "--hash", help="Compute the SHA-256 of files whose digest is not recorded."),
    program: bool = typer.Option(False, "--program", help="Print the traced program of a step instead."),
    device: str = typer.Option("cpu", "--device", help="With --program: gpu lists a step's dispatches on a card."),
    json: bool = JSON,
) -> None:
    """Describe a model by what its files say, fetched first if it is not here yet.

    Layers, parameters and bytes of every part come from the headers of its files: no weight is read.
    """
    from lattice.cli._inspect import inspect

    if (name is None) == (model is None):
        raise typer.BadParameter("expected one model, as an argument or as --model", param_hint="MODEL")
    if device not in ("cpu", "gpu") or (device == "gpu" and not program):
        raise typer.BadParameter("cpu, or gpu with --program", param_hint="--device")
    source = name or model or ""
    path = fetch(source)
    report: dict[str, Any] = {"model": source, "path": str(path)}
    if program and not json:
        typer.echo(_program(path) if device == "cpu" else _listed(_dispatches(path)))
        return
    report |= inspect(path)
    report["files"] = _files(path, hash)
    if json:
        if program:
            report |= {"program": _program(path)} if device == "cpu" else {"dispatches": _dispatches(path)}
        emit(report)
    else:
        _print(report)


def _program(path: Path) -> str:
    from lattice.cli._memory import program_of

    return str(program_of(path))


def _dispatches(path: Path) -> list[dict[str, Any]]:
    from lattice.cli._memory import dispatches_of

    return dispatches_of(path)


def _listed(dispatches: list[dict[str, Any]]) -> str:
    """Return a line for each dispatch: its op, entry, workgroups, the formats it reads, and what it gives."""
    rows = [
        [str(number), one["op"], one["entry"], " x ".join(map(str, one["workgroups"])),
         ", ".join(f"{name} {dtype}" for name, dtype in one["formats"].items()), ", ".join(one["results"])]
        for number, one in enumerate(dispatches, 1)
    ]  # fmt: skip
    head = ["", "op", "entry", "workgroups", "formats", "results"]
    return f"{table([head, *rows], frozenset({0}))}\n{len(dispatches)} dispatches"


def _files(path: Path, hash: bool) -> list[dict[str, Any]]:
    """Return the files of the model with the digests that its manifest, or the name of its blob, gives."""
    from lattice.weights.cache import FILES, sha256_of
    from lattice.weights.sources import cached

    entry = next((entry for entry in cached() if entry.path == path), None)
    if entry is not None:
        root, recorded = entry.directory / FILES, {name: record.sha256 for name, record in entry.files.items()}
    else:
        root, recorded = (path, {}) if path.is_dir() else (path.parent, {})
    found = [root / name for name in recorded] or ([path] if path.is_file() else sorted(path.rglob("*")))
    files = []
    with byte_progress("hash") as progress:
        for file in found:
            if not file.is_file():
                continue
            name, blob = file.relative_to(root).as_posix(), file.resolve().name
            digest = recorded.get(name) or (blob if len(blob) == 64 and file.is_symlink() else None)
            if digest is None and hash:
                if progress:
                    progress(f"hash {name}", 0, None)
                digest = sha256_of(file)
            files.append({"name": name, "bytes": file.stat().st_size, "sha256": digest})
    return sorted(files, key=lambda file: -file["bytes"])


def _layers(report: dict[str, Any]) -> str | None:
    """Return the layers as "24 layers: 18 GatedDeltaNet + 6 attention, DDDA x 6"."""
    kinds, many = report["kinds"], report["layers"]
    if not kinds:
        return f"{many} layers" if many else None
    listed = " + ".join(f"{number} {kind}" if len(kinds) > 1 else kind for kind, number in kinds.items())
    return f"{many} layer{'s' if many > 1 else ''}: {listed}" + (f", {report['pattern']}" if report["pattern"] else "")


def _parts(report: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [[part, count(found["parameters"]), size(found["bytes"]), f"{found['bytes'] / max(1, report['bytes']):.1%}"]
            for part, found in report["parts"].items()]  # fmt: skip
    if report["tied"]:
        rows.append(["head", "-", "-", "the embedding, transposed"])
    return [("", line) for line in table(rows, frozenset({1, 2})).split("\n")] if rows else []


def _skipped(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Return a line for each group of tensors that the model has no use for."""
    return [
        ("skipped" if place == 0 else "",
         f"{group['tensors']} tensor{'s' if group['tensors'] > 1 else ''} {group['name']}"
         f"{'*' if group['name'].endswith('.') else ''}, {count(group['parameters'])} ({size(group['bytes'])})")
        for place, group in enumerate(report["skipped"])
    ]  # fmt: skip


def _print(report: dict[str, Any]) -> None:
    task = {"generate": "generates text", "embed": "embeds text"}.get(report["task"], "not understood")
    dtypes = ", ".join(f"{number} {dtype}" for dtype, number in report["tensors"].items())
    active = f", {count(report['active'])} of them for a token" if report["active"] else ""
    rows = [
        ("family", f"{report['family'] or 'unknown'}, {task}"),
        ("layers", _layers(report)),
        ("parameters", f"{count(report['parameters'])}{active}"),
        *_parts(report),
        *_skipped(report),
        ("tensors", f"{dtypes}  ({size(report['bytes'])}, {report['kind']})"),
        ("context", f"{report['context']} tokens" if report["context"] else None),
        ("state", f"{size(report['state_bytes'])} a sequence, at any length" if report["state_bytes"] else None),
        ("K/V cache", f"{size(report['kv_bytes'])} a sequence of full length" if report["kv_bytes"] else None),
        ("dimensions", report["dimensions"]),
        ("pooling", report["pooling"] or ("none" if report["task"] == "embed" else None)),
        ("tokenizer", f"{report['tokenizer']}, {report['vocabulary']} tokens" if report["tokenizer"] else "none"),
        ("template", ("chat" if report["chat_template"] else "none") if report["task"] == "generate" else None),
        ("licence", report["licence"] or "not stated"),
        ("path", report["path"]),
    ]
    typer.echo(style(report["model"], bold=True))
    for name, value in rows:
        if value is not None:
            typer.echo(f"{dim(f'{name:10}')}  {value}")
    if report["problem"]:
        typer.echo(f"{style('problem', fg='yellow', bold=True)}     {report['problem']}")
    inside = report["path"].rpartition("/files/")[2] + "/"  # names as the model's directory has them
    files = [[file["name"].removeprefix(inside), size(file["bytes"]), (file["sha256"] or "-")[:SHORT]]
             for file in report["files"]]  # fmt: skip
    lines = table([["file", "size", "sha256"], *files], frozenset({1})).split("\n")
    typer.echo("\n".join(["", dim(lines[0]), *lines[1:]]))
