"""The GPU backend on the software adapter: every op from its samples, every format, whole models beside the CPU.

CI has no card, so Mesa's lavapipe runs the shaders; `make gpu-test` runs this file on the machine's card. Without any
adapter these tests fail: they are never skipped.
"""

from __future__ import annotations

import os
from contextlib import nullcontext

import numpy as np
import pytest
from op_harness import FORMATS, Sample, case, close, eager, fitting, random_blocks, run, samples, tolerance
from small_models import copy_model, draw_tokens, hybrid_model

from lattice.backends._backend import run_plans
from lattice.backends.cpu import CpuBackend
from lattice.backends.select import select
from lattice.backends.wgpu import WgpuBackend, device, native, open_device, shader
from lattice.dtypes import BY_NAME, dense, encode
from lattice.errors import LatticeError, LatticeWarning
from lattice.generate.model import LanguageModel
from lattice.models import family
from lattice.ops import REGISTRY, Draw, Drawn
from lattice.ops.attention import _keys, _to_floats
from lattice.program import Program
from lattice.step import PAGE_TOKENS, Step
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


@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_read_as_they_are_stored(name, gpu):
    dtype, random = BY_NAME[name], np.random.default_rng(5)
    for rows, n, k in ((1, 33, 64), (5, 70, 160), (40, 130, 96)):
        k = fitting(dtype, k)
        plain = random.normal(size=(n, k)).astype(np.float32)
        weight = random_blocks(dtype, n, k // dtype.block) if dtype.block > 1 else encode(plain, dtype)
        x, exact = random.normal(size=(rows, k)).astype(np.float32), dense(weight)
        made = case(REGISTRY["linear"], Sample((Drawn("input", x, "T"), Drawn("weight", exact), None), {}))
        assert close(run(gpu, made, {"a1": weight})[0][0], x.astype(np.float64) @ exact.T.astype(np.float64), 2e-6)
        ids = Drawn("input", random.integers(0, n, rows).astype(np.int32), "T")
        made = case(REGISTRY["embedding"], Sample((Drawn("weight", exact), ids), {}))
        assert close(run(gpu, made, {"a0": weight})[0][0], exact[ids.value], 1e-7)


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
