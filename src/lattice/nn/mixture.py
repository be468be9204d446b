"""A feed-forward layer of many experts: each token is worked on by the few that its router chooses, and by one that all
tokens share, behind a gate of its own."""

from __future__ import annotations

from typing import Any

from lattice.nn.layers import GatedMLP, Linear
from lattice.nn.module import Block, Module
from lattice.ops import Parameter, add, gate_rows, mixture, route


class MoE(Module):
    """The top_k of `experts` SwiGLU networks of width `intermediate`, and a shared one of `shared_intermediate`.

    A checkpoint holds gate and up of an expert as the halves of one matrix, or (`split_gate_up`, as in GGUF) as two.
    """

    def __init__(
        self,
        hidden: int,
        experts: int,
        intermediate: int,
        shared_intermediate: int,
        top_k: int,
        kind: str,
        split_gate_up: bool = False,
    ):
        self.gate = Linear(hidden, experts)
        first, down = (experts, intermediate, hidden), Parameter((experts, hidden, intermediate))
        if split_gate_up:
            self.experts = Block(gate_proj=Parameter(first), up_proj=Parameter(first), down_proj=down)
        else:
            self.experts = Block(gate_up_proj=Parameter((experts, 2 * intermediate, hidden)), down_proj=down)
        self.shared_expert = GatedMLP(hidden, shared_intermediate, kind)
        self.shared_expert_gate = Linear(hidden, 1)
        self.top_k, self.kind, self.split_gate_up = top_k, kind, split_gate_up

    def __call__(self, x: Any) -> Any:
        ids, weights = route(self.gate(x), top_k=self.top_k)
        matrices = ("gate_proj", "up_proj") if self.split_gate_up else ("gate_up_proj",)
        gate, up = [self.experts[name] for name in matrices] + [None] * (2 - len(matrices))
        routed = mixture(x, ids, weights, gate, up, self.experts["down_proj"], kind=self.kind)
        return add(routed, gate_rows(self.shared_expert(x), self.shared_expert_gate(x)))
