"""The GPU backend on the software adapter: every op from its samples, every format, whole models beside the CPU.

CI has no card, so Mesa's lavapipe runs the shaders; `make gpu-test` runs this file on the machine's card. Without any
adapter these tests fail: they are never skipped.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import fields, replace

import numpy as np
import pytest
from op_harness import FORMATS, Sample, case, close, eager, fitting, random_blocks, run, samples, tolerance
from small_models import copy_model, draw_tokens, hybrid_model

from lattice.backends._backend import run_plans
from lattice.backends.cpu import CpuBackend
from lattice.backends.select import select
from lattice.backends.wgpu import WgpuBackend, device, native, open_device, shader
from lattice.dtypes import BY_NAME, Array, dense, encode, split
from lattice.errors import LatticeError, LatticeWarning
from lattice.generate.model import LanguageModel
from lattice.models import family
from lattice.ops import REGISTRY, Draw, Drawn
from lattice.ops.attention import _keys, _to_floats, draw_pages, paged_step
from lattice.program import Program
from lattice.step import PAGE_TOKENS, Sampling, Step
from lattice.weights.load import open_model

ON_A_CARD = "LATTICE_TEST_CARD" in os.environ
# Of many samples, every so manieth: a shader takes half a second to build.
FEW = {"attention": 5, "gated_attention": 3, "paged_attention": 7, "project": 5}


@pytest.fixture(scope="module")
def gpu():
    return WgpuBackend(open_device(software=not ON_A_CARD))


def same(got, wanted, name):
    """Whether results agree: within the op's tolerance, and what is stored in fewer bits within one step of them.

    Cards round the division that gives a page's factor either way, and then a number may be the next one; what was
    computed before it is stored may be the next one everywhere.
    """
    computed = name == "rotated_kv"
    if wanted.dtype != np.int8:
        step = 1e-3 * (computed and wanted.dtype == np.float16)
        return close(got, wanted, max(tolerance(name), 1e-6 * ON_A_CARD, step))
    unpack = _to_floats if wanted.shape[-2] == PAGE_TOKENS else lambda pages: _to_floats(_keys(pages))
    return close(*map(unpack, (got, wanted)), 1.01 / 127 if ON_A_CARD or computed else 0)


def test_every_forward_op_has_a_kernel(gpu):
    forward = {name for name in REGISTRY if not name.endswith(("_dx", "_dw", "_grad", "_dgate"))}
    assert forward - gpu.kernels() == {"cross_entropy", "sum_rows"}  # of training


@pytest.mark.parametrize("name", sorted(shader.names()))
def test_agrees_with_the_reference(name, gpu):
    op = REGISTRY[name]
    for sample in samples(op)[:: FEW.get(name, 1)]:
        made = case(op, sample)
        outputs, state = run(gpu, made)
        wanted = list(zip(eager(op, sample), made.outputs, strict=True))
        got = [*outputs, *map(np.asarray, state.values())]
        values = [w for w, symbol in wanted if symbol.kind == "value"]
        values += [w for w, symbol in wanted if symbol.kind == "state"]
        for one, value in zip(got, values, strict=False):
            assert same(one, value, name), sample.attributes


@pytest.mark.parametrize("name", ["linear", "project"])
@pytest.mark.parametrize("wide", [False, True])
def test_both_entries_agree_with_the_reference(name, wide, gpu, monkeypatch):
    """Of rows between decoding and prompts, which a wide card takes by themselves, and others in tiles."""
    monkeypatch.setattr(gpu.device, "wide", wide)
    many = [sample for sample in samples(REGISTRY[name]) if len(sample.args[0].value) > shader.FEW]
    assert many
    for sample in many[:: FEW.get(name, 1)]:
        outputs, _ = run(gpu, case(REGISTRY[name], sample))
        for got, wanted in zip(outputs, eager(REGISTRY[name], sample), strict=True):
            assert same(got, wanted, name), sample.attributes


@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_read_as_they_are_stored(name, gpu):
    dtype, random = BY_NAME[name], np.random.default_rng(5)
    for rows, n, k in ((1, 33, 64), (5, 70, 160), (40, 130, 96), (140, 130, 96)):
        k = fitting(dtype, k)
        plain = random.normal(size=(n, k)).astype(np.float32)
        weight = random_blocks(dtype, n, k // dtype.block) if dtype.block > 1 else encode(plain, dtype)
        x, exact = random.normal(size=(rows, k)).astype(np.float32), dense(weight)
        made = case(REGISTRY["linear"], Sample((Drawn("input", x, "T"), Drawn("weight", exact), None), {}))
        assert close(run(gpu, made, {"a1": weight})[0][0], x.astype(np.float64) @ exact.T.astype(np.float64), 2e-6)
        ids = Drawn("input", random.integers(0, n, rows).astype(np.int32), "T")
        made = case(REGISTRY["embedding"], Sample((Drawn("weight", exact), ids), {}))
        assert close(run(gpu, made, {"a0": weight})[0][0], exact[ids.value], 1e-7)


@pytest.mark.parametrize("name", FORMATS)
def test_experts_are_read_and_held_as_they_are_stored(name, gpu):
    """Few tokens and many, gate and up apart and in one; on the card lie the planes of each weight and nothing else."""
    random, other = np.random.default_rng(2), FORMATS[(FORMATS.index(name) + 3) % len(FORMATS)]
    experts, top_k = 5, 3
    n = m = fitting(BY_NAME["q4_k"], 32)
    for tokens, apart, names in ((2, True, (name, other, other)), (40, False, (name, None, other))):
        shapes = ((m, n), (m, n), (n, m)) if apart else ((2 * m, n), None, (n, m))
        held = [
            None if shape is None else some_experts(BY_NAME[dtype], experts, *shape, random)
            for dtype, shape in zip(names, shapes, strict=True)
        ]
        x, weights = (random.normal(size=(tokens, width)).astype(np.float32) for width in (n, top_k))
        x *= 1e-3  # experts of random bits are large
        weights[tokens // 2, 1] = 0
        ids = np.argsort(random.random((tokens, experts)))[:, :top_k].astype(np.int32)
        drawn = [None if weight is None else Drawn("weight", dense(weight)) for weight in held]
        inputs = [Drawn("input", value, "T") for value in (x, ids, weights)]
        sample = Sample((*inputs, *drawn), {"kind": "silu"})
        made = case(REGISTRY["mixture"], sample)
        given = {f"a{3 + place}": weight for place, weight in enumerate(held) if weight is not None}
        with np.errstate(over="ignore"):
            wanted = eager(REGISTRY["mixture"], sample)[0]
        assert close(run(gpu, made, given)[0][0], wanted, 1e-5)
        loaded = gpu.load(made.program, given)
        for key, weight in given.items():
            assert loaded.placed[key].bytes == sum(plane.nbytes for plane in split(weight).values())
            assert loaded.placed[key].parts[0].dtype == weight.dtype.name


def some_experts(dtype, experts, rows, columns, random):
    """Return experts (experts, rows, columns) of a format."""
    if dtype.block == 1:
        return encode(random.normal(size=(experts, rows, columns)).astype(np.float32), dtype)
    flat = random_blocks(dtype, experts * rows, columns // dtype.block)
    return Array(flat.data.reshape(experts, rows, *flat.data.shape[1:]), dtype, (experts, rows, columns))


def test_experts_beyond_what_can_be_bound_are_an_error(gpu, monkeypatch):
    monkeypatch.setattr(gpu.device, "largest", 4096)
    made = case(REGISTRY["mixture"], samples(REGISTRY["mixture"])[-1])
    with pytest.raises(LatticeError, match="MB of experts in a tensor"):
        gpu.load(made.program, made.weights)


def rows_of_logits(vocab):
    """Rows such as samplers must bear: their names and logits."""
    random = np.random.default_rng(11)
    drawn = random.standard_normal((8, vocab)).astype(np.float32)
    yield "flat", 0.6 * drawn[0]
    yield "steep", 12 * drawn[1]
    yield "equal", np.full(vocab, 3.25, np.float32)
    yield "few values", np.round(2 * drawn[2])
    yield "one far below", np.where(np.arange(vocab) == 7, np.float32(-1e30), drawn[3])
    yield "forbidden", np.where(random.random(vocab) < 0.999, np.float32(-np.inf), drawn[4])
    yield "no numbers", np.where(random.random(vocab) < 0.5, np.float32(np.nan), drawn[5])
    yield "none", np.full(vocab, -np.inf, np.float32)
    yield "endless", np.where(np.arange(vocab) == 70, np.float32(np.inf), drawn[6])
    yield "one", np.where(np.arange(vocab) == 9, drawn[7], np.float32(-np.inf))


@pytest.mark.parametrize("vocab", [2, 130, 2047, 2048, 4097, 20_000])
def test_draws_are_the_reference_s_whatever_the_logits(vocab, gpu):
    """Settings meet rows of every kind; a row's token does not depend on those beside it, as many as there are."""
    names, logits = zip(*rows_of_logits(vocab), strict=True)
    settings = [
        dict(temperature=1.0), dict(temperature=0.8, top_p=0.95), dict(temperature=1.0, top_k=40),
        dict(temperature=1.0, min_p=0.05), dict(temperature=0.7, top_k=50, top_p=0.9, min_p=0.01),
        dict(temperature=100.0, top_p=0.99737), dict(temperature=0.01, top_k=3), dict(temperature=0.0),
        dict(temperature=1e-3, top_p=0.5), dict(temperature=1e30, top_k=vocab - 1), dict(temperature=2.0, top_p=1e-9),
    ]  # fmt: skip
    rows, plain = len(names), Sampling.greedy(len(names))
    for each in settings:
        given = dict(seed=np.arange(rows), position=np.arange(rows, dtype=np.int32))
        given |= {name: np.full_like(getattr(plain, name), value) for name, value in each.items()}
        sampling = replace(plain, **given)
        sample = Sample((Drawn("input", np.stack(logits), "R"), Drawn("sampling", sampling)), {})
        with np.errstate(all="ignore"):
            wanted = eager(REGISTRY["sample"], sample)[0]
        got = run(gpu, case(REGISTRY["sample"], sample))[0][0]
        assert dict(zip(names, got, strict=True)) == dict(zip(names, wanted, strict=True)), each
    sampling = Sampling.greedy(1)
    sampling = replace(sampling, temperature=np.float32([1]), top_p=np.float32([0.9]), seed=np.int64([3]))
    many = replace(
        Sampling.greedy(20), **{f.name: np.repeat(getattr(sampling, f.name), 20) for f in fields(sampling)[:9]}
    )
    tokens = []
    for each in (sampling, many):
        rows = np.repeat(logits[0][None], len(each.seed), axis=0)
        sample = Sample((Drawn("input", rows, "R"), Drawn("sampling", each)), {})
        tokens += run(gpu, case(REGISTRY["sample"], sample))[0][0].tolist()
    assert len(set(tokens)) == 1


@pytest.mark.parametrize("norm", [None, "rms", "layer"])
def test_many_tokens_by_many_rows(norm, gpu):
    """Products of several tiles whose last ones are not whole."""
    random = np.random.default_rng(6)
    x, weight, residual = (random.normal(size=shape).astype(np.float32) for shape in ((150, 72), (140, 72), (150, 140)))
    known = [Drawn("weight", random.normal(size=72).astype(np.float32)) for _ in range(2)]
    norms = {None: [None, None], "rms": [known[0], None], "layer": known}[norm]
    bias = Drawn("weight", np.arange(140, dtype=np.float32))
    for gated in (False, True):
        made = [Drawn("weight", weight), bias, *([Drawn("weight", weight[::-1].copy()), None] if gated else [None] * 2)]
        added = None if gated else Drawn("input", residual, "T")
        arguments = (Drawn("input", x, "T"), *norms, added, *made, *[None] * 4)
        kind = "silu" if gated else None
        sample = Sample(arguments, {"norm": norm, "eps": 1e-6, "kind": kind, "gated": gated})
        wanted = eager(REGISTRY["project"], sample)[0]
        assert close(run(gpu, case(REGISTRY["project"], sample))[0][0], wanted, 1e-5)


def test_a_matrix_beyond_what_can_be_bound_is_cut(gpu, monkeypatch):
    monkeypatch.setattr(gpu.device, "largest", 4096)
    for name in ("linear", "project", "embedding"):
        for sample in samples(REGISTRY[name])[::2]:
            made = case(REGISTRY[name], sample)
            for got, wanted in zip(run(gpu, made)[0], eager(REGISTRY[name], sample), strict=True):
                assert close(got, wanted, 1e-5)


def test_siblings_of_several_formats(gpu):
    """Neighbours of one format are one matrix, others their own; a gated pair of two formats works all the same."""
    random, plain = np.random.default_rng(3), {"norm": None, "eps": 0.0, "kind": None, "gated": False}
    formats = ["q8_0", "q8_0", "q4_0", "f16"]
    made = [encode(random.normal(size=(24, 64)).astype(np.float32), BY_NAME[name]) for name in formats]
    x, bias = (
        Drawn("input", random.normal(size=(5, 64)).astype(np.float32), "T"),
        Drawn("weight", np.arange(24.0, dtype=np.float32)),
    )
    for gated, biases in ((False, [None, bias, bias, None]), (True, [bias, None])):
        chosen = made[1:3] if gated else made
        args = [
            part for weight, each in zip(chosen, biases, strict=True) for part in (Drawn("weight", dense(weight)), each)
        ]
        sample = Sample(
            (x, None, None, None, *args, *[None] * (8 - len(args))), plain | {"gated": gated, "kind": "silu"}
        )
        program = case(REGISTRY["project"], sample)
        weights = program.weights | {f"a{4 + 2 * i}": weight for i, weight in enumerate(chosen)}
        with pytest.warns(LatticeWarning, match="held as f32") if gated else nullcontext():
            outputs, _ = run(gpu, program, weights)
        for got, wanted in zip(outputs, eager(REGISTRY["project"], sample), strict=True):
            assert close(got, wanted, 1e-5)


@pytest.mark.parametrize("lengths", [(1,), (7, 3), (25,)])
def test_a_delta_net_bears_what_is_no_number(lengths, gpu):
    """Whatever a token holds, what the layer gives and keeps of the delta rule is what the reference says."""
    op, total = REGISTRY["delta_net"], sum(lengths)
    sample = next(s for s in samples(op) if s.attributes["value_heads"] == 6)
    step = Step.of([[0] * n for n in lengths], starts=[3] * len(lengths), slots=range(len(lengths)))
    draw = Draw(7)
    args = [draw.rows(total, arg.value.shape[1]) if arg.kind == "input" else arg for arg in sample.args[:-1]]
    states = [draw.state(len(lengths), *arg.value.shape[1:]) for arg in args[:2]]
    for place, poison in enumerate((np.nan, np.inf, -np.inf, 3e38)):
        args[2].value[place % total, 3 * place :: 11] = poison
        args[4].value[(place + 1) % total, place] = args[5].value[place % total, place + 1] = poison
    poisoned = Sample((*states, *args[2:], Drawn("step", step)), sample.attributes)
    with np.errstate(all="ignore"):
        _, kept, wanted = eager(op, poisoned)
    (got,), found = run(gpu, case(op, poisoned))
    assert np.isfinite(wanted).all() and close(got, wanted, 1e-5)
    assert close(np.asarray(found["a1"]), kept, 1e-5)


# Heads, of keys, head_dim, window, (starts, lengths): pages of one token and of several, more than splits, in windows.
DEEP = (
    (8, 2, 64, 0, ((900,), (1,))), (6, 1, 20, 300, ((1000, 70, 0), (3, 1, 2))), (5, 1, 16, 0, ((700,), (16,))),
    (2, 2, 8, 130, ((9000,), (1,))), (1, 1, 8, 0, ((9000,), (2,))), (3, 1, 260, 0, ((200,), (20,))),
)  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8])
def test_attention_shares_many_pages(dtype, gpu):
    op, draw = REGISTRY["paged_attention"], Draw(11)
    for heads, kv_heads, head_dim, window, (starts, lengths) in DEEP:
        step, pages = paged_step(draw, starts, lengths)
        pools = draw_pages(draw, pages, kv_heads, head_dim, dtype)
        q = draw.rows(sum(lengths), heads * head_dim)
        sample = draw.sample(q, *pools, step, scale=head_dim**-0.5, window=window)
        (got,), _ = run(gpu, case(op, sample))
        assert same(got, eager(op, sample)[0], op.name), (heads, window, starts)


def test_scratch_memory_is_what_a_kernel_asks_for():
    shares = {"q_columns": 4096, "k_pages_part": 130, "k_pages_dim": 128}
    assert sum(size.at([]) for size in shader.source("paged_attention").scratch(shares)) == 32 * 128 * 130
    experts = {"x_count": 0, "ids_columns": 8, "down_2": 768, "x_columns": 2048}
    assert sum(size.at([5]) for size in shader.source("mixture").scratch(experts)) == 5 * 8 * (768 + 2048 + 4)


def test_without_features_results_are_the_same(gpu):
    plain = WgpuBackend(open_device(software=not ON_A_CARD, without=frozenset(device.FEATURES)))
    assert not plain.device.features
    for name in ("project", "append_kv", "rms_norm", "slot_gated_delta"):
        for sample in samples(REGISTRY[name])[:3]:
            made = case(REGISTRY[name], sample)
            for one, other in zip(run(plain, made)[0], run(gpu, made)[0], strict=True):
                assert np.array_equal(one, other)


def test_without_the_library_s_own_functions_steps_are_the_same(gpu, monkeypatch):
    made = case(REGISTRY["paged_attention"], samples(REGISTRY["paged_attention"])[0])
    quick = run(gpu, made)[0]
    monkeypatch.setattr(native, "lib", None)
    assert np.array_equal(run(gpu, made)[0][0], quick[0])


def test_buffers_read_and_write_what_is_named(gpu):
    buffer, wanted = gpu.state((4, 2, 6), "f32"), np.zeros((4, 2, 6), np.float32)
    changes = [(slice(None), 1.5), (2, 3.0), ((1, slice(None), 4), 7.0), (slice(1, 3), 9.0), ((3, 1), 2.0)]
    for key, value in changes:
        buffer[key] = wanted[key] = value
        assert np.array_equal(np.asarray(buffer), wanted)
        assert np.array_equal(buffer[key], wanted[key])
    assert (len(buffer), buffer.nbytes, buffer.shape) == (4, 192, (4, 2, 6))


def test_plans_run_together_and_pass_values_on(gpu):
    first, second = Program(), Program()
    x = first.input("x", "T", 8)
    first.outputs = {"y": REGISTRY["scale"](x, factor=2.0)}
    second.outputs = {"z": REGISTRY["scale"](second.input("y", "T", 8), factor=3.0)}
    one = gpu.compile(first)
    two = gpu.compile(second, bound={"y": one.outputs["y"]})
    values = np.arange(8, dtype=np.float32)[None]
    one.write(x=values)
    two.counts[:] = one.counts
    run_plans([one, two])
    assert np.array_equal(two.output("z"), 6 * values)


MODELS = {
    "llama": lambda path: copy_model(path),
    "hybrid": lambda path: hybrid_model(path),
}


@pytest.mark.parametrize("kv", ["f32", "f16", "q8"])
@pytest.mark.parametrize("name", MODELS)
def test_models_agree_with_the_cpu(name, kv, gpu, tmp_path):
    path = MODELS[name](tmp_path)
    ours, cpu = (
        LanguageModel(open_model(path, family), backend, kv=kv, context=256, draft=None)
        for backend in (gpu, CpuBackend())
    )
    tokens = draw_tokens(90)
    got, wanted = ours.logits(tokens), cpu.logits(tokens)
    assert np.abs(got - wanted).max() <= (1e-4 if kv == "f32" else 2e-2) * np.abs(wanted).max()
    if kv == "f32":
        for settings in ({"temperature": 0}, {"temperature": 0.9, "top_k": 40, "top_p": 0.9, "seed": 5}):
            assert (
                ours.generate(tokens, max_tokens=8, **settings).tokens
                == cpu.generate(tokens, max_tokens=8, **settings).tokens
            )
        # A second prompt goes on behind the pages and the state of the first.
        again = [*tokens, *draw_tokens(5, 3)]
        stream, other = (lm.stream(again, max_tokens=4, temperature=0) for lm in (ours, cpu))
        assert [chunk.token for chunk in stream] == [chunk.token for chunk in other]
        assert stream.usage.reused_tokens == other.usage.reused_tokens > 0


def test_without_a_card_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setattr(device.wgpu.gpu, "enumerate_adapters_sync", lambda: [])
    open_device.cache_clear()
    with pytest.raises(LatticeError, match=r"(?s)expected a card .* got none.*--device cpu"):
        select("gpu")


def test_a_software_adapter_is_not_taken_unasked(gpu):
    if gpu.device.software:
        open_device.cache_clear()
        with pytest.raises(LatticeError, match="only software adapters"):
            select("gpu")


def test_memory_that_is_not_there_is_an_error(gpu):
    with pytest.raises(LatticeError, match="expected"):
        gpu.device.buffer(1 << 45)
