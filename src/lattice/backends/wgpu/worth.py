"""Whether a card is worth it: the time of a step that resembles decoding, on any backend.

One row goes through LAYERS of norm, product, activation, product and sum, with weights of 8 bits: reading 3.4 MB for
each dispatch, as Qwen3.5-0.8B's decode step does, and waiting for the last number. So it is both how fast memory is
read and what a chain of small kernels costs, from the submission to the result. A card that shares the processor's
memory, or whose driver takes long to begin, loses here as it would in use.
"""

from __future__ import annotations

from time import perf_counter

import numpy as np

from lattice.backends._backend import Backend, Capacity
from lattice.dtypes import BY_NAME, F32, Array, encode
from lattice.ops import Symbol, activation, add, linear, rms_norm
from lattice.program import Program, trace

HIDDEN, INNER = 1024, 3072
LAYERS, DISTINCT = 24, 8  # weights are read three times a step: 54 MB of memory do, more than caches hold
MEGABYTES = round(LAYERS * 2 * HIDDEN * INNER * 34 / 32 / 1e6)
ROUNDS, PATIENCE = 12, 0.5  # steps at most, and seconds after which no other begins
WARM = 3


def step_program() -> Program:
    """Return the program: x (T, HIDDEN) to y (T, HIDDEN)."""

    def build(program: Program) -> dict[str, Symbol]:
        x = program.input("x", "T", HIDDEN)
        shapes = {"up": (INNER, HIDDEN), "down": (HIDDEN, INNER)}
        names = {f"{name}{index}": shape for name, shape in shapes.items() for index in range(min(LAYERS, DISTINCT))}
        held = {name: program.input(name, *shape, kind="weight") for name, shape in names.items()}
        norm = program.input("norm", HIDDEN, kind="weight")
        for layer in range(LAYERS):
            up, down = held[f"up{layer % DISTINCT}"], held[f"down{layer % DISTINCT}"]
            inner = activation(linear(rms_norm(x, norm, eps=1e-6), up), kind="silu")
            x = add(x, linear(inner, down))
        return {"y": x}

    return trace(build)


def step_weights() -> dict[str, Array]:
    """Return weights that keep values small; matrices of one shape are the same, and copied by who loads them."""
    random = np.random.default_rng(0)
    made = {"norm": encode(np.ones(HIDDEN), F32)}
    for name, rows, columns in (("up", INNER, HIDDEN), ("down", HIDDEN, INNER)):
        drawn = random.standard_normal((rows, columns), np.float32) / np.float32(16 * columns**0.5)
        made |= dict.fromkeys((f"{name}{index}" for index in range(DISTINCT)), encode(drawn, BY_NAME["q8_0"]))
    return made


def step_seconds(backend: Backend) -> float:
    """Return the seconds of the quickest step: others that use the machine make it slower, nothing makes it quicker."""
    program = step_program()
    plan = backend.compile(program, backend.load(program, step_weights()), Capacity())
    x = np.ones((1, HIDDEN), np.float32)
    found: list[float] = []
    began = perf_counter()
    while len(found) < WARM + 1 or (len(found) < WARM + ROUNDS and perf_counter() - began < PATIENCE):
        started = perf_counter()
        plan.run(x=x)
        found.append(perf_counter() - started)
    return min(found[WARM:])
