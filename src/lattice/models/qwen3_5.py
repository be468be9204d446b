"""Qwen3.5 and Qwen3.6 (Qwen Team, 2026), their text models: gated delta nets, every fourth layer gated attention.

Dense or with experts; heads rotate in part (split halves). Norm weights are stored less 1, but the delta net's own; GGUF
holds them whole, holds -exp(A_log), and orders the value heads so that head h reads with key head h % key_heads.

The draft head (MTP) predicts the token at t + 2 from the token at t + 1 and the state at t, which is the trunk's output
*behind* its final norm, or, further ahead, the head's own behind mtp.norm: what `head` turns into logits. So read
llama.cpp, vLLM and SGLang; published weights draft worse from the state before the norm.

    x = fc([norm_e(embedding of t + 1) | norm_h(state at t)]);   x = layer(x);   draft = head(norm(x))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lattice import nn
from lattice.errors import expected
from lattice.models import _hybrid
from lattice.ops import add, rope_angles, scale
from lattice.step import Step

ALIASES = ("qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text", "qwen35", "qwen35moe")
FULL, LINEAR = nn.HYBRID_TYPES
VISION = ("model.visual.", "visual.")
IGNORED = (*VISION, "lm_head.", "model.lm_head.", "mtp.", "model.mtp.")  # a tied head may be stored twice
IGNORABLE = frozenset({
    "text_config", "vision_config", "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id",
    "mamba_ssm_dtype", "router_aux_loss_coef", "output_router_logits",
})  # fmt: skip


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
    mtp_use_dedicated_embeddings: bool = False
    tie_word_embeddings: bool = False
    tiled: bool = False  # value heads in GGUF's order
    split_gate_up: bool = False  # an expert's gate and up are two tensors, as in GGUF

    def __post_init__(self) -> None:
        rope = {"rope_theta": self.rope_theta, "partial_rotary_factor": self.partial_rotary_factor}
        rope |= (self.rope_scaling or {}) | (self.rope_parameters or {})
        rope = {key: value for key, value in rope.items() if not key.startswith("mrope_")}  # of images and videos
        theta, part = rope["rope_theta"], rope.pop("partial_rotary_factor")
        layers, every = range(min(4096, self.num_hidden_layers)), max(1, self.full_attention_interval)
        nn.complete_decoder(
            self, rope_parameters=rope, rope_theta=theta, partial_rotary_factor=part,
            layer_types=self.layer_types or [nn.HYBRID_TYPES[(i + 1) % every > 0] for i in layers],
            intermediate_size=self.intermediate_size or self.num_experts and self.moe_intermediate_size,
        )  # fmt: skip
        nn.check_layer_types(self, nn.HYBRID_TYPES)
        if self.rotary_dim % 2 or not self.rotary_dim:
            raise expected("config", "an even number of rotated dimensions", self.head_dim * part)
        if self.linear_num_value_heads % self.linear_num_key_heads:
            raise expected("config", "linear key heads that divide the value heads", self)
        if self.num_experts and self.num_experts_per_tok > self.num_experts:
            raise expected("config", f"num_experts_per_tok up to {self.num_experts}", self.num_experts_per_tok)
        if nn.ACTIVATION_KINDS[self.hidden_act] != "silu" or not self.norm_topk_prob:
            raise expected("config", "hidden_act silu and norm_topk_prob true", (self.hidden_act, self.norm_topk_prob))
        if self.mtp_use_dedicated_embeddings:
            raise expected("config", "a draft head that shares the embedding", "mtp_use_dedicated_embeddings")

    @property
    def rotary_dim(self) -> int:
        """Rotated dimensions of a head."""
        return int(self.head_dim * self.partial_rotary_factor)

    @classmethod
    def read(cls, data: Mapping[str, Any], strict: bool = True) -> Config:
        """Return the config of a config.json, the text part of a multimodal one, whose own head tie holds."""
        experts = {"num_experts": 256} if "moe" in str(data.get("model_type")) else {}
        tied = {key: data[key] for key in ("tie_word_embeddings",) if data.get(key) is not None}
        data = experts | data | (data.get("text_config") or {}) | tied
        return nn.read_config(cls, data, IGNORABLE, strict=strict)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Config:
        """Return the config of a GGUF's metadata and tensors."""
        return nn.read_config(cls, _hybrid.gguf_config(metadata, tensors))


class Layer(nn.DecoderLayer):
    """One decoder block."""

    def __init__(self, c: Config, kind: str):
        eps = c.rms_norm_eps
        self.input_layernorm = nn.RMSNorm(c.hidden_size, eps)
        if kind == LINEAR:
            self.linear_attn = self.mixer = nn.GatedDeltaNet(
                c.hidden_size, c.linear_num_key_heads, c.linear_num_value_heads, c.linear_key_head_dim,
                c.linear_value_head_dim, c.linear_conv_kernel_dim, eps, tiled=c.tiled,
            )  # fmt: skip
        else:
            self.self_attn = self.mixer = nn.Attention(
                c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim, bias=c.attention_bias,
                output_bias=c.attention_bias, norm_eps=eps, gate=c.attn_output_gate,
            )  # fmt: skip
        self.post_attention_layernorm = nn.RMSNorm(c.hidden_size, eps)
        experts = c.num_experts, c.moe_intermediate_size, c.shared_expert_intermediate_size, c.num_experts_per_tok
        self.mlp = nn.MoE(c.hidden_size, *experts, "silu", c.split_gate_up) if c.num_experts else nn.GatedMLP(
            c.hidden_size, c.intermediate_size, "silu"
        )  # fmt: skip

    def __call__(self, x: Any, angles: Any, step: Step, state: Any) -> tuple[Any, Any]:
        mixed, state = self.mixer(self.input_layernorm(x), angles, step, state)
        x = add(x, mixed)
        return add(x, self.mlp(self.post_attention_layernorm(x))), state


class Model(nn.Module):
    """The language model, and its draft head `mtp` where the checkpoint has one."""

    def __init__(self, c: Config):
        layers, norm = [Layer(c, kind) for kind in c.layer_types], nn.RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.model = nn.Decoder(c.vocab_size, c.hidden_size, layers, norm)
        self.state_shapes = self.model.state_shapes
        tied = self.model.embed_tokens.weight if c.tie_word_embeddings else None
        self.lm_head = nn.Linear(c.hidden_size, c.vocab_size, weight=tied)
        self.inverse_frequencies = nn.inverse_frequencies(c.rotary_dim, c.rope_theta, c.rope_parameters)
        self.growth = nn.attention_factor(c.rope_parameters)  # of rotated dimensions alone
        drafts = nn.DraftHead(self.model.embed_tokens, c.hidden_size, c.rms_norm_eps, Layer(c, FULL), self.angles)
        self.mtp = drafts if c.mtp_num_hidden_layers else None

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
        """Return rows of the trunk as `head`, and `mtp`, want them."""
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


GGUF = _hybrid.gguf_names
