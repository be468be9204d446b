"""Tracing, state, text and memory of programs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattice.errors import LatticeError
from lattice.ops import add, append_kv, linear, mul, paged_attention
from lattice.program import place, trace

KEYS, VALUES = (3, 2, 8, 64), (3, 2, 64, 8)


def paged(p):
    step = p.step(2)
    q, k, v = p.input("q", "T", 32), p.input("k", "T", 16), p.input("v", "T", 16)
    k_pages, v_pages = (
        p.input("k_pages", *KEYS, kind="state", dtype="f16"),
        p.input("v_pages", *VALUES, kind="state", dtype="f16"),
    )
    newer = append_kv(k_pages, v_pages, k, v, step)
    return {"o": paged_attention(q, *newer, step, scale=0.5)}


def test_text():
    assert str(trace(paged)).splitlines() == [
        "input   q   (T, 32)",
        "input   k   (T, 16)",
        "input   v   (T, 16)",
        "state   k_pages   (3, 2, 8, 64)",
        "state   v_pages   (3, 2, 64, 8)",
        "%0 (3, 2, 8, 64), %1 (3, 2, 64, 8) = append_kv(k_pages, v_pages, k, v, step)",
        "%2 (T, 32) = paged_attention(q, %0, %1, step, scale=0.5, window=0)",
        "return o=%2",
    ]


def test_versions_of_a_state_share_its_storage():
    program = trace(paged)
    storage = program.storage()
    written = program.nodes[0].outputs
    assert [storage[id(symbol)].name for symbol in written] == ["k_pages", "v_pages"]
    assert [symbol.dtype for symbol in written] == ["f16", "f16"]


def test_an_old_version_cannot_be_used():
    def stale(p):
        step = p.step(2)
        k, v = p.input("k", "T", 16), p.input("v", "T", 16)
        pages = p.input("k_pages", *KEYS, kind="state"), p.input("v_pages", *VALUES, kind="state")
        append_kv(*pages, k, v, step)
        return {"o": paged_attention(k, *pages, step, scale=0.5)}

    with pytest.raises(LatticeError, match=r"newest version of a state, got k_pages, replaced by append_kv"):
        trace(stale)


def test_no_branch_on_data():
    with pytest.raises(LatticeError, match="no branch on data"):
        trace(lambda p: {"x": x} if (x := p.input("x", "T", 1)) else {})


def test_arrays_become_visible_constants():
    program = trace(lambda p: {"y": linear(p.input("x", "T", 2), np.ones((3, 2), np.float32))})
    assert "linear(x, constant0)" in str(program) and program.constants["constant0"].shape == (3, 2)


def test_input_names_are_distinct():
    with pytest.raises(LatticeError, match="distinct input names, got x"):
        trace(lambda p: {"y": add(p.input("x", "T", 2), p.input("x", "T", 2))})


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(1, 9)), min_size=1, max_size=30))
def test_values_that_live_together_never_overlap(steps):
    """Random programs: each node reads two earlier values; sizes differ."""

    def build(p):
        values = [p.input("x", "T", 4)]
        for left, right, _ in steps:
            values.append((add if left % 2 else mul)(values[left % len(values)], values[right % len(values)]))
        return {"last": values[-1], "middle": values[1 + len(steps) // 2]}

    program = trace(build)
    sizes = {id(node.outputs[0]): 16 * size for node, (_, _, size) in zip(program.nodes, steps, strict=True)}
    layout = place(program, lambda symbol: sizes[id(symbol)])
    life = {}
    for index, node in enumerate(program.nodes):
        life[id(node.outputs[0])] = [index, index]
        for symbol in node.reads():
            if id(symbol) in life:
                life[id(symbol)][1] = index
    for symbol in program.outputs.values():
        if id(symbol) in life:
            life[id(symbol)][1] = len(program.nodes)
    for a, b in itertools.combinations(life, 2):
        if life[a][0] <= life[b][1] and life[b][0] <= life[a][1]:
            low, high = sorted((a, b), key=lambda key: layout.offsets[key])
            assert layout.offsets[low] + sizes[low] <= layout.offsets[high]
    assert layout.peak >= max(layout.offsets[key] + sizes[key] for key in sizes)
    assert all(offset % 64 == 0 for offset in layout.offsets.values())


def test_memory_is_reused():
    def chain(p):
        x = p.input("x", "T", 4)
        for _ in range(50):
            x = add(x, x)
        return {"y": x}

    assert place(trace(chain), lambda symbol: 64).peak <= 3 * 64
