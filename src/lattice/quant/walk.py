"""One pass over a model's program, node by node, that stops at every matrix: what calibrated rounding runs on.

All calibration tokens go through as one ragged step on the reference ops. A weight is read when its node comes up and
dropped behind it, so memory is the activations and one weight. Where a matrix multiplies something, `visit` sees it
with the rows that it is multiplied with, and says what to go on with: later matrices see what the rounded earlier ones
make. A table of embeddings is visited where it is looked up, or, if it is also the head's matrix, at the head. The
draft head, where a model has one, comes last: it reads the trunk's states and the tokens one ahead.

Not here: how a matrix is rounded, and where it goes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from lattice.dtypes import Array, dense
from lattice.ops import Symbol
from lattice.ops.basic import activate
from lattice.program import Node, Program, trace
from lattice.step import Step

Values = Array | np.ndarray
HELD = 1 << 14  # rows of one product with X^T


@dataclass(frozen=True)
class Product:
    """A matrix as a walk comes to it: `name` of the parameter, its `values`, and what it is multiplied with.

    kind "linear": values (n, k), one expert (0). "mixture": values (experts, n, k). "embedding": a table that is only
    looked up: no inputs.
    """

    name: str
    kind: str
    values: Values
    inputs: Callable[[int], np.ndarray]  # of an expert: the rows X (rows, k) that were routed to it

    def moments(self, expert: int = 0) -> tuple[np.ndarray, int]:
        """Return H = X^T X (k, k) float64 of an expert's inputs, and how many rows X has."""
        x = self.inputs(expert)
        total = np.zeros((x.shape[1],) * 2)
        for start in range(0, len(x), HELD):
            part = x[start : start + HELD].astype(np.float32, copy=False)
            total += part.T @ part
        return total, len(x)


Visit = Callable[[Product], Values]


def walk(model: Any, weights: Mapping[str, Values], sequences: Sequence[Sequence[int]], visit: Visit) -> None:
    """Run `sequences` of token ids through a model, calling `visit` once for every matrix, in the program's order.

    `visit` returns the matrix to go on with (an Array of any dtype, of the same shape). Vectors and convolutions are
    used as they are. Sequences start at position 0; those of a single token are left out for a draft head.
    """
    step, draft = Step.of(sequences), getattr(model, "mtp", None)
    programs = [trace(lambda program: _trunk(model, program))]
    if draft is not None:
        width = programs[0].outputs["hidden"].shape[-1]
        programs.append(trace(lambda program: _draft(model, program, width)))
    walker = _Walker(programs, weights, visit)
    hidden = walker.run(programs[0], step, {})["hidden"]
    if draft is not None:
        kept = [span for span in step.spans() if span.stop - span.start > 1]
        ahead = Step.of([step.tokens[span.start + 1 : span.stop] for span in kept])
        states = np.concatenate([hidden[span.start : span.stop - 1] for span in kept])
        walker.run(programs[1], ahead, {"states": states})


def _trunk(model: Any, program: Program) -> dict[str, Symbol]:
    step = program.step()
    hidden = model(step)
    hidden = hidden[0] if isinstance(hidden, tuple) else hidden
    if getattr(model, "head", None) is not None:
        model.head(hidden)  # its matrix is visited; what it would make is not computed
    return {"hidden": hidden}


def _draft(model: Any, program: Program, width: int) -> dict[str, Symbol]:
    states = program.input("states", "T", width)
    return {"rows": model.mtp(program.step(), states)[0]}


class _Walker:
    """Runs programs; keeps what became of a parameter as long as it comes up again."""

    def __init__(self, programs: Sequence[Program], weights: Mapping[str, Values], visit: Visit):
        self.weights, self.visit = weights, visit
        nodes = [node for program in programs for node in program.nodes]
        self.uses = Counter(s.name for node in nodes for s in node.reads() if s.kind == "weight")
        self.multiplied = {node.args[1].name for node in nodes if node.op.name == "linear"}
        self.visited: dict[str, Values] = {}

    def run(self, program: Program, step: Step, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one program and return its outputs."""
        given = {**program.constants, **{f.name: getattr(step, f.name) for f in fields(step)}, **given}
        values = {id(s): given[s.name] for s in program.inputs if s.kind != "weight"}
        reads = Counter(id(symbol) for node in program.nodes for symbol in node.reads())
        reads.update(id(symbol) for symbol in program.outputs.values())
        for node in program.nodes:
            wanted = any(reads[id(output)] for output in node.outputs)
            outputs = self._step(node, values, wanted)
            if wanted:
                values.update({id(s): v for s, v in zip(node.outputs, outputs, strict=True)})
            for symbol in node.reads():
                reads[id(symbol)] -= 1
                if not reads[id(symbol)]:
                    values.pop(id(symbol), None)
        return {name: values[id(symbol)] for name, symbol in program.outputs.items()}

    def _step(self, node: Node, values: dict[int, Any], wanted: bool) -> tuple:
        """Return the results of a node; none are computed that nobody wants."""
        name = node.op.name
        if name == "embedding":
            table, ids = self._table(node.args[0]), values[id(node.args[1])]
            return (dense(table.rows(ids)) if isinstance(table, Array) else table[ids],)
        matrices = {"linear": (1,), "mixture": (3, 4, 5)}.get(name, ())
        args: list[Any] = [None if i in matrices else self._resolve(a, values) for i, a in enumerate(node.args)]
        if name == "linear":
            args[1] = self._visited(node.args[1], "linear", lambda _: args[0].reshape(-1, args[0].shape[-1]))
        elif name == "mixture":
            self._mixture(node, args)
        if not wanted:
            return ()
        result = node.op(*args, **node.attributes)
        return result if isinstance(result, tuple) else (result,)

    def _table(self, symbol: Symbol) -> Values:
        """Return a table to look rows up in; the turn of one that is also multiplied comes there."""
        if symbol.name in self.multiplied and symbol.name not in self.visited:
            self.uses[symbol.name] -= 1
            return self.weights[symbol.name]
        return self._visited(symbol, "embedding", lambda _: np.empty((0, symbol.shape[1]), np.float32))

    def _visited(self, symbol: Symbol, kind: str, inputs: Callable[[int], np.ndarray]) -> Values:
        """Return what a matrix became; it is visited the first time, and kept until the last."""
        name = symbol.name
        if name not in self.visited:
            self.visited[name] = self.visit(Product(name, kind, self.weights[name], inputs))
        self.uses[name] -= 1
        return self.visited[name] if self.uses[name] else self.visited.pop(name)

    def _mixture(self, node: Node, args: list) -> None:
        """Visit the experts' matrices: those of gate and up by the tokens, that of down by what they make of them."""
        x, ids, weights = args[:3]
        chosen = [np.nonzero(((ids == e) & (weights != 0)).any(1))[0] for e in range(node.args[3].shape[0])]
        for place in (3, 4):
            if node.args[place] is not None:
                args[place] = self._visited(node.args[place], "mixture", lambda e: x[chosen[e]])
        gate, up = args[3], args[4]

        def made(expert: int) -> np.ndarray:
            rows = x[chosen[expert]]
            halves = np.split(_of(gate, expert), 2) if up is None else (_of(gate, expert), _of(up, expert))
            gated, raised = (rows @ half.T for half in halves)
            return activate(gated, node.attributes["kind"]) * raised

        args[5] = self._visited(node.args[5], "mixture", made)

    def _resolve(self, argument: Any, values: Mapping[int, Any]) -> Any:
        if isinstance(argument, Symbol):
            return dense(self.weights[argument.name]) if argument.kind == "weight" else values[id(argument)]
        if isinstance(argument, Step):
            return replace(argument, **{f.name: values[id(getattr(argument, f.name))] for f in fields(argument)})
        return argument


def _of(weight: Values, expert: int) -> np.ndarray:
    if isinstance(weight, Array):
        return dense(weight.rows(slice(expert, expert + 1)))[0]
    return weight[expert]
