"""`lattice eval`: how good a model is, measured."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter

import typer

from lattice.cli._app import DTYPE, JSON, KV, MODEL_HELP, Group, dim, emit, example, load, read_text, style
from lattice.errors import LatticeError


def register(app: typer.Typer) -> None:
    """Add the group and its commands."""
    group = typer.Typer(
        cls=Group, help="Measure how good a model is.", no_args_is_help=True, rich_markup_mode=None,
        epilog=example("lattice eval ppl --file text.txt --chunks 40"),
    )  # fmt: skip
    group.callback()(lambda: None)
    group.command("ppl", epilog=example("lattice eval ppl --model smollm2-135m --file text.txt --chunks 40"))(ppl)
    app.add_typer(group, name="eval")


def ppl(
    file: str = typer.Option(..., "--file", "-f", help="Text to predict, in UTF-8; - is standard input."),
    model: str = typer.Option("smollm2-135m", "--model", "-m", help=f"{MODEL_HELP} smollm2-135m."),
    context: int = typer.Option(512, "--context", help="Tokens of a window; its second half is scored."),
    chunks: int | None = typer.Option(None, "--chunks", help="Only the first windows, as many as this."),
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
