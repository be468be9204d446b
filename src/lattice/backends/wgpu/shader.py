"""From a kernel's file to a pipeline: its bindings, its grids, and the prelude that is put before it.

A kernel is one WGSL file, kernels/<op>.wgsl. It names what it binds as the op names its inputs, and outputs `out`, or
`out0`, `out1`, ...; `inputs` is everything that the host writes for a step, in words; `weight_scales` is the plane
`scales` of the weight `weight`. What it knows only when a program is compiled are constants, and the loader declares
those that the file mentions, nothing else:

    eps, head_dim            attributes; words among choices as `kind_silu`: bool
    x_columns, x_rows        the last dimension, and the product of those before it that are fixed
    x_stride                 x_columns and 128 more: a row of scratch memory with room behind it
    x_count                  where in `inputs` the number of rows stands
    has_bias                 whether that input or state is there
    weight_q8_0              whether that is the weight's format; weight_first, weight_some: the rows that are bound
    weight_each              how many of them 32 threads take together where a step has few tokens
    step_positions           where in `inputs` that part of the step begins; step_width: pages in a row of its table
    k_pages_f16              whether that state is stored so

A line `// workgroups: x, y` says how many workgroups run, in those names and numbers; `ceil(a * b / c / d)` rounds up.
Beside `main` a file may have an entry `few` for at most FEW rows of the input whose `_count` stands in the line, with a
line of its own, `// workgroups few: ...`, and one `merge` that runs behind it; behind `main` run `then` and `then2`.
A line `// few: x` says that on a wide card `few` is quicker up to x rows, if that is more than FEW, but never beyond
MOST_FEW.
`// scratch: a * b + ceil(c / d)` asks for so many words, at capacity, bound as `scratch`; nobody finds there what it
left in a step.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from typing import Any

from lattice.backends.wgpu.device import Device, guarded
from lattice.backends.wgpu.native import unchecked
from lattice.errors import expected

FEW = 16  # rows
MOST_FEW = 128
MANY_STAGES = ("main", "then", "then2")  # entries that run one after another
FEW_STAGES = ("few", "merge")
SHARED = {
    "conv1d": "slot_conv1d",
    "gated_attention": "paged_attention",
    "gated_delta": "slot_gated_delta",
    "linear": "project",
}  # ops that have another's kernel
_BINDING = re.compile(r"@group\(0\) @binding\((\d+)\) var<storage, (read|read_write)> (\w+)")
_LINE = re.compile(r"^// (workgroups(?: \w+)?|few|scratch): (.+)$", re.M)
_TERM = re.compile(r"(?:ceil\()?([\w* ]+?)(?: / (\w+)(?: / (\w+))?\))?$")


@dataclass(frozen=True)
class Size:
    """A number of workgroups: ceil(count * times / per); `count` is where in the inputs a number stands, -1: 1."""

    count: int
    times: int
    per: int

    def at(self, words: Any) -> int:
        """Return the number for the words of a step."""
        count = 1 if self.count < 0 else int(words[self.count])
        return -(-count * self.times // self.per)


@dataclass(frozen=True)
class Binding:
    """A buffer that a kernel binds."""

    number: int
    name: str
    written: bool


@dataclass(frozen=True)
class Source:
    """A kernel's file."""

    name: str
    text: str
    bindings: tuple[Binding, ...]
    lines: Mapping[str, str]  # what it says of itself, by what stands before the colon

    @cached_property
    def grids(self) -> dict[str, str]:
        """Return the terms of the workgroups by entry."""
        word = "workgroups"
        found = {what: terms for what, terms in self.lines.items() if what.startswith(word)}
        return {what.removeprefix(word).strip() or "main": terms for what, terms in found.items()}

    def scratch(self, constants: Mapping[str, Any]) -> tuple[Size, ...]:
        """Return the words of scratch memory that the kernel asks for, which are added up; none where it has none."""
        terms = self.lines["scratch"].split("+") if "scratch" in self.lines else []
        return tuple(_size(self.name, term.strip(), constants) for term in terms)

    def mentions(self, name: str) -> bool:
        """Return whether the file uses a name."""
        return name in self.words

    @cached_property
    def words(self) -> frozenset[str]:
        return frozenset(re.findall(r"\w+", self.text))

    def grid(self, entry: str, constants: Mapping[str, Any]) -> tuple[Size, ...]:
        """Return the workgroups in x, y and z."""
        return tuple(_size(self.name, term.strip(), constants) for term in self.grids[entry].split(","))

    def most(self, constants: Mapping[str, Any], *, wide: bool) -> int:
        """Return up to how many rows the entry `few` runs on a card."""
        if not wide or "few" not in self.lines:
            return FEW
        return max(FEW, min(MOST_FEW, _size(self.name, self.lines["few"], constants).at(())))


def _size(where: str, term: str, constants: Mapping[str, Any]) -> Size:
    found = _TERM.match(term)
    if found is None:
        raise expected(where, "workgroups as ceil(a * b / c)", term)
    count, times = -1, 1
    for factor in (part.strip() for part in found[1].split("*")):
        if factor.endswith(("_count", "_T", "_R", "_S")):
            count = constants[factor]
        else:
            times *= _number(factor, constants)
    return Size(count, times, _number(found[2] or "1", constants) * _number(found[3] or "1", constants))


def _number(word: str, constants: Mapping[str, Any]) -> int:
    return int(word) if word.isdigit() else int(constants[word])


@cache
def names() -> frozenset[str]:
    """Return the ops that have a kernel."""
    folder = files("lattice.backends.wgpu") / "kernels"
    own = {file.name[:-5] for file in folder.iterdir() if file.name.endswith(".wgsl")}
    return frozenset(own | {name for name, other in SHARED.items() if other in own})


@cache
def source(name: str) -> Source:
    """Return the file of an op."""
    name = SHARED.get(name, name)
    text = (files("lattice.backends.wgpu") / "kernels" / f"{name}.wgsl").read_text(encoding="utf-8")
    bindings = tuple(Binding(int(n), which, mode == "read_write") for n, mode, which in _BINDING.findall(text))
    return Source(name, text, bindings, dict(_LINE.findall(text)))


def prelude(kernel: Source, constants: Mapping[str, Any]) -> str:
    """Return what is put before a kernel's text: the constants that it mentions."""
    return "".join(f"{_declare(name, value)}\n" for name, value in constants.items() if kernel.mentions(name))


def _declare(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"const {name} = {str(value).lower()};"
    if isinstance(value, float):
        return f"const {name} = f32({value!r});"
    return f"const {name} = {value}u;"


class Pipelines:
    """The pipelines of a device, each made once."""

    def __init__(self, device: Device):
        self.device = device
        self._made: dict[tuple[str, str], Any] = {}
        self._layouts: dict[tuple[Binding, ...], Any] = {}

    def get(self, kernel: Source, entry: str, constants: Mapping[str, Any]) -> Any:
        """Return the pipeline of an entry with these constants."""
        code = prelude(kernel, constants) + kernel.text
        if (code, entry) not in self._made:
            handle = self.device.handle
            with guarded(f"a kernel {kernel.name} that this card takes"):
                module = unchecked(handle, handle.create_shader_module(code=code, label=kernel.name), code)
                layout = handle.create_pipeline_layout(bind_group_layouts=[self.layout(kernel)])
                compute = {"module": module, "entry_point": entry}
                self._made[code, entry] = handle.create_compute_pipeline(layout=layout, compute=compute)
        return self._made[code, entry]

    def layout(self, kernel: Source) -> Any:
        """Return the layout of a kernel's bindings."""
        if kernel.bindings not in self._layouts:
            kinds = {False: "read-only-storage", True: "storage"}
            entries = [
                {"binding": one.number, "visibility": 4, "buffer": {"type": kinds[one.written]}}  # 4: compute
                for one in kernel.bindings
            ]
            self._layouts[kernel.bindings] = self.device.handle.create_bind_group_layout(entries=entries)
        return self._layouts[kernel.bindings]
