"""Find the first node at which a backend departs from the reference: the tool for a wrong kernel or a wrong pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lattice.backends._backend import Backend, Capacity
from lattice.backends.reference import ReferenceBackend
from lattice.dtypes import Array
from lattice.program import Node, Program, fuse
from lattice.program.show import show_node
from lattice.step import Step


@dataclass(frozen=True)
class Difference:
    """A node whose result departs, and by how much relative to max(1, its largest value)."""

    node: Node
    error: float

    def __str__(self) -> str:
        return f"{show_node(self.node)}    error {self.error:.2e}"


def compare(
    program: Program,
    backend: Backend,
    weights: Mapping[str, Array],
    step: Step | None = None,
    *,
    tolerance: float = 1e-3,
    **inputs: Any,
) -> Difference | None:
    """Run the program, as the backend would fuse it, on both; return the first node that differs, or None.

    Every intermediate value is kept, and state starts at zero: for small models and short steps.
    """
    fused = fuse(program, backend.kernels())
    values = [symbol for node in fused.nodes for symbol in node.outputs if symbol.kind == "value"]
    watched = replace(fused, outputs={symbol.name: symbol for symbol in values})
    tokens, rows, sequences = step.counts() if step is not None else (0, 0, 0)
    leading = [len(value) for value in inputs.values()]
    largest = max([1, tokens, *leading])
    capacity = Capacity(largest, max([1, rows, *leading]), max([1, sequences, *leading]))
    results = [_run(runner, watched, weights, capacity, step, inputs) for runner in (ReferenceBackend(), backend)]
    for node in watched.nodes:
        for symbol in node.outputs:
            if symbol.kind == "value":
                wanted, got = (result[symbol.name] for result in results)
                error = float(np.abs(got - wanted).max(initial=0) / max(1.0, np.abs(wanted).max(initial=0)))
                if not error <= tolerance:
                    return Difference(node, error)
    return None


def _run(
    backend: Backend,
    program: Program,
    weights: Mapping[str, Array],
    capacity: Capacity,
    step: Step | None,
    inputs: dict,
) -> dict[str, np.ndarray]:
    state = {symbol.name: backend.state(symbol.shape, symbol.dtype) for symbol in program.of_kind("state")}
    plan = backend.compile(program, backend.load(program, weights), capacity, state)
    return plan.run(step, **inputs)
