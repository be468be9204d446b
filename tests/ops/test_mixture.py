"""Mixtures of experts beyond the samples: torch's block, a plain loop, ties, broken routers, cuts, formats, files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from op_harness import FORMATS, PLAIN_FORMATS, close, fitting, random_blocks

from lattice.backends._backend import Capacity
from lattice.backends.cpu import CpuBackend
from lattice.backends.reference import ReferenceBackend
from lattice.dtypes import BY_NAME, Array, dense, encode
from lattice.errors import LatticeError
from lattice.nn import MoE
from lattice.ops import mixture, route
from lattice.program import gradients, trace
from lattice.weights.checkpoint import Checkpoint
from lattice.weights.gguf import GGUFFile
from lattice.weights.gguf_write import write_gguf
from lattice.weights.load import Weights, _Source
from lattice.weights.safetensors import SafetensorsFile, save_safetensors

GOLDEN = Path(__file__).parents[1] / "golden" / "mixture.npz"  # by make_mixture.py


def plain_loop(x, logits, gate, up, down, top_k):
    """Return the routed part of every token in double precision, one token and one expert at a time."""
    x, logits, gate, up, down = (np.asarray(value, np.float64) for value in (x, logits, gate, up, down))
    y = np.zeros_like(x)
    for t in range(len(x)):
        p = np.exp(logits[t] - logits[t].max())
        p /= p.sum()
        chosen = sorted(range(len(p)), key=lambda e: (-p[e], e))[:top_k]
        for e in chosen:
            gated = gate[e] @ x[t]
            y[t] += p[e] / p[chosen].sum() * (down[e] @ (gated / (1 + np.exp(-gated)) * (up[e] @ x[t])))
    return y


def plan_of(backend, weights, top_k, width, capacity=64):
    """Return a plan of route and mixture over gate, up (or None) and down."""
    names = [name for name, w in zip(("gate", "up", "down"), weights, strict=True) if w is not None]
    given = dict(zip(names, (w for w in weights if w is not None), strict=True))

    def build(p):
        symbols = {name: p.input(name, *given[name].shape, kind="weight") for name in names}
        x, logits = p.input("x", "T", width), p.input("logits", "T", weights[0].shape[0])
        ids, shares = route(logits, top_k=top_k)
        y = mixture(x, ids, shares, symbols["gate"], symbols.get("up"), symbols["down"], kind="silu")
        return {"y": y, "ids": ids, "weights": shares}

    program = trace(build)
    return backend.compile(program, backend.load(program, given), Capacity(tokens=capacity))


def experts(count, inner, width, seed=0):
    random = np.random.default_rng(seed)
    shapes = (count, inner, width), (count, inner, width), (count, width, inner)
    return [random.normal(size=shape).astype(np.float32) / np.float32(shape[2] ** 0.5) for shape in shapes]


@pytest.mark.parametrize("split", [False, True])
def test_the_block_of_transformers_and_its_gradients(split):
    golden = np.load(GOLDEN)
    module = MoE(10, 7, 6, 9, 3, "silu", split)
    weights = {name[len("weight/") :]: golden[name] for name in golden if name.startswith("weight/")}
    wanted = {name[len("grad/") :]: golden[name] for name in golden if name.startswith("grad/")}
    if split:
        for each in weights, wanted:
            halves = np.split(each.pop("experts.gate_up_proj"), 2, axis=1)
            each["experts.gate_proj"], each["experts.up_proj"] = map(np.ascontiguousarray, halves)
    assert set(module.parameters()) == set(weights)

    def build(p):
        x = p.input("x", "T", 10)
        y = module(x)
        symbols = {"x": x, **{parameter.name: symbol for parameter, symbol in p.parameters.values()}}
        made = gradients(p, y, list(symbols.values()), p.input("dy", "T", 10))
        return {"y": y, **dict(zip(symbols, made, strict=True))}

    program, backend = trace(build), ReferenceBackend()
    outputs = backend.compile(program, backend.load(program, weights)).run(x=golden["x"], dy=golden["dy"])
    assert close(outputs["y"], golden["y"], 1e-5)
    for name, value in wanted.items():
        assert close(outputs[name], value, 1e-5), name

    forward, cpu = trace(lambda p: {"y": module(p.input("x", "T", 10))}), CpuBackend()
    plan = cpu.compile(forward, cpu.load(forward, weights), Capacity(tokens=12))
    assert close(plan.run(x=golden["x"])["y"], golden["y"], 1e-5)


@pytest.mark.parametrize("split", [False, True])
def test_256_experts_against_a_plain_loop(split, cpu_target):
    random = np.random.default_rng(1)
    gate, up, down = experts(256, 12, 20)
    x, logits = (random.normal(size=(50, n)).astype(np.float32) for n in (20, 256))
    joined = (gate, up) if split else (np.concatenate([gate, up], 1), None)
    got = plan_of(CpuBackend(cpu_target), (*joined, down), 8, 20).run(x=x, logits=logits)["y"]
    assert close(got, plain_loop(x, logits, gate, up, down, 8), 1e-5)


@pytest.mark.parametrize("dtype", FORMATS)
def test_every_format_of_experts(dtype, cpu_target):
    """The values that the format holds, in the rows of the file; nothing is rounded to 8 bits."""
    n, m, random, made = fitting(BY_NAME[dtype], 32), fitting(BY_NAME[dtype], 32), np.random.default_rng(2), []
    for weight in experts(5, m, n):
        if dtype in PLAIN_FORMATS:
            made.append(encode(weight, BY_NAME[dtype]))
            continue
        rows, columns = weight.shape[0] * weight.shape[1], weight.shape[2]
        blocks = random_blocks(BY_NAME[dtype], rows, columns // BY_NAME[dtype].block)
        made.append(Array(blocks.data.reshape(*weight.shape[:2], -1, blocks.dtype.nbytes), blocks.dtype, weight.shape))
    x = random.normal(size=(9, n)).astype(np.float32) / np.float32(n)
    logits = random.normal(size=(9, 5)).astype(np.float32)
    got = plan_of(CpuBackend(cpu_target), made, 2, n).run(x=x, logits=logits)["y"]
    wanted = plain_loop(x, logits, *map(dense, made), 2)
    assert close(got / np.abs(wanted).max(), wanted / np.abs(wanted).max(), 1e-5)


@pytest.mark.parametrize("dtype", ["f32", "bf16", "q4_1", "q6_k"])
def test_a_token_does_not_depend_on_its_neighbours(dtype, cpu_target):
    """64 tokens at once, one by one, and in two parts: the same bits on one thread or three, on every target."""
    n, random = fitting(BY_NAME[dtype], 32) + (7 if dtype in PLAIN_FORMATS else 0), np.random.default_rng(3)
    gate, up, down = experts(16, n, n)
    if dtype == "q6_k":
        made = [random_blocks(BY_NAME[dtype], 16 * n, 1) for _ in range(3)]
        weights = [Array(w.data.reshape(16, n, 1, -1), w.dtype, (16, n, n)) for w in made]
    else:
        weights = [encode(w, BY_NAME[dtype]) for w in (gate, up, down)]
    x, logits = random.normal(size=(64, n)).astype(np.float32), random.normal(size=(64, 16)).astype(np.float32)
    plan = plan_of(CpuBackend(cpu_target), weights, 4, n)
    whole = plan.run(x=x, logits=logits)["y"]
    for cuts in ((7,), range(1, 64)):
        parts = [plan.run(x=a, logits=b)["y"] for a, b in zip(np.split(x, cuts), np.split(logits, cuts), strict=True)]
        assert np.array_equal(np.concatenate(parts), whole)
    for backend in (CpuBackend(cpu_target, 1), CpuBackend(cpu_target, 3), CpuBackend("scalar")):
        assert np.array_equal(plan_of(backend, weights, 4, n).run(x=x, logits=logits)["y"], whole)


@pytest.mark.parametrize("backend", [ReferenceBackend(), CpuBackend()])
def test_equal_logits_go_to_the_lower_id(backend):
    plan = plan_of(backend, experts(9, 4, 4), 3, 4)
    logits = np.zeros((3, 9), np.float32)
    logits[1, [8, 2, 5, 6]] = 1
    logits[2] = [-1, 0.0, -0.0, 2, 0, 0, 2, -1, 0]
    outputs = plan.run(x=np.ones((3, 4), np.float32), logits=logits)
    assert outputs["ids"].tolist() == [[0, 1, 2], [2, 5, 6], [3, 6, 1]]
    assert close(outputs["weights"][:2], np.full((2, 3), 1 / 3), 1e-6)


@pytest.mark.parametrize("backend", [ReferenceBackend(), CpuBackend()])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_broken_router_drops_the_routed_part_of_its_row_alone(backend, bad):
    """Even where x is no number either."""
    gate, up, down = experts(6, 5, 8)
    plan = plan_of(backend, (gate, up, down), 2, 8)
    random = np.random.default_rng(4)
    x, logits = random.normal(size=(5, 8)).astype(np.float32), random.normal(size=(5, 6)).astype(np.float32)
    whole = plan.run(x=x, logits=logits)["y"]
    logits[1, 5], logits[3], x[3] = bad, bad, np.nan
    outputs = plan.run(x=x, logits=logits)
    assert outputs["ids"][[1, 3]].tolist() == [[0, 1], [0, 1]] and not outputs["weights"][[1, 3]].any()
    assert not outputs["y"][[1, 3]].any() and close(outputs["y"][[0, 2, 4]], whole[[0, 2, 4]], 1e-6)


def test_experts_that_nobody_chose_are_not_read():
    """They hold NaN, which would show; and no expert is named but by its id."""
    gate, up, down = experts(8, 6, 8)
    for weight in (gate, up, down):
        weight[[0, 3, 7]] = np.nan
    logits = np.full((4, 8), -9, np.float32)
    logits[:, [2, 5]] = 1
    x = np.random.default_rng(5).normal(size=(4, 8)).astype(np.float32)
    assert np.isfinite(plan_of(CpuBackend(), (gate, up, down), 2, 8).run(x=x, logits=logits)["y"]).all()


def test_ids_beyond_the_experts_are_refused():
    gate, up, down = experts(3, 4, 4)

    def build(p):
        matrices = [p.input(name, *w.shape, kind="weight") for name, w in zip("gud", (gate, up, down), strict=True)]
        ids, weights = p.input("ids", "T", 1, dtype="i32"), p.input("weights", "T", 1)
        return {"y": mixture(p.input("x", "T", 4), ids, weights, *matrices, kind="silu")}

    program, backend = trace(build), CpuBackend()
    plan = backend.compile(program, backend.load(program, {"g": gate, "u": up, "d": down}), Capacity(tokens=2))
    for bad in (3, -1):
        with pytest.raises(LatticeError, match="ids from 0 to 2"):
            plan.run(ids=np.full((1, 1), bad, np.int32), weights=np.ones((1, 1)), x=np.ones((1, 4)))


def test_shapes_that_do_not_fit_are_named():
    x, ids, weights = np.ones((2, 4)), np.zeros((2, 1), np.int32), np.ones((2, 1))
    gate, _, down = experts(3, 6, 4)
    with pytest.raises(LatticeError, match=r"\[route\] expected top_k from 1 to 3, got 4"):
        route(np.zeros((2, 3)), top_k=4)
    with pytest.raises(LatticeError, match=r"\[mixture\] expected up of shape \(3, 6, 4\), got \(3, 4, 6\)"):
        mixture(x, ids, weights, gate, down, down, kind="silu")
    with pytest.raises(LatticeError, match=r"\[mixture\] expected down of shape \(3, 4, 3\), got \(3, 4, 6\)"):
        mixture(x, ids, weights, gate, None, down, kind="silu")


@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
def test_experts_stay_in_the_mapped_file(kind, tmp_path, monkeypatch):
    """No copy is made, their pages are released only once nobody holds them, and a conversion copies."""
    path, arrays = tmp_path / f"model.{kind}", dict(zip(("gate", "up", "down"), experts(4, 32, 32), strict=True))
    stored = {
        name: encode(value, BY_NAME["f16" if kind == "safetensors" else "q4_0"]) for name, value in arrays.items()
    }
    if kind == "gguf":
        write_gguf(path, {"general.architecture": "x"}, stored)
    else:
        save_safetensors(path, stored)
    file = GGUFFile(path) if kind == "gguf" else SafetensorsFile(path)
    checkpoint = Checkpoint(kind, path, tmp_path, {}, {}, file)
    released = []
    monkeypatch.setattr(type(file), "release", lambda self, name: released.append(name))
    weights = Weights(checkpoint, {n: a.shape for n, a in stored.items()}, {n: _Source(n) for n in stored})

    def build(p):
        symbols = [p.input(name, *stored[name].shape, kind="weight") for name in stored]
        return {"y": mixture(p.input("x", "T", 32), *route(p.input("l", "T", 4), top_k=2), *symbols, kind="silu")}

    program, backend = trace(build), CpuBackend()
    loaded = backend.load(program, weights)
    assert {name: placed.address for name, placed in loaded.placed.items()} == {
        name: file.tensor(name).data.ctypes.data for name in stored
    }
    assert released == []
    x, logits = np.ones((3, 32), np.float32), np.eye(4, dtype=np.float32)[:3]
    got = backend.compile(program, loaded, Capacity(tokens=3)).run(x=x, l=logits)["y"]
    assert close(got, plain_loop(x, logits, *map(dense, stored.values()), 2), 1e-5)
    del loaded
    assert sorted(released) == sorted(stored)
    released.clear()
    wide = backend.load(program, weights.cast("f32"))
    assert {placed.dtype for placed in wide.placed.values()} == {"f32"} and sorted(released) == sorted(stored)
    assert np.array_equal(backend.compile(program, wide, Capacity(tokens=3)).run(x=x, l=logits)["y"], got)
