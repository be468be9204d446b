"""From a program to packed records: one native call replays them all.

A plan owns its memory: an arena for the values (placed by `program.memory`) and fixed buffers for the inputs, which a
step overwrites. It refers to weights and state buffers that others own.
"""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import gt
from typing import Any

import numpy as np

from lattice.backends._backend import Capacity, Plan
from lattice.backends.cpu.native import COUNTS, DTYPES, ROWS, Core, Record, Tensor
from lattice.backends.cpu.weights import CpuWeights, Placed
from lattice.errors import expected
from lattice.ops import Symbol
from lattice.program import Node, Program, place
from lattice.step import PAGE_TOKENS, Sampling, Step

STORAGE: dict[str, Any] = {"f32": np.float32, "i32": np.int32, "i64": np.int64, "f16": np.float16, "i8": np.int8}
# Enumerations of src/abi.h, for attributes that are words.
CHOICES: dict[str, dict[Any, int]] = {
    "kind": {None: -1, "silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3, "sigmoid": 4},
    "mode": {"mean": 0, "cls": 1, "last": 2},
    "norm": {None: -1, "rms": 0, "layer": 1},
}


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
        limits = _limits(program)
        symbols = program.of_kind("step", "sampling", "input")
        self.fields = [_Field.of(s, self.inputs[s.name], limits.get(s.name)) for s in symbols]
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
        given = {**vars(step)} if step is not None else {}
        if sampling is not None:
            given.update(vars(sampling))
        given.update(inputs)
        counts = [-1, -1, -1]
        for field in self.fields:
            value = given.get(field.name)
            if value is not None:
                field.write(np.asarray(value), counts)
        self.counts[:] = np.maximum(counts, 0)
        if step is not None:
            _check_ragged("offsets", step.offsets, counts[0], least=1)
            if len(step.rows) and not _below(np.asarray(step.rows), counts[0]):
                raise expected("cpu", f"rows from 0 to {counts[0] - 1}", np.asarray(step.rows).tolist())
        if sampling is not None:
            edits = len(sampling.edit_ids)
            _check_ragged("edit_offsets", sampling.edit_offsets, edits, least=0)
            if len(sampling.edit_bias) != edits or len(sampling.edit_counts) != edits:
                got = f"{len(sampling.edit_bias)} and {len(sampling.edit_counts)}"
                raise expected("cpu", f"edit_bias and edit_counts of {edits} entries, as edit_ids has", got)

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


@dataclass(frozen=True)
class _Field:
    """An input buffer: the count that leads it, and the exclusive limit of its values where they address memory."""

    name: str
    buffer: np.ndarray
    count: int  # index of the count, -1 for none
    extra: int  # entries beyond the count: 1 for offsets
    limit: int | None
    least: int = 0  # -1 where that stands for none

    @classmethod
    def of(cls, symbol: Symbol, buffer: np.ndarray, limit: int | None) -> _Field:
        lead = symbol.shape[0] if symbol.shape else 0
        name, _, extra = lead.partition("+") if isinstance(lead, str) else ("", "", "")
        least = -1 if symbol.kind == "step" and symbol.name == "saves" else 0
        return cls(symbol.name, buffer, COUNTS.get(name, -1), int(extra or 0), limit, least)

    def write(self, value: np.ndarray, counts: list[int]) -> None:
        """Copy `value` into the buffer and note its count."""
        buffer = self.buffer
        if value.ndim != buffer.ndim or any(map(gt, value.shape, buffer.shape)):
            raise expected("cpu", f"{self.name} of at most {buffer.shape}", value.shape)
        if (
            self.limit is not None
            and value.size
            and not _below(value - self.least if self.least else value, self.limit - self.least)
        ):
            wanted = f"{self.name} from {self.least} to {self.limit - 1}"
            raise expected("cpu", wanted, f"{value.min()} to {value.max()}")
        if self.count >= 0:
            count = len(value) - self.extra
            if counts[self.count] not in (-1, count):
                raise expected("cpu", f"{counts[self.count]} entries of {self.name}", count)
            counts[self.count] = count
        if value.ndim == 1:
            buffer[: len(value)] = value
        else:
            buffer[tuple(map(slice, value.shape))] = value


def _below(value: np.ndarray, limit: int) -> bool:
    """Return whether all values are at least 0 and below the limit: as unsigned numbers, one comparison."""
    unsigned = value.view(np.uint32) if value.dtype == np.int32 else value.astype(np.int64).view(np.uint64)
    return bool(np.maximum.reduce(unsigned, axis=None) < limit)


def _check_ragged(name: str, offsets: np.ndarray, total: int, least: int) -> None:
    """Raise unless offsets lead from 0 to `total` in parts of at least `least`."""
    offsets = np.asarray(offsets)
    sound = len(offsets) > 0 and offsets[0] == 0 and offsets[-1] == total
    if not sound or (offsets[1:] - offsets[:-1] < least).any():
        raise expected("cpu", f"{name} from 0 to {total} in steps of at least {least}", offsets.tolist())


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


def _limits(program: Program) -> dict[str, int]:
    """Return (exclusive) limits of inputs that address memory: they are checked before every step."""
    limits: dict[str, int] = {}
    made = {id(output): node for node in program.nodes for output in node.outputs}

    def bound(symbol: Symbol, limit: int) -> None:
        node = made.get(id(symbol))
        if node is not None and node.op.name == "unpadded_positions":
            symbol, limit = node.args[0].positions, limit - node.attributes["padding"] - 1
        limits[symbol.name] = min(limit, limits.get(symbol.name, limit))

    for node in program.nodes:
        arguments = dict(zip(node.op.inputs, node.args, strict=True))
        if node.op.name == "embedding":
            bound(arguments["ids"], arguments["table"].shape[0])
        elif node.op.name == "mixture":
            bound(arguments["ids"], arguments["gate"].shape[0])
        elif node.op.name == "take_rows" and isinstance(arguments["x"].shape[0], int):
            bound(arguments["rows"], arguments["x"].shape[0])
        elif node.op.name == "append_kv":
            step = arguments["step"]
            bound(step.page_table, arguments["k_pages"].shape[0])
            bound(step.positions, step.page_table.shape[1] * PAGE_TOKENS)
        elif node.op.name in ("slot_conv1d", "slot_gated_delta"):
            for field in (arguments["step"].slots, arguments["step"].saves):
                bound(field, arguments["state"].shape[0])
        elif node.op.name == "sample":
            bound(arguments["sampling"].edit_ids, arguments["logits"].shape[-1])
        elif node.op.name == "logprobs":
            bound(arguments["tokens"], arguments["logits"].shape[-1])
    return limits
