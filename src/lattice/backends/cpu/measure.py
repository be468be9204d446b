"""What a model would take in memory, before any of it is read: a backend that plans and places, and runs nothing.

A loader that is given this backend does all that it does with `CpuBackend`, so what is added up here is what it would
allocate: weights by `weights.held`, values by `program.memory`, state by its shapes. Only headers of files are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lattice.backends.cpu import CpuBackend
from lattice.backends.cpu.plan import STORAGE, CpuPlan
from lattice.backends.cpu.weights import CpuWeights, _uses, held
from lattice.program import Program


class MeasuredPlan(CpuPlan):
    """A plan with its buffers and its arena, of which no page is touched, and without records."""

    def _build(self, weights: CpuWeights | None, state: Mapping[str, np.ndarray]) -> int:
        return 0

    @property
    def bytes(self) -> int:
        """Return the bytes of the arena and of the inputs that the plan made itself."""
        _, _, bound = self.keep
        return self.layout.peak + sum(buffer.nbytes for name, buffer in self.inputs.items() if name not in bound)


class MeasuringBackend(CpuBackend):
    """`CpuBackend` for everything but reading and running.

    `traced` are the programs whose weights a loader wanted; `loaded`, `states` and `plans` are what it got.
    """

    def __init__(self, target: str | None = None):
        super().__init__(target)
        self.traced: list[Program] = []
        self.loaded: list[CpuWeights] = []
        self.plans: list[MeasuredPlan] = []
        self.states: list[np.ndarray] = []

    def load(self, program: Program, weights: Any, *, products: str | None = None) -> CpuWeights:
        """Return where the weights would be, by their headers; `weights` is what a checkpoint's opening gave."""
        self.traced.append(program)
        uses, placed = _uses(program), {}
        for symbol in program.of_kind("weight"):
            header = weights.header(symbol.name)
            use = uses[symbol.name]
            dtype = products if products and use == "product" else header.dtype
            placed[symbol.name] = held(self.core, symbol.shape, dtype, use, header.mapped)
        self.loaded.append(CpuWeights(self.core, placed))
        return self.loaded[-1]

    def state(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """Return an array of the shape and the size, though not the memory."""
        self.states.append(np.broadcast_to(np.zeros((), STORAGE[dtype]), shape))
        return self.states[-1]

    def _plan(self, *arguments: Any) -> CpuPlan:
        self.plans.append(MeasuredPlan(self.core, *arguments))
        return self.plans[-1]
