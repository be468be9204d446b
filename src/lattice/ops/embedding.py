"""Table look-up: token, position and segment embeddings, and positions that leave padding out."""

from __future__ import annotations

import numpy as np

from lattice.dtypes import dense
from lattice.ops._op import expect, op
from lattice.step import Step


@op
def embedding(table, ids):
    """Return the rows of `table` that `ids` names.      table: (vocab, n)   ids: (T,) int32   ->   (T, n)"""
    return dense(table)[ids]


@embedding.shape
def _(table, ids):
    expect(len(table) == 2, "a table of shape (vocab, n)", table)
    return (*ids, table[1])


@embedding.vjp
def _(needs, dy, table, ids):
    if "table" in needs:
        yield "table", embedding_dw(dy, table, ids)


@embedding.samples
def _(draw):
    for rows, vocab, n in ((1, 1, 1), (5, 17, 33), (64, 100, 64)):
        yield draw.sample(draw.weight(vocab, n), draw.ids(rows, vocab))


@op
def embedding_dw(dy, table, ids):
    """Gradient of `embedding` with respect to its table, of which only the shape is used."""
    dw = np.zeros(table.shape, dy.dtype)
    np.add.at(dw, ids, dy)
    return dw


@embedding_dw.shape
def _(dy, table, ids):
    return table


@op(dtype="i32")
def unpadded_positions(step, *, padding):
    """Return positions that count from padding + 1 and leave padding tokens out, whose own is `padding`: (T,) int32.

    They are RoBERTa's, whose table has rows for what comes before a text. No position exceeds the step's own by more
    than padding + 1.
    """
    positions = np.empty(len(step.tokens), np.int32)
    for span in step.spans():
        is_padding = step.tokens[span] == padding
        skipped = np.cumsum(is_padding) - is_padding
        positions[span] = np.where(is_padding, 0, np.maximum(0, step.positions[span] - skipped + 1)) + padding
    return positions


@unpadded_positions.shape
def _(step, *, padding):
    expect(padding >= 0, "a padding token of at least 0", padding)
    return step.tokens


@unpadded_positions.vjp
def _(needs, dy, step, *, padding):
    yield from ()  # positions are data


@unpadded_positions.samples
def _(draw):
    for lengths in draw.lengths():
        tokens = [draw.random.integers(0, 4, n).tolist() for n in lengths]
        for padding in (0, 1, 7):
            yield draw.sample(Step.of(tokens), padding=padding)
        yield draw.sample(Step.of(tokens, starts=[3] * len(lengths)), padding=1)
