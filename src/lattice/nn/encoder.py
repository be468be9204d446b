"""Blocks of post-norm encoders (BERT and RoBERTa), under the names that their checkpoints use."""

from __future__ import annotations

from typing import Any

from lattice.errors import expected
from lattice.nn.layers import ACTIVATION_KINDS, Activation, Embedding, LayerNorm, Linear
from lattice.nn.module import Block, Module
from lattice.ops import add, attention
from lattice.step import Step

# Keys of published config.json files that say nothing about the hidden states: of poolers, tokenizers and generation.
ENCODER_IGNORABLE = frozenset({
    "tie_word_embeddings", "tokenizer_class", "directionality", "output_past", "pooler_fc_size", "pooler_type",
    "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head", "length_penalty", "max_length",
    "num_beams", "num_return_sequences", "repetition_penalty", "temperature", "top_k", "top_p",
})  # fmt: skip

# A family's parameters of one layer, and GGUF's names of them (BERT and RoBERTa share an architecture there).
ENCODER_LAYER_GGUF = {
    f"encoder.layer.{{}}.{ours}.{end}": f"blk.{{}}.{theirs}.{end}"
    for ours, theirs in {
        "attention.self.query": "attn_q",
        "attention.self.key": "attn_k",
        "attention.self.value": "attn_v",
        "attention.output.dense": "attn_output",
        "attention.output.LayerNorm": "attn_output_norm",
        "intermediate.dense": "ffn_up",
        "output.dense": "ffn_down",
        "output.LayerNorm": "layer_output_norm",
    }.items()
    for end in ("weight", "bias")
}


def check_encoder(config: Any) -> None:
    """Raise where a config asks for what these blocks do not compute."""
    if config.is_decoder or config.add_cross_attention:
        raise expected("config", "an encoder", "is_decoder or add_cross_attention")
    if config.hidden_size % config.num_attention_heads:
        raise expected("config", "a hidden_size that the heads divide", config)
    if config.position_embedding_type != "absolute":
        raise expected("config", "position_embedding_type absolute", config.position_embedding_type)


class EncoderEmbeddings(Module):
    """Token, segment and learned position embeddings, summed and normalised."""

    def __init__(self, vocab: int, positions: int, types: int, width: int, eps: float):
        self.word_embeddings = Embedding(vocab, width)
        self.position_embeddings = Embedding(positions, width)
        self.token_type_embeddings = Embedding(types, width)
        self.LayerNorm = LayerNorm(width, eps)

    def __call__(self, step: Step, positions: Any) -> Any:
        x = add(self.word_embeddings(step.tokens), self.token_type_embeddings(step.token_types))
        return self.LayerNorm(add(x, self.position_embeddings(positions)))


class SelfAttention(Module):
    """Queries, keys and values, and attention over the whole sequence."""

    def __init__(self, width: int, heads: int):
        self.query, self.key, self.value = (Linear(width, width, bias=True) for _ in range(3))
        self.head_dim = width // heads

    def __call__(self, x: Any, step: Step) -> Any:
        q, k, v = self.query(x), self.key(x), self.value(x)
        return attention(q, k, v, step, head_dim=self.head_dim, causal=False, scale=self.head_dim**-0.5)


class Output(Module):
    """A product, the residual, and the norm behind it."""

    def __init__(self, inputs: int, width: int, eps: float):
        self.dense = Linear(inputs, width, bias=True)
        self.LayerNorm = LayerNorm(width, eps)

    def __call__(self, y: Any, x: Any) -> Any:
        return self.LayerNorm(add(self.dense(y), x))


class EncoderLayer(Module):
    """One encoder block: attention and a feed-forward layer, each with the norm behind its residual."""

    def __init__(self, width: int, heads: int, intermediate: int, activation: str, eps: float):
        self.attention = Block(self=SelfAttention(width, heads), output=Output(width, width, eps))
        self.intermediate = Block(dense=Linear(width, intermediate, bias=True))
        self.output = Output(intermediate, width, eps)
        self.act = Activation(ACTIVATION_KINDS[activation])

    def __call__(self, x: Any, step: Step) -> Any:
        x = self.attention["output"](self.attention["self"](x, step), x)
        return self.output(self.act(self.intermediate["dense"](x)), x)


class EncoderStack(Module):
    """`layers` blocks, one after another."""

    def __init__(self, layers: int, width: int, heads: int, intermediate: int, activation: str, eps: float):
        self.layer = [EncoderLayer(width, heads, intermediate, activation, eps) for _ in range(layers)]

    def __call__(self, x: Any, step: Step) -> Any:
        for layer in self.layer:
            x = layer(x, step)
        return x
