"""From an op's samples to programs: one description of a case serves every test of the op on every backend."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from lattice.backends._backend import Capacity
from lattice.dtypes import Array, DType
from lattice.ops import REGISTRY, Draw, Drawn, Op, Sample
from lattice.program import Program
from lattice.step import Sampling, Step

# Formats that the CPU multiplies and looks up as they are stored, and a length of rows that holds whole blocks of each.
PLAIN_FORMATS = ("f32", "f16", "bf16")
STATE = {"float16": "f16", "int8": "i8"}  # the others are f32
BLOCK_FORMATS = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q4_k", "q5_k", "q6_k")
ON_CARDS = ("delta_net", "gated_attention", "rotated_kv")  # ops that fusion makes for cards alone
FORMATS = PLAIN_FORMATS + BLOCK_FORMATS
ROW_FORMATS = ("row8", "row16")  # what products may be rounded to; no file holds them


def fitting(dtype: DType, k: int) -> int:
    """Return k, a multiple of 32, times what makes it as many blocks of `dtype` as it is blocks of 32."""
    return k * max(1, dtype.block // 32)


def samples(op: Op) -> list[Sample]:
    """Return the op's cases, the same ones every time."""
    return list(op.rules["samples"](Draw()))


def sampled_ops(*, vjp: bool = False) -> list[str]:
    """Return the names of ops with samples, and with a gradient if asked for."""
    return sorted(n for n, op in REGISTRY.items() if "samples" in op.rules and (not vjp or "vjp" in op.rules))


def eager(op: Op, sample: Sample) -> tuple[np.ndarray, ...]:
    """Return the reference's outputs; state buffers are copied first."""
    args = [_value(argument) for argument in sample.args]
    result = op(*args, **sample.attributes)
    return result if isinstance(result, tuple) else (result,)


def _value(argument: Drawn | None) -> Any:
    if argument is None:
        return None
    return argument.value.copy() if argument.kind == "state" else argument.value


@dataclass
class Case:
    """A sample as a program with its inputs by name."""

    program: Program
    outputs: list[Any]
    inputs: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]
    state: dict[str, np.ndarray]
    records: dict[str, Any]  # step and sampling
    capacity: Capacity


def case(op: Op, sample: Sample) -> Case:
    """Trace the sample; inputs become "a0", "a1", ..."""
    program = Program()
    made = Case(program, [], {}, {}, {}, {}, Capacity())
    symbols = [_enter(made, f"a{i}", argument) for i, argument in enumerate(sample.args)]
    result = op(*symbols, **sample.attributes)
    made.outputs = list(result) if isinstance(result, tuple) else [result]
    program.outputs = {f"out{i}": s for i, s in enumerate(made.outputs) if s.kind == "value"}
    counts = {"T": 1, "R": 1, "S": 1}
    for symbol in program.inputs:
        value = made.inputs.get(symbol.name)
        if value is None or not symbol.shape or not isinstance(symbol.shape[0], str):
            continue
        name, _, extra = symbol.shape[0].partition("+")
        counts[name] = len(value) - int(extra or 0)
    made.capacity = Capacity(counts["T"], counts["R"], counts["S"])
    return made


def _enter(made: Case, name: str, argument: Drawn | None) -> Any:
    if argument is None:
        return None
    value, program = argument.value, made.program
    if isinstance(value, Step):
        made.inputs.update({f.name: getattr(value, f.name) for f in fields(value)})
        made.records["step"] = value
        return program.step(value.page_table.shape[1])
    if isinstance(value, Sampling):
        made.inputs.update({f.name: getattr(value, f.name) for f in fields(value)})
        made.records["sampling"] = value
        return program.sampling(len(value.edit_ids))
    if argument.kind == "weight":
        made.weights[name] = value
        return program.input(name, *value.shape, kind="weight")
    if argument.kind == "state":
        made.state[name] = value.copy()
        return program.input(name, *value.shape, kind="state", dtype=STATE.get(value.dtype.name, "f32"))
    made.inputs[name] = value
    dtype = "i32" if value.dtype == np.int32 else "f32"
    return program.input(name, argument.count, *value.shape[1:], dtype=dtype)


def run(backend: Any, made: Case, weights: dict | None = None) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """Run a case on a backend and return the outputs in order and the state it left."""
    state = {}
    for name, value in made.state.items():
        symbol = next(s for s in made.program.inputs if s.name == name)
        state[name] = backend.state(value.shape, symbol.dtype)
        state[name][...] = value
    loaded = backend.load(made.program, made.weights if weights is None else weights)
    plan = backend.compile(made.program, loaded, made.capacity, state)
    arguments = {name: value for name, value in made.inputs.items() if name.startswith("a") and name[1:].isdigit()}
    outputs = plan.run(made.records.get("step"), made.records.get("sampling"), **arguments)
    return [outputs[name] for name in made.program.outputs], state


def close(got: np.ndarray, wanted: np.ndarray, tolerance: float) -> bool:
    """The house's tolerance: |error| <= tolerance * max(1, largest absolute value); NaN never passes."""
    if got.shape != wanted.shape:
        return False
    if np.issubdtype(wanted.dtype, np.integer):
        return bool(np.array_equal(got, wanted))
    error = np.abs(got.astype(np.float64) - wanted)
    return bool((error <= tolerance * max(1.0, float(np.abs(wanted).max(initial=0)))).all())


def tolerance(name: str) -> float:
    """Return how far an op's kernel may be from the reference; what only moves values may not be at all."""
    known = {"activation": 2e-6, "add": 0, "mul": 0, "take_rows": 0, "embedding": 0, "append_kv": 0}
    return known.get(name, 1e-5)


def random_blocks(dtype, rows, blocks):
    """Return an Array of random bytes but for its f16 numbers, which are about 1 in magnitude."""
    random = np.random.default_rng(dtype.nbytes)
    data = random.integers(0, 256, (rows, blocks, dtype.nbytes), dtype=np.uint8)
    data[:2, :, :] = np.array([0, 255], np.uint8)[:, None, None]
    for at in (208,) if dtype.name == "q6_k" else (0, 2) if dtype.name in ("q4_1", "q5_1", "q4_k", "q5_k") else (0,):
        halves = (random.uniform(0.5, 1, (rows, blocks, 1)) * random.choice([-1, 1], (rows, blocks, 1))).astype("<f2")
        data[:, :, at : at + 2] = halves.view(np.uint8)
    return Array(data, dtype, (rows, blocks * dtype.block))


def rounded_to_8_bits(x):
    """Return activations as the integer kernels see them: 32 values share the scale max|x| / 127."""
    blocks = x.reshape(-1, 32)
    largest = np.abs(blocks).max(1, keepdims=True)
    inverse = np.where(largest > 0, np.float32(127) / np.where(largest > 0, largest, 1), 0).astype(np.float32)
    scale = largest * np.float32(1 / 127)
    return (np.rint(blocks * inverse) * scale).reshape(x.shape)


def row_product(products, x, weight):
    """Return x @ weight.T with both rounded to integers with one scale a row, as src/rows.h defines them."""
    f32 = np.float32
    largest = np.abs(weight).max(1)
    if products == "row8":
        pairs = np.abs(np.pad(weight, ((0, 0), (0, weight.shape[1] % 2)))).reshape(len(weight), -1, 2).sum(-1).max(1)
        scale, limit, rms = np.maximum(largest / f32(127), pairs / f32(170.9)), f32(95), np.sqrt((x * x).mean(1))
        reach = np.minimum(np.abs(x).max(1), 4 * rms.astype(f32))
    else:
        scale, limit, reach = largest / f32(2047), f32(2047), np.abs(x).max(1)
    q = np.round(x * (limit / reach)[:, None]).astype(np.int64)
    w = np.round(weight / scale[:, None]).astype(np.int64)
    chunk = 1 << 30 if products == "row8" else 512
    sums = [(q[:, i : i + chunk] @ w[:, i : i + chunk].T).astype(f32) for i in range(0, x.shape[1], chunk)]
    total = sums[0]
    for part in sums[1:]:
        total = total + part
    return total * (scale[None] * (reach / limit)[:, None])


def as_float64(sample: Sample) -> Sample:
    """Return the sample with its real values in double precision."""

    def widen(argument: Drawn | None) -> Drawn | None:
        if argument is None or not isinstance(argument.value, np.ndarray) or argument.value.dtype != np.float32:
            return argument
        return replace(argument, value=argument.value.astype(np.float64))

    return Sample(tuple(map(widen, sample.args)), sample.attributes)
