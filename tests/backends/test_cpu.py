"""The CPU backend beyond its kernels: what it refuses, what it owns, what it does with formats it has no kernel for."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from op_harness import BLOCK_FORMATS, close

from lattice.backends._backend import Capacity
from lattice.backends.cpu import CpuBackend, bandwidth, best_target, cores, integer_peak, run_plans, targets
from lattice.backends.cpu.native import DTYPES, library
from lattice.dtypes import BY_NAME, Array, dense, encode
from lattice.errors import LatticeError, LatticeWarning
from lattice.models import family
from lattice.ops import add, cross_entropy, linear, sample, take_rows
from lattice.program import trace
from lattice.step import Sampling, Step
from lattice.weights.load import open_model

MODELS = Path(__file__).parents[1] / "golden" / "models"


@pytest.fixture(scope="module")
def bert():
    opened = open_model(MODELS / "bert-gelu", family)
    backend = CpuBackend()

    def build(p):
        step = p.step()
        return {"y": take_rows(opened.model(step)[0], step.rows)}

    program = trace(build)
    return backend.compile(program, backend.load(program, opened.weights), Capacity(20, 20, 3))


def test_every_target_says_its_name():
    assert best_target() in targets()
    for target in targets():
        assert library(target).lattice_target().decode() == target


def test_an_unknown_target_is_an_error():
    with pytest.raises(LatticeError, match=r"a library for target avx1024, got only .*scalar"):
        CpuBackend("avx1024")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": np.full(5, 10**6, np.int32)}, "tokens from 0 to 69, got 1000000"),
        ({"tokens": np.full(5, -1, np.int32)}, "tokens from 0 to"),
        ({"token_types": np.full(5, 2, np.int32)}, "token_types from 0 to 1"),
        ({"positions": np.full(5, 10**6, np.int32)}, "positions from 0 to"),
        ({"rows": np.array([5], np.int32)}, "rows from 0 to 4"),
        ({"offsets": np.array([0, 4], np.int32)}, "offsets from 0 to 5"),
        ({"offsets": np.array([1, 5], np.int32)}, "offsets from 0 to 5"),
        ({"tokens": np.zeros(4, np.int32)}, "4 entries of token_types, got 5"),
        ({"tokens": np.zeros(21, np.int32)}, r"tokens of at most \(20,\), got \(21,\)"),
        ({"tokens": np.zeros((5, 1), np.int32)}, r"tokens of at most \(20,\)"),
    ],
)
def test_a_step_that_would_leave_memory_is_refused(bert, change, message):
    step = replace(Step.of([[1, 2, 3, 4, 5]]), **change)
    with pytest.raises(LatticeError, match=message):
        bert.run(step)


def test_a_refused_step_leaves_the_plan_usable(bert):
    good = Step.of([[1, 2, 3]])
    before = bert.run(good)["y"]
    with pytest.raises(LatticeError):
        bert.run(replace(good, tokens=np.full(3, 999, np.int32)))
    assert np.array_equal(bert.run(good)["y"], before)


def test_outputs_belong_to_the_caller(bert):
    first = bert.run(Step.of([[1, 2, 3]]))["y"]
    kept = first.copy()
    bert.run(Step.of([[4, 5, 6]]))
    assert np.array_equal(first, kept)


def test_threads_may_share_the_backend(bert):
    """Steps of different plans from many threads, all right."""
    backend = CpuBackend()
    weight = np.random.default_rng(0).normal(size=(16, 32)).astype(np.float32)

    def build(p):
        return {"y": linear(p.input("x", "T", 32), p.input("w", 16, 32, kind="weight"))}

    program, failures = trace(build), []

    def work(seed):
        plan = backend.compile(program, backend.load(program, {"w": weight}), Capacity(tokens=4))
        random = np.random.default_rng(seed)
        for _ in range(50):
            x = random.normal(size=(4, 32)).astype(np.float32)
            if not close(plan.run(x=x)["y"], x @ weight.T, 1e-5):
                failures.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.parametrize("dtype", ["q2_k", "q3_k", "iq4_nl"])
def test_formats_without_a_kernel_are_dequantised_and_said_so(dtype):
    random, backend, shape = np.random.default_rng(0), CpuBackend(), (20, 256)
    data = random.integers(20, 30, BY_NAME[dtype].buffer_shape(shape), dtype=np.uint8)  # any f16 of these is small
    weight = Array(data, BY_NAME[dtype], shape)
    program = trace(lambda p: {"y": linear(p.input("x", "T", 256), p.input("w", *shape, kind="weight"))})
    with pytest.warns(LatticeWarning, match=f"held as f32 \\(1 of {dtype}\\)"):
        loaded = backend.load(program, {"w": weight})
    x = random.normal(size=(3, 256)).astype(np.float32)
    assert close(backend.compile(program, loaded, Capacity(tokens=3)).run(x=x)["y"], x @ dense(weight).T, 1e-5)


@pytest.mark.parametrize("dtype", BLOCK_FORMATS)
def test_formats_with_a_kernel_take_no_more_memory_than_their_file(dtype):
    backend = CpuBackend()
    weight = encode(np.ones((32, 1024), np.float32), BY_NAME[dtype])
    program = trace(lambda p: {"y": linear(p.input("x", "T", 1024), p.input("w", 32, 1024, kind="weight"))})
    loaded = backend.load(program, {"w": weight})
    assert weight.nbytes <= loaded.bytes <= weight.nbytes * 1.03


def test_the_core_refuses_rows_of_odd_blocks(cpu_target):
    bytes_of = library(cpu_target).lattice_tiled_bytes
    assert bytes_of(DTYPES["q4_0"], 16, 96) == 2 * 576 and bytes_of(DTYPES["q6_k"], 16, 512) == 2 * 3392
    assert (
        bytes_of(DTYPES["q4_0"], 16, 48) == bytes_of(DTYPES["q6_k"], 16, 384) == bytes_of(DTYPES["q4_k"], 16, 32) == -1
    )


def test_missing_and_misshapen_weights_are_named():
    backend = CpuBackend()
    program = trace(lambda p: {"y": linear(p.input("x", "T", 4), p.input("w", 2, 4, kind="weight"))})
    with pytest.raises(LatticeError, match="a tensor w, got none"):
        backend.load(program, {})
    with pytest.raises(LatticeError, match=r"w of shape \(2, 4\), got \(4, 2\)"):
        backend.load(program, {"w": np.zeros((4, 2), np.float32)})


def test_two_plans_in_one_call_hand_over_in_place():
    """The second plan reads the first one's output buffer: forward and sample run without the host in between."""
    backend = CpuBackend()
    weight = np.eye(6, dtype=np.float32)[[3, 1, 4, 1, 5, 0]]
    forward = trace(lambda p: {"logits": linear(p.input("x", "R", 6), p.input("w", 6, 6, kind="weight"))})
    first = backend.compile(forward, backend.load(forward, {"w": weight}), Capacity(rows=3))
    choose = trace(lambda p: {"tokens": sample(p.input("logits", "R", 6), p.sampling(4))})
    second = backend.compile(choose, None, Capacity(rows=3), bound={"logits": first.outputs["logits"]})
    first.write(x=np.eye(6, dtype=np.float32)[[3, 4, 5]])
    second.write(sampling=Sampling.greedy(3))
    run_plans([first, second])
    assert second.output("tokens").tolist() == [0, 2, 4]


def test_profile_names_every_node(bert):
    bert.run(Step.of([[1, 2, 3]]))
    profile = bert.profile()
    assert [node for node, _ in profile] == bert.program.nodes and all(seconds >= 0 for _, seconds in profile)


def test_state_is_zeroed_and_shared_between_plans():
    backend = CpuBackend()
    assert not backend.state((2, 3), "f16").any() and backend.state((2, 3), "f32").dtype == np.float32


def test_ops_without_a_kernel_are_named():
    program = trace(lambda p: {"y": cross_entropy(p.input("x", "T", 4), p.input("t", "T", dtype="i32"))})
    with pytest.raises(LatticeError, match="ops that have a CPU kernel, got cross_entropy"):
        CpuBackend().compile(program, None, Capacity(tokens=2))


def test_read_bandwidth_is_plausible():
    assert 0.1 < bandwidth(32 << 20) < 10_000


def test_integer_peak_is_plausible():
    assert 0.01 < integer_peak() < 10_000 * cores()


def test_add_of_every_alignment():
    """Plans for every row width: no kernel reads or writes past its row."""
    backend = CpuBackend()
    for width in range(1, 70):
        program = trace(lambda p, n=width: {"y": add(p.input("a", "T", n), p.input("b", "T", n))})
        plan = backend.compile(program, None, Capacity(tokens=3))
        a = np.arange(2 * width, dtype=np.float32).reshape(2, width)
        assert np.array_equal(plan.run(a=a, b=a)["y"], a + a)
