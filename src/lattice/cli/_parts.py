"""What a model is made of, read off its module tree and its file's headers: layers, parts, tensors without a use.

No family is known here. A layer's mixer is the attribute that checkpoints call so; a parameter belongs to the part that
the modules on the way to it say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from math import prod
from typing import Any

from lattice.nn import Embedding, LayerNorm, RMSNorm
from lattice.nn.module import Module
from lattice.weights.load import OpenModel

MIXERS = ("self_attn", "linear_attn", "attention")
PARTS = ("embedding", "mixers", "feed-forward", "experts", "norms", "head", "draft head")  # in order of printing
DRAFTS, HEAD = "mtp", "lm_head"


def parts(opened: OpenModel) -> dict[str, Any]:
    """Return the layers, the parameters and bytes of every part, and the tensors that the model has no use for."""
    found: dict[str, dict[str, int]] = {}
    active = 0
    for name, shape in opened.weights.shapes.items():
        trail = list(_trail(opened.model, name))
        row = found.setdefault(_part(trail, name, shape), {"parameters": 0, "bytes": 0})
        row["parameters"] += prod(shape)
        row["bytes"] += opened.weights.header(name).stored
        active += prod(shape) // shape[0] * _chosen(trail, shape)
    total = sum(row["parameters"] for row in found.values())
    layers = _layers(opened.model) or []
    return {
        "parameters": total,
        "active": active if active != total else None,
        "parts": {part: found[part] for part in PARTS if part in found},
        "tied": HEAD not in {name.partition(".")[0] for name in opened.weights.shapes} and _has_head(opened.model),
        "kinds": dict(Counter(map(_kind, layers)).most_common()),
        "pattern": pattern([_kind(layer) for layer in layers]),
        "skipped": _skipped(opened),
    }


def _trail(model: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield (attribute, value) on the way from the model to a parameter."""
    value = model
    for attribute in name.split("."):
        value = value[int(attribute)] if isinstance(value, list | tuple) else vars(value)[attribute]
        yield attribute, value


def _part(trail: list[tuple[str, Any]], name: str, shape: tuple[int, ...]) -> str:
    attributes = [attribute for attribute, _ in trail]
    if attributes[0] in (DRAFTS, HEAD):
        return "draft head" if attributes[0] == DRAFTS else "head"
    if len(shape) == 3:
        return "experts"
    index = next((place for place, attribute in enumerate(attributes) if attribute.isdigit()), None)
    if index is None:
        normal = any(isinstance(value, RMSNorm | LayerNorm) for _, value in trail)
        return "norms" if normal else "embedding" if any(isinstance(v, Embedding) for _, v in trail) else "feed-forward"
    attribute, value = trail[index + 1]
    if attribute in MIXERS:
        return "mixers"
    return "norms" if isinstance(value, RMSNorm | LayerNorm) else "feed-forward"


def _chosen(trail: list[tuple[str, Any]], shape: tuple[int, ...]) -> int:
    """Return how many of a parameter's first dimension one token reads: of experts the chosen ones, else all."""
    if len(shape) != 3:
        return shape[0]
    return next((vars(v)["top_k"] for _, v in trail if isinstance(v, Module) and "top_k" in vars(v)), shape[0])


def _has_head(model: Any) -> bool:
    return vars(model).get(HEAD) is not None


# ---- layers --------------------------------------------------------------------------------------------------------
def _layers(value: Any) -> list[Any] | None:
    """Return the first list of modules in the tree, that of a draft head aside."""
    for attribute, child in vars(value).items():
        if isinstance(child, list) and child and all(isinstance(layer, Module) for layer in child):
            return child
        if isinstance(child, Module) and attribute != DRAFTS and (found := _layers(child)):
            return found
    return None


def _kind(layer: Any) -> str:
    """Return what mixes the tokens of a layer: attention, sliding attention, or the name of another block."""
    mixer = next((vars(layer)[name] for name in MIXERS if name in vars(layer)), None)
    if mixer is None:
        return "identity"
    name = type(mixer).__name__
    if name != "Block" and not name.endswith("Attention"):
        return name
    return "sliding attention" if vars(mixer).get("window") else "attention"


def pattern(kinds: list[str]) -> str:
    """Return the order of kinds as letters, repetitions counted; empty where there is one kind.

    >>> pattern(["GatedDeltaNet", "GatedDeltaNet", "GatedDeltaNet", "attention"] * 6)
    'DDDA x 6'
    >>> pattern((["sliding attention"] * 2 + ["attention"]) * 2 + ["sliding attention"])
    'SSA x 2, S'
    """
    if len(set(kinds)) < 2:
        return ""
    letters = "".join("D" if "Delta" in kind else kind[0].upper() for kind in kinds)
    period = next(p for p in range(1, len(letters) + 1) if letters[p:] == letters[: len(letters) - p])
    times, rest = divmod(len(letters), period)
    if times == 1:
        return letters
    return f"{letters[:period]} x {times}" + (f", {letters[-rest:]}" if rest else "")


# ---- tensors without a use -----------------------------------------------------------------------------------------
def _skipped(opened: OpenModel) -> list[dict[str, Any]]:
    """Return the tensors that no parameter reads, by the beginning of their names."""
    checkpoint, ignored = opened.checkpoint, opened.family.IGNORED
    used = {tensor for source in opened.weights.sources.values() for tensor in source.parts or (source.tensor,)}
    groups: dict[str, dict[str, Any]] = {}
    for name in checkpoint.names:
        if name not in used:
            start = next((start for start in ignored if name.startswith(start)), name)
            group = groups.setdefault(start, {"name": start, "tensors": 0, "parameters": 0, "bytes": 0})
            tensor = checkpoint.tensor(name)
            group["tensors"] += 1
            group["parameters"] += tensor.size
            group["bytes"] += tensor.nbytes
    return list(groups.values())
