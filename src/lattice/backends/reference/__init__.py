"""The reference backend: a program, node by node, in NumPy. Slow and plain; it can stop, hook and compare.

Its plans accept any counts: capacities bind only the backends that own memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np

from lattice.backends._backend import Backend, Capacity, Plan
from lattice.dtypes import BY_NAME, Array, dense
from lattice.errors import expected
from lattice.ops import REGISTRY, Symbol
from lattice.program import Node, Program
from lattice.step import Sampling, Step

Hook = Callable[[Node, tuple], None]


class ReferencePlan(Plan):
    """Interprets a program."""

    def __init__(self, program: Program, weights: Mapping[str, Any], state: Mapping[str, np.ndarray]):
        self.program, self.weights, self.state = program, weights, dict(state)

    def run(
        self, step: Step | None = None, sampling: Sampling | None = None, *, hook: Hook | None = None, **inputs: Any
    ) -> dict[str, np.ndarray]:
        """Run one step; `hook(node, outputs)` sees every node's results."""
        values = self._enter(step, sampling, inputs)
        for node, outputs in self._steps(values):
            if hook is not None:
                hook(node, outputs)
        return {name: values[id(symbol)] for name, symbol in self.program.outputs.items()}

    def _enter(self, step: Step | None, sampling: Sampling | None, inputs: Mapping[str, Any]) -> dict[int, Any]:
        given = {**self.program.constants, **self.weights, **self.state, **inputs}
        for record in (step, sampling):
            if record is not None:
                given.update({f.name: getattr(record, f.name) for f in fields(record)})
        missing = [symbol.name for symbol in self.program.inputs if symbol.name not in given]
        if missing:
            raise expected("run", "a value for every input of the program", f"none for {', '.join(missing)}")
        return {id(symbol): given[symbol.name] for symbol in self.program.inputs}

    def _steps(self, values: dict[int, Any]) -> Iterator[tuple[Node, tuple]]:
        for node in self.program.nodes:
            result = node.op(*(_resolve(argument, values) for argument in node.args), **node.attributes)
            outputs = result if isinstance(result, tuple) else (result,)
            values.update({id(s): value for s, value in zip(node.outputs, outputs, strict=True)})
            yield node, outputs


def _resolve(argument: Any, values: Mapping[int, Any]) -> Any:
    if isinstance(argument, Symbol):
        return values[id(argument)]
    if isinstance(argument, Step | Sampling):
        return replace(argument, **{f.name: values[id(getattr(argument, f.name))] for f in fields(argument)})
    return argument


class ReferenceBackend(Backend):
    """Runs every op by its NumPy body."""

    name = target = "reference"

    def kernels(self) -> frozenset[str]:
        return frozenset(REGISTRY)

    def load(self, program: Program, weights: Mapping[str, Array], *, products: str | None = None) -> Mapping[str, Any]:
        names = [symbol.name for symbol in program.of_kind("weight")]
        missing = [name for name in names if name not in weights]
        if missing:
            raise expected("load", "a tensor for every weight", f"none for {', '.join(missing[:5])}")
        return {name: dense(weights[name]) for name in names}

    def state(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        return np.zeros(shape, BY_NAME[dtype].storage)

    def compile(
        self,
        program: Program,
        weights: Any = None,
        capacity: Capacity | None = None,
        state: Mapping[str, np.ndarray] | None = None,
        bound: Mapping[str, Any] | None = None,
    ) -> ReferencePlan:
        if bound:
            raise expected("reference", "inputs that a step brings", f"bound ones: {', '.join(bound)}")
        return ReferencePlan(program, weights or {}, state or {})
