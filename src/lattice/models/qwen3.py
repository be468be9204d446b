"""Qwen3 (Yang et al., 2025, arXiv:2505.09388): dense generators, and the embedding models made of them.

Pre-norm decoder like Llama's, with an RMSNorm over every head of queries and keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lattice import nn
from lattice.models import _decoder
from lattice.ops import add, rope_angles
from lattice.step import Step

ALIASES: tuple[str, ...] = ()
IGNORED = ("model.rotary_emb.", "rotary_emb.", "lm_head.")  # a tied head may be stored twice, as in Qwen3-0.6B


@dataclass(frozen=True)
class Config:
    """Keys of config.json."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int = 0
    head_dim: int = 128
    hidden_act: str = "silu"
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None
    rope_parameters: dict | None = None  # the newer form of the two above
    attention_bias: bool = False
    use_sliding_window: bool = False
    sliding_window: int | None = None
    max_window_layers: int = 28  # layers before the first that slides
    layer_types: list[str] = field(default_factory=list)
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        theta = (self.rope_parameters or {}).get("rope_theta", self.rope_theta)
        window = self.sliding_window if self.use_sliding_window else None
        first = self.max_window_layers if window else self.num_hidden_layers
        slides = range(first, self.num_hidden_layers)
        kinds = [nn.LAYER_TYPES[index in slides] for index in range(min(4096, self.num_hidden_layers))]
        nn.complete_decoder(
            self, rope_theta=theta, rope_scaling=self.rope_parameters or self.rope_scaling, sliding_window=window,
            layer_types=self.layer_types or kinds,
        )  # fmt: skip
        nn.check_layer_types(self)

    @classmethod
    def read(cls, data: Mapping[str, Any], strict: bool = True) -> Config:
        """Return the config of a config.json."""
        return nn.read_config(cls, data, strict=strict)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Config:
        """Return the config of a GGUF's metadata and tensors."""
        return nn.read_config(cls, _decoder.gguf_config("qwen3", metadata, tensors))


class Layer(nn.DecoderLayer):
    """One decoder block."""

    def __init__(self, c: Config, kind: str):
        self.input_layernorm = nn.RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.self_attn = nn.Attention(
            c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim, bias=c.attention_bias,
            output_bias=c.attention_bias, norm_eps=c.rms_norm_eps,
            scale=c.head_dim**-0.5 * nn.attention_factor(c.rope_scaling) ** 2,
            window=(c.sliding_window or 0) if kind == "sliding_attention" else 0,
        )  # fmt: skip
        self.post_attention_layernorm = nn.RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.mlp = nn.GatedMLP(c.hidden_size, c.intermediate_size, nn.ACTIVATION_KINDS[c.hidden_act])

    def __call__(self, x: Any, angles: Any, step: Step, state: nn.KV | None) -> tuple[Any, nn.KV | None]:
        mixed, state = self.self_attn(self.input_layernorm(x), angles, step, state)
        x = add(x, mixed)
        return add(x, self.mlp(self.post_attention_layernorm(x))), state


class Model(nn.Module):
    """The language model."""

    def __init__(self, c: Config):
        layers, norm = [Layer(c, kind) for kind in c.layer_types], nn.RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.model = nn.Decoder(c.vocab_size, c.hidden_size, layers, norm)
        self.state_shapes = self.model.state_shapes
        tied = self.model.embed_tokens.weight if c.tie_word_embeddings else None
        self.lm_head = nn.Linear(c.hidden_size, c.vocab_size, weight=tied)
        self.inverse_frequencies = nn.inverse_frequencies(c.head_dim, c.rope_theta, c.rope_scaling)

    def __call__(self, step: Step, state: list[nn.KV] | None = None) -> tuple[Any, list[nn.KV] | None]:
        """Return the normalised hidden states, (T, hidden), and the new state; without state, attention is local."""
        x = self.model.embed_tokens(step.tokens)
        angles = rope_angles(step.positions, self.inverse_frequencies)
        return self.model(x, angles, step, state)

    def head(self, x: Any) -> Any:
        """Return the logits of rows of hidden states."""
        return self.lm_head(x)


def spellings(name: str) -> tuple[str, ...]:
    """Return the names of a parameter in safetensors: a bare decoder is saved without its prefix."""
    return name, name.removeprefix("model.")


GGUF = {  # rows of q and k stay as they are: this architecture rotates halves
    **_decoder.GGUF,
    **_decoder.norm_names(
        input_layernorm="attn_norm", post_attention_layernorm="ffn_norm",
        self_attn__q_norm="attn_q_norm", self_attn__k_norm="attn_k_norm",
    ),
}  # fmt: skip
