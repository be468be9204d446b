"""What changes from step to step: the tokens of a batch, where they stand, and how the wanted rows are sampled.

A step is ragged: the tokens of its `S` sequences lie one after another, never padded. Three counts describe its size,
and every value of a program that follows one of them carries its name as leading dimension:

    T  tokens of the step        R  rows whose result is wanted        S  sequences

Neither class does any work: both only name arrays (or, while tracing, symbols).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

PAGE_TOKENS = 64  # positions in one K/V page


@dataclass(frozen=True)
class Step:
    """Inputs of `forward`; all int32."""

    tokens: Any  # (T,) token ids
    token_types: Any  # (T,) segment ids of a sentence pair; zeros elsewhere
    positions: Any  # (T,) position of each token in its sequence
    offsets: Any  # (S + 1,) first token of each sequence, then T
    rows: Any  # (R,) tokens whose result is wanted, as indices into the step
    page_table: Any  # (S, width) page of each 64 positions of a sequence
    slots: Any  # (S,) slot from which each sequence reads its recurrent state; one that starts at position 0 reads none
    adapters: Any  # (T,) adapter slot of each token, 0 is none
    saves: Any  # (T,) slot that keeps the recurrent state as it is behind the token, -1 is none

    SHAPES: ClassVar[dict[str, tuple[str, ...]]] = {
        "tokens": ("T",), "token_types": ("T",), "positions": ("T",), "offsets": ("S+1",),
        "rows": ("R",), "page_table": ("S", "width"), "slots": ("S",), "adapters": ("T",),
        "saves": ("T",),
    }  # fmt: skip

    @classmethod
    def of(
        cls,
        sequences: Sequence[Sequence[int]],
        *,
        starts: Sequence[int] | None = None,
        rows: Sequence[int] | None = None,
        page_table: np.ndarray | None = None,
        slots: Sequence[int] | None = None,
        saves: np.ndarray | None = None,
    ) -> Step:
        """Pack `sequences` of token ids, each beginning at its position in `starts` (0), wanting `rows` (all).

        The i-th sequence reads its recurrent state from `slots[i]` (i) and leaves it there; `saves` says otherwise.
        """
        lengths = [len(tokens) for tokens in sequences]
        read = np.asarray(range(len(lengths)) if slots is None else slots, np.int32)
        starts = starts if starts is not None else [0] * len(lengths)
        total = sum(lengths)
        positions = [np.arange(start, start + length) for start, length in zip(starts, lengths, strict=True)]
        flat = [np.asarray(tokens, np.int32) for tokens in sequences]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        if saves is None:
            saves = np.full(total, -1, np.int32)
            filled = offsets[1:] > offsets[:-1]
            saves[offsets[1:][filled] - 1] = read[filled]
        return cls(
            tokens=np.concatenate([*flat, np.empty(0, np.int32)]).astype(np.int32),
            token_types=np.zeros(total, np.int32),
            positions=np.concatenate([*positions, np.empty(0)]).astype(np.int32),
            offsets=offsets,
            rows=np.arange(total, dtype=np.int32) if rows is None else np.asarray(rows, np.int32),
            page_table=np.zeros((len(lengths), 1), np.int32) if page_table is None else page_table,
            slots=read,
            adapters=np.zeros(total, np.int32),
            saves=saves,
        )

    def spans(self) -> list[slice]:
        """Return where each sequence lies among the tokens."""
        return [slice(a, b) for a, b in zip(self.offsets[:-1], self.offsets[1:], strict=True)]

    def counts(self) -> tuple[int, int, int]:
        """Return (T, R, S) of this step."""
        return len(self.tokens), len(self.rows), len(self.slots)


@dataclass(frozen=True)
class Sampling:
    """Inputs of `sample`, one entry per wanted row.

    What changes single logits travels as one sparse list of edits: each row has distinct ids, with the bias of each and
    how often the row's context holds it, so a step costs what is listed and not a vocabulary.
    """

    temperature: Any  # (R,) float32; 0 takes the most likely token
    top_k: Any  # (R,) int32; 0 keeps all
    top_p: Any  # (R,) float32; 1 keeps all
    min_p: Any  # (R,) float32; 0 keeps all
    repetition: Any  # (R,) float32; 1 is none
    presence: Any  # (R,) float32; 0 is none
    frequency: Any  # (R,) float32; 0 is none
    seed: Any  # (R,) int64
    position: Any  # (R,) int32, position of the token to draw: with the seed it fixes the random number
    edit_offsets: Any  # (R + 1,) int32 into the three lists of edits
    edit_ids: Any  # (N,) int32, token ids, distinct within a row
    edit_bias: Any  # (N,) float32, added to the logit
    edit_counts: Any  # (N,) int32, how often the answer holds the token; 0: only the prompt does; -1: neither

    SHAPES: ClassVar[dict[str, tuple[str, ...]]] = {
        "temperature": ("R",), "top_k": ("R",), "top_p": ("R",), "min_p": ("R",), "repetition": ("R",),
        "presence": ("R",), "frequency": ("R",), "seed": ("R",), "position": ("R",),
        "edit_offsets": ("R+1",), "edit_ids": ("edits",), "edit_bias": ("edits",), "edit_counts": ("edits",),
    }  # fmt: skip
    DTYPES: ClassVar[dict[str, str]] = {
        "temperature": "f32",
        "top_p": "f32",
        "min_p": "f32",
        "repetition": "f32",
        "presence": "f32",
        "frequency": "f32",
        "edit_bias": "f32",
        "seed": "i64",
    }  # the others are i32

    @classmethod
    def greedy(cls, rows: int) -> Sampling:
        """Return the sampling that takes the most likely token of each of `rows` rows."""
        zeros, ones = np.zeros(rows, np.float32), np.ones(rows, np.float32)
        none, nothing = np.zeros(rows, np.int32), np.empty(0, np.int32)
        return cls(
            temperature=zeros, top_k=none, top_p=ones, min_p=zeros, repetition=ones, presence=zeros, frequency=zeros,
            seed=np.zeros(rows, np.int64), position=none, edit_offsets=np.zeros(rows + 1, np.int32),
            edit_ids=nothing, edit_bias=np.empty(0, np.float32), edit_counts=nothing,
        )  # fmt: skip
