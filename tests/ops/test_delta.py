"""Linear attention: a sequence has the same bits however it is cut, saved and resumed, and they are torch's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from op_harness import close

from lattice.backends._backend import Capacity
from lattice.backends.cpu import CpuBackend
from lattice.errors import LatticeError
from lattice.ops import REGISTRY, conv1d, gated_delta, slot_conv1d, slot_gated_delta
from lattice.program import trace
from lattice.step import Step

KEY_HEADS, VALUE_HEADS, DK, DV, WIDTH, SLOTS = 2, 4, 20, 40, 4, 12
CHANNELS = 2 * KEY_HEADS * DK + VALUE_HEADS * DV
HEADS = {"key_heads": KEY_HEADS, "value_heads": VALUE_HEADS, "key_dim": DK, "tiled": False}
SHAPES = {"conv": (SLOTS, CHANNELS, WIDTH - 1), "delta": (SLOTS, VALUE_HEADS, DK, DV)}


class Layer:
    """The convolution and the delta rule over slots, with the inputs of `total` tokens."""

    def __init__(self, target, total, threads=None, **changed):
        random = np.random.default_rng(0)
        self.inputs = {
            "x": random.normal(size=(total, CHANNELS)).astype(np.float32),
            "a": random.normal(size=(total, VALUE_HEADS)).astype(np.float32),
            "b": random.normal(size=(total, VALUE_HEADS)).astype(np.float32),
        }
        self.weights = {
            "weight": random.normal(size=(CHANNELS, WIDTH)).astype(np.float32),
            "a_log": random.normal(size=VALUE_HEADS).astype(np.float32),
            "dt_bias": random.normal(size=VALUE_HEADS).astype(np.float32),
        } | changed
        program, backend = trace(self.build), CpuBackend(target, threads)
        self.state = {name: backend.state(shape, "f32") for name, shape in SHAPES.items()}
        weights = backend.load(program, self.weights)
        self.plan = backend.compile(program, weights, Capacity(total, 1, 4), self.state)
        self.clear()

    def build(self, p):
        """Build the program; a name of an input is its name here."""
        step = p.step(1)
        x, a, b = (p.input(name, "T", value.shape[1]) for name, value in self.inputs.items())
        weight, a_log, dt_bias = (p.input(n, *w.shape, kind="weight") for n, w in self.weights.items())
        conv, delta = (p.input(name, *shape, kind="state") for name, shape in SHAPES.items())
        _, qkv = slot_conv1d(conv, x, weight, step, kind="silu")
        return {"y": slot_gated_delta(delta, qkv, a, b, a_log, dt_bias, step, **HEADS)[1], "qkv": qkv}

    def clear(self):
        """Fill all slots with what nobody may read."""
        for slots in self.state.values():
            slots[...] = np.nan

    def run(self, spans, slots=(0,), saves=None):
        """Run tokens a .. b - 1 of the inputs for every (a, b): a sequence each, at these positions."""
        step = Step.of([[0] * (b - a) for a, b in spans], starts=[a for a, _ in spans], slots=slots)
        if saves is not None:
            step = replace(step, saves=np.asarray(saves, np.int32))
        inputs = {n: np.concatenate([value[a:b] for a, b in spans]) for n, value in self.inputs.items()}
        return self.plan.run(replace(step, rows=step.rows[:1]), **inputs)["y"]

    def slot(self, number):
        """Return copies of both states of a slot."""
        return [slots[number].copy() for slots in self.state.values()]


def same(states, others):
    return all(np.array_equal(a, b) for a, b in zip(states, others, strict=True))


def test_every_cut_gives_the_same_bits(cpu_target):
    total = 130
    layer = Layer(cpu_target, total)
    whole, behind = layer.run([(0, total)]), layer.slot(0)
    assert np.isfinite(whole).all()
    cuts = [[i] for i in range(1, total)] + [list(range(7, total, 7)), list(range(1, total)), [16, 64, 65]]
    for cut in cuts:
        layer.clear()
        outs = [layer.run([span]) for span in zip([0, *cut], [*cut, total], strict=True)]
        assert np.array_equal(np.concatenate(outs), whole), cut
        assert same(layer.slot(0), behind), cut


def test_resuming_from_a_save_gives_the_same_bits_as_going_on(cpu_target):
    """A prompt keeps its state behind some tokens, in one step; each is what a run that ends there leaves."""
    total, marks = 100, (0, 1, 2, 14, 15, 16, 63, 64)
    layer = Layer(cpu_target, total)
    saves = np.full(total, -1)
    saves[list(marks)], saves[-1] = np.arange(1, len(marks) + 1), 0
    whole, behind = layer.run([(0, total)], saves=saves), layer.slot(0)
    kept = {mark: layer.slot(i) for i, mark in enumerate(marks, 1)}
    assert np.isnan(layer.state["delta"][10]).all()
    for i, mark in enumerate(marks, 1):
        assert np.array_equal(
            layer.run([(mark + 1, total)], slots=[i], saves=[-1] * (total - mark - 2) + [10]), whole[mark + 1 :]
        )
        assert same(layer.slot(10), behind) and same(layer.slot(i), kept[mark])  # the slot that was read is as it was
        layer.run([(0, mark + 1)], slots=[10])
        assert same(layer.slot(10), kept[mark])


def test_a_save_inside_a_step_may_go_to_the_slot_that_is_read(cpu_target):
    """The engine's snapshot: read slot 0, keep a state there half way, go elsewhere."""
    layer = Layer(cpu_target, 60)
    whole = layer.run([(0, 60)])
    layer.run([(0, 10)])
    saves = np.full(50, -1)
    saves[[20, 49]] = 0, 3
    assert np.array_equal(layer.run([(10, 60)], saves=saves), whole[10:])
    assert np.array_equal(layer.run([(31, 60)], slots=[0], saves=[-1] * 29), whole[31:])


def test_a_sequence_does_not_depend_on_its_neighbours_or_on_threads(cpu_target):
    spans = [(0, 33), (33, 34), (50, 69), (0, 5)]
    results = []
    for threads in (1, 2, 3):
        layer = Layer(cpu_target, 140, threads)
        layer.run([(0, 33), (0, 50)], slots=[1, 2])
        together = np.split(layer.run(spans, slots=[0, 1, 2, 3]), np.cumsum([b - a for a, b in spans])[:-1])
        states = [layer.slot(i) for i in range(4)]
        layer.clear()
        layer.run([(0, 33)], slots=[1]), layer.run([(0, 50)], slots=[2])
        alone = [layer.run([span], slots=[i]) for i, span in enumerate(spans)]
        assert all(np.array_equal(a, b) for a, b in zip(together, alone, strict=True))
        assert all(same(layer.slot(i), state) for i, state in enumerate(states))
        results.append(np.concatenate(alone))
    assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2])


def test_a_long_sequence_agrees_with_the_reference(cpu_target):
    total = 700
    layer = Layer(cpu_target, total, a_log=np.float32([-6, -3, 0, 2]))  # from heads that forget nothing to quick ones
    step, weights, inputs = Step.of([[0] * total]), layer.weights, layer.inputs
    qkv = conv1d(inputs["x"].astype(np.float64), weights["weight"], step, kind="silu")
    wanted = gated_delta(qkv, inputs["a"], inputs["b"], weights["a_log"], weights["dt_bias"], step, **HEADS)
    assert close(layer.run([(0, total)]), wanted, 1e-5)


def _delta(target, qkv, a, b, a_log, dt_bias, starts=(0,)):
    """Run the stateless form on the CPU."""

    def build(p):
        values = [p.input(n, "T", x.shape[1]) for n, x in (("qkv", qkv), ("a", a), ("b", b))]
        values += [p.input(n, VALUE_HEADS, kind="weight") for n in ("a_log", "dt_bias")]
        return {"y": gated_delta(*values, p.step(1), **HEADS)}

    program, backend = trace(build), CpuBackend(target)
    plan = backend.compile(
        program, backend.load(program, {"a_log": a_log, "dt_bias": dt_bias}), Capacity(len(qkv), 1, 2)
    )
    lengths = np.diff([*starts, len(qkv)])
    return plan.run(Step.of([[0] * n for n in lengths], rows=[0]), qkv=qkv, a=a, b=b)["y"]


def _inputs(tokens):
    random = np.random.default_rng(1)
    arrays = [random.normal(size=(tokens, n)).astype(np.float32) for n in (CHANNELS, VALUE_HEADS, VALUE_HEADS)]
    return [*arrays, *(random.normal(size=VALUE_HEADS).astype(np.float32) for _ in range(2))]


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 3e38])
def test_a_poisoned_token_leaves_no_trace(poison, cpu_target):
    """All of its numbers bad, or some: later tokens have the bits that they have where the token does no harm."""
    qkv, a, b, a_log, dt_bias = _inputs(40)
    without = [np.delete(x, 7, 0) for x in (qkv, a, b)]
    clean = np.insert(_delta(cpu_target, *without, a_log, dt_bias, (0, 29)), 7, 0, 0)
    qkv[7], a[7], b[7] = poison, np.nan, np.nan
    got = _delta(cpu_target, qkv, a, b, a_log, dt_bias, (0, 30))
    assert np.array_equal(got, clean)  # and the token's own row is 0


@pytest.mark.parametrize("part", ["q", "k", "v", "a", "b"])
def test_one_bad_number_does_what_the_reference_does(part, cpu_target):
    qkv, a, b, a_log, dt_bias = _inputs(12)
    clean = _delta(cpu_target, qkv, a, b, a_log, dt_bias)
    where = {"q": (qkv, 3), "k": (qkv, KEY_HEADS * DK + 3), "v": (qkv, -1), "a": (a, 1), "b": (b, 1)}[part]
    where[0][4, where[1]] = np.nan
    got = _delta(cpu_target, qkv, a, b, a_log, dt_bias)
    with np.errstate(all="ignore"):
        wanted = gated_delta(qkv, a, b, a_log, dt_bias, Step.of([[0] * 12]), **HEADS)
    assert np.isfinite(got).all() and close(got, wanted, 1e-5)
    heads = {"q": (0, 1), "k": (0, 1), "v": (3,), "a": (1,), "b": (1,)}[part]  # value heads that read it
    for head in set(range(VALUE_HEADS)) - set(heads):
        columns = slice(head * DV, (head + 1) * DV)
        assert np.array_equal(got[:, columns], clean[:, columns])


def test_gates_over_their_whole_range(cpu_target):
    """Decays from exactly 1 to exactly 0 and betas likewise: infinite inputs among them."""
    qkv, a, b, a_log, dt_bias = _inputs(27)
    ends = np.float32([-np.inf, -200, -90, -30, -17, -1e-6, 0, 1e-3, 5, 20, 88, 200, np.inf])
    a[1:14, :], b[14:, :] = ends[:, None], ends[:, None]
    a_log[:] = -20, -1, 3, 90
    with np.errstate(all="ignore"):
        wanted = gated_delta(qkv.astype(np.float64), a, b, a_log, dt_bias, Step.of([[0] * 27]), **HEADS)
    assert close(_delta(cpu_target, qkv, a, b, a_log, dt_bias), wanted, 1e-5)


def test_what_a_layer_of_transformers_computes(golden, cpu_target):
    g = np.load(golden / "delta.npz")
    step = Step.of([[0] * n for n in g["lengths"]])
    heads = {name: int(g[name]) for name in ("key_heads", "value_heads", "key_dim")}
    gates = [g[name] for name in ("a", "b", "a_log", "dt_bias")]
    mixed = conv1d(g["x"], g["weight"], step, kind="silu")
    assert close(mixed, g["mixed"], 1e-6) and close(gated_delta(mixed, *gates, step, **heads), g["out"], 1e-5)

    def build(p):
        symbols = [p.input(n, "T", g[n].shape[1]) for n in ("x", "a", "b")]
        weight, a_log, dt_bias = (p.input(n, *g[n].shape, kind="weight") for n in ("weight", "a_log", "dt_bias"))
        state, s = p.input("state", 2, *g["state_0"].shape, kind="state"), p.step(1)
        qkv = conv1d(symbols[0], weight, s, kind="silu")
        return {"y": slot_gated_delta(state, qkv, *symbols[1:], a_log, dt_bias, s, **heads)[1]}

    program, backend = trace(build), CpuBackend(cpu_target)
    state = {"state": backend.state((2, *g["state_0"].shape), "f32")}
    plan = backend.compile(program, backend.load(program, g), Capacity(len(mixed), len(mixed), 2), state)
    assert close(plan.run(step, x=g["x"], a=g["a"], b=g["b"])["y"], g["out"], 1e-5)
    for i in range(2):
        assert close(state["state"][i], g[f"state_{i}"], 1e-5)


def test_gradients_are_those_of_torch(golden):
    g = np.load(golden / "delta.npz")
    step = Step.of([[0] * n for n in g["lengths"]])
    heads = {name: int(g[name]) for name in ("key_heads", "value_heads", "key_dim")}
    gates = [g[name] for name in ("a", "b", "a_log", "dt_bias")]
    dqkv, *rest = REGISTRY["gated_delta_grad"](g["dy"], g["mixed"], *gates, step, **heads)
    found = [*REGISTRY["conv1d_grad"](dqkv, g["x"], g["weight"], step, kind="silu"), *rest]
    for name, gradient in zip(("x", "weight", "a", "b", "a_log", "dt_bias"), found, strict=True):
        assert close(gradient, g[f"grad/{name}"], 1e-5), name


def test_wrong_shapes_and_slots_are_named():
    qkv, a, b, a_log, dt_bias = _inputs(3)
    step = Step.of([[0] * 3])
    with pytest.raises(LatticeError, match=r"\[gated_delta\] expected qkv of width 2 \* 2 \* 30 \+ 4 \* value_dim"):
        gated_delta(qkv[:, :122], a, b, a_log, dt_bias, step, **HEADS | {"key_dim": 30})
    with pytest.raises(LatticeError, match=r"\[gated_delta\] expected value heads that 3 key heads divide, got 4"):
        gated_delta(qkv, a, b, a_log, dt_bias, step, **HEADS | {"key_heads": 3})
    with pytest.raises(LatticeError, match=r"\[slot_gated_delta\] expected state of \(4, 20, 40\) a slot"):
        slot_gated_delta(np.zeros((1, 4, 40, 20)), qkv, a, b, a_log, dt_bias, step, **HEADS)
    with pytest.raises(LatticeError, match=r"\[slot_conv1d\] expected state of \(240, 3\) a slot"):
        slot_conv1d(np.zeros((1, 240, 4)), qkv, np.zeros((240, 4)), step, kind=None)
    with pytest.raises(LatticeError, match="slots from 0 to 11"):
        Layer("scalar", 5).run([(1, 5)], slots=[SLOTS])
