"""Turning a model's residual stream by an orthogonal matrix, so that no channel stands out: QuaRot's offline half.

    x' = x Q       Q = signs * (H kron C)        H: Hadamard of 2^p, C: m x m, width = 2^p m, m odd

C is the discrete Hartley transform, cas(2 pi i j / m) / sqrt(m), so all channels mix evenly at any width. Norm weights
are folded into the products behind them first (a norm without weights commutes with Q), a tied head gets a matrix of
its own. The function computed stays the same; nothing runs at inference. (Ashkboos et al., 2024, arXiv:2404.00456.)

What is turned follows from the traced program, not from a list of names: values are tagged as in the residual basis or
not, and every op that meets a tagged value must be one of those known to keep the tag. Where that cannot be shown -
norms between a product and the residual (Gemma's), LayerNorm (it subtracts a mean) - the model is refused with the
reason. A draft head is left out: it shares the head, into which the trunk's last norm was folded, with a norm of its
own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lattice.dtypes import F32, Array, dense
from lattice.errors import LatticeError, expected
from lattice.ops import Symbol
from lattice.program import Node, Program, trace
from lattice.weights.load import OpenModel

SEED = 20260723
ROWS = 4096  # turned together
Basis = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Turn:
    """What becomes of one parameter: columns times a norm's weight and turned, rows turned, or all ones."""

    source: str
    norm: str | None = None
    columns: bool = False
    rows: bool = False
    ones: bool = False  # a norm whose weight went elsewhere


@dataclass(frozen=True)
class _Tag:
    """A value in the residual basis; `norm` names the norm whose weight it still lacks, None: the stream itself."""

    norm: str | None = None


def turn(values: np.ndarray, seed: int = SEED) -> np.ndarray:
    """Return values (..., width) times Q, in float64."""
    width = values.shape[-1]
    power = width & -width  # the largest power of two that divides it
    odd = width // power
    grid = (values * signs(width, seed)).reshape(*values.shape[:-1], power, odd)
    angles = 2 * np.pi * np.outer(np.arange(odd), np.arange(odd)) / odd
    grid = grid @ ((np.cos(angles) + np.sin(angles)) / np.sqrt(odd))
    span = 1
    while span < power:
        pairs = grid.reshape(*values.shape[:-1], power // (2 * span), 2, span, odd)
        first, second = pairs[..., 0, :, :], pairs[..., 1, :, :]
        grid = np.stack([first + second, first - second], -3)
        span *= 2
    return grid.reshape(values.shape) / np.sqrt(power)


def signs(count: int, seed: int) -> np.ndarray:
    """Return random signs: the top bits of splitmix64 (Steele et al., 2014) from `seed` on."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return 1.0 - 2.0 * (z >> np.uint64(63))


class Turned(Mapping[str, Array]):
    """The parameters of a turned model: each computed from the original when it is read, float32.

    `turns` says what becomes of each; parameters that do not stand there are the original's own.
    """

    def __init__(self, weights: Mapping[str, Array], names: list[str], turns: Mapping[str, Turn], turn: Basis):
        self.weights, self.names, self.turns, self.turn = weights, names, turns, turn

    def __getitem__(self, name: str) -> Array:
        if name not in self.turns:
            return self.weights[name]
        how = self.turns[name]
        if how.ones:
            made = np.ones(self.weights[name].shape, np.float32)
        else:
            made = self._made(dense(self.weights[how.source]), how)
        return Array(made, F32, made.shape)

    def _made(self, values: np.ndarray, how: Turn) -> np.ndarray:
        made = np.array(values, np.float32, order="C")
        if how.columns:
            flat = made.reshape(-1, made.shape[-1])
            factor = 1.0 if how.norm is None else dense(self.weights[how.norm]).astype(np.float64)
            for start in range(0, len(flat), ROWS):
                flat[start : start + ROWS] = self.turn(flat[start : start + ROWS] * factor)
        if how.rows and made.ndim == 1:
            made[...] = self.turn(made.astype(np.float64))
        elif how.rows:
            for matrix in made.reshape(-1, *made.shape[-2:]):
                for start in range(0, matrix.shape[1], ROWS):
                    part = matrix[:, start : start + ROWS]
                    part[...] = self.turn(part.T.astype(np.float64)).T
        return made

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.names


def rotate(opened: OpenModel, basis: Basis = turn) -> OpenModel:
    """Return a model with an untied head whose residual stream is turned, and that computes the same function.

    `basis` multiplies rows (n, width) float64 with an orthogonal matrix.
    Its `weights` (a `Turned`) are computed as they are read; its config says tie_word_embeddings false and no draft
    head. Raises LatticeError where the program does not show that this is possible.
    """
    if getattr(opened.model, "lm_head", None) is None:
        raise _refused("one without a head, whose result would be turned")
    drafts = {"mtp_num_hidden_layers": 0} if getattr(opened.config, "mtp_num_hidden_layers", 0) else {}
    config = replace(opened.config, tie_word_embeddings=False, **drafts)
    model = opened.family.Model(config)
    names = list(model.parameters())
    turns = _Tags(trace(lambda program: _forward(model, program)), config.hidden_size).turns()
    for name in set(turns).difference(opened.weights):  # the head that was tied
        turns[name] = replace(turns[name], source=opened.model.lm_head.weight.name)
    weights: Any = Turned(opened.weights, names, turns, basis)
    return replace(opened, config=config, model=model, weights=weights)


def _forward(model: Any, program: Program) -> dict[str, Symbol]:
    hidden, _ = model(program.step())
    return {"logits": model.head(hidden)}


def _refused(got: str) -> LatticeError:
    return expected("rotate", "a model whose residual stream can be turned", got, hint="use q4")


class _Tags:
    """Follows the residual basis through a program, and collects what every node wants of its weights."""

    def __init__(self, program: Program, width: int):
        self.width, self.program = width, program
        self.tags: dict[int, _Tag] = {}
        self.maker = {id(output): node for node in program.nodes for output in node.outputs}
        self.reads = Counter(id(symbol) for node in program.nodes for symbol in node.reads())
        self.reads.update(id(symbol) for symbol in program.outputs.values())
        self.wanted: dict[tuple[str, int], Turn] = {}  # by weight and node
        for node in program.nodes:
            self._node(node)
        if any(id(symbol) in self.tags for symbol in program.outputs.values()):
            raise _refused("an output in the residual's basis")

    def turns(self) -> dict[str, Turn]:
        """Return what becomes of each weight; all nodes that read it must want the same."""
        found: dict[str, Turn] = {}
        for node in self.program.nodes:
            for symbol in node.reads():
                if symbol.kind == "weight":
                    wanted = self.wanted.get((symbol.name, id(node)), Turn(symbol.name))
                    if found.setdefault(symbol.name, wanted) != wanted:
                        raise _refused(f"{symbol.name} in two roles")
        return {name: how for name, how in found.items() if how != Turn(name)}

    def _node(self, node: Node) -> None:
        name, args = node.op.name, node.args
        tags = [self.tags.get(id(argument)) for argument in args]
        if name == "embedding" and args[0].shape[-1] == self.width:
            self._want(node, args[0], columns=True)
            self.tags[id(node.outputs[0])] = _Tag()
        elif not any(tags):
            return
        elif name in ("add", "scale", "take_rows") and not any(tag and tag.norm for tag in tags):
            for argument, tag in zip(args, tags, strict=True):
                if tag is None and name == "add":
                    self._demand(argument)
            self.tags[id(node.outputs[0])] = _Tag()
        elif name == "rms_norm" and tags[0] == _Tag() and args[1].shape == (self.width,):
            self._want(node, args[1], ones=True)
            self.tags[id(node.outputs[0])] = _Tag(args[1].name)
        elif name in ("linear", "mixture") and tags[0] is not None and not any(tags[1:]):
            for weight in args[1:2] if name == "linear" else args[3:5]:
                self._want(node, weight, columns=True, norm=tags[0].norm)
        else:
            raise _refused(f"{name} of values in the residual's basis")

    def _demand(self, symbol: Symbol) -> None:
        """Have a value made in the residual's basis, by turning the rows of the products that make it."""
        node = self.maker.get(id(symbol))
        name = "an input" if node is None else node.op.name
        if node is None or name not in ("linear", "mixture", "add", "gate_rows", "scale"):
            raise _refused(f"{name} between the products and the residual stream")
        if self.reads[id(symbol)] != 1:
            raise _refused(f"a product {name} that is read beside the residual stream")
        if name in ("linear", "mixture"):
            for weight in node.args[1:3] if name == "linear" else node.args[5:6]:
                self._want(node, weight, rows=True)
        else:
            for argument in node.args if name == "add" else node.args[:1]:
                self._demand(argument)

    def _want(self, node: Node, weight: Symbol | None, **how: Any) -> None:
        if weight is None:
            return
        if weight.kind != "weight":
            raise _refused(f"a product with {weight.name}")
        key = weight.name, id(node)
        self.wanted[key] = replace(self.wanted.get(key, Turn(weight.name)), **how)
