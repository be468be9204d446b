"""Reverse-mode differentiation of a program: every op knows its own gradient, this pass chains and sums them.

Only what leads to a wanted symbol is differentiated, so a frozen quantised weight is never asked for a gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lattice.errors import expected
from lattice.ops import Symbol, add
from lattice.program.ir import Node, Program


def gradients(program: Program, y: Symbol, wrt: Sequence[Symbol], dy: Symbol | None = None) -> list[Symbol]:
    """Append to the program the gradient of sum(y * dy) by each symbol of `wrt`, and return these gradients.

    `dy` has y's shape; without it y must be a loss, of shape (1,), and dy is 1. Raises LatticeError where an op on
    the way has no gradient, or a symbol does not influence y.
    """
    if dy is None:
        if y.shape != (1,):
            raise expected("grad", "a loss of shape (1,), or dy", y.shape)
        dy = program.constant(np.ones(1, np.float32))
    elif dy.shape != y.shape:
        raise expected("grad", f"dy of shape {y.shape}", dy.shape)
    wanted = _influenced(program, wrt)
    collected: dict[int, Symbol] = {id(y): dy}
    for node in reversed(list(program.nodes)):
        arriving = tuple(collected.get(id(output)) for output in node.outputs)
        needs = {name for name, symbol in node.inputs() if id(symbol) in wanted}
        if not needs or all(dy is None for dy in arriving):
            continue
        for name, gradient in _vjp(node, needs, arriving):
            if name not in needs:
                continue
            target = node.args[node.op.inputs.index(name)]
            known = collected.get(id(target))
            collected[id(target)] = gradient if known is None else add(known, gradient)
    for symbol in wrt:
        if id(symbol) not in collected:
            raise expected("grad", "symbols that influence y", symbol.name)
    return [collected[id(symbol)] for symbol in wrt]


def _influenced(program: Program, wrt: Sequence[Symbol]) -> set[int]:
    """Return the ids of all symbols that depend on `wrt`."""
    wanted = {id(symbol) for symbol in wrt}
    for node in program.nodes:
        if any(id(symbol) in wanted for _, symbol in node.inputs()):
            wanted.update(id(output) for output in node.outputs)
    return wanted


def _vjp(node: Node, needs: set[str], arriving: tuple) -> list[tuple[str, Symbol]]:
    rule = node.op.rules.get("vjp")
    if rule is None:
        hint = "train with the stateless form" if node.op.writes or "paged" in node.op.name else None
        raise expected("grad", "ops that have a gradient", node.op.name, hint=hint)
    dy = arriving[0] if len(arriving) == 1 else arriving
    return list(rule(needs, dy, *node.args, **node.attributes))
