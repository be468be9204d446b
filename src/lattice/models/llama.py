"""Llama (Touvron et al., 2023, arXiv:2302.13971; Llama 3: arXiv:2407.21783) and those built like it: SmolLM2.

Pre-norm decoder: RMSNorm, grouped rotary attention, SwiGLU; the head may be tied to the embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lattice import nn
from lattice.models import _decoder
from lattice.ops import add, rope_angles
from lattice.step import Step

ALIASES: tuple[str, ...] = ()
IGNORED = ("rope_freqs.weight", "model.rotary_emb.", "rotary_emb.", "lm_head.")  # a tied head may be stored twice


@dataclass(frozen=True)
class Config:
    """Keys of config.json."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int = 0
    head_dim: int = 0
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None
    rope_parameters: dict | None = None  # the newer form of the two above
    rope_factors: Any = None  # GGUF: divisors of the inverse frequencies
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        theta = (self.rope_parameters or {}).get("rope_theta", self.rope_theta)
        nn.complete_decoder(self, rope_theta=theta, rope_scaling=self.rope_parameters or self.rope_scaling)

    @classmethod
    def read(cls, data: Mapping[str, Any], strict: bool = True) -> Config:
        """Return the config of a config.json."""
        ignorable = frozenset({"rope_interleaved", "is_llama_config", "transformers.js_config"})
        return nn.read_config(cls, data, ignorable, strict=strict)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Config:
        """Return the config of a GGUF's metadata and tensors."""
        data = _decoder.gguf_config("llama", metadata, tensors)
        factors = {"rope_factors": tensors.get("rope_freqs.weight"), "mlp_bias": "blk.0.ffn_up.bias" in tensors}
        return nn.read_config(cls, data | factors)


class Layer(nn.DecoderLayer):
    """One decoder block."""

    def __init__(self, c: Config):
        self.input_layernorm = nn.RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.self_attn = nn.Attention(
            c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim, bias=c.attention_bias,
            output_bias=c.attention_bias, scale=c.head_dim**-0.5 * nn.attention_factor(c.rope_scaling) ** 2,
        )  # fmt: skip
        self.post_attention_layernorm = nn.RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.mlp = nn.GatedMLP(c.hidden_size, c.intermediate_size, nn.ACTIVATION_KINDS[c.hidden_act], c.mlp_bias)

    def __call__(self, x: Any, angles: Any, step: Step, state: nn.KV | None) -> tuple[Any, nn.KV | None]:
        mixed, state = self.self_attn(self.input_layernorm(x), angles, step, state)
        x = add(x, mixed)
        return add(x, self.mlp(self.post_attention_layernorm(x))), state


class Model(nn.Module):
    """The language model."""

    def __init__(self, c: Config):
        layers, norm = [Layer(c) for _ in range(c.num_hidden_layers)], nn.RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.model = nn.Decoder(c.vocab_size, c.hidden_size, layers, norm)
        self.state_shapes = self.model.state_shapes
        tied = self.model.embed_tokens.weight if c.tie_word_embeddings else None
        self.lm_head = nn.Linear(c.hidden_size, c.vocab_size, weight=tied)
        factors = np.float32(1 if c.rope_factors is None else c.rope_factors)
        self.inverse_frequencies = nn.inverse_frequencies(c.head_dim, c.rope_theta, c.rope_scaling) / factors

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


def _rotary_rows(heads: Callable[[Config], int]) -> Callable[[Config], np.ndarray]:
    """GGUF stores the rows of q and k so that rotary pairs lie side by side: undo it, head by head."""

    def order(c: Config) -> np.ndarray:
        rows = np.arange(heads(c) * c.head_dim).reshape(heads(c), c.head_dim // 2, 2)
        return rows.swapaxes(1, 2).reshape(-1)

    return order


GGUF = {
    **_decoder.GGUF,
    **_decoder.norm_names(input_layernorm="attn_norm", post_attention_layernorm="ffn_norm"),
    **_decoder.linear_names("self_attn.q_proj", "attn_q", _rotary_rows(lambda c: c.num_attention_heads)),
    **_decoder.linear_names("self_attn.k_proj", "attn_k", _rotary_rows(lambda c: c.num_key_value_heads)),
}
