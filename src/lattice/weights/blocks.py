"""Which matrices of a model become blocks, and of which dtype: rules as data; the first that fits a name holds.

A rule is (pattern, dtype), the pattern as in a shell, with or without the name's last `.weight`; KEEP leaves a matrix
as it is. Vectors are never rounded. Where a row is no whole number of blocks the next smaller block is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from lattice.dtypes import BY_NAME

KEEP = "keep"
Rules = Sequence[tuple[str, str]]
SMALLER = {"q4_k": "q4_1", "q5_k": "q5_1", "q6_k": "q8_0"}  # blocks of 32 instead of 256 values
# Few values that decide much: tables of positions, convolutions, what chooses among experts.
KEPT: Rules = tuple(
    (f"*{name}", KEEP)
    for name in ("position_embeddings", "token_type_embeddings", "conv1d", ".mlp.gate", "shared_expert_gate")
)
LOADED: dict[str, Rules] = {  # what `load` rounds to by itself, to the nearest
    # Values are 2 % of a generator and a third of its error; an encoder's result is a mean over the other two.
    "q8": (
        *KEPT,
        ("*.v_proj", "f16"),
        ("*.attention.self.value", "f16"),
        ("*.intermediate.dense", "f16"),
        ("*", "q8_0"),
    ),
    "q4": (*KEPT, ("*embed*", "q8_0"), ("lm_head", "q8_0"), ("*", "q4_0")),
}


def matches(name: str, pattern: str) -> bool:
    """Return whether a rule's pattern is for a parameter.

    >>> matches("lm_head.weight", "lm_head"), matches("model.layers.0.mlp.up_proj.weight", "*.up_proj")
    (True, True)
    """
    return fnmatchcase(name, pattern) or fnmatchcase(name.removesuffix(".weight"), pattern)


def asked(name: str, shape: tuple[int, ...], rules: Rules) -> str:
    """Return the dtype that the rules give a parameter, whether or not its rows fit; KEEP for vectors."""
    found = (dtype for pattern, dtype in rules if matches(name, pattern))
    return next(found, KEEP) if len(shape) > 1 else KEEP


def fitting(dtype: str, shape: tuple[int, ...]) -> str:
    """Return the dtype, or the next whose blocks fill rows of this shape; KEEP where there is none.

    >>> fitting("q4_k", (8, 512)), fitting("q4_k", (8, 576)), fitting("q4_k", (8, 20))
    ('q4_k', 'q4_1', 'keep')
    """
    while dtype != KEEP and shape[-1] % BY_NAME[dtype].block:
        dtype = SMALLER.get(dtype, KEEP)
    return dtype


def bits(dtype: str) -> float:
    """Return how many bits a value takes.

    >>> bits("q4_k"), bits("bf16")
    (4.5, 16.0)
    """
    return BY_NAME[dtype].nbytes * 8 / BY_NAME[dtype].block
