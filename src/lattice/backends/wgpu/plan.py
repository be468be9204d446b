"""From a program to dispatches: pipelines, bindings and grids are made once, and a step runs them in order.

What the host writes for a step lies in one buffer, `inputs`, written by one copy: the counts, then the step's fields,
the other inputs, and what the host itself computes (rotary angles, in double precision). Values lie in a few arenas, so
that no dispatch reads and writes one buffer: WebGPU orders and checks whole buffers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import count
from typing import Any

import numpy as np
import wgpu

from lattice.backends._backend import CHOICES, Capacity, Plan
from lattice.backends._inputs import COUNTS, fields, write
from lattice.backends.wgpu.device import ALIGNMENT, Device, Range, guarded
from lattice.backends.wgpu.native import Command, replay
from lattice.backends.wgpu.products import stacks
from lattice.backends.wgpu.shader import FEW_STAGES, MANY_STAGES, Binding, Pipelines, Size, Source, source
from lattice.backends.wgpu.submit import Recorder
from lattice.backends.wgpu.weights import Part, Placed, WgpuWeights
from lattice.dtypes import BY_NAME
from lattice.errors import expected
from lattice.ops import REGISTRY, Symbol
from lattice.ops.attention import FACTOR
from lattice.program import Node, Program, place
from lattice.program.fuse import SIBLINGS
from lattice.step import Sampling, Step

HEADER = ALIGNMENT // 4  # words before the inputs: three counts, then numbers that never change
HOST = ("rope_angles",)  # ops that the host computes for a step
Named = dict[str, Symbol | None]  # what a kernel's names stand for
_NUMBERS = count()  # of plans
MANY = 16384  # rows of a matrix, enough for every thread of a card when each team takes four


@dataclass(frozen=True)
class Buffer:
    """An array on the card: pages, slots, or what a plan puts out. What is read of it is copied to the host."""

    device: Device
    at: Range
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return self.at.size

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        rows, rest = self._rows(key)
        return np.asarray(rows)[rest]

    def __setitem__(self, key: Any, value: Any) -> None:
        rows, rest = self._rows(key)
        held = np.asarray(rows).copy()
        held[rest] = value
        self.device.write(rows.at, held)

    def _rows(self, key: Any) -> tuple[Buffer, Any]:
        """Return the rows that a key names, as far as they lie side by side on whole words, and the key within them."""
        first, *others = key if isinstance(key, tuple) else (key,)
        each = self.nbytes // max(1, len(self))
        if each % 4 or not isinstance(first, int | np.integer | slice) or getattr(first, "step", None) not in (None, 1):
            return self, key
        begin, end, _ = first.indices(len(self)) if isinstance(first, slice) else (int(first), int(first) + 1, 1)
        if not 0 <= begin < end <= len(self):
            return self, key
        at = Range(self.at.buffer, self.at.offset + begin * each, (end - begin) * each)
        own: Any = slice(None) if isinstance(first, slice) else 0
        return replace(self, at=at, shape=(end - begin, *self.shape[1:])), (own, *others)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        found = self.device.read(self.at).view(self.dtype).reshape(self.shape)
        return found if dtype is None else found.astype(dtype)


@dataclass(frozen=True)
class Stage:
    """An entry of a kernel, and how many workgroups run it."""

    pipeline: Any
    grid: tuple[Size, ...]


@dataclass(frozen=True)
class Dispatch:
    """One kernel of a step: its entry for many rows, and the one for few where it has one."""

    node: Node
    group: Any
    main: tuple[Stage, ...]
    few: tuple[Stage, ...]
    most: int  # rows for which `few` runs

    def chosen(self, words: np.ndarray) -> tuple[Stage, ...]:
        """Return what runs for the words of a step."""
        if not self.few:
            return self.main
        counts = [int(words[size.count]) for size in self.few[0].grid if size.count >= 0]
        return self.few if max(counts, default=1) <= self.most else self.main


class WgpuPlan(Plan):
    """A compiled program on a card."""

    def __init__(
        self,
        pipelines: Pipelines,
        program: Program,
        weights: WgpuWeights | None,
        capacity: Capacity,
        state: Mapping[str, Buffer],
        bound: Mapping[str, Buffer],
    ):
        self.device, self.pipelines, self.program, self.capacity = pipelines.device, pipelines, program, capacity
        self.weights, self.state, self.bound = weights, state, bound
        self.number = next(_NUMBERS)
        self._recorder = Recorder(self.device)
        self._constants = 3  # words of the header in use
        self.nodes = [node for node in program.nodes if node.op.name not in HOST]
        self._host = [node for node in program.nodes if node.op.name in HOST]
        self._lay_inputs()
        self._arenas = self._lay_values()
        self._scratches: dict[int, Any] = {}  # by size
        self.owner = program.storage()
        self.outputs = {name: self._output(symbol) for name, symbol in program.outputs.items()}
        self.dispatches = list(self._dispatches())
        self.fields = fields(program, self.inputs)
        self.counts = self.words[:3].view(np.int32)

    # ---- memory ----------------------------------------------------------------------------------------------------
    def _shape(self, symbol: Symbol) -> tuple[int, ...]:
        return tuple(self.capacity.size(d) for d in symbol.shape)

    def _bytes(self, symbol: Symbol) -> int:
        return math.prod(self._shape(symbol)) * BY_NAME[symbol.dtype].nbytes

    def _lay_inputs(self) -> None:
        """Give every input and everything that the host computes its place in one buffer."""
        written = self.program.of_kind("step", "sampling", "input", "constant")
        symbols = [symbol for symbol in written if symbol.name not in self.bound]
        symbols += [output for node in self._host for output in node.outputs]
        symbols.sort(key=_is_edits)  # last, since most of them is never uploaded
        self.at: dict[int, int] = {}  # byte at which the symbol lies, by its id
        size = HEADER * 4
        for symbol in symbols:
            self.at[id(symbol)] = size
            size += -(-max(4, self._bytes(symbol)) // ALIGNMENT) * ALIGNMENT
        self._edits = [symbol for symbol in symbols if _is_edits(symbol)]
        self._fixed = min((self.at[id(symbol)] for symbol in self._edits), default=size)  # bytes before the edits
        self.words = np.zeros(size // 4, np.uint32)
        self._words = self.device.buffer(size)
        self.inputs: dict[str, Any] = {symbol.name: self._view(symbol) for symbol in symbols}
        self.inputs.update(self.bound)
        for symbol in self.program.of_kind("constant"):
            self.inputs[symbol.name][...] = self.program.constants[symbol.name]

    def _view(self, symbol: Symbol) -> np.ndarray:
        begin = self.at[id(symbol)]
        storage = BY_NAME[symbol.dtype].storage
        return self.words.view(np.uint8)[begin : begin + self._bytes(symbol)].view(storage).reshape(self._shape(symbol))

    def _lay_values(self) -> list[Any]:
        """Give every value a place in an arena other than those that its node reads from."""
        self._arena: dict[int, int] = {}
        for node in self.nodes:
            read = {self._arena[id(s)] for s in node.reads() if id(s) in self._arena}
            free = next(number for number in range(len(read) + 1) if number not in read)
            self._arena.update({id(output): free for output in node.outputs if output.kind == "value"})
        arenas = []
        for number in range(max(self._arena.values(), default=-1) + 1):
            layout = place(self.program, partial(self._room, number))
            self.at.update({key: at for key, at in layout.offsets.items() if self._arena.get(key) == number})
            arenas.append(self.device.buffer(layout.peak))
        return arenas

    def _room(self, arena: int, symbol: Symbol) -> int:
        """Return the bytes that a value takes in an arena: none in another's."""
        size = self._bytes(symbol) if self._arena.get(id(symbol)) == arena else 0
        return -(-size // ALIGNMENT) * ALIGNMENT

    def _range(self, symbol: Symbol) -> Range:
        if symbol.kind == "state":
            return self.state[self.owner[id(symbol)].name].at
        if symbol.name in self.bound and symbol.kind == "input":
            return self.bound[symbol.name].at
        buffer = self._arenas[self._arena[id(symbol)]] if id(symbol) in self._arena else self._words
        return Range(buffer, self.at[id(symbol)], max(4, self._bytes(symbol)))

    # ---- dispatches ------------------------------------------------------------------------------------------------
    def _dispatches(self) -> Iterator[Dispatch]:
        for node in self.nodes:
            kernel = source(node.op.name)
            for named, parts in self._projects(node) if node.op.name == "project" else self._parts(node):
                constants: dict[str, Any] = {f"has_{one.name}": False for one in kernel.bindings}
                constants |= {f"{one.name}_{dtype}": False for one in kernel.bindings for dtype in BY_NAME}
                constants |= dict(self._known(node, named, parts))
                bound = {one: self._bound(kernel, one, named, parts, constants) for one in kernel.bindings}
                entries = [{"binding": one.number, "resource": at.resource} for one, at in bound.items()]
                with guarded(f"what {node.op.name} reads and writes within the card's limits"):
                    group = self.device.handle.create_bind_group(layout=self.pipelines.layout(kernel), entries=entries)
                made = {
                    entry: Stage(self.pipelines.get(kernel, entry, constants), kernel.grid(entry, constants))
                    for entry in kernel.grids
                }
                many, few = (tuple(made[e] for e in stages if e in made) for stages in (MANY_STAGES, FEW_STAGES))
                yield Dispatch(node, group, many, few, kernel.most(constants, wide=self.device.wide))

    def _parts(self, node: Node) -> Iterator[tuple[Named, Mapping[str, Part]]]:
        """Yield what each dispatch of a node reads: everything, or rows of the weight that is cut."""
        held = {name: self._weight(symbol.name) for name, symbol in node.inputs() if symbol.kind == "weight"}
        whole = {name: weight.parts[0] for name, weight in held.items()}
        cut = [name for name, weight in held.items() if len(weight.parts) > 1]
        if len(cut) > 1:
            raise expected("gpu", "at most one weight of an op beyond what the card can bind at once", ", ".join(cut))
        named = _arguments(node)
        if not cut:
            yield named, whole
        for name in cut:
            yield from ((named, whole | {name: part}) for part in held[name].parts)

    def _projects(self, node: Node) -> Iterator[tuple[Named, Mapping[str, Part]]]:
        """Yield the same of a project: a dispatch for each of its matrices, and for each part of one that is cut."""
        x, norm_weight, norm_bias, residual = node.args[:4]
        named: Named = {"x": x, "norm_weight": norm_weight, "norm_bias": norm_bias, "residual": residual}
        norms = ((name, named[name]) for name in ("norm_weight", "norm_bias"))
        whole = {name: self._weight(symbol.name).parts[0] for name, symbol in norms if symbol is not None}
        for stack in stacks(node, self.weights.formats if self.weights is not None else {}):
            results = [node.outputs[place] for place in stack.places] if not stack.gated else [node.outputs[0]]
            outs: Named = {f"out{index}": result for index, result in enumerate(results)}
            biases = {"bias": self._weight(stack.bias_name).parts[0]} if stack.bias_name is not None else {}
            for part in self._weight(stack.name).parts:
                yield named | outs, {**whole, **biases, "weight": part}

    def _weight(self, name: str) -> Placed:
        if self.weights is None or name not in self.weights.placed:
            raise expected("gpu", "loaded weights", f"none called {name}")
        return self.weights.placed[name]

    def _bound(
        self, kernel: Source, binding: Binding, named: Named, parts: Mapping[str, Part], constants: Mapping[str, Any]
    ) -> Range:
        """Return what a binding's name stands for."""
        name = binding.name
        if name == "inputs":
            return Range(self._words, 0, self.words.nbytes)
        if name == "scratch":
            return self._scratch(kernel, constants)
        if name in parts:
            return parts[name].planes["words"]
        symbol = named.get(name)
        if symbol is not None:
            return self._range(symbol)
        owner, _, plane = name.rpartition("_")
        if owner in parts and plane in parts[owner].planes:
            return parts[owner].planes[plane]
        # Something to bind where there is nothing: what is written may not be what is read, nor twice the same.
        return Range(self._nothing[binding.written], ALIGNMENT * binding.number, ALIGNMENT)

    def _scratch(self, kernel: Source, constants: Mapping[str, Any]) -> Range:
        words = self.words.copy()
        words[:3] = [self.capacity.size(name) for name in COUNTS]
        sizes = kernel.scratch(constants)
        if not sizes:
            raise expected(kernel.name, "a line of how much scratch memory it needs", "none")
        nbytes = 4 * sum(size.at(words) for size in sizes)
        if nbytes not in self._scratches:  # one node after another uses it
            self._scratches[nbytes] = self.device.buffer(nbytes)
        return Range(self._scratches[nbytes], 0, nbytes)

    @cached_property
    def _nothing(self) -> tuple[Any, Any]:
        """Buffers that nobody reads, and that nobody writes."""
        return self.device.buffer(32 * ALIGNMENT), self.device.buffer(32 * ALIGNMENT)

    def _known(self, node: Node, named: Named, parts: Mapping[str, Part]) -> Iterator[tuple[str, Any]]:
        """Yield the constants of a node by name; see shader.py."""
        for name, value in node.attributes.items():
            if name in CHOICES:
                yield from ((f"{name}_{choice or 'none'}", value == choice) for choice in CHOICES[name])
            else:
                yield name, value
        for name, argument in zip(node.op.inputs, node.args, strict=True):
            if isinstance(argument, Step | Sampling):
                symbols = {f"{name}_{key}": symbol for key, symbol in vars(argument).items()}
                yield from ((key, self.at[id(symbol)] // 4) for key, symbol in symbols.items())
                if isinstance(argument, Step):
                    yield f"{name}_width", argument.page_table.shape[1]
                    yield from ((f"{name}_{count}", at) for count, at in COUNTS.items())
        for name, symbol in named.items():
            yield f"has_{name}", symbol is not None
            if symbol is not None:
                yield from self._measures(name, symbol)
        for index in range(SIBLINGS):  # the widths of what products give
            result = named.get(f"out{index}")
            yield f"width_{index}", 0 if result is None else result.shape[-1]
        for name, part in parts.items():
            yield from ((f"has_{name}", True), (f"{name}_first", part.first), (f"{name}_some", part.rows))
            yield f"{name}_each", 4 if part.rows >= MANY else 2 if node.attributes.get("gated") else 1
            yield from ((f"{name}_{choice}", part.dtype == choice) for choice in BY_NAME)

    def _measures(self, name: str, symbol: Symbol) -> Iterator[tuple[str, Any]]:
        lead, rest = (symbol.shape[0], symbol.shape[1:]) if symbol.shape else (1, ())
        fixed = (lead, *rest) if isinstance(lead, int) else rest
        yield f"{name}_columns", fixed[-1] if fixed else 1
        yield f"{name}_stride", (fixed[-1] if fixed else 1) + 128
        yield f"{name}_rows", math.prod(fixed[:-1])
        yield f"{name}_count", self._word(lead)
        yield from ((f"{name}_{axis}", size) for axis, size in enumerate(fixed))
        if symbol.kind == "state":
            if name == "k_pages":  # rows of 8 bits have a factor behind
                width = fixed[2] - FACTOR * (symbol.dtype == "i8")
                yield from (("k_pages_dim", width), ("k_pages_part", width + 2))
            yield from ((f"{name}_{choice}", symbol.dtype == choice) for choice in ("f32", "f16", "i8"))

    def _word(self, lead: int | str) -> int:
        """Return where in the inputs the number of rows stands."""
        if isinstance(lead, str):
            return COUNTS[lead.partition("+")[0]]
        known = self.words[3 : self._constants].tolist()
        if lead in known:
            return 3 + known.index(lead)
        if self._constants == HEADER:
            raise expected("gpu", f"at most {HEADER - 3} fixed numbers of rows in a program", "more")
        self.words[self._constants] = lead
        self._constants += 1
        return self._constants - 1

    # ---- running ---------------------------------------------------------------------------------------------------
    def write(self, step: Step | None = None, sampling: Sampling | None = None, **inputs: Any) -> None:
        """Copy a step's inputs into the plan's words and set its counts; everything is checked here."""
        write(self.fields, self.counts, step, sampling, inputs)

    def together(self, plans: Sequence[WgpuPlan]) -> None:
        self.submit(plans)

    def submit(
        self, plans: Sequence[WgpuPlan], gives: tuple[WgpuPlan, str] | None = None, feed: str | None = None
    ) -> Any:
        with guarded("a step that runs"):
            if gives is None:
                self._recorder.run(plans)
                return None
            plan, name = gives
            at = plan.outputs[name].at
            found = self._recorder.ask(plans, at, (at, self._input(feed)) if feed is not None else None)
        dtype, shape = plan.outputs[name].dtype, plan.outputs[name].shape
        return lambda: found.read().view(dtype).reshape(shape)

    def _input(self, name: str) -> Range:
        """Return where among the words on the card an input lies."""
        symbol = next(one for one in self.program.inputs if one.name == name)
        return Range(self._words, self.at[id(symbol)], max(4, self._bytes(symbol)))

    def profile(self) -> list[tuple[Node, float]]:
        """Run the written step once more and return the seconds of every dispatch on the card's own clock."""
        if "timestamp-query" not in self.device.features:
            raise expected("gpu", "an adapter with timestamps", "one without")
        handle, count = self.device.handle, 2 * len(self.dispatches)
        times = handle.create_query_set(type="timestamp", count=count)
        usage = wgpu.BufferUsage.QUERY_RESOLVE | wgpu.BufferUsage.COPY_SRC
        resolved = handle.create_buffer(size=8 * count, usage=usage)
        self.upload()
        encoder = handle.create_command_encoder()
        for index, one in enumerate(self.dispatches):
            where = {"beginning_of_pass_write_index": 2 * index, "end_of_pass_write_index": 2 * index + 1}
            rounds = encoder.begin_compute_pass(timestamp_writes={"query_set": times, **where})
            replay(rounds, self._list(one))
            rounds.end()
        encoder.resolve_query_set(times, 0, count, resolved, 0)
        self.device.queue.submit([encoder.finish()])
        ticks = self.device.read(Range(resolved, 0, 8 * count)).view(np.uint64).reshape(-1, 2).astype(np.float64)
        return [(one.node, (end - begin) * 1e-9) for one, (begin, end) in zip(self.dispatches, ticks, strict=True)]

    def upload(self) -> None:
        """Copy what the step needs of the words to the card."""
        for node in self._host:
            self._compute(node)
        queue, words = self.device.queue, self.words.view(np.uint8)
        queue.write_buffer(self._words, 0, words[: self._fixed])
        if self._edits:
            used = 4 * int(self.inputs["edit_offsets"][self.counts[COUNTS["R"]]])
            for begin in (self.at[id(symbol)] for symbol in self._edits if used):
                queue.write_buffer(self._words, begin, words[begin : begin + used])

    def commands(self) -> list[Command]:
        """Return what the written step is: the same for all of its counts."""
        return [each for one in self.dispatches for each in self._list(one)]

    def _list(self, one: Dispatch) -> list[Command]:
        """Return what a dispatch is for the counts of the step that was written."""
        commands = []
        for stage in one.chosen(self.words):
            groups = [size.at(self.words) for size in stage.grid] + [1, 1]
            if all(groups):
                commands.append(Command(stage.pipeline, one.group, *groups[:3]))
        return commands

    def _compute(self, node: Node) -> None:
        """Compute a node on the host: its inputs are there."""
        rows = int(self.counts[COUNTS[node.outputs[0].shape[0]]])
        arguments = []
        for symbol in node.args:
            known = self.weights.host if self.weights is not None and symbol.kind == "weight" else self.inputs
            value = known[symbol.name]
            arguments.append(value[:rows] if symbol.shape[:1] == node.outputs[0].shape[:1] else value)
        self.inputs[node.outputs[0].name][:rows] = REGISTRY[node.op.name].body(*arguments, **node.attributes)

    def run(self, step: Step | None = None, sampling: Sampling | None = None, **inputs: Any) -> dict[str, np.ndarray]:
        """Run one step and return the outputs."""
        self.write(step, sampling, **inputs)
        self.together([self])
        return {name: self.output(name) for name in self.program.outputs}

    def begin(self, step: Step) -> Callable[[], dict[str, np.ndarray]]:
        """Submit a step and the copy of its output; return what waits for it. Steps of several outputs are awaited."""
        self.write(step)
        (name, *others), whole = self.program.outputs, next(iter(self.outputs.values()))
        rows = self._rows_of(name)
        if others or rows == 0 or not isinstance(whole, Buffer):
            found = self.run(step)
            return lambda: found
        at = replace(whole.at, size=rows * (whole.nbytes // len(whole)))
        with guarded("a step that runs"):
            unread = self._recorder.ask([self], at)
        return lambda: {name: unread.read().view(whole.dtype).reshape(rows, *whole.shape[1:])}

    def _rows_of(self, name: str) -> int:
        """Return the rows of an output that the written step has."""
        lead = self.program.outputs[name].shape[0]
        return lead if isinstance(lead, int) else int(self.counts[COUNTS[lead]])

    def output(self, name: str) -> np.ndarray:
        """Return an output of the last step, read from the card."""
        rows, whole = self._rows_of(name), self.outputs[name]
        if rows == 0 or whole.nbytes == 0:
            return np.zeros((rows, *whole.shape[1:]), whole.dtype)
        return whole[:rows].copy()

    def _output(self, symbol: Symbol) -> Any:
        """Return what a program puts out: on the card, or, if the host computes it, among the words."""
        if id(symbol) not in self._arena:
            return self.inputs[symbol.name]
        shape = self._shape(symbol)
        at = replace(self._range(symbol), size=self._bytes(symbol))
        return Buffer(self.device, at, shape, BY_NAME[symbol.dtype].storage)


def _is_edits(symbol: Symbol) -> bool:
    """Return whether a step fills only the begin of this list."""
    return symbol.kind == "sampling" and symbol.name in ("edit_ids", "edit_bias", "edit_counts")


def _arguments(node: Node) -> Named:
    """Return what a node reads and writes by the names that kernels use; a written state by its input's name."""
    named = {
        name: argument
        for name, argument in zip(node.op.inputs, node.args, strict=True)
        if not isinstance(argument, Step | Sampling)
    }
    values = [output for output in node.outputs if output.kind == "value"]
    return named | ({"out": values[0]} if len(values) == 1 else {f"out{i}": s for i, s in enumerate(values)})
