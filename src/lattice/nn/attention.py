"""Attention blocks and their state: the keys and values of a layer, in pages."""

from __future__ import annotations

from typing import Any, NamedTuple

from lattice.nn.layers import Linear, RMSNorm
from lattice.nn.module import Module
from lattice.ops import append_kv, attention, gated_activation, paged_attention, rope, split_heads
from lattice.ops.attention import FACTOR
from lattice.step import PAGE_TOKENS, Step


class KV(NamedTuple):
    """Key and value pages of one layer: symbols, arrays, or, as a specification, shapes."""

    k_pages: Any
    v_pages: Any

    def with_factors(self) -> KV:
        """Return these shapes with room for the factors of 8-bit pages (see ops/attention.py)."""
        (pages, heads, head_dim, places), v = self.k_pages, self.v_pages
        return KV((pages, heads, head_dim + FACTOR, places), (*v[:-1], v[-1] + FACTOR))


class Attention(Module):
    """Causal self-attention with grouped heads and rotary positions.

    `norm_eps` adds an RMSNorm over every head of q and of k; `scale` replaces head_dim^-0.5; `window` > 0 limits a
    token to the last `window` positions, its own included. With `gate` the rows of q_proj hold, head by head, a query
    and a gate: what the head reads is multiplied by the gate's sigmoid.
    """

    def __init__(
        self, hidden: int, heads: int, kv_heads: int, head_dim: int, *, bias: bool = False, output_bias: bool = False,
        norm_eps: float | None = None, scale: float | None = None, window: int = 0,
        gate: bool = False,
    ):  # fmt: skip
        self.q_proj = Linear(hidden, (1 + gate) * heads * head_dim, bias)
        self.k_proj = Linear(hidden, kv_heads * head_dim, bias)
        self.v_proj = Linear(hidden, kv_heads * head_dim, bias)
        self.o_proj = Linear(heads * head_dim, hidden, output_bias)
        self.q_norm = None if norm_eps is None else RMSNorm(head_dim, norm_eps)
        self.k_norm = None if norm_eps is None else RMSNorm(head_dim, norm_eps)
        self.kv_heads, self.head_dim, self.window, self.gate = kv_heads, head_dim, window, gate
        self.scale = head_dim**-0.5 if scale is None else scale

    def state_shapes(self, pages: int, slots: int) -> KV:
        """Return the shapes of this layer's state for a pool of `pages` pages; slots are not used."""
        return KV(
            (pages, self.kv_heads, self.head_dim, PAGE_TOKENS), (pages, self.kv_heads, PAGE_TOKENS, self.head_dim)
        )

    def __call__(self, x: Any, angles: Any, step: Step, state: KV | None) -> tuple[Any, KV | None]:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        q, gate = split_heads(q, head_dim=self.head_dim) if self.gate else (q, None)
        q = self.q_norm(q) if self.q_norm else q
        k = self.k_norm(k) if self.k_norm else k
        q, k = (rope(value, angles, head_dim=self.head_dim) for value in (q, k))
        if state is None:
            options = {"head_dim": self.head_dim, "causal": True, "scale": self.scale, "window": self.window}
            mixed = attention(q, k, v, step, **options)
        else:
            state = KV(*append_kv(*state, k, v, step))
            mixed = paged_attention(q, *state, step, scale=self.scale, window=self.window)
        mixed = gated_activation(gate, mixed, kind="sigmoid") if self.gate else mixed
        return self.o_proj(mixed), state
