"""The native core through ctypes: which library fits this processor, its functions, its structs, its memory.

Every target (scalar, avx2, avxvnni, avx512, neon) is a library of its own; the scalar one runs everywhere and names
those that this processor runs.
The structs mirror src/abi.h.
"""

from __future__ import annotations

import ctypes
import os
import platform
from ctypes import POINTER, Structure, c_char_p, c_double, c_int32, c_int64, c_uint64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from lattice.errors import LatticeError, expected

SUFFIX = {"Darwin": ".dylib", "Windows": ".dll"}.get(platform.system(), ".so")
DTYPES = {
    "f32": 0, "f16": 1, "bf16": 2, "i32": 3, "q8_0": 4, "q4_1": 5, "i64": 6,
    "q4_0": 7, "q5_0": 8, "q5_1": 9, "q4_k": 10, "q5_k": 11, "q6_k": 12, "i8": 13,
    "row8": 14, "row16": 15,
}  # fmt: skip
ROW_DTYPES = ("row8", "row16")  # integers with one scale a row, which tiling makes of what a file holds
WEIGHT_DTYPES = DTYPES.keys() - {"i8", "i32", "i64", *ROW_DTYPES}  # those that products and tables read as they are
ROWS, TILES = 0, 1


class Tensor(Structure):
    """One argument of a record."""

    _fields_ = (
        ("data", c_void_p), ("dtype", c_int32), ("layout", c_int32), ("count", c_int32), ("ndim", c_int32),
        ("shape", c_int64 * 4),
    )  # fmt: skip


class Record(Structure):
    """One node of a plan."""

    _fields_ = (
        ("kernel", c_int32), ("tensors", c_int32), ("parameters", c_int32), ("reserved", c_int32),
        ("tensor", POINTER(Tensor)), ("parameter", POINTER(c_int32)),
    )  # fmt: skip


SIGNATURES = {
    "lattice_error": (c_char_p, ()),
    "lattice_target": (c_char_p, ()),
    "lattice_runnable_targets": (c_char_p, ()),
    "lattice_alloc": (c_void_p, (c_int64, c_int32)),
    "lattice_free": (None, (c_void_p, c_int64)),
    "lattice_pool_new": (c_void_p, (c_int32,)),
    "lattice_pool_free": (None, (c_void_p,)),
    "lattice_kernel": (c_int32, (c_char_p,)),
    "lattice_tiled_bytes": (c_int64, (c_int32, c_int64, c_int64)),
    "lattice_tile": (c_int32, (c_void_p, c_int32, c_void_p, c_int32, c_int64, c_int64, c_void_p)),
    "lattice_plan_new": (c_void_p, (c_void_p, POINTER(Record), c_int32)),
    "lattice_plan_free": (None, (c_void_p,)),
    "lattice_plan_run": (c_int32, (POINTER(c_void_p), POINTER(c_int32), c_int32)),
    "lattice_plan_profile": (c_int32, (c_void_p, POINTER(c_int32), POINTER(c_double))),
    "lattice_replay": (None, (c_void_p, c_void_p, c_void_p, c_int32)),
    "lattice_read_mapped": (c_int32, (c_void_p, c_void_p, c_void_p, c_uint64, c_uint64, c_void_p)),
    "lattice_read_bandwidth": (c_double, (c_void_p, c_int64)),
    "lattice_integer_peak": (c_double, (c_void_p,)),
}


def targets() -> list[str]:
    """Return the targets whose libraries are installed, whether or not this processor runs them."""
    return sorted(path.name[len("liblattice_") : -len(SUFFIX)] for path in _folder().glob(f"liblattice_*{SUFFIX}"))


def runnable_targets() -> list[str]:
    """Return the installed targets that this processor runs, the portable one first and the fastest last."""
    installed = targets()
    return [target for target in library("scalar").lattice_runnable_targets().decode().split() if target in installed]


@cache
def best_target() -> str:
    """Return the fastest installed target that this processor runs."""
    return runnable_targets()[-1]


def _folder() -> Path:
    return Path(__file__).parent


@cache
def library(target: str) -> ctypes.CDLL:
    """Open the library of one target and declare its functions."""
    path = _folder() / f"liblattice_{target}{SUFFIX}"
    if not path.exists():
        raise expected(
            "cpu", f"a library for target {target}", f"only {', '.join(targets()) or 'none'}",
            hint="reinstall lattice-engine for this platform",
        )  # fmt: skip
    opened = ctypes.CDLL(str(path))
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(opened, name)
        function.restype, function.argtypes = result, arguments
    return opened


def cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if platform.system() == "Linux" else os.cpu_count() or 1


class Core:
    """One opened library with its thread pool. Alive as long as the process: plans and memory refer to it."""

    def __init__(self, target: str, threads: int):
        self.target, self.threads, self.functions = target, threads, library(target)
        self.pool = self.functions.lattice_pool_new(threads)
        if not self.pool:
            raise self.error("a thread pool")

    def error(self, wanted: str) -> LatticeError:
        """Return the core's last error as an exception."""
        return expected("cpu", wanted, (self.functions.lattice_error() or b"failure").decode())

    def memory(self, size: int, *, huge: bool = True) -> Memory:
        """Return `size` zeroed bytes, aligned for vectors, in huge pages where asked for and granted."""
        return Memory(self, size, huge)

    def read_bandwidth(self, size: int = 256 << 20) -> float:
        """Return the bytes a second that all threads together read from a buffer of `size` bytes."""
        return self.functions.lattice_read_bandwidth(self.pool, size)

    def integer_peak(self) -> float:
        """Return the products of bytes a second that all threads together reach with operands at hand."""
        return self.functions.lattice_integer_peak(self.pool)


@cache
def core(target: str, threads: int) -> Core:
    """Return the process's core for a target and a number of threads."""
    return Core(target, threads)


class Memory:
    """Native memory that lives as long as this object and every array made from it."""

    def __init__(self, owner: Core, size: int, huge: bool):
        self.size, self.free = max(size, 64), owner.functions.lattice_free
        self.address = owner.functions.lattice_alloc(self.size, huge)
        if not self.address:
            raise expected("cpu", "free memory", f"none for {size / 1e6:.0f} MB", hint="lower the context length")

    def array(self, offset: int, shape: tuple[int, ...], dtype: np.dtype | type) -> np.ndarray:
        """Return a view of the memory; it keeps the memory alive."""
        count = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        if offset < 0 or offset + count > self.size:
            raise IndexError(f"{count} bytes at {offset} of {self.size}")
        buffer: Any = (ctypes.c_uint8 * count).from_address(self.address + offset)
        buffer.memory = self  # the ctypes object is the array's base: it carries the owner along
        return np.frombuffer(buffer, dtype).reshape(shape)

    def __del__(self) -> None:
        if self.address:
            self.free(self.address, self.size)
