"""Products in integers with one scale a row: one result on every target, no overflow, outliers kept."""

from __future__ import annotations

import numpy as np
import pytest
from op_harness import ROW_FORMATS, row_product

from lattice.backends._backend import Capacity
from lattice.backends.cpu import CpuBackend, runnable_targets
from lattice.ops import linear
from lattice.program import trace


def product(target, products, x, weight, cuts=()):
    """Return x @ weight.T from one plan, in runs of x cut at `cuts`."""
    n, k = weight.shape
    program = trace(lambda p: {"y": linear(p.input("x", "T", k), p.input("w", n, k, kind="weight"))})
    backend = CpuBackend(target)
    plan = backend.compile(program, backend.load(program, {"w": weight}, products=products), Capacity(tokens=len(x)))
    return np.concatenate([plan.run(x=part)["y"] for part in np.split(x, cuts)])


@pytest.mark.parametrize("products", ROW_FORMATS)
@pytest.mark.parametrize("shape", [(1, 1), (5, 2), (17, 33), (40, 96), (33, 384), (100, 1500)])
def test_products_are_those_of_the_definition_and_the_same_on_every_target(products, shape):
    random = np.random.default_rng(shape)
    weight = random.normal(size=shape).astype(np.float32)
    x = random.standard_t(2, size=(13, shape[1])).astype(np.float32)  # with outliers
    results = [product(target, products, x, weight) for target in runnable_targets()]
    assert all(result.tobytes() == results[0].tobytes() for result in results)
    expected = row_product(products, x, weight)
    # A value at the edge of a rounding may fall otherwise.
    size = np.abs(x).max(1, keepdims=True) * np.abs(weight).max() * shape[1] ** 0.5
    assert np.abs((results[0] - expected) / size).max() < {"row8": 2e-3, "row16": 2e-4}[products]
    assert np.mean(np.abs(results[0] - expected) > 1e-5 * size) < 0.02


@pytest.mark.parametrize("products", ROW_FORMATS)
def test_a_row_does_not_depend_on_its_neighbours(products, cpu_target):
    random = np.random.default_rng(1)
    weight, x = random.normal(size=(80, 96)).astype(np.float32), random.standard_t(2, size=(64, 96)).astype(np.float32)
    whole = product(cpu_target, products, x, weight)
    for cuts in ([1], [2, 3], [7, 20, 33], list(range(1, 64))):
        assert product(cpu_target, products, x, weight, cuts).tobytes() == whole.tobytes()


@pytest.mark.parametrize("products", ROW_FORMATS)
def test_the_largest_numbers_neither_saturate_nor_overflow(products, cpu_target):
    signs = np.where(np.random.default_rng(2).random((7, 2080)) < 0.5, -1, 1).astype(np.float32)
    for weight in (np.ones((16, 2080), np.float32), -np.ones((16, 2080), np.float32), np.repeat(signs[:1], 16, 0)):
        x = np.concatenate([np.ones((2, 2080), np.float32), -np.ones((1, 2080), np.float32), signs])
        exact = x @ weight.T
        assert np.abs(product(cpu_target, products, x, weight) - exact).max() <= 1e-2 * 2080
        assert np.allclose(product(cpu_target, products, x[:3], weight), exact[:3], rtol=1e-2, atol=20)


def test_outliers_are_kept(cpu_target):
    """One channel a thousand times the others, positive and negative: neither it nor they are lost."""
    random = np.random.default_rng(3)
    weight, x = random.normal(size=(48, 384)).astype(np.float32), random.normal(size=(9, 384)).astype(np.float32)
    x[:, 5] = np.where(np.arange(9) % 2, 1, -1) * 100.0
    x[3, 200:206], x[4, 383] = 60, -1000
    exact, got = x @ weight.T, product(cpu_target, "row8", x, weight)
    small = np.delete(x, 5, 1) @ np.delete(weight, 5, 1).T  # what the others say must survive the outlier
    rest = got - x[:, 5:6] * weight[:, 5]
    cosine = (got * exact).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(exact, axis=1)
    assert cosine.min() > 0.9995
    others = [0, 1, 2, 5, 6, 7, 8]
    along = (rest * small).sum(1) / np.linalg.norm(rest, axis=1) / np.linalg.norm(small, axis=1)
    assert along[others].min() > 0.9


@pytest.mark.parametrize("products", ROW_FORMATS)
def test_odd_values(products, cpu_target):
    weight = np.random.default_rng(4).normal(size=(20, 64)).astype(np.float32)
    x = np.zeros((6, 64), np.float32)
    x[1], x[2, 3], x[3, 7], x[4], x[5] = 1e-30, np.nan, np.inf, 1e30, 1
    got = product(cpu_target, products, x, weight)
    assert not got[0].any() and np.isfinite(got[[0, 1, 4, 5]]).all()
    assert np.isnan(got[[2, 3]]).all()
    assert np.allclose(got[4] / 1e30, got[5], rtol=1e-4)
    weight[3, 5] = np.nan
    got = product(cpu_target, products, x[5:], weight)
    assert np.isnan(got[0, 3]) and np.isfinite(np.delete(got[0], 3)).all()
