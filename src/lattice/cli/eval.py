"""`lattice eval`: how good a model is, measured."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import typer

from lattice.cli import _app
from lattice.cli._app import DTYPE, JSON, KV, MODEL_HELP, Group, dim, emit, example, load, read_text, style
from lattice.errors import LatticeError, expected

CONTEXT = typer.Option(512, "--context", help="Tokens of a window; its second half is scored.")
CHUNKS = typer.Option(None, "--chunks", help="Only the first windows, as many as this.")
COLOURS = {"PASS": "green", "WARN": "yellow", "FAIL": "red"}
REPORT = "quantization.json"  # in what `lattice quantize` wrote; it names the source and what passes


def register(app: typer.Typer) -> None:
    """Add the group and its commands."""
    group = typer.Typer(
        cls=Group, help="Measure how good a model is.", no_args_is_help=True, rich_markup_mode=None,
        epilog=example("lattice eval ppl --file text.txt --chunks 40"),
    )  # fmt: skip
    group.callback()(lambda: None)
    group.command("ppl", epilog=example("lattice eval ppl --model smollm2-135m --file text.txt --chunks 40"))(ppl)
    one = "lattice eval compare --model ./smollm2-q4 --source smollm2-135m"
    group.command("compare", epilog=example(one, "lattice eval compare --model ./smollm2-q4 --strict --json"))(compare)
    app.add_typer(group, name="eval")


def ppl(
    file: str = typer.Option(..., "--file", "-f", help="Text to predict, in UTF-8; - is standard input."),
    model: str = typer.Option("smollm2-135m", "--model", "-m", help=f"{MODEL_HELP} smollm2-135m."),
    context: int = CONTEXT,
    chunks: int | None = CHUNKS,
    dtype: str = DTYPE,
    kv: str = KV,
    json: bool = JSON,
) -> None:
    """Measure perplexity as llama.cpp does: low is good, and 1 would be knowing the text by heart."""
    text = read_text(file)
    lm = load(model, dtype=dtype, kv=kv)
    start = perf_counter()
    with _windows() as progress:
        result = lm.measure_perplexity(text, context=context, chunks=chunks, progress=progress)
    seconds = perf_counter() - start
    if not math.isfinite(result.perplexity):
        raise LatticeError("[eval] expected a finite perplexity, got one too large for a number")
    if json:
        emit({"model": model, "file": file} | vars(result) | {"seconds": round(seconds, 3)})
        return
    typer.echo(f"{style(model, bold=True)}  perplexity {result.perplexity:.4f} ± {result.error:.4f}")
    windows = f"{result.windows} window{'s' if result.windows > 1 else ''}"
    typer.echo(dim(f"{result.tokens} tokens scored in {windows} of {result.context}, {seconds:.1f} s"))


def compare(
    model: str = typer.Option(..., "--model", "-m", help="The quantised model, or any other with the same tokens."),
    source: str | None = typer.Option(None, "--source", "-s", help="What it was made from; without: as its files say."),
    file: str | None = typer.Option(None, "--file", "-f", help="Text in UTF-8; without: one that comes with Lattice."),
    context: int = CONTEXT,
    chunks: int | None = CHUNKS,
    recipe: str | None = typer.Option(None, "--recipe", help="Judge as q8, q4 or quarot4; without: as its files say."),
    strict: bool = typer.Option(False, "--strict", help="Exit code 1 where the verdict is FAIL."),
    dtype: str = DTYPE,
    json: bool = JSON,
) -> None:
    """Measure how far a quantised model is from its source: KL divergence, same top token, both perplexities.

    Of an encoder: the cosines of its vectors with the source's, of the text's paragraphs.
    """
    from lattice.quant import gate

    path = _app.fetch(model)
    said = _said(path)
    if source is None and not isinstance(said.get("source"), str):
        raise expected("eval", f"a source to compare {model} with", "none", hint="name it with --source")
    stored: Any = said.get("gate")
    name: Any = stored.get("thresholds") if isinstance(stored, dict) else said.get("recipe")
    judge = gate.thresholds_of(recipe or name or "q4")
    text = None if file is None else read_text(file)
    start = perf_counter()
    beside = _app.fetch(source) if source is not None else _here(said["source"])
    result = _compare(path, beside, text, context, chunks, judge, dtype)
    seconds = perf_counter() - start
    if json:
        about = {"model": model, "source": source or said["source"], "file": file}
        emit(about | result.as_json() | {"seconds": round(seconds, 3)})
    else:
        _print(model, result, seconds)
    if strict and result.verdict == gate.FAIL:
        raise typer.Exit(1)


def _here(source: str) -> Path:
    """Return where the source is that a file names, which alone sends nobody to the network."""
    from lattice.weights.sources import resolve

    try:
        return resolve(source, offline=True)
    except LatticeError as error:
        got = str(error).partition("\n")[0]
        raise expected(REPORT, "a source that is on this machine", got, hint="name it with --source") from None


def _said(path: Path) -> dict[str, Any]:
    """Return what a quantised checkpoint says of itself, nothing where it says nothing."""
    from lattice.strict_json import read_object

    file = path / REPORT
    return read_object(file, 1 << 20) if path.is_dir() and file.is_file() else {}


def _compare(
    path: Path, source: Path, text: str | None, context: int, chunks: int | None, thresholds: Any, dtype: str
) -> Any:
    import lattice
    from lattice.models import family
    from lattice.quant import gate
    from lattice.weights.load import open_model

    if getattr(open_model(path, family).model, "head", None) is None:
        encoders = lattice.load_encoder(path, dtype=dtype), lattice.load_encoder(source)
        return gate.measure_encoder(*encoders, text and gate.paragraphs(text), thresholds=thresholds)
    models = load(str(path), dtype=dtype, draft=None), load(str(source), draft=None)
    with _windows() as progress:
        return gate.measure(*models, text, context=context, chunks=chunks, thresholds=thresholds, progress=progress)


def _print(model: str, result: Any, seconds: float) -> None:
    verdict = style(result.verdict, fg=COLOURS[result.verdict], bold=True)
    if result.kind == "encoder":
        rows = [["cosine", f"{result.cosine:.6f}", f"mean of {result.texts} texts, the least {result.least:.6f}"]]
    else:
        theirs = f"source {result.source_perplexity:.4f} ± {result.source_perplexity_error:.4f}"
        rows = [
            ["perplexity", f"{result.perplexity:.4f} ± {result.perplexity_error:.4f}", theirs],
            ["mean KLD", f"{result.kld:.6f} ± {result.kld_error:.6f}",
             f"99.9 % up to {result.tail:.4f}, the most {result.maximum:.4f}"],
            ["same top token", f"{100 * result.agreement:.2f} ± {100 * result.agreement_error:.2f} %",
             f"of {result.tokens} tokens in windows of {result.context}"],
        ]  # fmt: skip
    typer.echo(f"{style(model, bold=True)}  {verdict}  {dim(f'{seconds:.1f} s')}")
    typer.echo(_app.table(rows))
    for reason in result.reasons:
        typer.echo(f"{result.verdict}: {reason}")


@contextmanager
def _windows() -> Iterator[Callable[[int, int], object] | None]:
    """Give a `progress(done, windows)` that draws a bar on a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("windows", total=None)
        yield lambda done, windows: bar.update(task, completed=done, total=windows)
