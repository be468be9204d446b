"""Qwen3.5 and Qwen3.6 (Qwen Team, 2026), their text models: gated delta nets, every fourth layer gated attention.

Dense or with experts; the first quarter of a head rotates, in split halves. Every norm multiplies by 1 + weight, the
draft head's too, but the delta nets' own, which multiply by their weight.

The draft head (MTP) guesses the token at t + 2 from that at t + 1 and the trunk's state at t, in this order:

    x = fc([norm(embedding of t + 1) | norm(state at t)]);   x = layer(x);   logits = head(norm(x))

The state is what `head` sees, *behind* the trunk's final norm (and, drafting on, behind the draft head's): so have it
llama.cpp, vLLM and SGLang, and published weights draft less well from the state before that norm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lattice import nn
from lattice.models import _hybrid
from lattice.ops import rope_angles, scale
from lattice.step import Step

ALIASES = ("qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text", "qwen35", "qwen35moe")
FULL, LINEAR = nn.HYBRID_TYPES
VISION = ("model.visual.", "visual.")
IGNORED = (*VISION, "lm_head.", "model.lm_head.", "mtp.", "model.mtp.")  # a tied head may be stored twice


@dataclass(frozen=True)
class Config:
    """Keys of config.json; with `num_experts` the feed-forward layers are mixtures."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int = 0
    num_key_value_heads: int = 0
    head_dim: int = 256
    hidden_act: str = "silu"
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    partial_rotary_factor: float = 0.25
    rope_scaling: dict | None = None
    rope_parameters: dict | None = None  # the newer form of these three
    attention_bias: bool = False
    attn_output_gate: bool = True
    linear_conv_kernel_dim: int = 4
    linear_key_head_dim: int = 128
    linear_value_head_dim: int = 128
    linear_num_key_heads: int = 16
    linear_num_value_heads: int = 32
    full_attention_interval: int = 4
    layer_types: list[str] = field(default_factory=list)
    num_experts: int = 0
    num_experts_per_tok: int = 8
    moe_intermediate_size: int = 512
    shared_expert_intermediate_size: int = 512
    norm_topk_prob: bool = True
    mtp_num_hidden_layers: int = 0
    tie_word_embeddings: bool = False
    tiled: bool = False  # value heads in GGUF's order
    split_gate_up: bool = False  # an expert's gate and up are two tensors, as in GGUF

    def __post_init__(self) -> None:
        nn.complete_hybrid(self)

    @classmethod
    def read(cls, data: Mapping[str, Any], strict: bool = True) -> Config:
        """Return the config of a config.json, the text part of a multimodal one, whose own head tie holds."""
        return nn.read_config(cls, _hybrid.json_config(data), _hybrid.IGNORABLE, strict=strict)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Config:
        """Return the config of a GGUF's metadata and tensors."""
        return nn.read_config(cls, _hybrid.gguf_config(metadata, tensors))


def layer(c: Config, kind: str) -> nn.HybridLayer:
    """Return one decoder block."""
    if kind == LINEAR:
        mixer: dict[str, Any] = {"linear_attn": nn.GatedDeltaNet(
            c.hidden_size, c.linear_num_key_heads, c.linear_num_value_heads, c.linear_key_head_dim,
            c.linear_value_head_dim, c.linear_conv_kernel_dim, c.rms_norm_eps, tiled=c.tiled,
        )}  # fmt: skip
    else:
        mixer = {"self_attn": nn.Attention(
            c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim, bias=c.attention_bias,
            output_bias=c.attention_bias, norm_eps=c.rms_norm_eps, gate=c.attn_output_gate,
        )}  # fmt: skip
    experts = c.num_experts, c.moe_intermediate_size, c.shared_expert_intermediate_size, c.num_experts_per_tok
    dense = nn.GatedMLP(c.hidden_size, c.intermediate_size, "silu")
    mlp = nn.MoE(c.hidden_size, *experts, "silu", c.split_gate_up) if c.num_experts else dense
    return nn.HybridLayer(c.hidden_size, c.rms_norm_eps, mlp, **mixer)


class Model(nn.Module):
    """The language model, and its draft head `mtp` where the checkpoint has one."""

    def __init__(self, c: Config):
        layers, norm = [layer(c, kind) for kind in c.layer_types], nn.RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.model = nn.Decoder(c.vocab_size, c.hidden_size, layers, norm)
        self.state_shapes = self.model.state_shapes
        tied = self.model.embed_tokens.weight if c.tie_word_embeddings else None
        self.lm_head = nn.Linear(c.hidden_size, c.vocab_size, weight=tied)
        rotated = int(c.head_dim * c.partial_rotary_factor)
        self.inverse_frequencies = nn.inverse_frequencies(rotated, c.rope_theta, c.rope_parameters)
        self.growth = nn.attention_factor(c.rope_parameters)  # of rotated dimensions alone
        draft = nn.DraftHead(self.model.embed_tokens, c.hidden_size, c.rms_norm_eps, layer(c, FULL), self.angles)
        self.mtp = draft if c.mtp_num_hidden_layers else None

    def angles(self, step: Step) -> Any:
        """Return the rotation of each token."""
        angles = rope_angles(step.positions, self.inverse_frequencies)
        return angles if self.growth == 1 else scale(angles, factor=self.growth)

    def trunk(self, step: Step, state: list[Any] | None = None) -> tuple[Any, list[Any] | None]:
        """Return what the last layer leaves, (T, hidden), before the final norm, and the new state."""
        return self.model.trunk(self.model.embed_tokens(step.tokens), self.angles(step), step, state)

    def __call__(self, step: Step, state: list[Any] | None = None) -> tuple[Any, list[Any] | None]:
        """Return the normalised hidden states, (T, hidden), and the new state; without state, sequences stand alone."""
        x, state = self.trunk(step, state)
        return self.norm(x), state

    def norm(self, x: Any) -> Any:
        """Return rows of the trunk as `head` and `mtp` want them."""
        return self.model.norm(x)

    def head(self, x: Any) -> Any:
        """Return the logits of rows of hidden states."""
        return self.lm_head(x)


def spellings(name: str) -> tuple[str, ...]:
    """Return the names of a parameter in safetensors: multimodal, alone, or without the trunk's prefix."""
    bare = name.removeprefix("model.")
    return name, f"model.language_model.{bare}", f"model.{name}", bare, f"language_model.{name}"


def values(name: str) -> Callable[[np.ndarray], np.ndarray] | None:
    """Norm weights are stored less 1 in safetensors, but the delta net's own."""
    stored_less_1 = "norm" in name.split(".")[-2] and "linear_attn" not in name
    return (lambda weight: weight + 1) if stored_less_1 else None


GGUF, parts = _hybrid.gguf_names, _hybrid.expert_parts
