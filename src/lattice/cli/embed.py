"""`lattice embed`: texts to vectors."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

import typer

from lattice.cli._app import (
    DEVICE,
    JSON,
    MODEL_HELP,
    dim,
    emit,
    example,
    fetch,
    read_text,
    style,
    table,
    waiting,
)

if TYPE_CHECKING:
    import numpy as np

SHOWN = 5  # numbers of a vector
MOST_COMPARED = 12  # texts that a table of cosines has room for
WIDTH = 44  # characters shown of a text


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "embed",
        short_help="Turn texts into vectors.",
        epilog=example(
            'lattice embed "a cat" "a kitten" "a train"',
            "lattice embed --file lines.txt --json",
            'lattice embed --model bge-small --query "how do cats sleep?"',
        ),
    )(embed)


def embed(
    texts: list[str] | None = typer.Argument(None, metavar="TEXT", help="Texts to embed."),
    model: str = typer.Option("minilm", "--model", "-m", help=f"{MODEL_HELP} minilm."),
    file: str | None = typer.Option(None, "--file", "-f", help="One text a line; - is standard input."),
    prompt_name: str | None = typer.Option(
        None, "--prompt-name", "--prompt", help="Which of the model's prompts goes before each text."
    ),
    query: bool = typer.Option(False, "--query", help="Texts to search with: the model's prompt for queries."),
    document: bool = typer.Option(False, "--document", help="Texts to be found: its prompt for documents."),
    dimensions: int | None = typer.Option(None, "--dimensions", help="Shorten the vectors to this many numbers."),
    normalize: bool = typer.Option(True, "--normalize/--no-normalize", help="Scale vectors to unit length."),
    device: str = DEVICE,
    dtype: str = typer.Option(
        "auto", "--dtype", help="auto, f32 or f16: exact; bf16: faster, cosine 0.9999; int8: fastest, cosine 0.999."
    ),
    json: bool = JSON,
) -> None:
    """Turn texts into vectors whose closeness is closeness of meaning."""
    listed = list(texts or ())
    if file is not None:
        listed += read_text(file).splitlines()
    if not listed:
        raise typer.BadParameter("nothing to embed: give texts, or --file", param_hint="TEXT")
    if query + document + (prompt_name is not None) > 1:
        raise typer.BadParameter("give one of them", param_hint="--query, --document, --prompt-name")
    import lattice
    from lattice.embed.known import as_source

    fetch(as_source(model))
    with waiting(f"loading {model}"):
        encoder = lattice.load_encoder(
            model, device=device, dtype=dtype, dimensions=dimensions
        )  # by its name, which tells its prompts
    options: dict[str, Any] = {"normalize": normalize}
    start = perf_counter()
    if query or document:
        vectors = (encoder.encode_query if query else encoder.encode_document)(listed, **options)
    else:
        vectors = encoder.encode(listed, prompt_name=prompt_name, **options)
    seconds = perf_counter() - start
    if json:
        emit({"model": model, "dimensions": vectors.shape[1], "embeddings": vectors.tolist()})
    else:
        _print(model, listed, vectors, seconds)


def _print(model: str, texts: list[str], vectors: np.ndarray, seconds: float) -> None:
    count = f"{len(texts)} text{'s' if len(texts) > 1 else ''}"
    head = f"{count}, {vectors.shape[1]} dimensions, {1000 * seconds:.0f} ms"
    typer.echo(f"{style(model, bold=True)}  {dim(head)}\n")
    more = " …" if vectors.shape[1] > SHOWN else ""
    rows = [
        [str(number), _short(text), "".join(f"{value:+9.4f}" for value in vector[:SHOWN]) + more]
        for number, (text, vector) in enumerate(zip(texts, vectors, strict=True), 1)
    ]
    typer.echo(table(rows, frozenset({0})))
    if 2 <= len(texts) <= MOST_COMPARED:
        typer.echo(f"\n{_cosines(vectors)}")


def _short(text: str) -> str:
    """Return a text on one line, cut to what a table has room for; what a terminal would obey is replaced."""
    line = "".join(c if c.isprintable() else " " for c in text)
    return line if len(line) <= WIDTH else line[: WIDTH - 1] + "…"


def _cosines(vectors: np.ndarray) -> str:
    import numpy as np

    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    numbers = [str(number) for number in range(1, len(vectors) + 1)]
    rows = [["cosine", *numbers]]
    rows += [[number, *(f"{value:.3f}" for value in row)] for number, row in zip(numbers, unit @ unit.T, strict=True)]
    return table(rows, frozenset(range(len(rows[0]))))
