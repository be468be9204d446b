"""Every op, from its own samples: the CPU's targets against the NumPy reference, and gradients against differences."""

from __future__ import annotations

import numpy as np
import pytest
from op_harness import (
    BLOCK_FORMATS,
    FORMATS,
    ON_CARDS,
    as_float64,
    case,
    close,
    eager,
    fitting,
    random_blocks,
    rounded_to_8_bits,
    run,
    sampled_ops,
    samples,
    tolerance,
)

from lattice.backends._backend import Capacity
from lattice.backends.cpu import CpuBackend
from lattice.backends.reference import ReferenceBackend
from lattice.dtypes import BY_NAME, dense, encode
from lattice.errors import LatticeError
from lattice.ops import REGISTRY, Draw, Drawn, append_kv, embedding, paged_attention
from lattice.program import trace
from lattice.step import Step

TRAINING_ONLY = {"cross_entropy"}  # its native kernels come with training


@pytest.mark.parametrize("name", sampled_ops())
def test_program_means_the_same_as_the_call(name):
    op = REGISTRY[name]
    for sample in samples(op):
        made = case(op, sample)
        outputs, _ = run(ReferenceBackend(), made)
        wanted = [w for w, symbol in zip(eager(op, sample), made.outputs, strict=True) if symbol.kind == "value"]
        assert all(np.array_equal(a, b) for a, b in zip(outputs, wanted, strict=True))


@pytest.mark.parametrize("name", [name for name in sampled_ops() if name not in TRAINING_ONLY | {*ON_CARDS}])
def test_cpu_agrees_with_the_reference(name, cpu_target):
    op, backend = REGISTRY[name], CpuBackend(cpu_target)
    assert name in backend.kernels(), f"{name} has no kernel"
    for sample in samples(op):
        made = case(op, sample)
        outputs, state = run(backend, made)
        wanted = eager(op, sample)
        values = [w for w, symbol in zip(wanted, made.outputs, strict=True) if symbol.kind == "value"]
        for got, value in zip(outputs, values, strict=True):
            inputs = [getattr(argument, "value", argument) for argument in sample.args]
            assert close(got, value, tolerance(name)), (sample.attributes, inputs)
        states = [w for w, symbol in zip(wanted, made.outputs, strict=True) if symbol.kind == "state"]
        for got, value in zip(state.values(), states, strict=False):
            assert close(got, value, tolerance(name))


@pytest.mark.parametrize("name", sampled_ops(vjp=True))
def test_gradient_agrees_with_differences(name):
    """d(loss)/d(input) along a random direction, loss = sum(output * fixed), in double precision."""
    op, random = REGISTRY[name], np.random.default_rng(1)
    for sample in map(as_float64, samples(op)):
        values, attributes = op.bind(tuple(a.value if a is not None else None for a in sample.args), sample.attributes)
        values = [_off_the_kink(value) for value in values]
        real = [i for i, v in enumerate(values) if isinstance(v, np.ndarray) and v.dtype == np.float64]
        dys = [random.normal(size=y.shape) for y in _outputs(op, values, attributes)]
        dy = dys[0] if len(dys) == 1 else tuple(dys)
        gradients = dict(op.rules["vjp"]({op.inputs[i] for i in real}, dy, *values, **attributes))
        for i in (i for i in real if op.inputs[i] in gradients):
            direction = random.normal(size=values[i].shape)

            shifted = [
                _outputs(op, [v + shift * direction if j == i else v for j, v in enumerate(values)], attributes)
                for shift in (1e-6, -1e-6)
            ]
            if any((a != b).any() for a, b in zip(*shifted, strict=True) if a.dtype.kind == "i"):
                continue  # a choice that changes here has no derivative to measure
            losses = [sum((y * d).sum() for y, d in zip(outputs, dys, strict=True) if y.dtype.kind == "f")
                      for outputs in shifted]  # fmt: skip
            measured = (losses[0] - losses[1]) / 2e-6
            claimed = float((gradients[op.inputs[i]] * direction).sum())
            assert abs(measured - claimed) <= 2e-5 * max(1.0, abs(measured)), (name, op.inputs[i], attributes)


def _outputs(op, values, attributes):
    result = op(*values, **attributes)
    return result if isinstance(result, tuple) else (result,)


def _off_the_kink(value):
    """Move values away from 0, where relu has no derivative that a difference could measure."""
    if isinstance(value, np.ndarray) and value.dtype == np.float64:
        return np.where(np.abs(value) < 1e-3, 0.5, value)
    return value


def test_gradients_yield_only_what_is_asked():
    x, w = np.ones((2, 3)), np.ones((4, 3))
    rule = REGISTRY["linear"].rules["vjp"]
    assert [name for name, _ in rule({"x"}, np.ones((2, 4)), x, w, None)] == ["x"]
    assert [name for name, _ in rule({"weight"}, np.ones((2, 4)), x, w, None)] == ["weight"]


def test_shape_errors_name_the_op_and_what_was_expected():
    with pytest.raises(LatticeError, match=r"^\[linear\] expected weight of shape \(n, 3\), got \(4, 5\)$"):
        REGISTRY["linear"](np.ones((2, 3)), np.ones((4, 5)))
    with pytest.raises(LatticeError, match=r"^\[activation\] expected kind among .*, got selu$"):
        REGISTRY["activation"](np.ones(3), kind="selu")


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("shape", [(33, 64), (48, 96), (1, 32), (100, 576)])
def test_products_of_every_weight_format(dtype, shape, cpu_target):
    """The CPU multiplies by exactly the values that the format holds; block formats round the activations to 8 bits."""
    random = np.random.default_rng(0)
    shape = (shape[0], fitting(BY_NAME[dtype], shape[1]))
    weight = encode(random.normal(size=shape).astype(np.float32), BY_NAME[dtype])
    op, backend = REGISTRY["linear"], CpuBackend(cpu_target)
    for rows in (1, 2, 3, 5, 7, 17, 64):
        draw = Draw(rows)
        made = case(op, draw.sample(draw.rows(rows, shape[1]), draw.weight(*shape)))
        got = run(backend, made, {"a1": weight})[0][0]
        x = made.inputs["a0"]
        if weight.dtype.block > 1:
            x = rounded_to_8_bits(x)
        wanted = x.astype(np.float64) @ dense(weight).astype(np.float64).T
        assert close(got, wanted, 1e-5)


@pytest.mark.parametrize("dtype", BLOCK_FORMATS)
def test_products_of_every_bit_pattern(dtype, cpu_target):
    """Random blocks reach the ends of integers and factors; activations of one sign make the largest sums."""
    stored = random_blocks(BY_NAME[dtype], 19, 3)
    op, backend = REGISTRY["linear"], CpuBackend(cpu_target)
    x = np.ones((4, stored.shape[1]), np.float32)  # all become 127
    x[1], x[2, ::2], x[3] = -1, -1, np.random.default_rng(1).uniform(-1, 1, x.shape[1])
    made = case(op, Draw().sample(Drawn("input", x, "T"), Draw().weight(*stored.shape)))
    got = run(backend, made, {"a1": stored})[0][0]
    assert close(got, rounded_to_8_bits(x).astype(np.float64) @ dense(stored).astype(np.float64).T, 1e-5)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("tied", [False, True])
def test_tables_of_every_format_give_their_exact_values(dtype, tied, cpu_target):
    """A table is read from the rows of its file, one tied to a head from the tiles of the product: the same bits."""
    dtype, backend = BY_NAME[dtype], CpuBackend(cpu_target)
    plain = (
        encode(np.random.default_rng(0).normal(size=(21, 96)).astype(np.float32), dtype) if dtype.block == 1 else None
    )
    table = plain or random_blocks(dtype, 21, 3)

    def build(p):
        weight = p.input("w", *table.shape, kind="weight")
        outputs = {"rows": embedding(weight, p.input("ids", "T", dtype="i32"))}
        return outputs | ({"logits": REGISTRY["linear"](outputs["rows"], weight)} if tied else {})

    program, ids = trace(build), np.array([20, 0, 1, 2, 15, 16, 17, 3, 20], np.int32)
    plan = backend.compile(program, backend.load(program, {"w": table}), Capacity(tokens=9))
    assert np.array_equal(plan.run(ids=ids)["rows"], dense(table)[ids])


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_row_does_not_depend_on_its_neighbours(dtype, cpu_target):
    """1, 2, 7 and 64 rows, cut everywhere: the same bits."""
    random = np.random.default_rng(0)
    k = fitting(BY_NAME[dtype], 96)
    weight = encode(random.normal(size=(80, k)).astype(np.float32), BY_NAME[dtype])
    x = random.normal(size=(64, k)).astype(np.float32)
    plan = _linear_plan(CpuBackend(cpu_target), weight, 64)
    whole = plan.run(x=x)["y"]
    for rows in (1, 2, 3, 5, 6, 7, 13, 63):
        for start in range(0, 65 - rows, max(1, rows // 2)):
            assert np.array_equal(plan.run(x=x[start : start + rows])["y"], whole[start : start + rows])


def test_threads_do_not_change_bits(cpu_target):
    random = np.random.default_rng(0)
    weight = encode(random.normal(size=(200, 96)).astype(np.float32), BY_NAME["f32"])
    x = random.normal(size=(33, 96)).astype(np.float32)
    results = [_linear_plan(CpuBackend(cpu_target, threads), weight, 64).run(x=x)["y"] for threads in (1, 2, 3)]
    assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2])


def _linear_plan(backend, weight, rows):
    def build(program):
        x = program.input("x", "T", weight.shape[1])
        return {"y": REGISTRY["linear"](x, program.input("w", *weight.shape, kind="weight"))}

    program = trace(build)
    return backend.compile(program, backend.load(program, {"w": weight}), Capacity(tokens=rows))


@pytest.mark.parametrize("dtype", ["f32", "f16", "i8"])
def test_paged_attention_has_the_same_bits_however_a_prompt_is_cut(dtype, cpu_target):
    """k and v are appended and attended to in pieces; every row equals that of the whole prompt."""
    heads, kv_heads, head_dim, total, pages = 6, 2, 16, 200, 5
    random, backend = np.random.default_rng(0), CpuBackend(cpu_target)
    q = random.normal(size=(total, heads * head_dim)).astype(np.float32)
    k, v = (random.normal(size=(total, kv_heads * head_dim)).astype(np.float32) for _ in range(2))
    row = head_dim + 4 * (dtype == "i8")  # a factor behind every key and value
    shapes = (pages, kv_heads, row, 64), (pages, kv_heads, 64, row)

    def build(program):
        step = program.step(4)
        values = [program.input(n, "T", w) for n, w in (("q", q.shape[1]), ("k", k.shape[1]), ("v", v.shape[1]))]
        pools = [program.input(n, *s, kind="state", dtype=dtype) for n, s in zip(("kp", "vp"), shapes, strict=True)]
        pools = append_kv(*pools, values[1], values[2], step)
        return {"o": paged_attention(values[0], *pools, step, scale=0.25)}

    program, table = trace(build), np.array([[4, 0, 3, 1]], np.int32)

    def attend(cuts):
        state = {n: backend.state(s, dtype) for n, s in zip(("kp", "vp"), shapes, strict=True)}
        for pool in state.values():
            pool[...] = -1 if dtype == "i8" else np.nan  # whatever lies in unused places must not matter
        plan = backend.compile(program, None, Capacity(total, total, 1), state)
        outs = []
        for a, b in zip([0, *cuts], [*cuts, total], strict=True):
            step = Step.of([[0] * (b - a)], starts=[a], page_table=table)
            outs.append(plan.run(step, q=q[a:b], k=k[a:b], v=v[a:b])["o"])
        return np.concatenate(outs)

    whole = attend([])
    assert np.isfinite(whole).all()
    for cuts in ([1], [63], [64], [65, 130], list(range(7, total, 7)), list(range(1, total))):
        assert np.array_equal(attend(cuts), whole), cuts


@pytest.mark.parametrize("window", [1, 63, 64, 65, 512])
def test_a_window_in_pages(window, cpu_target):
    """700 tokens in any parts have the same bits, those of the reference; pages before a window are not touched."""
    heads, kv_heads, head_dim, total, pages = 3, 1, 8, 700, 13
    random, backend = np.random.default_rng(0), CpuBackend(cpu_target, threads=1)
    q, k, v = (random.normal(size=(total, n * head_dim)).astype(np.float32) for n in (heads, kv_heads, kv_heads))
    shapes = (pages, kv_heads, head_dim, 64), (pages, kv_heads, 64, head_dim)
    table = random.permutation(pages).astype(np.int32)[None, :11]

    def build(program):
        step = program.step(11)
        values = [program.input(name, "T", x.shape[1]) for name, x in (("q", q), ("k", k), ("v", v))]
        pools = [program.input(name, *s, kind="state") for name, s in zip(("kp", "vp"), shapes, strict=True)]
        pools = append_kv(*pools, values[1], values[2], step)
        return {"o": paged_attention(values[0], *pools, step, scale=0.25, window=window)}

    state = {name: backend.state(shape, "f32") for name, shape in zip(("kp", "vp"), shapes, strict=True)}
    plan = backend.compile(trace(build), None, Capacity(total, total, 1), state)

    def attend(size):
        outs = []
        for pool in state.values():
            pool[...] = np.nan
        for a in range(0, total, size):
            passed = table[0, : max(0, a - window + 1) // 64]  # wholly before the window of the first token to come
            state["kp"][passed] = state["vp"][passed] = np.nan
            step = Step.of([[0] * len(q[a : a + size])], starts=[a], page_table=table)
            outs.append(plan.run(step, q=q[a : a + size], k=k[a : a + size], v=v[a : a + size])["o"])
        return np.concatenate(outs)

    whole = attend(total)
    options = {"head_dim": head_dim, "causal": True, "scale": 0.25, "window": window}
    assert close(whole, REGISTRY["attention"](q, k, v, Step.of([[0] * total]), **options), 1e-5)
    for size in (1, 63, 64, 65, 512):
        assert np.array_equal(attend(size), whole), size


def test_keys_and_values_of_8_bits_keep_what_is_no_number(cpu_target):
    """A key that is not finite may not become a plausible one: whoever sees it gets no number, and nobody else does."""
    backend, shape = CpuBackend(cpu_target), ((1, 1, 12, 64), (1, 1, 64, 12))

    def build(program):
        step = program.step(1)
        q, k, v = (program.input(name, "T", 8) for name in "qkv")
        pools = [program.input(n, *s, kind="state", dtype="i8") for n, s in zip(("kp", "vp"), shape, strict=True)]
        return {"o": paged_attention(q, *append_kv(*pools, k, v, step), step, scale=0.5)}

    state = {name: backend.state(s, "i8") for name, s in zip(("kp", "vp"), shape, strict=True)}
    x = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    for poison in (np.nan, np.inf):
        k = x.copy()
        k[2, 5] = poison
        out = backend.compile(trace(build), None, Capacity(4, 4, 1), state).run(Step.of([[0] * 4]), q=x, k=k, v=x)["o"]
        assert np.isfinite(out[:2]).all() and not np.isfinite(out[2:]).any()
