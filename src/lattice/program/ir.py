"""A program: an ordered list of nodes over symbols, recorded once from a plain Python function.

A program has no sizes of its own: the leading dimension of a value may be a named count (T, R, S), which a plan gets
anew with every step. It has no dtypes of weights either: those are the checkpoint's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from lattice.errors import expected
from lattice.ops import Op, Parameter, Shape, Symbol, shape_of
from lattice.step import Sampling, Step


@dataclass(frozen=True, eq=False)
class Node:
    """One application of an op: inputs in, one or more new symbols out."""

    op: Op
    args: tuple[Any, ...]  # Symbol, None, Step or Sampling (of symbols)
    attributes: dict[str, Any]
    outputs: tuple[Symbol, ...]

    def reads(self) -> list[Symbol]:
        """Return every symbol this node reads, the fields of a Step among them."""
        return self._reads

    @cached_property
    def _reads(self) -> list[Symbol]:  # every pass asks
        found: list[Symbol] = []
        for argument in self.args:
            if isinstance(argument, Symbol):
                found.append(argument)
            elif isinstance(argument, Step | Sampling):
                found += vars(argument).values()
        return found

    def inputs(self) -> Iterator[tuple[str, Symbol]]:
        """Yield (input name, symbol) for the inputs that are single symbols."""
        for name, argument in zip(self.op.inputs, self.args, strict=True):
            if isinstance(argument, Symbol):
                yield name, argument


@dataclass(eq=False)
class Program:
    """Inputs, nodes and named outputs. `str(program)` is its readable text."""

    inputs: list[Symbol] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    outputs: dict[str, Symbol] = field(default_factory=dict)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    parameters: dict[int, tuple[Parameter, Symbol]] = field(default_factory=dict)  # by id of the parameter
    made: int = 0  # values named so far
    names: set[str] = field(default_factory=set)  # of the inputs

    # ---- inputs ----------------------------------------------------------------------------------------------------
    def input(self, name: str, *shape: Any, dtype: str = "f32", kind: str = "input") -> Symbol:
        """Declare an input of the program."""
        if name in self.names:
            raise expected("trace", "distinct input names", name)
        self.names.add(name)
        symbol = Symbol(tuple(shape), dtype if kind != "weight" else "weight", name, kind, self)
        self.inputs.append(symbol)
        return symbol

    def step(self, width: int = 1) -> Step:
        """Declare the step inputs; `width` is the number of pages a sequence may have."""
        shapes = {name: tuple(width if d == "width" else d for d in s) for name, s in Step.SHAPES.items()}
        return Step(**{name: self.input(name, *s, dtype="i32", kind="step") for name, s in shapes.items()})

    def sampling(self, edits: int = 1) -> Sampling:
        """Declare the sampling inputs; `edits` is the largest number of listed ids of a step."""
        shapes = {n: tuple(edits if d == "edits" else d for d in s) for n, s in Sampling.SHAPES.items()}
        dtypes = Sampling.DTYPES
        made = {n: self.input(n, *s, dtype=dtypes.get(n, "i32"), kind="sampling") for n, s in shapes.items()}
        return Sampling(**made)

    def constant(self, value: np.ndarray) -> Symbol:
        """Freeze an array into the program."""
        dtype = "i32" if np.issubdtype(value.dtype, np.integer) else "f32"
        name = f"constant{len(self.constants)}"
        self.constants[name] = np.ascontiguousarray(value, np.int32 if dtype == "i32" else value.dtype)
        return self.input(name, *value.shape, dtype=dtype, kind="constant")

    def weight(self, parameter: Parameter) -> Symbol:
        """Return the input that stands for a parameter, declaring it at its first use."""
        if id(parameter) not in self.parameters:
            symbol = self.input(parameter.name or f"weight{len(self.parameters)}", *parameter.shape, kind="weight")
            self.parameters[id(parameter)] = (parameter, symbol)
        return self.parameters[id(parameter)][1]

    def of_kind(self, *kinds: str) -> list[Symbol]:
        """Return the inputs of the given kinds, in order of declaration."""
        return [symbol for symbol in self.inputs if symbol.kind in kinds]

    # ---- recording -------------------------------------------------------------------------------------------------
    def record(self, op: Op, args: Sequence[Any], attributes: dict[str, Any]) -> Any:
        """Append a node and return its output symbol, or the tuple of them; called by the ops themselves."""
        args = tuple(self._enter(argument, op) for argument in args)
        shapes = op.infer([shape_of(argument) for argument in args], attributes)
        outputs = self._outputs(op, args, shapes)
        self.nodes.append(Node(op, args, attributes, outputs))
        return outputs[0] if len(outputs) == 1 else outputs

    def _enter(self, argument: Any, op: Op) -> Any:
        if isinstance(argument, Parameter):
            return self.weight(argument)
        if isinstance(argument, np.ndarray):
            return self.constant(argument)
        if isinstance(argument, Symbol) and argument.replaced:
            raise expected(
                op.name, "the newest version of a state", f"{argument.name}, replaced by {argument.replaced}",
                hint="an op that writes returns the new version: pass that one on",
            )  # fmt: skip
        return argument

    def _outputs(self, op: Op, args: tuple, shapes: list[Shape]) -> tuple[Symbol, ...]:
        written = [args[op.inputs.index(name)] for name in op.writes]
        dtypes = (op.dtype,) * len(shapes) if isinstance(op.dtype, str) else op.dtype
        outputs = []
        for position, shape in enumerate(shapes):
            source = written[position] if position < len(written) else None
            dtype, kind = (source.dtype, source.kind) if source is not None else (dtypes[position], "value")
            outputs.append(Symbol(tuple(shape), dtype, f"%{self.made}", kind, self))
            self.made += 1
        for old in written:
            old.replaced = op.name
        return tuple(outputs)

    def storage(self) -> dict[int, Symbol]:
        """Return, for every version of a state (by id), the input symbol whose storage it shares."""
        owner = {id(symbol): symbol for symbol in self.of_kind("state")}
        for node in self.nodes:
            for name, output in zip(node.op.writes, node.outputs, strict=False):
                owner[id(output)] = owner[id(node.args[node.op.inputs.index(name)])]
        return owner

    def with_nodes(self, nodes: Iterable[Node]) -> Program:
        """Return a program of other nodes over the same symbols."""
        return Program(self.inputs, list(nodes), self.outputs, self.constants, self.parameters, self.made, self.names)

    def __str__(self) -> str:
        from lattice.program.show import show

        return show(self)
