"""The dispatches of a step, without a card: what a program becomes follows from its weights' formats alone.

A loader that is given `ListingBackend` does all that it does with `WgpuBackend`, with buffers and pipelines that are
not there and weights of which only headers were read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from lattice.backends._backend import Capacity
from lattice.backends.wgpu import WgpuBackend
from lattice.backends.wgpu.device import FEATURES, Device, Range
from lattice.backends.wgpu.plan import WgpuPlan
from lattice.backends.wgpu.products import stacks
from lattice.backends.wgpu.shader import Pipelines, Source
from lattice.backends.wgpu.weights import Part, Placed, WgpuWeights, cuts
from lattice.dtypes import BY_NAME, SPLIT
from lattice.program import Program

LARGEST = (2 << 30) - 4  # bytes that most cards bind at once


class Nothing:
    """Stands for what the card's library would give."""

    def __getattr__(self, name: str) -> Nothing:
        return self

    def __call__(self, *arguments: Any, **options: Any) -> Nothing:
        return self


@dataclass(frozen=True)
class Kernel:
    """Stands for a pipeline: an op's entry, and the formats that it was made for by the names of what has them."""

    op: str
    entry: str
    formats: Mapping[str, str]


class NoDevice(Device):
    """A card with everything, whose memory is not there."""

    def __init__(self) -> None:
        self.info, self.software, self.wide = {"device": "none"}, False, True
        self.features, self.largest = frozenset(FEATURES), LARGEST
        self.handle = self.queue = Nothing()

    def buffer(self, size: int) -> Any:
        """Return what stands for a buffer."""
        return Nothing()


class Listed(Pipelines):
    """Pipelines that are only named."""

    def get(self, kernel: Source, entry: str, constants: Mapping[str, Any]) -> Kernel:
        """Return what the pipeline is called."""
        given = [key for key, value in constants.items() if value is True and kernel.mentions(key)]
        formats = {key.removesuffix(f"_{name}"): name for name in (*BY_NAME, "i8") for key in given
                   if key.endswith(f"_{name}")}  # fmt: skip
        return Kernel(kernel.name, entry, formats)

    def layout(self, kernel: Source) -> Any:
        """Return what stands for a layout."""
        return Nothing()


class ListingBackend(WgpuBackend):
    """`WgpuBackend` for everything but reading and running; `plans` are those that a loader compiled."""

    def __init__(self) -> None:
        super().__init__(NoDevice())
        self.pipelines = Listed(self.device)
        self.plans: list[WgpuPlan] = []

    def load(self, program: Program, weights: Any, *, products: str | None = None) -> WgpuWeights:
        """Return where the weights would be, by their headers; `weights` is what a checkpoint's opening gave."""
        made, fused = WgpuWeights(self.device), self._fused(program)
        shapes = {symbol.name: symbol.shape for symbol in program.of_kind("weight")}
        for name in shapes:
            dtype = weights.header(name).dtype
            made.formats[name] = dtype if dtype in SPLIT and len(shapes[name]) > 1 else "f32"
            made.placed[name] = self._place(made.formats[name], shapes[name])
        for node in fused.nodes:
            for stack in stacks(node, made.formats) if node.op.name == "project" else ():
                rows = sum(int(weight.shape[0]) for weight in stack.weights)
                formats = {made.formats[weight.name] for weight in stack.weights}
                dtype = formats.pop() if len(formats) == 1 else "f32"  # a gated pair of two formats
                made.placed[stack.name] = self._place(dtype, (rows, stack.weights[0].shape[1]))
                if stack.bias_name is not None:
                    made.placed[stack.bias_name] = self._place("f32", (rows,))
        return made

    def _place(self, dtype: str, shape: tuple[Any, ...]) -> Placed:
        size = BY_NAME[dtype].size(prod(shape))
        rows = shape[0] if shape else 1
        planes = {"words": Range(None, 0, 0)}
        return Placed(size, tuple(Part(dtype, *cut, planes) for cut in cuts(rows, size, self.device.largest)))

    def compile(self, *arguments: Any, **options: Any) -> WgpuPlan:
        """Plan a program."""
        self.plans.append(super().compile(*arguments, **options))
        return self.plans[-1]


def dispatches(plan: WgpuPlan, counts: Capacity) -> Iterator[dict[str, Any]]:
    """Yield what a step of these counts runs: op, entry, workgroups, formats by name, and the op's results."""
    plan.counts[:] = counts.tokens, counts.rows, counts.sequences
    for one in plan.dispatches:
        results = [f"{symbol.name} ({', '.join(map(str, symbol.shape))})" for symbol in one.node.outputs]
        for kernel, _, *groups in plan._list(one):
            about = {"op": one.node.op.name, "entry": kernel.entry, "workgroups": groups}
            yield about | {"formats": dict(kernel.formats), "results": results}
