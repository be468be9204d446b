"""The CPU backend: programs replayed by the native core in one call a step."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from lattice.backends._backend import Backend, Capacity
from lattice.backends.cpu.native import best_target, core, cores, runnable_targets, targets
from lattice.backends.cpu.plan import STORAGE, CpuPlan, run_plans
from lattice.backends.cpu.weights import CpuWeights, load_weights
from lattice.dtypes import Array
from lattice.ops import REGISTRY
from lattice.program import Program, fuse

__all__ = [
    "STORAGE", "CpuBackend", "CpuPlan", "CpuWeights", "bandwidth", "best_target", "cores", "integer_peak", "run_plans",
    "runnable_targets", "targets",
]  # fmt: skip


class CpuBackend(Backend):
    """Runs programs on this machine's processor; target and threads default to the best and to all cores."""

    name = "cpu"

    def __init__(self, target: str | None = None, threads: int | None = None):
        self.core = core(target or best_target(), threads or cores())
        self.target = self.core.target

    def kernels(self) -> frozenset[str]:
        return _kernels(self.core.target)

    def load(self, program: Program, weights: Mapping[str, Array], *, products: str | None = None) -> CpuWeights:
        return load_weights(self.core, program, weights, products)

    def state(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        storage = np.dtype(STORAGE[dtype])
        # Pools are used sparsely: with huge pages the first token would zero megabytes in every layer.
        memory = self.core.memory(int(np.prod(shape)) * storage.itemsize, huge=False)
        return memory.array(0, shape, storage)

    def compile(
        self,
        program: Program,
        weights: CpuWeights | None = None,
        capacity: Capacity | None = None,
        state: Mapping[str, np.ndarray] | None = None,
        bound: Mapping[str, np.ndarray] | None = None,
    ) -> CpuPlan:
        """Plan a program. `bound` gives inputs a fixed buffer, such as the output view of another plan."""
        fused = fuse(program, self.kernels())
        return self._plan(fused, weights, capacity or Capacity(), state or {}, bound or {})

    def _plan(self, *arguments: Any) -> CpuPlan:
        return CpuPlan(self.core, *arguments)


@cache
def _kernels(target: str) -> frozenset[str]:
    functions = core(target, cores()).functions
    return frozenset(name for name in REGISTRY if functions.lattice_kernel(name.encode()) >= 0)


def bandwidth(size: int = 256 << 20) -> float:
    """Return the measured read bandwidth of all cores together, in GB/s."""
    return core(best_target(), cores()).read_bandwidth(size) / 1e9


def integer_peak() -> float:
    """Return the most integer products that all cores together reach, in 10^9 multiplications a second."""
    return core(best_target(), cores()).integer_peak() / 1e9
