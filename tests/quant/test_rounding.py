"""Rounding into block formats: never worse than the formats' own, better where inputs correlate, and repeatable."""

from __future__ import annotations

import numpy as np
import pytest

from lattice.dtypes import BY_NAME, dense, encode
from lattice.errors import LatticeError, LatticeWarning
from lattice.quant.rounding import FORMS, compensated, nearest

NAMES = sorted(FORMS)
SEARCHED = [name for name in NAMES if name != "q8_0"]


def draw(rows: int = 24, columns: int = 512, seed: int = 0) -> np.ndarray:
    """Return a matrix with a few large columns, as trained ones have."""
    random = np.random.default_rng(seed)
    scale = np.exp(random.normal(0, 0.5, columns))
    return (random.standard_t(5, (rows, columns)) * scale).astype(np.float32)


def inputs(columns: int = 512, seed: int = 1) -> np.ndarray:
    """Return H of strongly correlated inputs."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(1024, 48)) @ random.normal(size=(48, columns)) + 0.3 * random.normal(size=(1024, columns))
    return x.T @ x


def weighed(error: np.ndarray, hessian: np.ndarray) -> float:
    return float(np.einsum("ij,jk,ik->", error, hessian, error))


@pytest.mark.parametrize("name", SEARCHED)
def test_error_is_below_the_formats_own(name):
    values = draw()
    own, ours = (
        np.square(dense(made) - values).sum() for made in (encode(values, BY_NAME[name]), nearest(values, name))
    )
    assert ours < own * (0.99 if name[-1] in "01" else 1.0)


@pytest.mark.parametrize("name", SEARCHED)
def test_no_block_is_worse_than_the_formats_own(name):
    values, dtype = draw(seed=3), BY_NAME[name]
    own, ours = (
        np.square((dense(made) - values).astype(np.float64)).reshape(-1, dtype.block).sum(1)
        for made in (encode(values, dtype), nearest(values, dtype))
    )
    assert (ours <= own * (1 + 1e-6)).all()


@pytest.mark.parametrize("name", SEARCHED)
def test_importance_moves_the_error_to_where_it_costs_less(name):
    values, importance = draw(), np.tile([100.0, 1.0, 0.0, 1.0], 128)
    plain, heavy = (np.square(dense(nearest(values, name, w)) - values) @ importance for w in (None, importance))
    assert heavy.sum() < 0.95 * plain.sum()


def test_8_bits_are_the_formats_own():
    values = draw()
    assert nearest(values, "q8_0").data.tobytes() == encode(values, BY_NAME["q8_0"]).data.tobytes()


@pytest.mark.parametrize("name", [name for name in NAMES if FORMS[name].groups == 1])
def test_values_on_the_grid_stay(name):
    values = dense(encode(draw(), BY_NAME[name]))
    for made in (nearest(values, name), compensated(values, name, inputs())):
        np.testing.assert_allclose(dense(made), values, atol=1e-6 * np.abs(values).max())


@pytest.mark.parametrize("name", NAMES)
def test_compensation_lowers_the_error_of_products(name):
    values, hessian = draw(), inputs()
    plain = nearest(values, name, hessian.diagonal())
    swept, once = compensated(values, name, hessian), compensated(values, name, hessian, sweeps=0)
    errors = [weighed(dense(made) - values, hessian) for made in (plain, once, swept)]
    assert errors[1] < 0.6 * errors[0] and errors[2] <= errors[1]
    assert swept.dtype.name == name and swept.shape == values.shape


def test_columns_that_are_never_active_are_rounded_like_any_other():
    values, hessian = draw(), inputs()
    hessian[:40], hessian[:, :40] = 0, 0
    made, plain = compensated(values, "q4_0", hessian), nearest(values, "q4_0")
    np.testing.assert_allclose(dense(made)[:, :32], dense(plain)[:, :32], rtol=1e-3)


@pytest.mark.parametrize("hessian", [np.zeros((512, 512)), np.full((512, 512), np.nan), -np.eye(512)])
def test_an_unusable_h_gives_nearest_and_a_warning(hessian):
    values = draw(2)
    with pytest.warns(LatticeWarning, match="not usable"):
        made = compensated(values, "q4_1", hessian)
    assert made.data.tobytes() == nearest(values, "q4_1").data.tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_rows_do_not_see_one_another(name):
    values, hessian = draw(), inputs()
    for call in (lambda v: nearest(v, name, hessian.diagonal()), lambda v: nearest(v, name)):
        assert call(values).data[5:7].tobytes() == call(values[5:7]).data.tobytes()
    whole = compensated(values, name, hessian)
    assert whole.data.tobytes() == compensated(values, name, hessian).data.tobytes()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-6, 1e2])
def test_any_magnitude(name, size):
    values = draw(2) * np.float32(size)
    for made in (nearest(values, name), compensated(values, name, inputs())):
        assert np.abs(dense(made) - values).max() <= 0.3 * np.abs(values).max() + 1e-5  # f16 scales end there


def test_experts_keep_their_shape():
    values = draw(6).reshape(3, 2, 512)
    assert nearest(values, "q4_k").shape == (3, 2, 512)


def test_what_cannot_be_rounded_is_refused():
    with pytest.raises(LatticeError, match="finite"):
        nearest(np.full((1, 256), np.nan), "q4_k")
    with pytest.raises(LatticeError, match="finite"):
        compensated(np.full((1, 32), np.inf), "q4_0", np.eye(32))
    with pytest.raises(LatticeError, match="a format among"):
        compensated(draw(1), "q2_k", inputs())
    with pytest.raises(LatticeError, match="importance"):
        nearest(draw(1), "q4_0", np.ones(3))
    with pytest.raises(LatticeError, match="H"):
        compensated(draw(1), "q4_0", np.eye(3))
