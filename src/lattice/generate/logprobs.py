"""What a caller sees of `logprobs`: each token of an answer with how likely it was and what else was likely.

The probabilities are the model's own: log softmax of its logits, before bias, penalties, temperature and limits. So the
same answer has the same numbers however it was drawn, and exp(-mean) of them is its perplexity.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lattice.generate.sampling import check_integer

if TYPE_CHECKING:
    from lattice.tokenizers import Tokenizer

MOST = 20  # alternatives a token


class RowLogprobs(NamedTuple):
    """What `logprobs` computed for one row."""

    chosen: float
    top_ids: list[int]
    top: list[float]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token, its text behind other tokens (None without a tokenizer; U+FFFD where it holds a part of a code point
    only), the natural logarithm of its probability, and the likeliest tokens in its place, the likeliest first. A token
    that nobody drew, because a thinking budget was spent, has NaN and no others."""

    token: int
    text: str | None
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


def describe(token: int, row: RowLogprobs | None, count: int, tokenizer: Tokenizer | None) -> TokenLogprob:
    """Return the entry of a token that was drawn, with `count` alternatives; without a row, of one that was forced."""

    def text(token: int) -> str | None:
        return None if tokenizer is None else tokenizer.token_text(token)

    if row is None:
        return TokenLogprob(token, text(token), math.nan)
    pairs = list(zip(row.top_ids, row.top, strict=True))[:count]
    top = tuple(TokenLogprob(other, text(other), value) for other, value in pairs)
    return TokenLogprob(token, text(token), row.chosen, top)


def check_logprobs(value: object) -> int | None:
    """Return how many alternatives a caller wants beside each token, None for no logprobs at all."""
    return None if value is None else check_integer("logprobs", value, 0, MOST)


def row_of(outputs: Mapping[str, np.ndarray], row: int = 0) -> RowLogprobs:
    """Return a row of what the program computed."""
    return RowLogprobs(float(outputs["chosen"][row]), outputs["top_ids"][row].tolist(), outputs["top"][row].tolist())
