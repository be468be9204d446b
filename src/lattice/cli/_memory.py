"""What a model takes in memory, from headers alone: its loader runs on a backend that measures and reads nothing.

    fixed    weights that are held, a prefill chunk's values and the plans' inputs, the recurrent state of one sequence
    pages    keys and values, 64 positions each
    largest  the most pages that fit beside what is fixed

What stays in pages of the file (tables, experts) is not counted as needed: the system drops and rereads it at will.
"""

from __future__ import annotations

from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

from lattice.backends.cpu.measure import MeasuringBackend
from lattice.embed.encoder import STEP_TOKENS, Encoder
from lattice.generate.cache import pages_for
from lattice.generate.engine import CONTEXT, Engine
from lattice.models import family
from lattice.nn import KV
from lattice.ops import take_rows
from lattice.program import Program, trace
from lattice.step import PAGE_TOKENS
from lattice.weights.load import OpenModel, open_model

THOUSAND = 1000
USES = {"vector": "vectors", "product": "tiles"}


def memory_plan(path: Path, dtype: str, free: int | None) -> dict[str, Any]:
    """Return what the model at `path` takes, and the largest context for which `free` bytes (None: unknown) suffice."""
    opened, backend = open_model(path, family), MeasuringBackend()
    report = {"family": opened.family.__name__.rpartition(".")[2], "dtype": dtype, "memory": free}
    if getattr(opened.model, "head", None) is None:
        return report | _encoder(opened, backend, dtype, free)
    return report | _generator(opened, backend, dtype, free)


def _generator(opened: OpenModel, backend: MeasuringBackend, dtype: str, free: int | None) -> dict[str, Any]:
    most = opened.config.max_position_embeddings
    engine = Engine(opened, backend, dtype=dtype, context=most)
    layers = opened.model.state_shapes(1, 1)
    recurrent = 4 * sum(prod(shape) for layer in layers if not isinstance(layer, KV) for shape in layer)
    values = sum(prod(shape) for layer in layers if isinstance(layer, KV) for shape in layer)  # of a page
    kinds = [isinstance(layer, KV) for layer in layers for _ in layer]
    kv = next((str(state.dtype) for state, paged in zip(backend.states, kinds, strict=False) if paged), "float16")
    page = values * int(kv.removeprefix("float")) // 8
    weights, plans = _weights(backend), _plans(backend)
    fixed = weights["held"] + plans["activations"] + plans["inputs"] + recurrent
    default = min(most, CONTEXT)
    return {
        "task": "generate",
        "weights": weights,
        "state": recurrent,
        "kv": {
            "dtype": kv.replace("float", "f"),
            "f16": 2 * values * THOUSAND // PAGE_TOKENS,
            "f32": 4 * values * THOUSAND // PAGE_TOKENS,
        },
        **plans,
        "draft": _draft(opened, backend, dtype),
        "chunk": engine.chunk,
        "fixed": fixed,
        "context": {
            "model": most,
            "default": default,
            "needs": fixed + page * pages_for(default),
            "largest": None if free is None else _largest(free - fixed, page, most),
        },
    }


def _draft(opened: OpenModel, backend: MeasuringBackend, dtype: str) -> dict[str, int] | None:
    """Return what the draft head takes where it is used, and nothing else does; None where there is none."""
    model, known = opened.model, {name for weights in backend.loaded for name in weights.placed}
    head = vars(model).get("mtp")
    if head is None:
        return None
    shapes: KV = head.state_shapes(1, 1)

    def build(program: Program) -> dict[str, Any]:
        step, hidden = program.step(), program.input("hidden", "T", opened.config.hidden_size)
        state = KV(*(program.input(n, *s, kind="state", dtype="f16") for n, s in shapes._asdict().items()))
        return {"logits": model.head(take_rows(head(step, hidden, state)[0], step.rows))}

    placed = MeasuringBackend(backend.core.target).load(trace(build), opened.weights.cast(dtype)).placed
    own = sum(place.bytes for name, place in placed.items() if name not in known and not place.mapped)
    return {"held": own, "f16": 2 * sum(map(prod, shapes)) * THOUSAND // PAGE_TOKENS}


def _largest(left: int, page: int, most: int) -> int:
    if left < page:
        return 0
    return min(most, left // page * PAGE_TOKENS) if page else most


def _encoder(opened: OpenModel, backend: MeasuringBackend, dtype: str, free: int | None) -> dict[str, Any]:
    encoder = Encoder(opened, backend, dtype=dtype)
    encoder.prepare()
    plans, weights = _plans(backend), _weights(backend)
    encoder.prepare(encoder.max_tokens)
    longest = weights["held"] + backend.plans[-1].bytes
    return {
        "task": "embed",
        "weights": weights,
        "state": 0,
        "kv": None,
        **plans,
        "chunk": STEP_TOKENS,
        "fixed": weights["held"] + plans["activations"] + plans["inputs"],
        "context": {"model": encoder.positions, "default": encoder.max_tokens, "needs": longest, "largest": None}
        | ({} if free is None else {"largest": encoder.max_tokens if longest <= free else 0}),
    }


def _weights(backend: MeasuringBackend) -> dict[str, int]:
    """Return the bytes of weights by how they lie, and of those that are held and those that stay in the file."""
    kinds: Counter[str] = Counter({"tiles": 0, "vectors": 0, "tables": 0, "experts": 0, "held": 0, "mapped": 0})
    for weights in backend.loaded:
        for place in weights.placed.values():
            kinds[USES.get(place.use) or ("experts" if len(place.shape) == 3 else "tables")] += place.bytes
        kinds.update({"held": weights.bytes - weights.mapped, "mapped": weights.mapped})
    return dict(kinds)


def _plans(backend: MeasuringBackend) -> dict[str, int]:
    """Return the bytes of values between the nodes, and of inputs, of the plans that were made."""
    activations = sum(plan.layout.peak for plan in backend.plans)
    return {"activations": activations, "inputs": sum(plan.bytes for plan in backend.plans) - activations}


def program_of(path: Path) -> Program:
    """Return the traced program of a step of the model at `path`, of which nothing is loaded."""
    opened, backend = open_model(path, family), MeasuringBackend()
    if getattr(opened.model, "head", None) is None:
        encoder = Encoder(opened, backend)
        encoder.prepare()
    else:
        Engine(opened, backend)
    return backend.traced[0]
