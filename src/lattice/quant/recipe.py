"""What becomes of each parameter: recipes as data, the rules of `weights/blocks.py` by name.

q8        8 bits, 16 where those cost most: values, an encoder's first feed-forward matrix
q4        4 bits, more where errors are dear: embedding, head, values, what goes back into the residual stream
quarot4   q4 of a model whose residual stream is turned first (`rotate.py`)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lattice.errors import expected
from lattice.weights.blocks import KEEP, KEPT, LOADED, Rules, asked, fitting, matches

WRITTEN = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q4_k", "q5_k", "q6_k", "f32", "f16", "bf16", KEEP)
_SMALL: Rules = (("*.in_proj_a", "q8_0"), ("*.in_proj_b", "q8_0"))  # a row a head: decay and step of the delta rule
# A table that is only looked up (`plan` puts "table:" before its name) is less dear than one that is multiplied with.
_TABLES: Rules = (("table:*", "q5_k"), ("*embed_tokens", "q6_k"), ("lm_head", "q6_k"), ("*word_embeddings", "q5_k"))
_VALUES: Rules = (("*.v_proj", "q6_k"), ("*.attention.self.value", "q6_k"))
_DOWN: Rules = (("*down_proj", "q5_k"), ("*[0-9].output.dense", "q5_k"))
_FOUR: Rules = (*KEPT, *_SMALL, *_TABLES, *_VALUES, *_DOWN, ("*", "q4_k"))
TURNED = ("quarot4",)
RECIPES: dict[str, Rules] = {"q8": LOADED["q8"], "q4": _FOUR, "quarot4": _FOUR}
# Of GGUF files: embedding and head as llama.cpp has them.
GGUF: dict[str, Rules] = {
    "q8_0": (*KEPT, ("*", "q8_0")), "q4_0": (*KEPT, *_TABLES, ("*", "q4_0")), "q4_1": (*KEPT, *_TABLES, ("*", "q4_1")),
    "q4_k": _FOUR, KEEP: (),
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """The dtype of every parameter that is rounded or converted, and what was asked for but does not fit."""

    dtypes: Mapping[str, str]
    notes: tuple[str, ...]


def plan(
    shapes: Mapping[str, tuple[int, ...]],
    to: str,
    overrides: Mapping[str, str] | None = None,
    recipes: Mapping[str, Rules] = RECIPES,
) -> Plan:
    """Return what a recipe makes of parameters of these shapes; `overrides` are rules that come before its own.

    Raises LatticeError for a recipe, dtype or pattern that is not known or fits nothing.

    >>> plan({"lm_head.weight": (8, 96), "norm.weight": (96,)}, "q8", {"lm_head": "q4_k"})
    Plan(dtypes={'lm_head.weight': 'q4_1'}, notes=('1 matrix is q4_1 instead of q4_k: lm_head.weight',))
    """
    if to not in recipes:
        raise expected("quantize", f"one of {', '.join(recipes)}", repr(to))
    first = tuple((overrides or {}).items())
    for pattern, dtype in first:
        if dtype not in WRITTEN:
            raise expected("quantize", f"a dtype among {', '.join(WRITTEN)} for {pattern}", repr(dtype))
        if not any(matches(name, pattern) for name, shape in shapes.items() if len(shape) > 1):
            raise expected("quantize", f"a pattern that fits a matrix, such as {_one(shapes)}", repr(pattern))
    dtypes, changed = {}, {}
    for name, shape in shapes.items():
        looked_up = "embed_tokens" in name and "lm_head.weight" in shapes
        called = f"table:{name}" if looked_up and not any(matches(name, pattern) for pattern, _ in first) else name
        wanted = asked(called, shape, (*first, *recipes[to]))
        found = fitting(wanted, shape)
        if found != KEEP:
            dtypes[name] = found
        if found != wanted:
            changed[name] = f"{found} instead of {wanted}" if found != KEEP else f"kept, not {wanted}"
    notes = []
    for what, number in Counter(changed.values()).items():
        names = [name for name, change in changed.items() if change == what]
        more = ", ..." if number > 1 else ""
        notes.append(f"{number} {'matrices are' if number > 1 else 'matrix is'} {what}: {names[0]}{more}")
    return Plan(dtypes, tuple(notes))


def _one(shapes: Mapping[str, Any]) -> str:
    return next((name for name, shape in shapes.items() if len(shape) > 1), "none here")
