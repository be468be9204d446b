"""Every format against the values and bytes of a foreign implementation: bit for bit."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lattice.dtypes import BF16, BY_NAME, F16, F32, Q4_1, Q8_0, Array, dense, encode
from lattice.errors import LatticeError

BLOCK_FORMATS = [name for name, dtype in BY_NAME.items() if dtype.block > 1]
WRITTEN = ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "bf16"]
ENCODED = ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k", "q5_k", "q6_k"]


@pytest.fixture(scope="module")
def goldens(golden: Path) -> dict[str, np.ndarray]:
    with np.load(golden / "dtypes.npz", allow_pickle=False) as file:
        return dict(file)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    equal = (a.view(np.uint32) == b.view(np.uint32)) | (np.isnan(a) & np.isnan(b))
    return a.shape == b.shape and bool(equal.all())


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_dense_equals_the_golden_bit_for_bit(name: str, goldens: dict[str, np.ndarray]) -> None:
    dtype, raw, values = BY_NAME[name], goldens[f"{name}.raw"], goldens[f"{name}.values"]
    assert raw.shape[1] == dtype.nbytes
    array = Array(raw[:, None, :], dtype, (len(raw), dtype.block))
    assert same_bits(dense(array), values)


@pytest.mark.parametrize("name", WRITTEN)
def test_encode_equals_the_golden_byte_for_byte(name: str, goldens: dict[str, np.ndarray]) -> None:
    array = encode(goldens["written.values"], BY_NAME[name])
    written = goldens[f"{name}.written"]
    assert np.array_equal(array.data.reshape(len(written), -1).view(np.uint8), written)


ROWS = hnp.arrays(np.float32, (2, 64), elements=st.floats(-1e4, 1e4, width=32))
# Largest error as a part of the span of a block: half a step, or one step where the end saturates.
ERROR = {"q4_0": 1 / 8, "q4_1": 0.5 / 15, "q5_0": 1 / 16, "q5_1": 0.5 / 31, "q8_0": 0.5 / 127}


@given(values=ROWS, name=st.sampled_from(sorted(ERROR)))
def test_round_trip_error_is_within_a_step(values: np.ndarray, name: str) -> None:
    got = dense(encode(values, BY_NAME[name]))
    blocks = values.reshape(-1, 32)
    span = np.ptp(blocks, axis=1) if name.endswith("_1") else np.abs(blocks).max(axis=1)
    # f16 scales: 2^-11 relative, times the number of steps; 2^-25 absolute where they are subnormal.
    allowed = span * ERROR[name] + np.abs(blocks).max(axis=1) * 2.0**-10 + 2.0**-25 * 260
    assert (np.abs(got.reshape(-1, 32) - blocks).max(axis=1) <= allowed).all()


SUPER_ROWS = hnp.arrays(np.float32, (1, 256), elements=st.floats(-1e4, 1e4, width=32))
# Largest error as a part of the span of a super-block with 0: more than half a step, since least squares may clip and
# the scale of a group is rounded to a part of the largest.
SUPER_ERROR = {"q4_k": 2 / 15, "q5_k": 2 / 31, "q6_k": 2 / 63}


@given(values=SUPER_ROWS, name=st.sampled_from(sorted(SUPER_ERROR)))
def test_round_trip_error_of_super_blocks_is_within_steps(values: np.ndarray, name: str) -> None:
    error = np.abs(dense(encode(values, BY_NAME[name])) - values).max()
    assert error <= (max(values.max(), 0) - min(values.min(), 0)) * SUPER_ERROR[name] + 2.0**-25 * 128 * 32


@pytest.mark.parametrize(
    ("name", "simple", "part"), [("q4_k", "q4_1", 0.95), ("q5_k", "q5_1", 0.97), ("q6_k", "q5_0", 0.45)]
)
def test_super_blocks_err_less_than_the_simple_format(name: str, simple: str, part: float) -> None:
    values = np.random.default_rng(0).normal(size=(16, 1024)).astype(np.float32)
    error = [float(np.square(dense(encode(values, BY_NAME[n])) - values).mean()) ** 0.5 for n in (name, simple)]
    assert error[0] <= part * error[1]


@pytest.mark.parametrize("name", sorted(SUPER_ERROR))
@pytest.mark.parametrize("value", [0.0, 3.0, -3.0, 1e-5, 60000.0])
def test_constant_super_blocks_are_kept(name: str, value: float) -> None:
    values = np.full((1, 256), value, np.float32)
    assert np.abs(dense(encode(values, BY_NAME[name])) - values).max() <= abs(value) * 2.0**-10 + 2.0**-25 * 64 * 15


@given(values=ROWS)
def test_encoding_decoded_q8_0_values_changes_nothing(values: np.ndarray) -> None:
    once = dense(encode(values, Q8_0))
    again = dense(encode(once, Q8_0))
    assert np.abs(again - once).max() <= np.abs(once).max() * 2.0**-10 + 2.0**-20


@given(bits=hnp.arrays(np.uint16, 64))
def test_bf16_and_f16_keep_every_value_they_hold(bits: np.ndarray) -> None:
    stored = Array(bits, BF16, bits.shape)
    again = encode(dense(stored), BF16).data
    quiet = np.where((bits & 0x7FFF) > 0x7F80, bits | 0x40, bits)  # a signalling NaN becomes quiet
    assert np.array_equal(again, quiet)
    half = Array(bits.view(np.float16), F16, bits.shape)
    kept = encode(dense(half), F16).data
    assert np.array_equal(kept, half.data, equal_nan=True)


def test_bf16_rounds_ties_to_even() -> None:
    values = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF], np.uint32).view(np.float32)
    assert encode(values, BF16).data.tolist() == [0x3F80, 0x3F82, 0x3F81, 0x7F80]


@pytest.mark.parametrize("name", ENCODED)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_block_formats_refuse_values_that_are_not_finite(name: str, bad: float) -> None:
    values = np.zeros((1, 256), np.float32)
    values[0, 40] = bad
    with pytest.raises(LatticeError, match="expected finite values"):
        encode(values, BY_NAME[name])


@pytest.mark.parametrize("name", ENCODED)
def test_block_formats_refuse_scales_beyond_f16(name: str) -> None:
    values = np.full((1, 256), 1e30, np.float32)
    values[0, 0] = -1e30
    with pytest.raises(LatticeError, match="f16, which ends at 65504"):
        encode(values, BY_NAME[name])


@pytest.mark.parametrize("name", ENCODED)
def test_blocks_too_small_for_any_scale_become_zeros(name: str) -> None:
    # The inverse of such a scale is infinite in float32: undefined in the reference, but not here.
    values = np.where(np.arange(256) % 2, np.float32(1e-41), np.float32(-1e-41))[None]
    assert not dense(encode(values, BY_NAME[name])).any()


def test_f16_refuses_finite_values_that_would_become_infinite() -> None:
    assert encode(np.array([np.inf]), F16).data[0] == np.inf
    with pytest.raises(LatticeError, match="65504"):
        encode(np.array([70000.0]), F16)


def test_formats_without_a_quantiser_say_so() -> None:
    with pytest.raises(LatticeError, match=r"format that can be written .*, got q3_k"):
        encode(np.zeros((1, 256)), BY_NAME["q3_k"])


@pytest.mark.parametrize("name", ["q4_1", "q8_0", "q6_k", "iq2_s", "f16", "bf16"])
def test_slabs_give_what_one_piece_gives_and_need_little_memory(name: str) -> None:
    dtype = BY_NAME[name]
    rng = np.random.default_rng(5)
    shape = (40, 16384)  # five slabs
    stored = rng.integers(0, 120, dtype.buffer_shape(shape)).astype(dtype.storage)
    array = Array(stored, dtype, shape)
    tracemalloc.start()
    values = dense(array)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < values.nbytes + (10 << 20)
    for row in (0, 7, 8, 39):
        one = dense(array.rows(slice(row, row + 1)))
        assert same_bits(one, values[row : row + 1])


def test_dense_of_f32_is_the_buffer_itself_and_of_an_ndarray_the_ndarray() -> None:
    values = np.ones((2, 3), np.float32)
    array = Array(values, F32, (2, 3))
    assert dense(array) is values
    assert dense(values) is values


@pytest.mark.parametrize("shape", [(), (0,), (0, 32), (3, 0)])
def test_empty_and_scalar_arrays(shape: tuple[int, ...]) -> None:
    assert dense(encode(np.zeros(shape, np.float32), BF16)).shape == shape
    if shape:
        assert dense(encode(np.zeros(shape, np.float32), Q4_1)).shape == shape


def test_integers_become_their_float32() -> None:
    for name in ("i8", "i16", "i32", "i64", "u8", "f64"):
        dtype = BY_NAME[name]
        data = np.array([[1, 2], [3, 100]], dtype.storage)
        assert dense(Array(data, dtype, (2, 2))).tolist() == [[1, 2], [3, 100]]
