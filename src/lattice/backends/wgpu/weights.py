"""Weights on a card: matrices and experts as planes of words in the format of their file, everything else as f32.

A matrix larger than what the adapter can bind at once is cut between rows, and runs as one dispatch a part; experts
are not cut.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lattice.backends.wgpu.device import LESS, Device, Range
from lattice.backends.wgpu.products import stacked, stacked_biases, stacks
from lattice.dtypes import F32, SPLIT, Array, dense, encode, split
from lattice.errors import LatticeWarning, expected
from lattice.ops import Symbol
from lattice.program import Node, Program


@dataclass(frozen=True)
class Part:
    """Rows `first` to `first + rows` of a weight, by plane."""

    dtype: str
    first: int
    rows: int
    planes: Mapping[str, Range]


@dataclass(frozen=True)
class Placed:
    """A weight on the card."""

    bytes: int
    parts: tuple[Part, ...]


class WgpuWeights:
    """All weights of a program by name, products as products.py stacks them, and the biases of those.

    `formats` says how each weight of a product is stored; `host` has what the host itself computes with.
    """

    def __init__(self, device: Device):
        self.device = device
        self.placed: dict[str, Placed] = {}
        self.formats: dict[str, str] = {}
        self.host: dict[str, np.ndarray] = {}

    @property
    def bytes(self) -> int:
        """Return the bytes of the card's memory that all weights take together."""
        return sum(weight.bytes for weight in self.placed.values())


def load_weights(device: Device, program: Program, weights: Mapping[str, Array]) -> WgpuWeights:
    """Copy every weight of a fused program to the card. Formats without planes become f32, with a notice."""
    made, dequantised = WgpuWeights(device), Counter[str]()
    products = [node for node in program.nodes if node.op.name == "project"]

    def fetch(symbol: Symbol, plain: bool = False) -> Array:
        array = _fetch(weights, symbol)
        if not plain and array.dtype.name in SPLIT:
            return array
        dequantised[array.dtype.name] += array.dtype.block > 1
        return encode(dense(array), F32)

    for node in products:
        chosen = [weight for weight in node.args[4::2] if weight is not None]
        found = {weight.name: _format(_fetch(weights, weight)) for weight in chosen}
        mixed = node.attributes["gated"] and len(set(found.values())) > 1
        made.formats |= dict.fromkeys(found, "f32") if mixed else found
        for stack in stacks(node, made.formats):
            if stack.name not in made.placed:
                matrix = stacked([fetch(weight, plain=mixed) for weight in stack.weights], stack.gated)
                made.placed[stack.name] = _place(device, matrix)
            if stack.bias_name is not None and stack.bias_name not in made.placed:
                values = [None if bias is None else dense(_fetch(weights, bias)) for bias in stack.biases]
                made.placed[stack.bias_name] = _place(device, encode(stacked_biases(stack, values), F32))
    others = {id(symbol) for node in program.nodes for symbol in _others(node)}
    tables = {id(node.args[0]) for node in program.nodes if node.op.name == "embedding"}
    experts = {id(weight) for node in program.nodes if node.op.name == "mixture" for weight in node.args[3:]}
    angles = {id(node.args[1]) for node in program.nodes if node.op.name == "rope_angles"}
    for symbol in program.of_kind("weight"):
        if id(symbol) in angles:
            made.host[symbol.name] = dense(_fetch(weights, symbol))
        if id(symbol) in others and symbol.name not in made.placed:
            array = fetch(symbol, plain=id(symbol) not in tables | experts)
            if id(symbol) in experts and array.nbytes > device.largest:
                wanted = f"at most {device.largest / 1e6:.0f} MB of experts in a tensor"
                raise expected("gpu", wanted, f"{array.nbytes / 1e6:.0f} MB in {symbol.name}", hint=LESS)
            made.placed[symbol.name] = _place(device, array)
    if listed := ", ".join(f"{count} of {name}" for name, count in sorted(dequantised.items()) if count):
        message = (
            f"[gpu] tensors without a kernel of their format yet are held as f32 ({listed}): more memory, same values"
        )
        warnings.warn(message, LatticeWarning, stacklevel=2)
    return made


def _others(node: Node) -> Iterator[Symbol]:
    """Yield the weights that a node reads other than as part of a product."""
    for place, argument in enumerate(node.args):
        product = node.op.name == "project" and place >= 4
        if isinstance(argument, Symbol) and argument.kind == "weight" and not product:
            yield argument


def _format(array: Array) -> str:
    return array.dtype.name if array.dtype.name in SPLIT else "f32"


def _fetch(weights: Mapping[str, Array], symbol: Symbol) -> Array:
    if symbol.name not in weights:
        raise expected("load", f"a tensor {symbol.name}", "none")
    given: Any = weights[symbol.name]
    array = Array(given, F32, given.shape) if isinstance(given, np.ndarray) else given
    if array.shape != symbol.shape:
        raise expected("load", f"{symbol.name} of shape {symbol.shape}", array.shape)
    return array


def cuts(rows: int, nbytes: int, largest: int) -> Iterator[tuple[int, int]]:
    """Yield (first, rows) of each part of a weight of so many rows and bytes, of which `largest` are bound at once."""
    each = max(1, nbytes // max(1, rows))
    # Parts begin at whole words of every plane: two rows of f16, four of bytes.
    most = max(4, largest // each // 4 * 4)
    yield from ((first, min(most, rows - first)) for first in range(0, max(1, rows), most))


def _place(device: Device, array: Array) -> Placed:
    rows = array.shape[0] if array.shape else 1
    parts = []
    for first, some in cuts(rows, array.nbytes, device.largest):
        part = array if some == rows else array.rows(slice(first, first + some))
        uploaded = {name: device.upload(words) for name, words in split(part).items()}
        parts.append(Part(array.dtype.name, first, some, uploaded))
    size = sum(plane.size for part in parts for plane in part.planes.values())
    return Placed(size, tuple(parts))
