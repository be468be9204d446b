"""What is asked of wgpu-native itself, past wgpu's Python: a step's commands, and shaders without checks.

wgpu's methods check their arguments and watch for errors around every call, about 3 us each. A step has hundreds of
dispatches of three calls, all of which were made and checked before, so the native core makes them, by the addresses
of wgpu-native's functions, which report errors when the pass is finished. Shaders are validated once by the method,
and then made anew without what wgpu adds to every loop (a counter that ends it, which keeps drivers from unrolling)
and to every index (a bound): the numbers that address memory are checked when a step is written. A result is awaited
by the index of its submission. Where the library is not to be had, the methods do the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import wgpu

from lattice.backends.cpu.native import library

try:
    from wgpu.backends.wgpu_native import ffi, lib
except ImportError:  # another version of wgpu
    ffi = lib = None

PACKED = np.dtype([*((name, np.uint64) for name in ("pipeline", "group")), *((one, np.uint32) for one in "xyz_")])


class Command(NamedTuple):
    """One kernel: its pipeline, its bindings and its workgroups."""

    pipeline: Any
    group: Any
    x: int
    y: int
    z: int


def packed(commands: Sequence[Command]) -> np.ndarray:
    """Return commands as the native core reads them."""
    if lib is None:
        return np.zeros(len(commands), PACKED)
    address = partial(ffi.cast, "uintptr_t")
    rows = [(int(address(c.pipeline._internal)), int(address(c.group._internal)), c.x, c.y, c.z, 0) for c in commands]
    return np.array(rows, PACKED)


def replay(rounds: Any, commands: Sequence[Command], rows: np.ndarray | None = None) -> None:
    """Record commands into a compute pass; `rows` are the same, packed."""
    handle = getattr(rounds, "_internal", None)
    if lib is None or handle is None:
        by_methods(rounds, commands)
        return
    if rows is None:
        rows = packed(commands)
    handle, pointer = int(ffi.cast("uintptr_t", handle)), rows.ctypes.data
    library("scalar").lattice_replay(handle, _functions().ctypes.data, pointer, len(rows))


@cache
def _functions() -> np.ndarray:
    """Return the addresses of what records a pass, in the core's order."""
    names = ("SetPipeline", "SetBindGroup", "DispatchWorkgroups")
    return _addresses(*(f"wgpuComputePassEncoder{name}" for name in names))


@cache
def _read_functions() -> np.ndarray:
    """Return the addresses of what reads a buffer, and wgpu-native's numbers, in the core's order."""
    numbers = (lib.WGPUCallbackMode_AllowProcessEvents, lib.WGPUMapMode_Read, lib.WGPUMapAsyncStatus_Success)
    names = ("wgpuBufferMapAsync", "wgpuDevicePoll", "wgpuBufferGetConstMappedRange", "wgpuBufferUnmap")
    return np.concatenate([_addresses(*names), np.array(numbers, np.uint64)])


def _addresses(*names: str) -> np.ndarray:
    return np.array([int(ffi.cast("uintptr_t", getattr(lib, name))) for name in names], np.uint64)


def by_methods(rounds: Any, commands: Sequence[Command]) -> None:
    """Record commands through the methods that everybody may call."""
    for command in commands:
        rounds.set_pipeline(command.pipeline)
        rounds.set_bind_group(0, command.group)
        rounds.dispatch_workgroups(command.x, command.y, command.z)


def submit(queue: Any, buffers: Sequence[Any]) -> int | None:
    """Submit command buffers; return the submission's index, None where only the methods are to be had."""
    if lib is None:
        queue.submit(list(buffers))
        return None
    return int(lib.wgpuQueueSubmitForIndex(queue._internal, len(buffers), [one._internal for one in buffers]))


def staging(device: Any, size: int) -> Any:
    """Return a buffer that takes copies and that the host can read."""
    return device.create_buffer(size=size, usage=wgpu.BufferUsage.COPY_DST | wgpu.BufferUsage.MAP_READ)


def read_mapped(device: Any, held: Any, size: int, index: int | None) -> np.ndarray:
    """Return the bytes that a submission, by its index, copied to a staging buffer; later ones are not awaited.

    wgpu's own way wakes a thread that waits for all that was submitted. The native core's has no Python in between,
    where an interrupt could be lost or another thread that polls the device be waited for. RuntimeError where the card
    gives no answer.
    """
    if lib is None or index is None:
        held.map_sync(wgpu.MapMode.READ, 0, size)
        found = np.frombuffer(bytes(held.read_mapped()), np.uint8)
        held.unmap()
        return found
    found = np.empty(size, np.uint8)
    handles = (int(ffi.cast("uintptr_t", one._internal)) for one in (device, held))
    functions, to = _read_functions().ctypes.data, found.ctypes.data
    if not library("scalar").lattice_read_mapped(functions, *handles, size, index, to):
        raise RuntimeError("the device was lost: a buffer of it cannot be read any more")
    return found


def unchecked(device: Any, module: Any, code: str) -> Any:
    """Return a module that was validated, made anew without runtime checks."""
    create = getattr(lib, "wgpuDeviceCreateShaderModuleTrusted", None)
    if create is None:
        return module
    text = ffi.new("char[]", code.encode())
    source = ffi.new("WGPUShaderSourceWGSL *")
    source.chain.next, source.chain.sType = ffi.NULL, lib.WGPUSType_ShaderSourceWGSL
    source.code.data, source.code.length = text, len(text) - 1
    descriptor = ffi.new("WGPUShaderModuleDescriptor *")
    descriptor.nextInChain = ffi.cast("WGPUChainedStruct *", source)
    made = create(device._internal, descriptor, lib.WGPUShaderRuntimeChecks_None)
    return type(module)(module.label, made, device)
