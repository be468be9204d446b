"""Fusion changes how a program runs and never what it means."""

from __future__ import annotations

import numpy as np
import pytest
from op_harness import close

from lattice.backends._backend import Capacity
from lattice.backends.cpu import CpuBackend
from lattice.backends.reference import ReferenceBackend
from lattice.nn import Attention, GatedDeltaNet
from lattice.ops import (
    activation,
    add,
    append_kv,
    gated_activation,
    layer_norm,
    linear,
    paged_attention,
    rms_norm,
    rope,
    split_heads,
)
from lattice.ops.fused import COLUMNS
from lattice.program import fuse, trace
from lattice.step import Step

PROJECT = frozenset({"project"})
W = dict.fromkeys(("a", "b", "c", "d"), (24, 24)) | {"n": (24,), "m": (24,)}


def build(function):
    """Trace function(x, weights) -> one symbol or a tuple of them."""

    def program(p):
        x = p.input("x", "T", 24)
        made = function(x, {name: p.input(name, *shape, kind="weight") for name, shape in W.items()})
        return {f"y{i}": y for i, y in enumerate(made if isinstance(made, tuple) else (made,))}

    return trace(program)


def swiglu(x, w):
    y = rms_norm(x, w["n"], eps=1e-5)
    return add(x, linear(gated_activation(linear(y, w["a"]), linear(y, w["b"]), kind="silu"), w["c"]))


def norm_siblings(x, w):
    y = rms_norm(x, w["n"], eps=1e-5)
    return linear(y, w["a"]), linear(y, w["b"])


def shared_norm(x, w):
    y = rms_norm(x, w["n"], eps=1e-5)
    return linear(y, w["a"]), y


def shared_product(x, w):
    y = linear(x, w["a"])
    return activation(y, kind="relu"), y


def self_gate(x, w):
    y = linear(x, w["a"])
    return gated_activation(y, y, kind="silu")


CASES = {
    "siblings": (lambda x, w: tuple(linear(x, w[k]) for k in "abc"), ["project"]),
    "four siblings": (lambda x, w: tuple(linear(x, w[k]) for k in "abcd"), ["project"]),
    "five siblings": (lambda x, w: tuple(linear(x, w[k]) for k in "abcda"), ["project", "linear"]),
    "norm and siblings": (norm_siblings, ["project"]),
    "layer norm": (lambda x, w: linear(layer_norm(x, w["n"], w["m"], eps=1e-5), w["a"], w["n"]), ["project"]),
    "activation": (lambda x, w: activation(linear(x, w["a"], w["n"]), kind="gelu"), ["project"]),
    "residual": (lambda x, w: add(x, linear(x, w["a"])), ["project"]),
    "residual on the right": (lambda x, w: add(linear(x, w["a"]), x), ["project"]),
    "swiglu": (swiglu, ["project", "project"]),
    "a norm that others read": (shared_norm, ["rms_norm", "linear"]),
    "a product that others read": (shared_product, ["linear", "activation"]),
    "both sides products": (lambda x, w: add(linear(x, w["a"]), linear(x, w["b"])), ["project", "add"]),
    "one after another": (
        lambda x, w: linear(rms_norm(linear(x, w["a"]), w["n"], eps=1e-5), w["b"]),
        ["linear", "project"],
    ),
    "a gate of itself": (self_gate, ["linear", "gated_activation"]),
}


@pytest.mark.parametrize("name", CASES)
def test_pattern(name, cpu_target):
    function, wanted_ops = CASES[name]
    program = build(function)
    fused = fuse(program, PROJECT)
    assert [node.op.name for node in fused.nodes] == wanted_ops
    random = np.random.default_rng(0)
    weights = {key: random.normal(size=shape).astype(np.float32) / 5 for key, shape in W.items()}
    x = random.normal(size=(7, 24)).astype(np.float32)
    used = {symbol.name for node in program.nodes for symbol in node.reads()}
    assert {symbol.name for node in fused.nodes for symbol in node.reads()} >= used & set(W)
    reference = ReferenceBackend()
    wanted = reference.compile(program, reference.load(program, weights)).run(x=x)
    meant = reference.compile(fused, reference.load(fused, weights)).run(x=x)
    cpu = CpuBackend(cpu_target)
    got = cpu.compile(program, cpu.load(program, weights), Capacity(tokens=7)).run(x=x)
    for key, value in wanted.items():
        assert close(meant[key], value, 1e-6) and close(got[key], value, 1e-5)


def test_a_backend_without_the_kernel_keeps_the_program():
    program = build(swiglu)
    assert fuse(program, frozenset()) is program


# ---- layers with state -----------------------------------------------------------------------------------------------
HIDDEN = 24
WHOLE = {"delta_net", "gated_attention", "rotated_kv"}  # ops that cards have for parts of layers


def delta_layer():
    return GatedDeltaNet(HIDDEN, 2, 4, 8, 6, 4, 1e-6, tiled=True)


def attention_layer(**options):
    return Attention(HIDDEN, 4, 2, 16, **options)


GATED = {"gate": True, "norm_eps": 1e-6}
LAYERS = {  # the layer, how its states are stored, and what it becomes
    "delta": (delta_layer(), ("f32", "f32"), ["project", "delta_net", "linear"]),
    "attention": (attention_layer(), ("f32", "f32"), ["project", "rotated_kv", "paged_attention", "linear"]),
    "with norms": (
        attention_layer(norm_eps=1e-5, window=4),
        ("f16", "f16"),
        ["project", "rotated_kv", "paged_attention", "linear"],
    ),
    "with a gate": (attention_layer(**GATED), ("f32", "f32"), ["project", "rotated_kv", "gated_attention", "linear"]),
    "in 8 bits": (attention_layer(**GATED), ("i8", "i8"), ["project", "rotated_kv", "gated_attention", "linear"]),
}


def build_layer(layer, dtypes, outputs=lambda y, state: {"y": y}):
    """Trace a layer over pages and slots."""
    layer.parameters()

    def program(p):
        x, angles, step = p.input("x", "T", HIDDEN), p.input("angles", "T", 8), p.step(2)
        shapes = layer.state_shapes(4, 6)
        shapes = shapes.with_factors() if "i8" in dtypes else shapes
        states = zip(shapes._fields, shapes, dtypes, strict=True)
        state = type(shapes)(*(p.input(name, *shape, kind="state", dtype=dtype) for name, shape, dtype in states))
        return outputs(*layer(x, angles, step, state))

    return trace(program)


def run_layer(program, layer):
    """Run two sequences, one of which goes on, on the reference; returns the output and the states."""
    random = np.random.default_rng(0)
    weights = {n: random.normal(size=p.shape).astype(np.float32) / 3 for n, p in layer.parameters().items()}
    x, angles = (random.normal(size=(8, n)).astype(np.float32) for n in (HIDDEN, 8))
    step = Step.of([[0] * 5, [0] * 3], starts=[0, 70], slots=[2, 3], page_table=np.int32([[3, 0], [2, 1]]))
    reference = ReferenceBackend()
    states = {s.name: reference.state(s.shape, s.dtype) for s in program.of_kind("state")}
    for value in states.values():
        value[...] = 0 if value.dtype == np.int8 else random.normal(size=value.shape)  # of 8 bits, some are factors
    plan = reference.compile(program, reference.load(program, weights), state=states)
    return [plan.run(step, x=x, angles=angles)["y"], *states.values()]


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_with_state(name):
    layer, dtypes, wanted = LAYERS[name]
    program = build_layer(layer, dtypes)
    fused = fuse(program, PROJECT | WHOLE)
    assert [node.op.name for node in fused.nodes] == wanted
    assert {s.name for s in fused.storage().values()} == {s.name for s in program.of_kind("state")}
    for got, value in zip(run_layer(fused, layer), run_layer(program, layer), strict=True):
        assert close(got, value, 1e-5)
    for kernels in (CpuBackend("scalar").kernels(), PROJECT):
        assert not WHOLE & {node.op.name for node in fuse(program, kernels).nodes}


def test_a_delta_net_whose_parts_others_read_or_that_is_too_wide_stays():
    layer, dtypes, _ = LAYERS["delta"]
    for outputs in (lambda y, state: {"y": y, "conv": state.conv}, lambda y, state: {"y": y, "delta": state.delta}):
        program = build_layer(layer, dtypes, outputs)
        assert "delta_net" not in {node.op.name for node in fuse(program, PROJECT | WHOLE).nodes}
    program = build_layer(GatedDeltaNet(HIDDEN, 1, 1, 8, COLUMNS + 1, 4, 1e-6), dtypes)
    assert "delta_net" not in {node.op.name for node in fuse(program, PROJECT | WHOLE).nodes}


@pytest.mark.parametrize("what", ["the gate", "a query", "the pages", "a key"])
def test_attention_whose_parts_others_read_stays_apart(what):
    """What is read is what was there: the ops that make it are kept."""
    kept = {"the gate": "split_heads", "a query": "rope", "the pages": "gated_activation", "a key": "rope"}[what]

    def program(p):
        q, k, v, angles = (p.input(name, "T", width) for name, width in (("q", 64), ("k", 16), ("v", 16), ("a", 8)))
        step = p.step(2)
        pages = [p.input(n, *s, kind="state") for n, s in (("kp", (4, 1, 16, 64)), ("vp", (4, 1, 64, 16)))]
        q, gate = split_heads(q, head_dim=16)
        q, k = (rope(x, angles, head_dim=16) for x in (q, k))
        pages = append_kv(*pages, k, v, step)
        mixed = paged_attention(q, *pages, step, scale=0.25)
        others = {"the gate": gate, "a query": q, "the pages": paged_attention(q, *pages, step, scale=1.0), "a key": k}
        return {"y": gated_activation(gate, mixed, kind="sigmoid"), "other": others[what]}

    made = trace(program)
    if what != "the pages":  # the second attention is not needed
        made.nodes = [node for node in made.nodes if node.attributes.get("scale") != 1.0]
    assert kept in {node.op.name for node in fuse(made, PROJECT | WHOLE).nodes}
