"""Fusion: one table of patterns, each rewriting small ops into `project`, the fused product.

    siblings     linear(x, w1), linear(x, w2) [, ... up to four]       q, k, v: one pass over x, quantised once
    gate         gated_activation(linear(x, w1), linear(x, w2))        the two halves never leave registers
    activation   activation(linear(x, w))
    residual     add(x, linear(...))  or  add(linear(...), x)
    norm         project(norm(x), ...) where nothing else reads the normalised x

The patterns are tried in one fixed order, each over the whole program, and only where the backend has `project`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from lattice.ops import REGISTRY, Symbol
from lattice.program.ir import Node, Program

PLAIN = {"norm": None, "eps": 0.0, "kind": None, "gated": False}
WEIGHTS = ("w1", "b1", "w2", "b2", "w3", "b3", "w4", "b4")
SIBLINGS = 4  # how many weights `project` takes


class _Graph:
    """A node list under rewriting, with who makes and who reads each symbol."""

    def __init__(self, program: Program, nodes: list[Node]):
        self.nodes = nodes
        self.maker = {id(output): node for node in nodes for output in node.outputs}
        self.reads = Counter(id(symbol) for node in nodes for symbol in node.reads())
        self.reads.update(id(symbol) for symbol in program.outputs.values())

    def single(self, symbol: Symbol | None, *ops: str) -> Node | None:
        """Return the node that makes `symbol` if it is one of `ops` and nothing else reads the symbol."""
        node = self.maker.get(id(symbol))
        if node is None or node.op.name not in ops or len(node.outputs) != 1 or self.reads[id(symbol)] != 1:
            return None
        return node


def fuse(program: Program, kernels: frozenset[str]) -> Program:
    """Return the program with every pattern applied that the backend's `kernels` allow."""
    if "project" not in kernels:
        return program
    nodes = list(program.nodes)
    for pattern in (_gate, _siblings, _activation, _residual, _norm):
        nodes = _rewrite(program, nodes, pattern)
    return program.with_nodes(nodes)


def _rewrite(program: Program, nodes: list[Node], pattern: Callable) -> list[Node]:
    """Apply a pattern at every node, from the first to the last; it returns (nodes to drop, node to put here)."""
    graph = _Graph(program, nodes)
    dropped: set[int] = set()
    replaced: dict[int, Node] = {}
    for node in nodes:
        found = None if id(node) in dropped else pattern(graph, node, dropped)
        if found:
            drop, new = found
            dropped.update(map(id, drop))
            replaced[id(node)] = new
    return [replaced.get(id(node), node) for node in nodes if id(node) not in dropped or id(node) in replaced]


def _project(
    x: Symbol, weights: list, outputs: tuple, scale: tuple = (None, None), residual: Symbol | None = None,
    **attributes: object,
) -> Node:  # fmt: skip
    weights = weights + [None] * (2 * SIBLINGS - len(weights))
    return Node(REGISTRY["project"], (x, *scale, residual, *weights), PLAIN | attributes, outputs)


def _inputs(node: Node) -> tuple[Symbol, list]:
    """Return x and the weights and biases of a linear or a project node."""
    if node.op.name == "linear":
        return node.args[0], list(node.args[1:3])
    weights = list(node.args[4:])
    while len(weights) > 2 and weights[-2] is None:
        weights = weights[:-2]
    return node.args[0], weights


def _gate(graph: _Graph, node: Node, _dropped: set[int]) -> tuple | None:
    if node.op.name != "gated_activation":
        return None
    gate, up = (graph.single(symbol, "linear") for symbol in node.args)
    if gate is None or up is None or gate.args[0] is not up.args[0] or gate is up:
        return None
    weights = _inputs(gate)[1] + _inputs(up)[1]
    return [gate, up], _project(gate.args[0], weights, node.outputs, kind=node.attributes["kind"], gated=True)


def _siblings(graph: _Graph, node: Node, dropped: set[int]) -> tuple | None:
    """Join this linear with the following ones of the same x, as long as nothing in between writes."""
    if node.op.name != "linear":
        return None
    family = [node]
    for other in graph.nodes[graph.nodes.index(node) + 1 :]:
        if other.op.writes or len(family) == SIBLINGS:
            break
        if other.op.name == "linear" and other.args[0] is node.args[0] and id(other) not in dropped:
            family.append(other)
    if len(family) == 1:
        return None
    weights = [value for member in family for value in member.args[1:3]]
    outputs = tuple(member.outputs[0] for member in family)
    return family, _project(node.args[0], weights, outputs)


def _activation(graph: _Graph, node: Node, _dropped: set[int]) -> tuple | None:
    if node.op.name != "activation":
        return None
    product = graph.single(node.args[0], "linear")
    if product is None:
        return None
    x, weights = _inputs(product)
    return [product], _project(x, weights, node.outputs, kind=node.attributes["kind"])


def _residual(graph: _Graph, node: Node, _dropped: set[int]) -> tuple | None:
    if node.op.name != "add":
        return None
    for residual, product in (node.args, node.args[::-1]):
        made = graph.single(product, "linear", "project")
        if made is not None and residual is not product and (made.op.name == "linear" or made.args[3] is None):
            x, weights = _inputs(made)
            attributes = made.attributes if made.op.name == "project" else {}
            return [made], _project(x, weights, node.outputs, residual=residual, **attributes)
    return None


def _norm(graph: _Graph, node: Node, _dropped: set[int]) -> tuple | None:
    if node.op.name not in ("linear", "project") or (node.op.name == "project" and node.attributes["norm"]):
        return None
    norm = graph.single(node.args[0], "rms_norm", "layer_norm")
    if norm is None or norm.args[1].shape != norm.args[0].shape[-1:]:
        return None
    _, weights = _inputs(node)
    residual = node.args[3] if node.op.name == "project" else None
    attributes = {**(node.attributes if node.op.name == "project" else {}), "eps": norm.attributes["eps"]}
    attributes["norm"] = "rms" if norm.op.name == "rms_norm" else "layer"
    parameters = norm.args[1], norm.args[2] if len(norm.args) > 2 else None
    return [norm], _project(norm.args[0], weights, node.outputs, parameters, residual, **attributes)
