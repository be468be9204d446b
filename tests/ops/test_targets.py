"""Every processor gives the same bits: the targets of the CPU backend differ in speed and in nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from op_harness import FORMATS, case, fitting, run, sampled_ops, samples

from lattice.backends.cpu import CpuBackend, runnable_targets
from lattice.dtypes import BY_NAME, encode
from lattice.ops import REGISTRY, Draw

NATIVE = [name for name in sampled_ops() if name in CpuBackend("scalar").kernels()]


def assert_same(results: dict[str, tuple], about: object) -> None:
    """Outputs and state of every target equal the scalar target's, bit for bit; a NaN equals a NaN."""
    wanted_outputs, wanted_state = results["scalar"]
    for target, (outputs, state) in results.items():
        for got, wanted in zip(outputs, wanted_outputs, strict=True):
            assert np.array_equal(got, wanted, equal_nan=got.dtype.kind == "f"), (target, about)
        for name, wanted in wanted_state.items():
            assert np.array_equal(state[name], wanted), (target, about, name)


@pytest.mark.parametrize("name", NATIVE)
def test_every_sample_gives_the_same_bits_on_every_target(name):
    op = REGISTRY[name]
    for sample in samples(op):
        results = {target: run(CpuBackend(target), case(op, sample)) for target in runnable_targets()}
        assert_same(results, sample.attributes)


@pytest.mark.parametrize("dtype", FORMATS)
def test_products_have_the_same_bits_on_every_target(dtype):
    random = np.random.default_rng(3)
    k = fitting(BY_NAME[dtype], 576)
    weight = encode(random.normal(size=(50, k)).astype(np.float32), BY_NAME[dtype])
    for rows in (1, 3, 6, 17):
        draw = Draw(rows)
        made = case(REGISTRY["linear"], draw.sample(draw.rows(rows, k), draw.weight(50, k)))
        assert_same({target: run(CpuBackend(target), made, {"a1": weight}) for target in runnable_targets()}, rows)


@pytest.mark.parametrize("width", [1, 7, 8, 15, 16, 17, 31, 63, 64, 65, 100, 576, 1000])
@pytest.mark.parametrize("name", ["rms_norm", "layer_norm", "normalize"])
def test_sums_across_a_row_have_one_order(name, width):
    """The widths around the sixteen partial sums and their groups of four; values of very different sizes."""
    draw = Draw(width)
    scale = np.exp(np.random.default_rng(width).normal(scale=4, size=(5, width)))
    x = draw.rows(5, width)
    x.value[...] *= scale.astype(np.float32)
    vectors = [draw.weight(width) for _ in range({"rms_norm": 1, "layer_norm": 2, "normalize": 0}[name])]
    made = case(REGISTRY[name], draw.sample(x, *vectors, **({} if name == "normalize" else {"eps": 1e-6})))
    assert_same({target: run(CpuBackend(target), made) for target in runnable_targets()}, width)
