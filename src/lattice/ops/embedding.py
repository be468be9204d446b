"""Table look-up: token, position and segment embeddings."""

from __future__ import annotations

import numpy as np

from lattice.dtypes import dense
from lattice.ops._op import expect, op


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
