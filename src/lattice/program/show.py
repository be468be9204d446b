"""A program as text: one line an input that matters, one line a node."""

from __future__ import annotations

from typing import Any

from lattice.ops import Symbol
from lattice.program.ir import Node, Program
from lattice.step import Sampling, Step


def show(program: Program) -> str:
    """Return the readable text of a program; weights and step inputs appear where they are used."""
    lines = [
        f"{symbol.kind:<7} {symbol.name}   {format_shape(symbol.shape)}" for symbol in program.of_kind("input", "state")
    ]
    lines += [show_node(node) for node in program.nodes]
    lines.append("return " + ", ".join(f"{name}={symbol.name}" for name, symbol in program.outputs.items()))
    return "\n".join(lines)


def show_node(node: Node) -> str:
    """Return one line: outputs with shapes, op, inputs, attributes."""
    outputs = ", ".join(f"{s.name} {format_shape(s.shape)}" for s in node.outputs)
    parts = [format_argument(argument) for argument in node.args]
    while parts and parts[-1] == "None":
        parts.pop()
    parts += [f"{name}={_format_value(value)}" for name, value in node.attributes.items()]
    return f"{outputs} = {node.op.name}({', '.join(parts)})"


def format_shape(shape: tuple) -> str:
    """Return a shape without quotes: (T, 64)."""
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def format_argument(argument: Any) -> str:
    """Return the name of an input, `step` or `sampling`, or None."""
    if isinstance(argument, Symbol):
        return argument.name
    return {Step: "step", Sampling: "sampling"}.get(type(argument), "None")


def _format_value(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
