"""BERT (Devlin et al., 2018, arXiv:1810.04805): MiniLM, BGE and other text encoders built like it.

Post-norm encoder: learned positions, full attention, GELU feed-forward. Poolers and task heads are not used. GGUF calls
RoBERTa "bert" too, its table cut to the positions of texts, so that it is computed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lattice.nn import (
    ENCODER_IGNORABLE,
    ENCODER_LAYER_GGUF,
    EncoderEmbeddings,
    EncoderStack,
    Module,
    check_config,
    check_encoder,
    read_config,
)
from lattice.step import Step

ALIASES: tuple[str, ...] = ()
IGNORED = ("pooler.", "bert.pooler.", "cls.", "classifier.", "embeddings.position_ids", "bert.embeddings.position_ids")


@dataclass(frozen=True)
class Config:
    """Keys of config.json."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: str = "gelu"
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    position_embedding_type: str = "absolute"
    is_decoder: bool = False
    add_cross_attention: bool = False

    def __post_init__(self) -> None:
        check_config(self)
        check_encoder(self)

    @classmethod
    def read(cls, data: Mapping[str, Any], strict: bool = True) -> Config:
        """Return the config of a config.json."""
        return read_config(cls, data, ENCODER_IGNORABLE, strict=strict)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> Config:
        """Return the config of a GGUF's metadata and tensors."""
        get = lambda key, default=None: metadata.get(f"bert.{key}", default)  # noqa: E731
        types = tensors["token_types.weight"].size if "token_types.weight" in tensors else 0
        return read_config(cls, {
            "vocab_size": len(metadata.get("tokenizer.ggml.tokens", ())) or get("vocab_size"),
            "hidden_size": get("embedding_length"), "intermediate_size": get("feed_forward_length"),
            "num_hidden_layers": get("block_count"), "num_attention_heads": get("attention.head_count"),
            "max_position_embeddings": get("context_length"), "layer_norm_eps": get("attention.layer_norm_epsilon"),
            "type_vocab_size": types // max(1, get("embedding_length", 0)),
        })  # fmt: skip


class Model(Module):
    """The encoder."""

    def __init__(self, c: Config):
        eps = c.layer_norm_eps
        self.embeddings = EncoderEmbeddings(
            c.vocab_size, c.max_position_embeddings, c.type_vocab_size, c.hidden_size, eps
        )
        self.encoder = EncoderStack(
            c.num_hidden_layers, c.hidden_size, c.num_attention_heads, c.intermediate_size, c.hidden_act, eps
        )

    def __call__(self, step: Step, state: None = None) -> tuple[Any, None]:
        """Return the last hidden states, (T, hidden); an encoder keeps no state."""
        return self.encoder(self.embeddings(step, step.positions), step), None


def spellings(name: str) -> tuple[str, ...]:
    """Return the names of a parameter in safetensors: with or without prefix, norms in the manner of TensorFlow."""
    old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    return name, f"bert.{name}", old, f"bert.{old}"


GGUF = {
    "embeddings.word_embeddings.weight": "token_embd.weight",
    "embeddings.position_embeddings.weight": "position_embd.weight",
    "embeddings.token_type_embeddings.weight": "token_types.weight",
    "embeddings.LayerNorm.weight": "token_embd_norm.weight",
    "embeddings.LayerNorm.bias": "token_embd_norm.bias",
    **ENCODER_LAYER_GGUF,
}
