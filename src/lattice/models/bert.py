"""BERT (Devlin et al., 2018, arXiv:1810.04805): MiniLM, BGE and other text encoders built like it.

Post-norm encoder: learned positions, full attention, GELU feed-forward. Poolers and task heads are not used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lattice.errors import expected
from lattice.nn import (
    ACTIVATION_KINDS,
    Activation,
    Block,
    Embedding,
    LayerNorm,
    Linear,
    Module,
    check_config,
    read_config,
)
from lattice.ops import add, attention
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

    def __post_init__(self) -> None:
        check_config(self)
        if self.hidden_size % self.num_attention_heads:
            raise expected("config", "a hidden_size that the heads divide", self)
        if self.position_embedding_type != "absolute":
            raise expected("config", "position_embedding_type absolute", self.position_embedding_type)

    @classmethod
    def read(cls, data: Mapping[str, Any], strict: bool = True) -> Config:
        """Return the config of a config.json."""
        if data.get("is_decoder") or data.get("add_cross_attention"):
            raise expected("config", "an encoder", "is_decoder or add_cross_attention")
        return read_config(cls, data, frozenset({"tie_word_embeddings"}), strict=strict)

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


class Embeddings(Module):
    """Token, position and segment embeddings, summed and normalised."""

    def __init__(self, c: Config):
        self.word_embeddings = Embedding(c.vocab_size, c.hidden_size)
        self.position_embeddings = Embedding(c.max_position_embeddings, c.hidden_size)
        self.token_type_embeddings = Embedding(c.type_vocab_size, c.hidden_size)
        self.LayerNorm = LayerNorm(c.hidden_size, c.layer_norm_eps)

    def __call__(self, step: Step) -> Any:
        x = add(self.word_embeddings(step.tokens), self.token_type_embeddings(step.token_types))
        return self.LayerNorm(add(x, self.position_embeddings(step.positions)))


class SelfAttention(Module):
    """Queries, keys and values, and attention over the whole sequence."""

    def __init__(self, c: Config):
        self.query, self.key, self.value = (Linear(c.hidden_size, c.hidden_size, bias=True) for _ in range(3))
        self.head_dim = c.hidden_size // c.num_attention_heads

    def __call__(self, x: Any, step: Step) -> Any:
        q, k, v = self.query(x), self.key(x), self.value(x)
        return attention(q, k, v, step, head_dim=self.head_dim, causal=False, scale=self.head_dim**-0.5)


class Output(Module):
    """A product, the residual, and the norm behind it."""

    def __init__(self, inputs: int, c: Config):
        self.dense = Linear(inputs, c.hidden_size, bias=True)
        self.LayerNorm = LayerNorm(c.hidden_size, c.layer_norm_eps)

    def __call__(self, y: Any, x: Any) -> Any:
        return self.LayerNorm(add(self.dense(y), x))


class Layer(Module):
    """One encoder block."""

    def __init__(self, c: Config):
        self.attention = Block(self=SelfAttention(c), output=Output(c.hidden_size, c))
        self.intermediate = Block(dense=Linear(c.hidden_size, c.intermediate_size, bias=True))
        self.output = Output(c.intermediate_size, c)
        self.act = Activation(ACTIVATION_KINDS[c.hidden_act])

    def __call__(self, x: Any, step: Step) -> Any:
        x = self.attention["output"](self.attention["self"](x, step), x)
        return self.output(self.act(self.intermediate["dense"](x)), x)


class Model(Module):
    """The encoder."""

    def __init__(self, c: Config):
        self.embeddings = Embeddings(c)
        self.encoder = Block(layer=[Layer(c) for _ in range(c.num_hidden_layers)])

    def __call__(self, step: Step, state: None = None) -> tuple[Any, None]:
        """Return the last hidden states, (T, hidden); an encoder keeps no state."""
        x = self.embeddings(step)
        for layer in self.encoder["layer"]:
            x = layer(x, step)
        return x, None


def spellings(name: str) -> tuple[str, ...]:
    """Return the names of a parameter in safetensors: with or without prefix, norms in the manner of TensorFlow."""
    old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    return name, f"bert.{name}", old, f"bert.{old}"


def _pair(part: str, theirs: str) -> dict[str, str]:
    return {f"encoder.layer.{{}}.{part}.{end}": f"blk.{{}}.{theirs}.{end}" for end in ("weight", "bias")}


GGUF = {
    "embeddings.word_embeddings.weight": "token_embd.weight",
    "embeddings.position_embeddings.weight": "position_embd.weight",
    "embeddings.token_type_embeddings.weight": "token_types.weight",
    "embeddings.LayerNorm.weight": "token_embd_norm.weight",
    "embeddings.LayerNorm.bias": "token_embd_norm.bias",
    **_pair("attention.self.query", "attn_q"),
    **_pair("attention.self.key", "attn_k"),
    **_pair("attention.self.value", "attn_v"),
    **_pair("attention.output.dense", "attn_output"),
    **_pair("attention.output.LayerNorm", "attn_output_norm"),
    **_pair("intermediate.dense", "ffn_up"),
    **_pair("output.dense", "ffn_down"),
    **_pair("output.LayerNorm", "layer_output_norm"),
}
