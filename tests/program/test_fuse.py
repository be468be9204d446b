"""Fusion changes how a program runs and never what it means."""

from __future__ import annotations

import numpy as np
import pytest
from op_harness import close

from lattice.backends._backend import Capacity
from lattice.backends.cpu import CpuBackend
from lattice.backends.reference import ReferenceBackend
from lattice.ops import activation, add, gated_activation, layer_norm, linear, rms_norm
from lattice.program import fuse, trace

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
