"""The file of cases for the native runner leaves no kernel and no weight format out, and is the same every time."""

from __future__ import annotations

import struct

import native_cases
import pytest

from lattice.backends.cpu import CpuBackend


@pytest.fixture(scope="module")
def packed():
    return list(native_cases.cases())


def label(case):
    (size,) = struct.unpack_from("<i", case)
    return case[4 : 4 + size].decode()


def test_every_kernel_and_every_weight_format_has_cases(packed):
    labels = [label(case) for case in packed]
    assert len(set(labels)) == len(labels)
    assert {name.split()[0] for name in labels} == CpuBackend().kernels()
    for use in ("linear", "embedding"):
        assert all(any(name.startswith(f"{use} {dtype} ") for name in labels) for dtype in native_cases.FORMATS)
    assert all(any(name.startswith(f"linear {dtype} ") for name in labels) for dtype in native_cases.ROW_FORMATS)


def test_the_file_is_the_same_every_time(packed):
    assert packed == list(native_cases.cases())
