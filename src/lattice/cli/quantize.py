"""`lattice quantize`: a smaller copy of a model, with a report of what that costs."""

from __future__ import annotations

from typing import Any

import typer

from lattice.cli._app import (
    JSON,
    MODEL_HELP,
    byte_progress,
    count,
    dim,
    emit,
    example,
    fetch,
    size,
    style,
    table,
)

COLOURS = {"PASS": "green", "WARN": "yellow", "FAIL": "red"}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "quantize",
        short_help="Write a smaller copy of a model, in 8 or 4 bits, or as a GGUF file.",
        epilog=example(
            "lattice quantize ./model ./model-q4 --to q4 --calibrate bundled",
            'lattice quantize org/name ./out --to q4 --tensor "*.v_proj=q6_k"',
            "lattice quantize ./model model-q4_k.gguf --gguf q4_k",
        ),
    )(quantize)


def quantize(
    source: str = typer.Argument(..., metavar="SOURCE", help=f"{MODEL_HELP} minilm."),
    out: str = typer.Argument(..., metavar="OUT", help="New directory, or with --gguf a new file."),
    to: str = typer.Option("q4", "--to", help="Recipe: q8, q4 or quarot4."),
    gguf: str | None = typer.Option(None, "--gguf", help="Write a GGUF file instead: q8_0, q4_0, q4_1 or q4_k."),
    calibrate: str | None = typer.Option(
        None, "--calibrate", help="Text file, or bundled: round for what the model makes of it. Better and slower."
    ),
    gate: bool = typer.Option(True, "--gate/--no-gate", help="Measure the result beside its source."),
    chunks: int | None = typer.Option(None, "--chunks", help="Measure only the first windows, as many as this."),
    tensor: list[str] = typer.Option([], "--tensor", metavar="PATTERN=DTYPE", help="Another dtype for some matrices."),
    requantize: bool = typer.Option(False, "--requantize", help="Accept a source that is quantised already."),
    json: bool = JSON,
) -> None:
    """Write a smaller copy of a model: a checkpoint in safetensors that every command opens, or a GGUF file.

    A call that was interrupted goes on when it is repeated. Exit code 1 where the gate says FAIL; the copy is there.
    """
    from lattice.quant import export_gguf
    from lattice.quant import quantize as run

    overrides = dict(map(_override, tensor))
    path = fetch(source)
    with byte_progress("round") as progress:
        if gguf is not None:
            report = export_gguf(path, out, to=gguf, tensors=overrides, requantize=requantize, progress=progress)
        else:
            report = run(
                path, out, to=to, calibrate=calibrate, gate=gate, chunks=chunks, tensors=overrides,
                requantize=requantize, progress=progress,
            )  # fmt: skip
    verdict = report.gate.verdict if report.gate is not None else None
    if json:
        emit({"path": str(report.path), **report.as_json()})
    else:
        _print(report, verdict)
    if verdict == "FAIL":
        raise typer.Exit(1)


def _override(text: str) -> tuple[str, str]:
    pattern, sign, dtype = text.partition("=")
    if not pattern or not sign or not dtype:
        raise typer.BadParameter(f"expected PATTERN=DTYPE, got {text!r}", param_hint="--tensor")
    return pattern, dtype


def _print(report: Any, verdict: str | None) -> None:
    smaller = f"{report.source_bytes / report.bytes:.2f} times smaller"
    rows = [["dtype", "tensors", "parameters", "bytes"]]
    rows += [[dtype, str(tensors), count(parameters), size(held)]
             for dtype, (tensors, parameters, held) in report.tensors.items()]  # fmt: skip
    head, *lines = table(rows, frozenset({1, 2, 3})).split("\n")
    typer.echo(f"{style(str(report.path), bold=True)}\n{dim(head)}\n" + "\n".join(lines))
    typer.echo(f"{size(report.source_bytes)} -> {size(report.bytes)}, {smaller}, {report.bits:.3f} bits a parameter")
    for note in report.notes:
        typer.echo(f"{style('note:', fg='yellow')} {note}")
    if verdict is not None:
        typer.echo(f"{style(verdict, fg=COLOURS[verdict], bold=True)}  {_measured(report.gate)}")
        for reason in report.gate.reasons:
            typer.echo(dim(f"      {reason}"))


def _measured(gate: Any) -> str:
    if gate.kind == "encoder":
        return f"mean cosine {gate.cosine:.6f}, least {gate.least:.6f}, {gate.texts} texts"
    return (
        f"perplexity {gate.perplexity:.3f} (source {gate.source_perplexity:.3f}), mean KLD {gate.kld:.5f}, "
        f"99.9 % {gate.tail:.4f}, same first choice {gate.agreement:.2%}, {gate.tokens} tokens"
    )
