"""Products that read one input become one matrix: weights one below the other, the rows of a gated pair in turns.

`project` takes up to four weights. Those of one format are stacked when they are loaded, so that a step reads their
input once, in one dispatch; what is stacked lies on the card only so. `linear` is a project of one weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lattice.dtypes import Array
from lattice.ops import REGISTRY, Symbol
from lattice.program import Node, Program

NONE = {"norm": None, "eps": 0.0, "kind": None, "gated": False}


@dataclass(frozen=True)
class Stack:
    """Weights of a node that are one matrix: their places among its weights, and the symbols with their biases."""

    places: tuple[int, ...]
    weights: tuple[Symbol, ...]
    biases: tuple[Symbol | None, ...]
    gated: bool

    @property
    def name(self) -> str:
        """What the matrix is called among loaded weights: a single weight by its own name."""
        return ("~" if self.gated else "+").join(weight.name for weight in self.weights)

    @property
    def bias_name(self) -> str | None:
        """What the biases are called together; None where there is none."""
        return f"bias of {self.name}" if any(bias is not None for bias in self.biases) else None


def as_projects(program: Program) -> Program:
    """Return the program with every linear as a project of one weight."""

    def one(node: Node) -> Node:
        if node.op.name != "linear":
            return node
        x, weight, bias = node.args
        return Node(REGISTRY["project"], (x, None, None, None, weight, bias, *[None] * 6), NONE, node.outputs)

    return program.with_nodes([one(node) for node in program.nodes])


def stacks(node: Node, formats: dict[str, str]) -> Iterator[Stack]:
    """Yield what of a project's weights is one matrix: neighbours of one format, by the weights' names."""
    pairs = [pair for pair in zip(node.args[4::2], node.args[5::2], strict=True) if pair[0] is not None]
    gated = bool(node.attributes["gated"])
    begin = 0
    for end in range(1, len(pairs) + 1):
        whole = end == len(pairs)
        if whole or (not gated and formats[pairs[end][0].name] != formats[pairs[begin][0].name]):
            weights, biases = zip(*pairs[begin:end], strict=True)
            yield Stack(tuple(range(begin, end)), weights, biases, gated)
            begin = end


def stacked(arrays: Sequence[Array], gated: bool) -> Array:
    """Return matrices of one format as one."""
    first = arrays[0]
    if len(arrays) == 1:
        return first
    data = [array.data for array in arrays]
    joined = np.stack(data, 1).reshape(-1, *first.data.shape[1:]) if gated else np.concatenate(data)
    return Array(joined, first.dtype, (len(joined), *first.shape[1:]))


def stacked_biases(stack: Stack, values: Sequence[np.ndarray | None]) -> np.ndarray:
    """Return the biases of a stack in the order of its rows, zeros where there is none."""
    each = [
        np.zeros(int(weight.shape[0]), np.float32) if value is None else value
        for weight, value in zip(stack.weights, values, strict=True)
    ]
    return np.stack(each, 1).reshape(-1) if stack.gated else np.concatenate(each)
