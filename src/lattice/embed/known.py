"""Embedding models that Lattice knows: the one table of what their files leave unsaid.

A checkpoint's own files always win; the table gives a pooling mode, a longest text and prompts where they are silent,
as in a directory of only config.json and weights. A model is recognised by name:

    the source that was asked for      an alias, or org/name on the hub: certain
    the hub's cache                    .../models--org--name/...: certain
    config.json's _name_or_path, a GGUF's general.name, the directory's or file's own name: a guess, of which a warning
                                       tells where it decides anything

and never against its width: a row applies only to models of its own number of dimensions. What is behind the aliases
is in weights/sources.py.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from lattice.embed.settings import Settings
from lattice.errors import LatticeWarning
from lattice.weights import Checkpoint

BGE = "Represent this sentence for searching relevant passages: "
QWEN = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"  # no space behind


@dataclass(frozen=True)
class Known:
    """One row. `least` is the smallest number of dimensions that it was trained to be shortened to (Matryoshka), fewer
    are refused; None where it was not trained for that: its vectors can be shortened, but who does is warned."""

    hub: str
    alias: str
    dimensions: int
    max_tokens: int
    pooling: str
    query: str = ""
    document: str = ""
    least: int | None = None

    @property
    def name(self) -> str:
        """Return the canonical name: the hub's without the publisher, in lower case."""
        return self.hub.rpartition("/")[2].lower()


MODELS = (
    Known("BAAI/bge-small-en-v1.5", "bge-small", 384, 512, "cls", BGE),
    Known("BAAI/bge-base-en-v1.5", "bge-base", 768, 512, "cls", BGE),
    Known("BAAI/bge-large-en-v1.5", "bge-large", 1024, 512, "cls", BGE),
    Known("intfloat/multilingual-e5-small", "e5-small", 384, 512, "mean", "query: ", "passage: "),
    Known("intfloat/multilingual-e5-base", "e5-base", 768, 512, "mean", "query: ", "passage: "),
    Known("sentence-transformers/all-MiniLM-L6-v2", "minilm", 384, 256, "mean"),
    Known(
        "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2",
        "multilingual-minilm",
        384,
        128,
        "mean",
    ),
    Known("Qwen/Qwen3-Embedding-0.6B", "qwen3-embedding", 1024, 8192, "last", QWEN, least=32),
    Known("Qwen/Qwen3-Embedding-4B", "qwen3-embedding-4b", 2560, 8192, "last", QWEN, least=32),
    Known("Qwen/Qwen3-Embedding-8B", "qwen3-embedding-8b", 4096, 8192, "last", QWEN, least=32),
)
NAMES = {name: model for model in MODELS for name in (model.hub.lower(), model.name, model.alias)}
_HUB = re.compile(r"(?:hf:)?(?P<name>[^@:]+)(?:@[^:]*)?(?::.*)?")  # org/name, an alias; less revision and file
_FORMAT = re.compile(r"[-._](?:i?q\d[\w]*|b?f16|f32|fp16|fp32|gguf)$")  # what a file's name says of its weights


def find(name: str) -> Known | None:
    """Return the model of a hub id, canonical name or alias; case and spaces or `_` for `-` do not matter.

    >>> find("BGE_small").hub, find("qwen3 embedding 0.6b").least, find("bge")
    ('BAAI/bge-small-en-v1.5', 32, None)
    """
    return NAMES.get(re.sub(r"[\s_]+", "-", name.strip().lower()))


def as_source(name: str) -> str:
    """Return the alias of a known model that is called by its own name, and any other name as it is.

    >>> as_source("bge-small-en-v1.5"), as_source("BAAI/bge-small-en-v1.5"), as_source("minilm")
    ('bge-small', 'BAAI/bge-small-en-v1.5', 'minilm')
    """
    known = find(name)
    return name if known is None or "/" in name or Path(name).exists() else known.alias


def recognise(checkpoint: Checkpoint, width: int, source: str | None = None) -> tuple[Known | None, str]:
    """Return the row of a checkpoint of `width` dimensions, or None, and, if it is guessed, from what; else ""."""
    certain = [match["name"]] if source and (match := _HUB.fullmatch(source)) else []
    certain += [part[8:].replace("--", "/") for part in checkpoint.path.parts if part.startswith("models--")]
    guesses = [("", name) for name in certain] + list(_guesses(checkpoint))
    for origin, name in guesses:
        known = find(name)
        if known is not None and known.dimensions == width:
            return known, origin
    return None, ""


def _guesses(checkpoint: Checkpoint) -> Iterator[tuple[str, str]]:
    for key in ("_name_or_path", "general.name"):
        if isinstance(name := checkpoint.config.get(key), str):
            yield f"its {key} {name[:80]!r}", name
    path = checkpoint.path if checkpoint.path.name else Path.cwd()
    name = (path.stem if checkpoint.kind == "gguf" else path.name).lower()
    while bare := _FORMAT.search(name):
        name = name[: bare.start()]
    yield f"the name {path.name!r}", name


def complete(settings: Settings, known: Known, guessed: str, where: str) -> Settings:
    """Return the settings with what the files leave open taken from the table; warn of what a guess decides.

    Prompts that are all empty say nothing: sentence-transformers writes them into every model that it saves.
    """
    changes: dict[str, object] = {"table_tokens": known.max_tokens}
    taken = []
    if settings.pooling is None and settings.pooling_unsaid:
        changes |= {"pooling": known.pooling}
        taken.append(f"pooling {known.pooling}")
    if (known.query or known.document) and not any(settings.prompts.values()):
        changes |= {"prompts": {**settings.prompts, "query": known.query, "document": known.document}}
        taken.append("prompts")
    if guessed and taken:
        message = f"{' and '.join(taken)} taken from what is known of {known.hub}, by {guessed}"
        warnings.warn(f"[{where}] {message}; its files say nothing of them", LatticeWarning, stacklevel=4)
    return replace(settings, **changes)  # type: ignore[arg-type]  # the names are those of its fields
