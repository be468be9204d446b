"""From texts to the token sequences that a model embeds: prompts, lower case, the cut of long texts.

A long text is cut as sentence-transformers does it: the special tokens around it stay, its own last tokens go
(or its first ones, where tokenizer_config.json says truncation_side left).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lattice.embed.settings import Settings
from lattice.errors import LatticeError, expected
from lattice.tokenizers import Tokenizer, load_gguf_tokenizer, load_tokenizer
from lattice.weights import Checkpoint
from lattice.weights.sources import home


@dataclass(frozen=True)
class Texts:
    """A tokenizer with what an encoder does around it."""

    tokenizer: Tokenizer
    settings: Settings
    max_tokens: int

    def tokenize(self, texts: Sequence[str], prompt: str) -> tuple[list[list[int]], list[int]]:
        """Return the tokens of every text, cut where need be, and the uncut lengths of those that were."""
        texts = [prompt + text for text in texts] if prompt else texts
        if self.settings.lower_case:
            texts = [text.lower() for text in texts]
        sequences = self.tokenizer.encode_batch(texts)
        lengths = [len(tokens) for tokens in sequences]
        if min(lengths) == 0:
            got = f"{texts[lengths.index(0)]!r}, which this tokenizer gives none"
            raise expected("encode", "texts of at least one token", got)
        if max(lengths) <= self.max_tokens:
            return sequences, []
        long = [index for index, length in enumerate(lengths) if length > self.max_tokens]
        cut, _ = self.tokenizer.encode_truncated([texts[index] for index in long], self.max_tokens)
        for index, tokens in zip(long, cut, strict=True):
            sequences[index] = tokens
        return sequences, [lengths[index] for index in long]


def open_texts(checkpoint: Checkpoint, settings: Settings, positions: int) -> Texts | LatticeError:
    """Return the texts side of a checkpoint, or the error to raise when a text is to be embedded."""
    try:
        tokenizer = _tokenizer(checkpoint)
    except LatticeError as error:
        return error.with_traceback(None)  # kept for long: its frames need not be
    return Texts(tokenizer, settings, longest(settings, positions, tokenizer.max_tokens))


def longest(settings: Settings, positions: int, tokenizer: int | None = None) -> int:
    """Return the tokens of the longest text: as the settings say, else the least of what table and tokenizer say."""
    if settings.max_tokens is not None:
        return min(settings.max_tokens, positions)
    return min(tokens for tokens in (settings.table_tokens, tokenizer, positions) if tokens is not None)


def _tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    if checkpoint.kind == "gguf":
        return load_gguf_tokenizer(checkpoint.path, checkpoint.metadata, home() / "tokenizers")
    return load_tokenizer(checkpoint.directory)
