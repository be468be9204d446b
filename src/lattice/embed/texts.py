"""From texts to the token sequences that a model embeds: prompt, lower case, special tokens, and the cut of long ones.

A long text is cut as sentence-transformers does it: the special tokens around it stay, its own last tokens go (or its
first ones, where tokenizer_config.json says truncation_side left).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lattice.embed.settings import Settings
from lattice.errors import LatticeError, expected
from lattice.tokenizers import Tokenizer, load_tokenizer, tokenizer_from_gguf
from lattice.weights import Checkpoint
from lattice.weights.sources import home


@dataclass(frozen=True)
class Texts:
    """A tokenizer with what an encoder does around it."""

    tokenizer: Tokenizer
    settings: Settings
    max_tokens: int
    before: int  # special tokens before a text
    after: int  # and behind it

    def tokenize(self, texts: Sequence[str], prompt: str) -> tuple[list[list[int]], list[int]]:
        """Return the tokens of every text, cut where need be, and the uncut lengths of those that were."""
        if self.settings.lower_case:
            texts = [(prompt + text).strip().lower() for text in texts]
        else:
            texts = [(prompt + text).strip() for text in texts]
        if len(texts) == 1:
            sequences = [self.tokenizer.encode(texts[0])]
        else:
            sequences = self.tokenizer.encode_batch(texts)
        lengths = list(map(len, sequences))
        if lengths and min(lengths) == 0:
            raise expected("encode", "texts of at least one token", f"{texts[lengths.index(0)]!r}, which has none")
        if not lengths or max(lengths) <= self.max_tokens:
            return sequences, []
        long = [index for index, length in enumerate(lengths) if length > self.max_tokens]
        for index in long:
            sequences[index] = self._cut(sequences[index])
        return sequences, [lengths[index] for index in long]

    def _cut(self, tokens: list[int]) -> list[int]:
        kept = self.max_tokens - self.before - self.after
        own = tokens[self.before : len(tokens) - self.after]
        own = own[len(own) - kept :] if self.settings.cut_left else own[:kept]
        return [*tokens[: self.before], *own, *tokens[len(tokens) - self.after :]]


def open_texts(checkpoint: Checkpoint, settings: Settings, max_tokens: int) -> Texts | LatticeError:
    """Return the texts side of a checkpoint, or the error to raise when a text is to be embedded."""
    try:
        tokenizer = _tokenizer(checkpoint)
    except LatticeError as error:
        return error
    before, after = _specials(tokenizer)
    if before + after >= max_tokens:
        return expected("encode", f"a longest text above the {before + after} special tokens", max_tokens)
    return Texts(tokenizer, settings, max_tokens, before, after)


def _tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    if checkpoint.kind == "gguf":
        return tokenizer_from_gguf(checkpoint.metadata, home() / "tokenizers", str(checkpoint.path))
    if not (checkpoint.directory / "tokenizer.json").is_file():
        hint = "hidden(tokens) works without a tokenizer"
        raise expected(str(checkpoint.directory), "a tokenizer", "no tokenizer.json", hint=hint)
    return load_tokenizer(checkpoint.directory)


def _specials(tokenizer: Tokenizer) -> tuple[int, int]:
    """Return how many special tokens go before and behind a text: those around a probe's own tokens."""
    own, whole = tokenizer.encode("a", add_special=False), tokenizer.encode("a")
    for start in range(len(whole) - len(own) + 1):
        if own and whole[start : start + len(own)] == own:
            return start, len(whole) - len(own) - start
    return 0, 0
