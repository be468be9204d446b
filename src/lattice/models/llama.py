"""Llama (Touvron et al., 2023, arXiv:2302.13971; Llama 3: arXiv:2407.21783) and those built like it: SmolLM2.

Pre-norm decoder: RMSNorm, grouped rotary attention, SwiGLU; the head may be tied to the embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lattice.errors import expected
from lattice.nn import (
    ACTIVATION_KINDS,
    KV,
    Attention,
    Embedding,
    GatedMLP,
    Linear,
    Module,
    RMSNorm,
    check_config,
    inverse_frequencies,
    read_config,
)  # fmt: skip
from lattice.ops import add, rope_angles
from lattice.step import Step

ALIASES: tuple[str, ...] = ()
IGNORED = ("rope_freqs.weight", "model.rotary_emb.", "rotary_emb.")


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
        derived = {
            "num_key_value_heads": self.num_key_value_heads or self.num_attention_heads,
            "head_dim": self.head_dim or self.hidden_size // max(1, self.num_attention_heads),
            "rope_theta": (self.rope_parameters or {}).get("rope_theta", self.rope_theta),
            "rope_scaling": self.rope_parameters or self.rope_scaling,
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)
        check_config(self)
        if self.num_attention_heads % self.num_key_value_heads or self.head_dim % 2:
            raise expected("config", "key heads that divide the query heads, an even head_dim", self)

    @classmethod
    def read(cls, data: Mapping[str, Any], strict: bool = True) -> Config:
        """Return the config of a config.json."""
        ignorable = frozenset({"rope_interleaved", "is_llama_config", "transformers.js_config"})
        return read_config(cls, data, ignorable, strict=strict)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Config:
        """Return the config of a GGUF's metadata and tensors."""
        get = lambda key, default=None: metadata.get(f"llama.{key}", default)  # noqa: E731
        kind = get("rope.scaling.type", "none")
        scaling = None if kind == "none" else {"rope_type": kind, "factor": get("rope.scaling.factor", 1.0)}
        return read_config(cls, {
            "vocab_size": len(metadata.get("tokenizer.ggml.tokens", ())) or get("vocab_size"),
            "hidden_size": get("embedding_length"), "intermediate_size": get("feed_forward_length"),
            "num_hidden_layers": get("block_count"), "num_attention_heads": get("attention.head_count"),
            "num_key_value_heads": get("attention.head_count_kv"), "head_dim": get("attention.key_length"),
            "max_position_embeddings": get("context_length"), "rope_scaling": scaling,
            "rms_norm_eps": get("attention.layer_norm_rms_epsilon"), "rope_theta": get("rope.freq_base"),
            "rope_factors": tensors.get("rope_freqs.weight"),
            "tie_word_embeddings": "output.weight" not in tensors, "attention_bias": "blk.0.attn_q.bias" in tensors,
            "mlp_bias": "blk.0.ffn_up.bias" in tensors,
        })  # fmt: skip


class Layer(Module):
    """One decoder block."""

    def __init__(self, c: Config):
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.self_attn = Attention(
            c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim, bias=c.attention_bias,
            output_bias=c.attention_bias,
        )  # fmt: skip
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.mlp = GatedMLP(c.hidden_size, c.intermediate_size, ACTIVATION_KINDS[c.hidden_act], c.mlp_bias)

    def __call__(self, x: Any, angles: Any, step: Step, state: KV | None) -> tuple[Any, KV | None]:
        mixed, state = self.self_attn(self.input_layernorm(x), angles, step, state)
        x = add(x, mixed)
        return add(x, self.mlp(self.post_attention_layernorm(x))), state


class Decoder(Module):
    """Everything under the checkpoint's prefix `model.`."""

    def __init__(self, c: Config):
        self.embed_tokens = Embedding(c.vocab_size, c.hidden_size)
        self.layers = [Layer(c) for _ in range(c.num_hidden_layers)]
        self.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)


class Model(Module):
    """The language model."""

    def __init__(self, c: Config):
        self.model = Decoder(c)
        tied = self.model.embed_tokens.weight if c.tie_word_embeddings else None
        self.lm_head = Linear(c.hidden_size, c.vocab_size, weight=tied)
        factors = 1 if c.rope_factors is None else c.rope_factors
        self.inverse_frequencies = inverse_frequencies(c.head_dim, c.rope_theta, c.rope_scaling) / np.float32(factors)

    def state_shapes(self, pages: int) -> list[KV]:
        """Return each layer's state shapes for a pool of `pages` pages."""
        return [layer.self_attn.state_shapes(pages) for layer in self.model.layers]

    def __call__(self, step: Step, state: list[KV] | None = None) -> tuple[Any, list[KV] | None]:
        """Return the normalised hidden states, (T, hidden), and the new state; without state, attention is local."""
        x = self.model.embed_tokens(step.tokens)
        angles = rope_angles(step.positions, self.inverse_frequencies)
        versions: list[Any] = []
        for index, layer in enumerate(self.model.layers):
            x, version = layer(x, angles, step, state[index] if state else None)
            versions.append(version)
        return self.model.norm(x), versions if state else None

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


def _linear(ours: str, theirs: str, order: Callable | None = None) -> dict[str, Any]:
    names = {f"model.layers.{{}}.{ours}.{end}": f"blk.{{}}.{theirs}.{end}" for end in ("weight", "bias")}
    return {name: (theirs, order) if order else theirs for name, theirs in names.items()}


GGUF = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "model.layers.{}.input_layernorm.weight": "blk.{}.attn_norm.weight",
    "model.layers.{}.post_attention_layernorm.weight": "blk.{}.ffn_norm.weight",
    **_linear("self_attn.q_proj", "attn_q", _rotary_rows(lambda c: c.num_attention_heads)),
    **_linear("self_attn.k_proj", "attn_k", _rotary_rows(lambda c: c.num_key_value_heads)),
    **_linear("self_attn.v_proj", "attn_v"),
    **_linear("self_attn.o_proj", "attn_output"),
    **_linear("mlp.gate_proj", "ffn_gate"),
    **_linear("mlp.up_proj", "ffn_up"),
    **_linear("mlp.down_proj", "ffn_down"),
}
