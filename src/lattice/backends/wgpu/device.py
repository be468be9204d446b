"""A graphics card through WebGPU: Vulkan, Metal and DX12 look the same from here on.

This file finds the card, says what it can do, and hands out buffers. A software adapter (Mesa's lavapipe) runs the same
programs on the processor: it is for tests, and nobody gets it unasked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import wgpu
from wgpu.backends.wgpu_native import extras

from lattice.errors import LatticeError, expected

BACKENDS = ["Vulkan", "Metal", "DX12"]  # OpenGL lacks what the kernels need
FEATURES = ("timestamp-query",)  # used where the card has them; kernels need none
# What kernels may need more of than WebGPU's defaults grant: the adapter's own limits are asked for.
LIMITS = (
    "max-buffer-size", "max-storage-buffer-binding-size", "max-storage-buffers-per-shader-stage",
    "max-compute-workgroup-storage-size",
)  # fmt: skip
ALIGNMENT = 256  # bytes: every adapter can bind a buffer at multiples of it
LESS = "a smaller context, a smaller model or fewer bits need less; --device cpu needs none"
STORAGE = wgpu.BufferUsage.STORAGE | wgpu.BufferUsage.COPY_SRC | wgpu.BufferUsage.COPY_DST


@dataclass(frozen=True)
class Range:
    """Bytes of a buffer that a kernel sees as one array."""

    buffer: Any
    offset: int
    size: int

    @property
    def resource(self) -> dict[str, Any]:
        """The range as WebGPU binds it: whole vectors of four words."""
        return {"buffer": self.buffer, "offset": self.offset, "size": -(-self.size // 16) * 16}


class Device:
    """A card that is open; `features` are those of FEATURES that it has and that are used."""

    def __init__(self, adapter: Any, features: frozenset[str]):
        self.info = adapter.info
        self.features = features
        self.software = self.info["adapter_type"] == "CPU"
        self.wide = self.info["adapter_type"] == "DiscreteGPU"  # a few workgroups leave most of it idle
        limits = {name: adapter.limits[name] for name in LIMITS}
        with guarded("a device of this adapter"):
            self.handle = adapter.request_device_sync(required_features=sorted(features), required_limits=limits)
        self.queue = self.handle.queue
        self.spare: dict[int, list[Any]] = {}  # buffers for results that are not in use, by their bytes
        self.most = int(limits["max-buffer-size"])  # bytes of a buffer
        self.largest = int(min(limits["max-storage-buffer-binding-size"], limits["max-buffer-size"]))  # bytes bound

    def __repr__(self) -> str:
        return f"<Device {self.info['device']}, {self.info['backend_type']}>"

    def buffer(self, size: int) -> Any:
        """Return a zeroed storage buffer of at least `size` bytes; LatticeError where memory ran out."""
        if size > self.most:
            raise expected("gpu", f"at most {self.most / 1e6:.0f} MB in one buffer", f"{size / 1e6:.0f} MB", hint=LESS)
        with guarded(f"{size / 1e6:.0f} MB of the card's memory"):
            return self.handle.create_buffer(size=max(ALIGNMENT, -(-size // ALIGNMENT) * ALIGNMENT), usage=STORAGE)

    def upload(self, data: np.ndarray) -> Range:
        """Return the bytes of an array, in a buffer of their own."""
        made = Range(self.buffer(data.nbytes), 0, data.nbytes)
        self.write(made, data)
        return made

    def write(self, to: Range, data: np.ndarray) -> None:
        """Copy an array to the begin of a range, padded to whole words."""
        flat = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        if len(flat) % 4:
            flat = np.concatenate([flat, np.zeros(-len(flat) % 4, np.uint8)])
        with guarded("a copy to the card"):
            self.queue.write_buffer(to.buffer, to.offset, flat)

    def read(self, at: Range) -> np.ndarray:
        """Return the bytes of a range, once all that was submitted has run."""
        with guarded("a result of the card"):
            whole = self.queue.read_buffer(at.buffer, at.offset, at.resource["size"])
        return np.frombuffer(whole, np.uint8)[: at.size]


def identity(device: Device) -> dict[str, str]:
    """Return what tells a card with its driver from others."""
    return {name: str(device.info[name]) for name in ("device", "description", "backend_type")}


@contextmanager
def guarded(wanted: str) -> Iterator[None]:
    """Turn the library's errors into ours."""
    try:
        yield
    except wgpu.GPUOutOfMemoryError as error:
        raise expected("gpu", wanted, "none left", hint=LESS) from error
    except (wgpu.GPUError, RuntimeError) as error:
        lost = "lost" in str(error).lower()
        if lost:
            open_device.cache_clear()  # who loads again gets a device that lives
        hint = "the driver reset the card: load the model again" if lost else None
        raise expected("gpu", wanted, f"{type(error).__name__}: {error}"[:600], hint=hint) from error


@cache
def open_device(software: bool = False, without: frozenset[str] = frozenset()) -> Device:
    """Return the fastest card, or the software adapter; `without` names features to leave unused.

    Raises LatticeError where there is none.
    """
    with suppress(RuntimeError):  # somebody in this process has used the library before: then all backends are there
        extras.set_instance_extras(backends=BACKENDS)
    with guarded("a list of adapters"):
        found = [one for one in wgpu.gpu.enumerate_adapters_sync() if one.info["backend_type"] in BACKENDS]
    rank = {"DiscreteGPU": 0, "IntegratedGPU": 1, "VirtualGPU": 2}
    usable = [one for one in found if (one.info["adapter_type"] == "CPU") == software]
    if not usable:
        hint = "--device cpu runs everywhere; on Linux a card needs its Vulkan driver (vulkaninfo lists it)"
        got = "only software adapters" if found else "none"
        raise expected("gpu", f"a card that {', '.join(BACKENDS)} offers", got, hint=hint)
    best = min(usable, key=lambda one: rank.get(one.info["adapter_type"], 3))
    return Device(best, frozenset(FEATURES) & frozenset(best.features) - without)


__all__ = ["ALIGNMENT", "Device", "LatticeError", "Range", "guarded", "identity", "open_device"]
