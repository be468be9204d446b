"""An Array's buffer, dtype and shape must agree; its rows are whole blocks."""

from __future__ import annotations

import numpy as np
import pytest

from lattice.dtypes import BF16, F32, Q4_0, Q6_K, Q8_0, Array, dense, encode
from lattice.errors import LatticeError


@pytest.mark.parametrize(
    ("data", "dtype", "shape", "fragment"),
    [
        (np.zeros((2, 3), np.float32), F32, (3, 2), "a buffer of shape (3, 2)"),
        (np.zeros((2, 3), np.float64), F32, (2, 3), "a buffer of float32, got float64"),
        (np.zeros((2, 3), np.float32), BF16, (2, 3), "a buffer of uint16"),
        (np.zeros((2, 1, 18), np.uint8), Q4_0, (2, 33), "rows of a multiple of 32 values"),
        (np.zeros((2, 1, 18), np.uint8), Q4_0, (2, 64), "a buffer of shape (2, 2, 18)"),
        (np.zeros((18,), np.uint8), Q4_0, (), "rows of a multiple of 32 values"),
        (np.zeros((4, 3), np.float32).T, F32, (3, 4), "a C-contiguous buffer"),
        (np.zeros((1, 3), np.float32), F32, (-1, 3), "sizes of at least 0"),
    ],
)
def test_disagreement_is_an_error(data: np.ndarray, dtype, shape: tuple[int, ...], fragment: str) -> None:
    with pytest.raises(LatticeError) as caught:
        Array(data, dtype, shape)
    assert fragment in str(caught.value)


def test_size_counts_whole_blocks() -> None:
    assert Q4_0.size(64) == 36
    assert Q6_K.size(512) == 420
    with pytest.raises(LatticeError, match="multiple of 32"):
        Q8_0.size(31)


def test_rows_of_a_quantised_table() -> None:
    values = np.random.default_rng(1).standard_normal((10, 64)).astype(np.float32)
    table = encode(values, Q8_0)
    picked = table.rows(np.array([7, 0, 7]))
    assert picked.shape == (3, 64)
    assert np.array_equal(dense(picked), dense(table)[[7, 0, 7]])
    view = table.rows(slice(2, 5))
    assert view.shape == (3, 64)
    assert np.shares_memory(view.data, table.data)
    with pytest.raises(LatticeError, match="dimension of rows"):
        encode(values[0], Q8_0).rows(slice(0, 1))


def test_sizes() -> None:
    array = encode(np.zeros((4, 64)), Q4_0)
    assert (array.ndim, array.size, array.nbytes) == (2, 256, 4 * 36)
    assert repr(array) == "Array(q4_0, (4, 64))"
