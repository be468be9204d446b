"""What a model's files say about it, without loading a weight: what `show` prints and `doctor` adds up."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lattice.cli._parts import parts
from lattice.errors import LatticeError

CARD = 64 << 10  # bytes of a model card that are looked at


def inspect(path: Path) -> dict[str, Any]:
    """Return a description of the model at `path`, from headers; LatticeError where its files cannot be read.

    What this version cannot run is described as far as its files go; `problem` says why.
    """
    from lattice.weights import open_checkpoint

    checkpoint = open_checkpoint(path)
    tensors = {name: checkpoint.tensor(name) for name in checkpoint.names}
    counts = Counter(tensor.dtype.name for tensor in tensors.values())
    report: dict[str, Any] = {
        "kind": checkpoint.kind,
        "family": _family(checkpoint),
        "task": None,
        "parameters": sum(tensor.size for tensor in tensors.values()),
        "tensors": dict(counts.most_common()),
        "bytes": checkpoint.nbytes,
        "layers": None,
        "kinds": {},
        "pattern": "",
        "active": None,
        "parts": {},
        "tied": False,
        "skipped": [],
        "context": None,
        "kv_bytes": None,
        "state_bytes": None,
        "dimensions": None,
        "pooling": None,
        "tokenizer": None,
        "vocabulary": None,
        "chat_template": False,
        "licence": licence(checkpoint),
        "problem": None,
    }
    try:
        report |= _model(path) | _text(checkpoint)
    except LatticeError as error:
        report["problem"] = str(error)
    return report


def _family(checkpoint: Any) -> str | None:
    key = "general.architecture" if checkpoint.kind == "gguf" else "model_type"
    source = checkpoint.metadata if checkpoint.kind == "gguf" else checkpoint.config
    return str(source[key]) if key in source else None


def _model(path: Path) -> dict[str, Any]:
    from lattice.cli._memory import memory_plan
    from lattice.embed.settings import read_settings
    from lattice.models import family
    from lattice.weights.load import open_model

    opened = open_model(path, family, strict=False)
    config = opened.config
    report = {
        "family": opened.family.__name__.rpartition(".")[2],
        "layers": getattr(config, "num_hidden_layers", None),
        "context": config.max_position_embeddings,
    } | parts(opened)
    if getattr(opened.model, "head", None) is not None:
        plan = memory_plan(opened, "auto", None)
        kept = {"kv_bytes": plan["context"]["needs"] - plan["fixed"], "state_bytes": plan["state"]}
        return report | {"task": "generate"} | kept
    settings = read_settings(opened.checkpoint)
    tokens = min(settings.max_tokens or config.max_position_embeddings, config.max_position_embeddings)
    pooling = f"{settings.pooling}{', normalized' if settings.normalized else ''}" if settings.pooling else None
    return report | {"task": "embed", "context": tokens, "dimensions": config.hidden_size, "pooling": pooling}


def _text(checkpoint: Any) -> dict[str, Any]:
    if checkpoint.kind == "gguf":
        data = checkpoint.metadata
        kind, before = data.get("tokenizer.ggml.model"), data.get("tokenizer.ggml.pre")
        tokens = data.get("tokenizer.ggml.tokens")
        return {
            "tokenizer": f"{kind} ({before})" if kind and before else kind,
            "vocabulary": len(tokens) if isinstance(tokens, Sequence) else None,
            "chat_template": "tokenizer.chat_template" in data,
        }
    if not (checkpoint.directory / "tokenizer.json").is_file():
        return {}
    from lattice.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(checkpoint.directory)
    return {
        "tokenizer": type(tokenizer.library.model).__name__,
        "vocabulary": tokenizer.vocab_size,
        "chat_template": bool(tokenizer.templates),
    }


def licence(checkpoint: Any) -> str | None:
    """Return the licence that a GGUF's metadata or the head of a model card names; it may name a file instead."""
    if isinstance(named := checkpoint.metadata.get("general.license"), str):
        return named[:80]
    card = checkpoint.directory / "README.md"
    if card.is_file():
        with open(card, "rb") as file:
            text = file.read(CARD).decode("utf-8", "replace")
        head = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
        for key in ("license_name", "license"):
            if head and (found := re.search(rf"^{key}:[ \t]*([\w.+-]+)[ \t]*\r?$", head[1], re.MULTILINE | re.ASCII)):
                return found[1][:80]
    files = sorted(path.name for path in checkpoint.directory.glob("LICEN[CS]E*"))
    return f"see {files[0]}" if files else None
