"""RoBERTa (Liu et al., 2019, arXiv:1907.11692) and XLM-RoBERTa (Conneau et al., 2019, arXiv:1911.02116): multilingual
E5 and other text encoders built like them.

BERT's graph, but for its positions: they begin behind the padding token's index and leave padding tokens out, so that
the first rows of the table belong to no text. GGUF files hold these models, those rows cut off, as BERT (`bert.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lattice.errors import expected
from lattice.nn import (
    ENCODER_IGNORABLE,
    EncoderEmbeddings,
    EncoderStack,
    Module,
    check_config,
    check_encoder,
    read_config,
)
from lattice.ops import unpadded_positions
from lattice.step import Step

ALIASES = ("roberta", "camembert")
_HEADS = ("pooler.", "embeddings.position_ids")
IGNORED = ("lm_head.", "classifier.", *_HEADS, *(f"roberta.{name}" for name in _HEADS))
GGUF: dict[str, Any] = {}


@dataclass(frozen=True)
class Config:
    """Keys of config.json."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: str = "gelu"
    max_position_embeddings: int = 512  # of texts: the file's number less the rows that come before them
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    position_embedding_type: str = "absolute"
    is_decoder: bool = False
    add_cross_attention: bool = False
    pad_token_id: int = 1

    def __post_init__(self) -> None:
        check_config(self)
        check_encoder(self)
        if type(self.pad_token_id) is not int or not 0 <= self.pad_token_id < self.vocab_size:
            raise expected("config", f"pad_token_id from 0 to {self.vocab_size - 1}", repr(self.pad_token_id))

    @classmethod
    def read(cls, data: Mapping[str, Any], strict: bool = True) -> Config:
        """Return the config of a config.json."""
        padding = data.get("pad_token_id")
        before = 1 + (cls.pad_token_id if padding is None else padding)
        positions = data.get("max_position_embeddings")
        texts = (cls.max_position_embeddings if positions is None else positions) - before
        return read_config(cls, {**data, "max_position_embeddings": texts}, ENCODER_IGNORABLE, strict=strict)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> Config:
        """Raise: no GGUF file names this architecture."""
        raise expected("gguf", "architecture bert, as which GGUF holds it", metadata.get("general.architecture"))


class Model(Module):
    """The encoder."""

    def __init__(self, c: Config):
        eps, self.padding = c.layer_norm_eps, c.pad_token_id
        rows = c.max_position_embeddings + c.pad_token_id + 1
        self.embeddings = EncoderEmbeddings(c.vocab_size, rows, c.type_vocab_size, c.hidden_size, eps)
        self.encoder = EncoderStack(
            c.num_hidden_layers, c.hidden_size, c.num_attention_heads, c.intermediate_size, c.hidden_act, eps
        )

    def __call__(self, step: Step, state: None = None) -> tuple[Any, None]:
        """Return the last hidden states, (T, hidden); an encoder keeps no state."""
        positions = unpadded_positions(step, padding=self.padding)
        return self.encoder(self.embeddings(step, positions), step), None


def spellings(name: str) -> tuple[str, ...]:
    """Return the names of a parameter in safetensors: with or without prefix."""
    return name, f"roberta.{name}"
