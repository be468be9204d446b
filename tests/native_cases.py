"""Write the cases of tests/native/runner.cpp: every op's samples and every weight format, with the reference's results.

    python tests/native_cases.py build/native_cases.bin

The file is the same on every machine: any target runs it, under an emulator or a sanitizer, without Python. What it
holds is what tests/ops asserts on this machine's targets, with the same tolerances; the format is told in the runner.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from op_harness import (
    BLOCK_FORMATS,
    FORMATS,
    ON_CARDS,
    ROW_FORMATS,
    case,
    eager,
    fitting,
    random_blocks,
    rounded_to_8_bits,
    row_product,
    sampled_ops,
    samples,
    tolerance,
)

from lattice.backends._backend import Capacity
from lattice.backends._inputs import COUNTS
from lattice.backends.cpu.native import DTYPES, ROWS, TILES
from lattice.backends.cpu.plan import STORAGE, _flat_arguments, _parameters
from lattice.backends.cpu.weights import _uses
from lattice.dtypes import BY_NAME, F32, Array, dense, encode
from lattice.ops import REGISTRY, Draw, Drawn, Op, Sample, Symbol

TRAINING_ONLY = {"cross_entropy"}  # its native kernels come with training
SPARE = 2  # rows of capacity beyond the true count, which no kernel may touch
ABSENT = struct.pack("<4i4q", 0, ROWS, -1, 0, 1, 1, 1, 1) + struct.pack("<iq", -1, -1)


def cases() -> Iterator[bytes]:
    """Yield all cases, packed, in a fixed order."""
    for name in sampled_ops():
        if name in TRAINING_ONLY or name in ON_CARDS:
            continue
        for number, sample in enumerate(samples(REGISTRY[name])):
            yield pack(f"{name} sample {number}", REGISTRY[name], sample)
    yield from products()
    yield from tables()


def products() -> Iterator[bytes]:
    """Yield `linear` with every weight format; block formats see activations rounded to 8 bits."""
    random = np.random.default_rng(0)
    for dtype in map(BY_NAME.__getitem__, FORMATS):
        for n, k in ((33, 64), (1, 32), (100, 288)):
            weight = encode(random.normal(size=(n, fitting(dtype, k))).astype(np.float32), dtype)
            for rows in (1, 2, 3, 5, 7, 40) if n < 100 else (1, 7):
                yield product(weight, Draw(rows).rows(rows, weight.shape[1]), f"{n}x{k}, {rows} rows")
    for dtype in map(BY_NAME.__getitem__, BLOCK_FORMATS):
        weight = random_blocks(dtype, 19, 3)  # the ends of integers and factors, and the largest sums
        x = np.ones((4, weight.shape[1]), np.float32)
        x[1], x[2, ::2], x[3] = -1, -1, random.uniform(-1, 1, x.shape[1])
        yield product(weight, Drawn("input", x, "T"), "of every bit pattern")

    for name in ROW_FORMATS:  # tiled from f32; no outlier lies near the edge of a rounding
        for rows, n, k in ((1, 33, 64), (7, 33, 65), (13, 20, 1100)):
            weight = random.normal(size=(n, k)).astype(np.float32)
            x = Draw(rows).rows(rows, k)
            x.value[:, ::50] *= 20
            sample = Draw().sample(x, Draw().weight(n, k))
            label, held = f"linear {name} {n}x{k}, {rows} rows", Array(weight, replace(F32, name=name), weight.shape)
            yield pack(label, REGISTRY["linear"], sample, {"a1": held}, [row_product(name, x.value, weight)])


def product(weight: Array, x: Drawn, label: str) -> bytes:
    """Return one case of `linear`."""
    draw = Draw()
    seen = rounded_to_8_bits(x.value) if weight.dtype.block > 1 else x.value
    wanted = seen.astype(np.float64) @ dense(weight).astype(np.float64).T
    sample = draw.sample(x, draw.weight(*weight.shape))
    return pack(f"linear {weight.dtype.name} {label}", REGISTRY["linear"], sample, {"a1": weight}, [wanted])


def tables() -> Iterator[bytes]:
    """Yield `embedding` of every weight format, as a table of its own and as the tiles of a tied head."""
    op, draw = REGISTRY["embedding"], Draw()
    for dtype in map(BY_NAME.__getitem__, FORMATS):
        for vocab, n in ((17, 32), (40, 288)):
            sample = draw.sample(draw.weight(vocab, fitting(dtype, n)), draw.ids(9, vocab))
            table = encode(sample.args[0].value, dtype)
            wanted = dense(table)[sample.args[1].value]
            for use in ("mapped", "product"):
                yield pack(f"embedding {dtype.name} {vocab}x{n} as {use}", op, sample, {"a0": table}, [wanted], use)


def pack(
    label: str,
    op: Op,
    sample: Sample,
    weights: dict[str, Array] | None = None,
    wanted: Any = None,
    use: str | None = None,
) -> bytes:
    """Return one case: `weights` replaces the sample's own, `wanted` the reference's outputs, `use` a weight's role."""
    made = case(op, sample)
    values = {**made.inputs, **made.state, **{name: Array(w, F32, w.shape) for name, w in made.weights.items()}}
    values.update(weights or {})
    (node,) = made.program.nodes
    counts = made.capacity.tokens, made.capacity.rows, made.capacity.sequences
    packer = _Packer(values, Capacity(*(count + SPARE for count in counts)), _uses(made.program), use)
    inputs, position = list(_flat_arguments(node)), {}
    for i, symbol in enumerate(inputs):
        if symbol is not None:
            position.setdefault(symbol.name, i)
    packed = [ABSENT if symbol is None else packer.input(symbol) for symbol in inputs]
    owner = made.program.storage()
    for symbol, value in zip(node.outputs, wanted or eager(op, sample), strict=True):
        packed.append(packer.output(symbol, value, position[owner[id(symbol)].name] if symbol.kind == "state" else -1))
    words = _parameters(node)
    return b"".join(
        [
            _text(label), _text(op.name), struct.pack("<3if", *counts, tolerance(op.name)),
            struct.pack("<2i", len(node.outputs), len(packed)), *packed,
            struct.pack(f"<{len(words) + 1}i", len(words), *words),
        ]
    )  # fmt: skip


class _Packer:
    """Packs the tensors of one case."""

    def __init__(self, values: dict[str, Any], capacity: Capacity, uses: dict[str, str], use: str | None):
        self.values, self.capacity, self.uses, self.use = values, capacity, uses, use

    def input(self, symbol: Symbol) -> bytes:
        """Return an input: exactly the bytes that exist at the true counts."""
        value = self.values[symbol.name]
        if isinstance(value, Array):
            tiled = (self.use or self.uses[symbol.name]) == "product"
            return self._tensor(value.dtype.name, TILES if tiled else ROWS, value.shape, -1, -1, value.data)
        return self._symbol(symbol, value, -1)

    def output(self, symbol: Symbol, value: np.ndarray, same: int) -> bytes:
        """Return an output with the values that it should hold."""
        return self._symbol(symbol, value, same)

    def _symbol(self, symbol: Symbol, value: np.ndarray, same: int) -> bytes:
        lead = symbol.shape[0] if symbol.shape else 1
        count = -1 if isinstance(lead, int) else COUNTS[lead.partition("+")[0]]
        shape = tuple(self.capacity.size(d) for d in symbol.shape)
        return self._tensor(symbol.dtype, ROWS, shape, count, same, np.asarray(value).astype(STORAGE[symbol.dtype]))

    @staticmethod
    def _tensor(dtype: str, layout: int, shape: tuple[int, ...], count: int, same: int, data: np.ndarray) -> bytes:
        sizes = (*shape, *([1] * (4 - len(shape))))
        content = np.ascontiguousarray(data).tobytes()
        head = struct.pack("<4i4qiq", DTYPES[dtype], layout, count, len(shape), *sizes, same, len(content))
        return head + content


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<i", len(data)) + data


def main(path: Path) -> None:
    """Write the file and say what is in it."""
    packed = list(cases())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"LATCASE1" + struct.pack("<i", len(packed)) + b"".join(packed))
    print(f"{path}: {len(packed)} cases, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
