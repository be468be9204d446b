"""Linear attention by the gated delta rule (Yang et al., 2024, arXiv:2412.06464), and the state it keeps."""

from __future__ import annotations

from typing import Any, NamedTuple

from lattice.nn.layers import Linear, RMSNorm
from lattice.nn.module import Block, Module
from lattice.ops import Parameter, conv1d, gated_activation, gated_delta, slot_conv1d, slot_gated_delta
from lattice.step import Step


class Recurrent(NamedTuple):
    """What a layer remembers of each sequence: the convolution's last inputs, and one matrix a value head."""

    conv: Any
    delta: Any


class GatedDeltaNet(Module):
    """Keys, values and queries through a short causal convolution, then the gated delta rule; a gated norm behind it.

        S = decay S;   S = S + k beta (v - S^T k)^T;   y = out(silu(z) * norm(S^T q))

    Value head h reads with key head h // (value_heads / key_heads), or, `tiled`, h % key_heads (the order of GGUF).
    """

    def __init__(
        self, hidden: int, key_heads: int, value_heads: int, key_dim: int, value_dim: int, kernel: int, eps: float,
        *, tiled: bool = False,
    ):  # fmt: skip
        channels = 2 * key_heads * key_dim + value_heads * value_dim
        self.in_proj_qkv = Linear(hidden, channels)
        self.in_proj_z = Linear(hidden, value_heads * value_dim)
        self.in_proj_b = Linear(hidden, value_heads)
        self.in_proj_a = Linear(hidden, value_heads)
        self.conv1d = Block(weight=Parameter((channels, kernel)))
        self.A_log, self.dt_bias = Parameter((value_heads,)), Parameter((value_heads,))
        self.norm = RMSNorm(value_dim, eps)
        self.out_proj = Linear(value_heads * value_dim, hidden)
        self.heads = {"key_heads": key_heads, "value_heads": value_heads, "key_dim": key_dim, "tiled": tiled}
        self.widths = (channels, kernel - 1), (value_heads, key_dim, value_dim)

    def state_shapes(self, pages: int, slots: int) -> Recurrent:
        """Return the shapes of this layer's state for `slots` sequences; pages are not used."""
        return Recurrent(*((slots, *width) for width in self.widths))

    def __call__(self, x: Any, angles: Any, step: Step, state: Recurrent | None) -> tuple[Any, Recurrent | None]:
        qkv, z = self.in_proj_qkv(x), self.in_proj_z(x)  # the four products side by side, so that they fuse
        gates = self.in_proj_a(x), self.in_proj_b(x), self.A_log, self.dt_bias
        weight = self.conv1d["weight"]
        if state is None:
            qkv = conv1d(qkv, weight, step, kind="silu")
            mixed = gated_delta(qkv, *gates, step, **self.heads)
        else:
            conv, qkv = slot_conv1d(state.conv, qkv, weight, step, kind="silu")
            delta, mixed = slot_gated_delta(state.delta, qkv, *gates, step, **self.heads)
            state = Recurrent(conv, delta)
        return self.out_proj(gated_activation(z, self.norm(mixed), kind="silu")), state
