"""The GPU backend: programs on any card that Vulkan, Metal or DX12 offers, through WebGPU.

device.py    the card: adapter, features, buffers, errors         plan.py    a program as dispatches, and a step
shader.py    kernels/<op>.wgsl, its prelude, pipelines            weights.py weights as planes of words
submit.py    steps recorded ahead, and what they give             native.py  what is asked of wgpu-native itself
products.py  weights that share an input as one matrix            listing.py the dispatches of a step, without a card
worth.py     the time of a step, to tell whether a card pays
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lattice.backends._backend import Backend, Capacity
from lattice.backends.wgpu import shader
from lattice.backends.wgpu.device import Device, Range, identity, open_device
from lattice.backends.wgpu.plan import HOST, Buffer, WgpuPlan
from lattice.backends.wgpu.products import as_projects
from lattice.backends.wgpu.weights import WgpuWeights, load_weights
from lattice.dtypes import BY_NAME, Array
from lattice.errors import expected
from lattice.program import Program, fuse

__all__ = ["Device", "WgpuBackend", "WgpuPlan", "WgpuWeights", "identity", "open_device"]


class WgpuBackend(Backend):
    """Runs programs on a card; without one `open_device` raises."""

    name = "gpu"
    ahead = True
    # Enough tokens for tiles of them by the rows of a small matrix to fill a large card.
    prompt_chunks = 4
    encoder_tokens = 8192
    texts_ahead = 256  # the next ones are tokenised while the card runs these
    beside_host = True

    def __init__(self, device: Device | None = None):
        self.device = device or open_device()
        self.target = f"gpu, {self.device.info['device']}"
        self.pipelines = shader.Pipelines(self.device)

    def kernels(self) -> frozenset[str]:
        return shader.names() | frozenset(HOST)

    def load(self, program: Program, weights: Mapping[str, Array], *, products: str | None = None) -> WgpuWeights:
        return load_weights(self.device, self._fused(program), weights)

    def _fused(self, program: Program) -> Program:
        return as_projects(fuse(program, self.kernels()))

    def state(self, shape: tuple[int, ...], dtype: str) -> Buffer:
        storage = BY_NAME[dtype].storage
        size = int(np.prod(shape)) * storage.itemsize
        most = self.device.largest
        if size > most:
            less = "a smaller context, or cache_bytes, needs less"
            raise expected("gpu", f"at most {most / 1e6:.0f} MB of a layer's state", f"{size / 1e6:.0f} MB", hint=less)
        return Buffer(self.device, Range(self.device.buffer(size), 0, size), tuple(shape), storage)

    def compile(
        self,
        program: Program,
        weights: WgpuWeights | None = None,
        capacity: Capacity | None = None,
        state: Mapping[str, Any] | None = None,
        bound: Mapping[str, Any] | None = None,
    ) -> WgpuPlan:
        return WgpuPlan(self.pipelines, self._fused(program), weights, capacity or Capacity(), state or {}, bound or {})
