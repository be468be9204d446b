"""Fusion: one table of patterns, each rewriting small ops into one that a backend runs as a whole.

    siblings     linear(x, w1), linear(x, w2) [, ... up to four]       q, k, v: one pass over x, quantised once
    gate         gated_activation(linear(x, w1), linear(x, w2))        the two halves never leave registers
    activation   activation(linear(x, w))
    residual     add(x, linear(...))  or  add(linear(...), x)
    norm         project(norm(x), ...) where nothing else reads the normalised x
    delta net    gated_activation(z, rms_norm(slot_gated_delta(slot_conv1d(x)))), the norm over each head
    gated        gated_activation(gate of split_heads(q), paged_attention(...)), by the sigmoid
    rotated      append_kv(..., rope([rms_norm](k)), v) and rope([rms_norm]([split_heads](q))) of who reads those pages

The patterns are tried in one fixed order, each over the whole program, and only where the backend has the op that it
leads to: `project` for the first five, then `delta_net`, `gated_attention`, `rotated_kv`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from lattice.ops import REGISTRY, Symbol
from lattice.ops.fused import COLUMNS, width_of
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

    def only(self, symbol: Symbol | None, op: str) -> Node | None:
        """Return the node that makes `symbol` if it is an `op` and nothing else reads anything that the node makes."""
        node = self.maker.get(id(symbol))
        if node is None or node.op.name != op or any(self.reads[id(o)] != (o is symbol) for o in node.outputs):
            return None
        return node


def fuse(program: Program, kernels: frozenset[str]) -> Program:
    """Return the program with every pattern applied that the backend's `kernels` allow."""
    patterns = [pattern for op, pattern in PATTERNS if op in kernels]
    if not patterns:
        return program
    nodes = list(program.nodes)
    for pattern in patterns:
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


def _delta_net(graph: _Graph, node: Node, _dropped: set[int]) -> tuple | None:
    """The states' new versions come later than they did: nothing may read them."""
    if node.op.name != "gated_activation" or node.attributes["kind"] != "silu":
        return None
    norm = graph.single(node.args[1], "rms_norm")
    delta = graph.only(norm.args[0], "slot_gated_delta") if norm else None
    conv = graph.only(delta.args[1], "slot_conv1d") if delta else None
    if norm is None or delta is None or conv is None or conv.attributes["kind"] != "silu":
        return None
    columns = delta.args[0].shape[-1]
    if norm.args[1].shape != (columns,) or columns > COLUMNS or delta.args[-1] is not conv.args[-1]:
        return None
    conv_state, x, conv_weight, step = conv.args
    state, _, a, b, a_log, dt_bias, _ = delta.args
    args = conv_state, state, x, node.args[0], a, b, conv_weight, a_log, dt_bias, norm.args[1], step
    outputs = conv.outputs[0], delta.outputs[0], node.outputs[0]
    attributes = delta.attributes | {"eps": norm.attributes["eps"]}
    return [conv, delta, norm], Node(REGISTRY["delta_net"], args, attributes, outputs)


def _gated_attention(graph: _Graph, node: Node, _dropped: set[int]) -> tuple | None:
    if node.op.name != "gated_activation" or node.attributes["kind"] != "sigmoid":
        return None
    gate, mixed = node.args[0], graph.single(node.args[1], "paged_attention")
    split = graph.maker.get(id(gate))
    if mixed is None or split is None or split.op.name != "split_heads" or gate is not split.outputs[1]:
        return None
    q, k_pages, v_pages, step = mixed.args
    if any(graph.reads[id(symbol)] != 1 for symbol in (gate, k_pages, v_pages)):
        return None  # the pages are read later than they were: nobody may write to them in between
    if split.attributes["head_dim"] != width_of(k_pages.shape, k_pages.dtype):
        return None
    args = q, k_pages, v_pages, split.args[0], step
    return [mixed], Node(REGISTRY["gated_attention"], args, mixed.attributes, node.outputs)


@dataclass(frozen=True)
class _Turned:
    """Heads that turn, normed before or not."""

    turn: Node
    norm: Node | None

    @property
    def source(self) -> Symbol:
        return (self.norm or self.turn).args[0]

    @classmethod
    def of(cls, graph: _Graph, symbol: Symbol, head_dim: int) -> _Turned | None:
        turn = graph.single(symbol, "rope")
        if turn is None or turn.attributes["inverse"] or turn.attributes["head_dim"] != head_dim:
            return None
        norm = graph.single(turn.args[0], "rms_norm")
        return cls(turn, norm if norm and norm.args[1].shape == (head_dim,) else None)


def _rotated_kv(graph: _Graph, node: Node, _dropped: set[int]) -> tuple | None:
    """Queries are those of who reads the pages; they are made where keys are appended."""
    if node.op.name != "append_kv":
        return None
    readers = (other for other in graph.nodes if other.op.name in ("paged_attention", "gated_attention"))
    reader = next((other for other in readers if other.args[1] is node.outputs[0]), None)
    if reader is None:
        return None
    head_dim = width_of(node.args[0].shape, node.args[0].dtype)
    q, k = (_Turned.of(graph, symbol, head_dim) for symbol in (reader.args[0], node.args[2]))
    if q is None or k is None or graph.nodes.index(q.turn) > graph.nodes.index(node):
        return None
    norms = [made.norm for made in (q, k)]
    every_eps = {norm.attributes["eps"] for norm in norms if norm}
    same = q.turn.args[1] is k.turn.args[1] and q.turn.attributes == k.turn.attributes
    if not same or len(every_eps) > 1:
        return None
    split = graph.only(q.source, "split_heads")
    if split and (q.source is not split.outputs[0] or split.attributes["head_dim"] != head_dim):
        split = None
    sources = split.args[0] if split else q.source, k.source, node.args[3]
    args = *node.args[:2], *sources, *(norm and norm.args[1] for norm in norms), q.turn.args[1], node.args[4]
    attributes = {"head_dim": head_dim, "gated": split is not None, "eps": max(every_eps, default=0.0)}
    attributes["interleaved"] = q.turn.attributes["interleaved"]
    outputs = *node.outputs, q.turn.outputs[0]
    drop = [one for one in (q.turn, k.turn, *norms, split) if one]
    return drop, Node(REGISTRY["rotated_kv"], args, attributes, outputs)


# The op that a pattern leads to, and the pattern.
PATTERNS = (
    ("delta_net", _delta_net),
    ("gated_attention", _gated_attention),
    ("rotated_kv", _rotated_kv),  # behind the gate, which reads the other half of what is parted
    ("project", _gate),
    ("project", _siblings),
    ("project", _activation),
    ("project", _residual),
    ("project", _norm),
)
