"""What all commands share: how they fail, what they print, how a model is fetched while somebody waits.

Results go to standard output, everything else to standard error. Colour and progress are for terminals only.
"""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import typer
from typer.core import TyperGroup

from lattice.errors import LatticeError, LatticeWarning, expected

# Options that several commands have, declared once.
MODEL_HELP = "Model: a path, org/name, pypi:distribution, or a short name such as"
JSON = typer.Option(False, "--json", help="Print one JSON object instead of text.")
DOING = ("download ", "fetch ", "join ", "hash ", "wait ")  # how a progress's `what` may begin
DEVICE = typer.Option(
    "auto", "--device", help="Where it runs: cpu, gpu (a graphics card), or auto (a card if it was measured faster)."
)
DTYPE = typer.Option("auto", "--dtype", help="Weights in memory: auto, f32, f16, bf16, q8 or q4.")
KV = typer.Option("auto", "--kv", help="Keys and values in memory: auto, f32, f16 or q8.")


class Group(TyperGroup):
    """Commands whose errors are one message on standard error: exit code 1, and 130 after Ctrl-C."""

    def invoke(self, ctx: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("always", LatticeWarning)
            warnings.showwarning = _show_warning
            try:
                return super().invoke(ctx)
            except LatticeError as error:
                typer.echo(f"{style('error:', sys.stderr, fg='red', bold=True)} {error}", err=True)
                raise typer.Exit(1) from None
            except KeyboardInterrupt:
                typer.echo(err=True)
                raise typer.Exit(130) from None


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: IO[str] | None = None,
    line: str | None = None,
) -> None:
    if issubclass(category, LatticeWarning):
        typer.echo(f"{style('warning:', sys.stderr, fg='yellow', bold=True)} {message}", err=True)


def example(*commands: str) -> str:
    """Return an epilog that shows commands as they are, not rewrapped."""
    lines = "\n".join(f"  $ {command}" for command in commands)
    return f"\b\nExample{'s' if len(commands) > 1 else ''}:\n{lines}"


def style(text: str, stream: IO[str] | None = None, **how: Any) -> str:
    """Return the text with colour if the stream it goes to (standard output) is a terminal."""
    return typer.style(text, **how) if (stream or sys.stdout).isatty() else text


def dim(text: str) -> str:
    """Return the text in grey on a terminal: what is beside the point."""
    return style(text, dim=True)


def emit(value: dict[str, Any]) -> None:
    """Print one JSON object on one line; numbers that JSON does not have are an error, not NaN."""
    typer.echo(json.dumps(value, ensure_ascii=False, allow_nan=False))


def size(count: float) -> str:
    """Return a number of bytes to three digits.

    >>> size(90_868_376), size(512), size(1.5e9)
    ('90.9 MB', '512 B', '1.50 GB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5 or unit == "GB":
            digits = 0 if unit == "B" or count >= 99.95 else 1 if count >= 9.995 else 2
            return f"{count:.{digits}f} {unit}"
        count /= 1000
    return ""


def bytes_of(text: str) -> int:
    """Return the number of bytes that a person writes; LatticeError where it is none.

    >>> bytes_of("16GB"), bytes_of("1.5 GiB"), bytes_of("900m")
    (16000000000, 1610612736, 900000000)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmgt]?)(i?)b?", text.strip().lower(), re.ASCII)
    if found is None:
        raise expected("memory", "a size such as 16GB or 512MiB", repr(text)[:40])
    return int(float(found[1]) * (1024 if found[3] else 1000) ** " kmgt".index(found[2] or " "))


def count(number: float) -> str:
    """Return a number of things to three digits.

    >>> count(22_713_216), count(512), count(1.24e9)
    ('22.7 M', '512', '1.24 B')
    """
    for unit in ("", " k", " M", " B", " T"):
        if number < 999.5 or unit == " T":
            digits = 0 if unit == "" or number >= 99.95 else 1 if number >= 9.995 else 2
            return f"{number:.{digits}f}{unit}"
        number /= 1000
    return ""


def table(rows: Sequence[Sequence[str]], right: frozenset[int] = frozenset()) -> str:
    """Return rows as columns two spaces apart; those in `right` are aligned to the right.

    >>> print(table([["a", "10"], ["long", "9"]], frozenset({1})))
    a     10
    long   9
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


@contextmanager
def byte_progress(label: str) -> Iterator[Any]:
    """Give a `progress(what, done, total)` that draws one bar on a terminal, from its first call on.

    Elsewhere it is silent, but says what it waits for: a script's log should tell why it stands still.
    """
    bar: Any = None
    terminal = sys.stderr.isatty()

    def report(name: str, done: int, total: int | None) -> None:
        nonlocal bar
        if not terminal:
            if name.startswith("wait "):
                typer.echo(name, err=True)
            return
        if bar is None:
            bar = _byte_bar()
            bar.start()
        doing, _, what = name.rpartition(" ") if name.startswith(DOING) else (label, "", name)
        amount = f"{size(done)} of {size(total)}" if total else ""
        text = f"{doing} {what.rpartition('/')[2]}"
        bar.update(bar.task_ids[0], description=text, completed=done, total=total, amount=amount)

    try:
        yield report
    finally:
        if bar is not None:
            bar.stop()


def _byte_bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Column

    description = TextColumn("{task.description}", table_column=Column(no_wrap=True))
    columns = (description, BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[amount]}"))
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    bar.add_task("", total=None, amount="")
    return bar


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show what is being waited for while the block runs, on a terminal only."""
    if not sys.stderr.isatty():
        yield
        return
    sys.stderr.write(f"\x1b[2m{what} …\x1b[0m")
    sys.stderr.flush()
    try:
        yield
    finally:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


def fetch(source: str) -> Path:
    """Return where the model is, fetched if it is not here yet; LatticeError where it cannot be had."""
    from lattice.weights.sources import resolve

    with byte_progress("unpack") as progress:
        return resolve(source, progress=progress)


def load(source: str, **options: Any) -> Any:
    """Return the language model that `source` names."""
    import lattice

    path = fetch(source)
    with waiting(f"loading {source}"):
        return lattice.load(path, **options)


def read_text(file: str) -> str:
    """Return the text of a file, or of standard input for "-"; LatticeError where it is no readable UTF-8."""
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return data.decode("utf-8")
    except OSError as error:
        raise LatticeError(f"[{file}] expected a readable file, got {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise LatticeError(f"[{file}] expected text in UTF-8, got {error.reason} at byte {error.start}") from None
