"""From a program to packed records: one native call replays them all.

A plan owns its memory: an arena for the values (placed by `program.memory`) and fixed buffers for the inputs, which a
step overwrites. It refers to weights and state buffers that others own.
"""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lattice.backends._backend import CHOICES, Capacity, Plan
from lattice.backends._inputs import COUNTS, fields, write
from lattice.backends.cpu.native import DTYPES, ROWS, Core, Record, Tensor
from lattice.backends.cpu.weights import CpuWeights, Placed
from lattice.errors import expected
from lattice.ops import Symbol
from lattice.program import Node, Program, place
from lattice.step import Sampling, Step

STORAGE: dict[str, Any] = {"f32": np.float32, "i32": np.int32, "i64": np.int64, "f16": np.float16, "i8": np.int8}


class CpuPlan(Plan):
    """A compiled program: fixed buffers, packed records, one call."""

    def __init__(
        self,
        core: Core,
        program: Program,
        weights: CpuWeights | None,
        capacity: Capacity,
        state: Mapping[str, np.ndarray],
        bound: Mapping[str, np.ndarray],
    ):
        self.core, self.program, self.capacity = core, program, capacity
        self.keep = (weights, state, bound)  # what the records point into
        self.inputs = self._input_buffers(bound)
        self.layout = place(program, self._bytes)
        self.arena = core.memory(self.layout.peak)
        self.outputs = {name: self._output(symbol) for name, symbol in program.outputs.items()}
        self.handle = self._build(weights, state)
        self.fields = fields(program, self.inputs)
        self.counts = np.zeros(3, np.int32)

    # ---- memory ----------------------------------------------------------------------------------------------------
    def _shape(self, symbol: Symbol) -> tuple[int, ...]:
        return tuple(self.capacity.size(d) for d in symbol.shape)

    def _bytes(self, symbol: Symbol) -> int:
        return math.prod(self._shape(symbol)) * np.dtype(STORAGE[symbol.dtype]).itemsize

    def _input_buffers(self, bound: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        buffers = {}
        for symbol in self.program.of_kind("step", "sampling", "input", "constant"):
            shape, dtype = self._shape(symbol), STORAGE[symbol.dtype]
            if symbol.name in bound:
                buffers[symbol.name] = bound[symbol.name]
            elif symbol.kind == "constant":
                buffers[symbol.name] = np.ascontiguousarray(self.program.constants[symbol.name], dtype)
            else:
                buffers[symbol.name] = np.zeros(shape, dtype)
        return buffers

    def _output(self, symbol: Symbol) -> np.ndarray:
        if symbol.kind != "value":
            raise expected("cpu", "outputs that nodes make", symbol.name)
        return self.arena.array(self.layout.offsets[id(symbol)], self._shape(symbol), STORAGE[symbol.dtype])

    # ---- records ---------------------------------------------------------------------------------------------------
    def _build(self, weights: CpuWeights | None, state: Mapping[str, np.ndarray]) -> int:
        owner = self.program.storage()
        flat = [[*_flat_arguments(node), *node.outputs] for node in self.program.nodes]
        distinct = {id(symbol): symbol for symbols in flat for symbol in symbols}
        made = {key: self._tensor(symbol, weights, state, owner) for key, symbol in distinct.items()}
        tensors = [[made[id(symbol)] for symbol in symbols] for symbols in flat]
        parameters = [_parameters(node) for node in self.program.nodes]
        records = (Record * len(tensors))()
        for record, node, arguments, words in zip(records, self.program.nodes, tensors, parameters, strict=True):
            kernel = self.core.functions.lattice_kernel(node.op.name.encode())
            if kernel < 0:
                raise expected("cpu", "ops that have a CPU kernel", node.op.name)
            record.kernel, record.tensors, record.parameters = kernel, len(arguments), len(words)
            record.tensor = (Tensor * len(arguments))(*arguments)
            record.parameter = (ctypes.c_int32 * len(words))(*words)
        handle = self.core.functions.lattice_plan_new(self.core.pool, records, len(records))
        if not handle:
            raise self.core.error("a plan")
        return handle

    def _tensor(
        self, symbol: Symbol | None, weights: CpuWeights | None, state: Mapping[str, np.ndarray], owner: dict
    ) -> Tensor:
        if symbol is None:
            return Tensor(None, 0, 0, -1, 0)
        if symbol.kind == "weight":
            if weights is None:
                raise expected("cpu", "loaded weights", "none")
            return _weight_tensor(weights.placed[symbol.name])
        if symbol.kind == "state":
            buffer = state[owner[id(symbol)].name]
            return _describe(buffer.ctypes.data, symbol.dtype, buffer.shape, -1)
        lead = symbol.shape[0] if symbol.shape else 1
        count = -1 if isinstance(lead, int) else COUNTS[lead.partition("+")[0]]
        if symbol.kind == "value":
            address = self.arena.address + self.layout.offsets[id(symbol)]
        else:
            address = self.inputs[symbol.name].ctypes.data
        return _describe(address, symbol.dtype, self._shape(symbol), count)

    # ---- running ---------------------------------------------------------------------------------------------------
    def write(self, step: Step | None = None, sampling: Sampling | None = None, **inputs: Any) -> None:
        """Copy a step's inputs into the plan's buffers and set its counts; everything is checked here."""
        write(self.fields, self.counts, step, sampling, inputs)

    def run(self, step: Step | None = None, sampling: Sampling | None = None, **inputs: Any) -> dict[str, np.ndarray]:
        """Run one step and return copies of the outputs."""
        self.write(step, sampling, **inputs)
        run_plans([self])
        return {name: self.output(name).copy() for name in self.outputs}

    def output(self, name: str) -> np.ndarray:
        """Return a view of an output of the last step; the next step overwrites it."""
        symbol, buffer = self.program.outputs[name], self.outputs[name]
        lead = symbol.shape[0]
        return buffer if isinstance(lead, int) else buffer[: self.counts[COUNTS[lead]]]

    def together(self, plans: Sequence[CpuPlan]) -> None:
        """Run plans in one native call."""
        run_plans(plans)

    def profile(self) -> list[tuple[Node, float]]:
        """Run the written step once more and return the seconds of every node."""
        seconds = np.zeros(len(self.program.nodes), np.float64)
        pointers = (
            self.counts.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            seconds.ctypes.data_as(ctypes.POINTER(ctypes.c_double)),
        )
        if self.core.functions.lattice_plan_profile(self.handle, *pointers) < 0:
            raise self.core.error("a profiled step")
        return list(zip(self.program.nodes, seconds.tolist(), strict=True))

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self.core.functions.lattice_plan_free(self.handle)


def run_plans(plans: Sequence[CpuPlan]) -> None:
    """Run plans whose inputs are written, one after another, in one native call."""
    handles = (ctypes.c_void_p * len(plans))(*[plan.handle for plan in plans])
    counts = (ctypes.c_int32 * (3 * len(plans)))(*[n for plan in plans for n in plan.counts.tolist()])
    core = plans[0].core
    if core.functions.lattice_plan_run(handles, counts, len(plans)) < 0:
        raise core.error("a step that runs")


def _flat_arguments(node: Node) -> Iterator[Symbol | None]:
    """Yield the inputs of a node, a Step or Sampling expanded to its fields."""
    for argument in node.args:
        if isinstance(argument, Step | Sampling):
            yield from vars(argument).values()
        else:
            yield argument


def _parameters(node: Node) -> list[int]:
    """Return the attributes of a node as four-byte words, in declaration order."""
    words = []
    for name, value in node.attributes.items():
        if name in CHOICES:
            words.append(CHOICES[name][value])
        elif isinstance(value, float):
            words.append(struct.unpack("<i", struct.pack("<f", value))[0])
        else:
            words.append(int(value))
    return words


def _describe(address: int, dtype: str, shape: tuple[int, ...], count: int, layout: int = ROWS) -> Tensor:
    sizes = (ctypes.c_int64 * 4)(*shape, *([1] * (4 - len(shape))))
    return Tensor(address, DTYPES[dtype], layout, count, len(shape), sizes)


def _weight_tensor(weight: Placed) -> Tensor:
    return _describe(weight.address, weight.dtype, weight.shape, -1, weight.layout)
