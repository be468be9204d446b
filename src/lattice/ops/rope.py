"""Rotary position embedding (Su et al., 2021, arXiv:2104.09864): pairs of dimensions turn by position * frequency.

The angles of a step are computed once, in double precision, and shared by all layers.
"""

from __future__ import annotations

import numpy as np

from lattice.dtypes import dense
from lattice.ops._op import expect, op


@op
def rope_angles(positions, inverse_frequencies):
    """Return cosines, then sines, of position * inverse frequency.      (T,) int32, (h,)   ->   (T, 2h)"""
    angles = np.asarray(positions, np.float64)[:, None] * dense(inverse_frequencies).astype(np.float64)
    return np.concatenate([np.cos(angles), np.sin(angles)], -1).astype(np.float32)


@rope_angles.shape
def _(positions, inverse_frequencies):
    expect(len(inverse_frequencies) == 1, "inverse_frequencies of shape (h,)", inverse_frequencies)
    return (*positions, 2 * inverse_frequencies[0])


@rope_angles.vjp
def _(needs, dy, positions, inverse_frequencies):
    yield from ()  # positions are data and frequencies are constants


@rope_angles.samples
def _(draw):
    for rows, h in ((1, 1), (5, 16), (3, 20)):
        yield draw.sample(draw.ids(rows, 100_000), draw.weight(h))


@op
def rope(x, angles, *, head_dim, interleaved=False, inverse=False):
    """Rotate the first 2h dimensions of every head; the others pass through.

        x: (T, heads * head_dim)   angles: (T, 2h) from `rope_angles`

    Split-half pairs are (i, i + h), as checkpoints of transformers expect; interleaved ones (2i, 2i + 1), as the
    original paper writes them. `inverse` turns the other way, which is also the gradient.
    """
    h = angles.shape[-1] // 2
    heads = x.reshape(x.shape[0], -1, head_dim)
    cos, sin = angles[:, None, :h], angles[:, None, h:]
    sin = -sin if inverse else sin
    first = slice(0, 2 * h, 2) if interleaved else slice(0, h)
    second = slice(1, 2 * h, 2) if interleaved else slice(h, 2 * h)
    out = heads.copy()
    out[..., first] = heads[..., first] * cos - heads[..., second] * sin
    out[..., second] = heads[..., second] * cos + heads[..., first] * sin
    return out.reshape(x.shape)


@rope.shape
def _(x, angles, *, head_dim, interleaved, inverse):
    expect(x[-1] % head_dim == 0, f"x of whole heads of {head_dim}", x)
    expect(angles[-1] <= head_dim, f"at most {head_dim} rotated dimensions", angles[-1])
    return x


@rope.vjp
def _(needs, dy, x, angles, *, head_dim, interleaved, inverse):
    yield "x", rope(dy, angles, head_dim=head_dim, interleaved=interleaved, inverse=not inverse)


@rope.samples
def _(draw):
    for rows, heads, head_dim, h in ((1, 1, 2, 1), (3, 3, 8, 4), (5, 2, 64, 32), (2, 2, 20, 5)):
        for attributes in ({}, {"interleaved": True}, {"inverse": True}):
            yield draw.sample(
                draw.rows(rows, heads * head_dim), draw.rows(rows, 2 * h), head_dim=head_dim, **attributes
            )
