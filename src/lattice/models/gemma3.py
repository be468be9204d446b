"""Gemma 3 (Gemma Team, 2025, arXiv:2503.19786), its text model: four norms a layer, most layers see a window only.

    x = x + norm(attention(norm(x)));   x = x + norm(mlp(norm(x)));   x starts as sqrt(hidden_size) * embedding

Sliding layers have a rotary base of their own, and scaling stretches only the others. sqrt(hidden_size) is float32, as
in llama.cpp and in transformers on float32 weights; transformers rounds it where the weights are bf16.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lattice import nn
from lattice.errors import expected
from lattice.models import _decoder
from lattice.ops import add, rope_angles, scale
from lattice.step import Step

ALIASES = ("gemma3_text",)
FULL, SLIDING = nn.LAYER_TYPES
VISION = tuple(prefix + part for prefix in ("", "model.") for part in ("vision_tower.", "multi_modal_projector."))
IGNORED = (*VISION, "lm_head.", "language_model.lm_head.")  # a tied head may be stored twice


@dataclass(frozen=True)
class Config:
    """Keys of config.json; multimodal files give only those of text_config that differ from these defaults."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    vocab_size: int = 262_208
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 256
    hidden_activation: str = "gelu_pytorch_tanh"
    max_position_embeddings: int = 131_072
    rms_norm_eps: float = 1e-6
    query_pre_attn_scalar: float = 256
    attention_bias: bool = False
    sliding_window: int = 4096
    sliding_window_pattern: int = 6  # every so many layers one sees all positions
    layer_types: list[str] = field(default_factory=list)
    rope_theta: float = 1_000_000.0
    rope_local_base_freq: float = 10_000.0
    rope_scaling: dict | None = None
    rope_parameters: dict = field(default_factory=dict)  # the newer form of these three, by layer type
    tie_word_embeddings: bool = True

    def __post_init__(self) -> None:
        every, layers = max(1, self.sliding_window_pattern), range(min(4096, self.num_hidden_layers))
        rope = {FULL: {"rope_theta": self.rope_theta} | (self.rope_scaling or {})}
        rope |= {SLIDING: {"rope_theta": self.rope_local_base_freq}}
        if set(self.rope_parameters) - set(rope):
            raise expected("config", "rope_parameters for each layer type", sorted(self.rope_parameters))
        rope = {kind: given | (self.rope_parameters.get(kind) or {}) for kind, given in rope.items()}
        nn.complete_decoder(
            self, layer_types=self.layer_types or [nn.LAYER_TYPES[(i + 1) % every > 0] for i in layers],
            rope_parameters=rope, rope_theta=rope[FULL]["rope_theta"], rope_local_base_freq=rope[SLIDING]["rope_theta"],
        )  # fmt: skip
        nn.check_layer_types(self)

    @classmethod
    def read(cls, data: Mapping[str, Any], strict: bool = True) -> Config:
        """Return the config of a config.json, the text part of a multimodal one."""
        ignorable = frozenset({"_sliding_window_pattern", "cache_implementation"})
        if data.get("text_config"):
            data = data["text_config"] | {"quantization_config": data.get("quantization_config")}
        return nn.read_config(cls, data, ignorable, strict=strict)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Config:
        """Return the config of a GGUF's metadata and tensors; what llama.cpp takes from its own table is here."""
        data, get = _decoder.gguf_config("gemma3", metadata, tensors), lambda key: metadata.get(f"gemma3.{key}")
        width, heads, layers = (data[key] for key in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
        return nn.read_config(cls, data | {
            **{key: get(key) for key in ("attn_logit_softcapping", "final_logit_softcapping")},  # refused if set
            "query_pre_attn_scalar": width // heads if layers == 62 else data["head_dim"],  # 62 layers: the 27B
            "sliding_window": get("attention.sliding_window"), "rope_local_base_freq": get("rope.freq_base_swa"),
            "sliding_window_pattern": get("attention.sliding_window_pattern") if get("attention.sliding_window") else 1,
        })  # fmt: skip


class Layer(nn.DecoderLayer):
    """One decoder block."""

    def __init__(self, c: Config, kind: str):
        norms = (nn.RMSNorm(c.hidden_size, c.rms_norm_eps) for _ in range(4))
        self.kind, self.input_layernorm = kind, next(norms)
        self.self_attn = nn.Attention(
            c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim, bias=c.attention_bias,
            output_bias=c.attention_bias, norm_eps=c.rms_norm_eps, window=c.sliding_window if kind == SLIDING else 0,
            scale=c.query_pre_attn_scalar**-0.5 * nn.attention_factor(c.rope_parameters[kind]) ** 2,
        )  # fmt: skip
        self.post_attention_layernorm, self.pre_feedforward_layernorm, self.post_feedforward_layernorm = norms
        self.mlp = nn.GatedMLP(c.hidden_size, c.intermediate_size, nn.ACTIVATION_KINDS[c.hidden_activation])

    def __call__(self, x: Any, angles: dict, step: Step, state: nn.KV | None) -> tuple[Any, nn.KV | None]:
        mixed, state = self.self_attn(self.input_layernorm(x), angles[self.kind], step, state)
        x = add(x, self.post_attention_layernorm(mixed))
        return add(x, self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))), state


class Model(nn.Module):
    """The language model."""

    def __init__(self, c: Config):
        layers, norm = [Layer(c, kind) for kind in c.layer_types], nn.RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.model = nn.Decoder(c.vocab_size, c.hidden_size, layers, norm)
        self.state_shapes = self.model.state_shapes
        tied = self.model.embed_tokens.weight if c.tie_word_embeddings else None
        self.lm_head = nn.Linear(c.hidden_size, c.vocab_size, weight=tied)
        self.embedding_scale = c.hidden_size**0.5
        self.inverse_frequencies = {
            kind: nn.inverse_frequencies(c.head_dim, None, c.rope_parameters[kind]) for kind in sorted({*c.layer_types})
        }

    def __call__(self, step: Step, state: list[nn.KV] | None = None) -> tuple[Any, list[nn.KV] | None]:
        """Return the normalised hidden states, (T, hidden), and the new state; without state, attention is local."""
        x = scale(self.model.embed_tokens(step.tokens), factor=self.embedding_scale)
        angles = {kind: rope_angles(step.positions, value) for kind, value in self.inverse_frequencies.items()}
        return self.model(x, angles, step, state)

    def head(self, x: Any) -> Any:
        """Return the logits of rows of hidden states."""
        return self.lm_head(x)


def spellings(name: str) -> tuple[str, ...]:
    """Return the names of a parameter in safetensors: alone, in a multimodal file, or without the trunk's prefix."""
    return name, f"language_model.{name}", f"model.language_{name}", name.removeprefix("model.")


def values(name: str) -> Callable[[np.ndarray], np.ndarray] | None:
    """Norm weights are stored less 1 in safetensors; GGUF holds them whole."""
    return (lambda weight: weight + 1) if name.endswith("norm.weight") else None


GGUF = {
    **_decoder.GGUF,
    **_decoder.norm_names(
        input_layernorm="attn_norm", post_attention_layernorm="post_attention_norm",
        pre_feedforward_layernorm="ffn_norm", post_feedforward_layernorm="post_ffw_norm",
        self_attn__q_norm="attn_q_norm", self_attn__k_norm="attn_k_norm",
    ),
}  # fmt: skip
