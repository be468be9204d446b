"""What a model takes in memory, from headers alone: its loader runs on a backend that measures and reads nothing.

    fixed    weights that are held, a prefill chunk's values and the plans' inputs, the recurrent states of one sequence
    pages    keys and values, 64 positions each
    largest  the most pages that fit beside what is fixed

What stays in pages of the file (tables, experts) is not counted as needed: the system drops and rereads it at will.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from lattice.backends._backend import Backend, Capacity
from lattice.backends.cpu.measure import MeasuringBackend
from lattice.embed.encoder import Encoder
from lattice.generate.cache import pages_for
from lattice.generate.engine import CONTEXT
from lattice.generate.model import LanguageModel
from lattice.models import family
from lattice.nn.attention import KV
from lattice.program import Program
from lattice.step import PAGE_TOKENS
from lattice.weights.load import OpenModel, open_model

THOUSAND = 1000
TEXT = 32  # tokens
SLOTS = 2  # recurrent states that a sequence needs: one is read, one is saved
KV_BYTES = {"f16": 2, "f32": 4, "q8": 1}  # of a number in a page
USES = {"vector": "vectors", "product": "tiles"}


def memory_plan(opened: OpenModel, dtype: str, free: int | None) -> dict[str, Any]:
    """Return what an opened model would take, and the largest context that fits into `free` bytes (None: unknown)."""
    backend = MeasuringBackend()
    report = {"family": opened.family.__name__.rpartition(".")[2], "dtype": dtype, "memory": free}
    if getattr(opened.model, "head", None) is None:
        return report | _encoder(opened, backend, dtype, free)
    return report | _generator(opened, backend, dtype, free)


def _generator(opened: OpenModel, backend: MeasuringBackend, dtype: str, free: int | None) -> dict[str, Any]:
    most = opened.config.max_position_embeddings
    engine = LanguageModel(opened, backend, dtype=dtype, context=most).engine
    page, slot = engine.pool.pages.nbytes, engine.pool.slots.nbytes
    kv = next((array.dtype for array in engine.paged.values()), np.dtype(np.float16))
    weights, plans = _weights(backend), _plans(backend)
    fixed = weights["held"] + plans["activations"] + plans["inputs"] + SLOTS * slot
    default = min(most, CONTEXT)
    return {
        "task": "generate",
        "weights": weights,
        "state": slot,
        "kv": {
            "dtype": kv.name.replace("float", "f"),
            **_kv(each for each in engine.state_shapes(1, 1).values() if isinstance(each, KV)),
        },
        "draft": _draft(opened, backend),
        **plans,
        "chunk": engine.chunk,
        "fixed": fixed,
        "context": {
            "model": most,
            "default": default,
            "needs": fixed + page * pages_for(default),
            "largest": None if free is None else _largest(free - fixed, page, most),
        },
    }


def _draft(opened: OpenModel, backend: MeasuringBackend) -> dict[str, int] | None:
    """Return the draft head's share of weights in memory and of keys and values; None where there is none."""
    head = vars(opened.model).get("mtp")
    if head is None:
        return None
    places = [place for weights in backend.loaded for name, place in weights.placed.items() if name.startswith("mtp.")]
    return {"held": sum(place.bytes for place in places if not place.mapped), **_kv([head.state_shapes(1, 1)])}


def _kv(layers: Iterable[KV]) -> dict[str, int]:
    """Return the bytes of keys and values of 1,000 tokens by how they are kept, given the shapes of a page."""
    found = dict.fromkeys(KV_BYTES, 0)
    for plain in layers:
        for name, size in KV_BYTES.items():
            found[name] += size * sum(map(prod, plain.with_factors() if name == "q8" else plain))
    return {name: size * THOUSAND // PAGE_TOKENS for name, size in found.items()}


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
        "chunk": backend.encoder_tokens,
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
    backend = MeasuringBackend()
    _load(path, backend)
    return backend.traced[0]


def _load(path: Path, backend: Backend) -> bool:
    """Do what a loader does with a backend; return whether the model generates text."""
    opened = open_model(path, family)
    if getattr(opened.model, "head", None) is None:
        Encoder(opened, backend).prepare()
        return False
    LanguageModel(opened, backend, draft=None)
    return True


def dispatches_of(path: Path) -> list[dict[str, Any]]:
    """Return the dispatches of a decode step on a graphics card, of an encoder those of one text of TEXT tokens.

    Neither is a card needed nor a weight read.
    """
    from lattice.backends.wgpu.listing import ListingBackend, dispatches

    backend = ListingBackend()
    counts = Capacity() if _load(path, backend) else Capacity(tokens=TEXT)
    return [one for plan in backend.plans for one in dispatches(plan, counts)]
