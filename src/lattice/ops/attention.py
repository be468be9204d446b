"""Scaled dot-product attention with grouped heads, within a step and through paged keys and values.

Query head h reads key/value head h // (heads / kv_heads). `window` > 0 limits a query to its last `window` positions.
Pages hold 64 positions each: keys (pages, kv_heads, head_dim, 64), so that 64 scores need no horizontal sum, and values
(pages, kv_heads, 64, head_dim). Pages of int8 hold whole numbers and one float32 factor (largest / 127) for every key
and value: four more rows of a page of keys are the 64 factors' bytes, four more bytes of a value its factor's.
"""

from __future__ import annotations

import numpy as np

from lattice.ops._op import Drawn, expect, op
from lattice.step import PAGE_TOKENS, Step


def _heads(x, head_dim):
    return x.reshape(x.shape[0], -1, head_dim).swapaxes(0, 1)  # (heads, tokens, head_dim)


def _visible(queries, keys, causal, window):
    """Return which key positions each query position may see: (queries, keys) bool."""
    distance = np.asarray(queries)[:, None] - np.asarray(keys)[None, :]
    visible = distance >= 0 if causal else np.ones(distance.shape, bool)
    return visible & (distance < window) if window else visible


def _attend(q, k, v, visible, scale):
    """Return outputs and probabilities.      q: (heads, n, d)   k, v: (kv_heads, m, d)"""
    k, v = (np.repeat(x, q.shape[0] // x.shape[0], 0) for x in (k, v))
    scores = np.where(visible, q @ k.swapaxes(1, 2) * scale, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p = p / p.sum(-1, keepdims=True)
    return p @ v, p


def _flat(heads):
    return heads.swapaxes(0, 1).reshape(heads.shape[1], -1)


@op
def attention(q, k, v, step, *, head_dim, causal, scale, window=0):
    """Attend within each sequence of the step, without state.

    q: (T, heads * head_dim)   k, v: (T, kv_heads * head_dim)   ->   (T, heads * head_dim)
    """
    out = np.zeros(q.shape, q.dtype)
    for span in step.spans():
        index = np.arange(span.stop - span.start)
        qh, kh, vh = (_heads(x[span], head_dim) for x in (q, k, v))
        out[span] = _flat(_attend(qh, kh, vh, _visible(index, index, causal, window), scale)[0])
    return out


@attention.shape
def _(q, k, v, step, *, head_dim, causal, scale, window):
    expect(q[-1] % head_dim == 0 and k[-1] % head_dim == 0, f"whole heads of {head_dim}", (q[-1], k[-1]))
    expect(k == v and q[-1] % k[-1] == 0, "k and v of one shape, whose heads divide those of q", (q, k, v))
    return q


@attention.vjp
def _(needs, dy, q, k, v, step, *, head_dim, causal, scale, window):
    gradients = attention_grad(dy, q, k, v, step, head_dim=head_dim, causal=causal, scale=scale, window=window)
    yield from zip("qkv", gradients, strict=True)


@attention.samples
def _(draw):
    for lengths in draw.lengths():
        step, total = Step.of([[0] * n for n in lengths]), sum(lengths)
        for heads, kv_heads, head_dim in ((1, 1, 8), (9, 3, 16), (4, 2, 20), (2, 2, 64)):
            for causal, window in ((True, 0), (False, 0), (True, 3), (True, 64)):
                q, k, v = (draw.rows(total, n * head_dim) for n in (heads, kv_heads, kv_heads))
                attributes = {"head_dim": head_dim, "causal": causal, "scale": head_dim**-0.5, "window": window}
                yield draw.sample(q, k, v, step, **attributes)


@attention.flops
def _(q, k, v, step, *, head_dim, causal, scale, window):
    seen = q[0] // max(1, step.slots[0])
    return 4 * q[0] * (min(seen, window) if window else seen) * q[1]


@op
def attention_grad(dy, q, k, v, step, *, head_dim, causal, scale, window=0):
    """Gradients of `attention` with respect to q, k and v, recomputing the probabilities."""
    results = tuple(np.zeros(x.shape, x.dtype) for x in (q, k, v))
    for span in step.spans():
        index = np.arange(span.stop - span.start)
        qh, kh, vh, dh = (_heads(x[span], head_dim) for x in (q, k, v, dy))
        _, p = _attend(qh, kh, vh, _visible(index, index, causal, window), scale)
        repeats = qh.shape[0] // kh.shape[0]
        dp = dh @ np.repeat(vh, repeats, 0).swapaxes(1, 2)
        ds = p * (dp - np.sum(dp * p, -1, keepdims=True)) * scale
        dq = ds @ np.repeat(kh, repeats, 0)
        dk, dv = ds.swapaxes(1, 2) @ qh, p.swapaxes(1, 2) @ dh
        dk, dv = (x.reshape(kh.shape[0], repeats, *x.shape[1:]).sum(1) for x in (dk, dv))
        for result, part in zip(results, (dq, dk, dv), strict=True):
            result[span] = _flat(part)
    return results


@attention_grad.shape
def _(dy, q, k, v, step, *, head_dim, causal, scale, window):
    return [q, k, v]


FACTOR = 4  # bytes


def _to_8_bits(x):
    """Return the whole numbers of every last-axis vector of x, then its factor's bytes: (..., n + 4) int8."""
    largest = np.abs(x).max(-1, keepdims=True).astype(np.float32)
    with np.errstate(all="ignore"):  # the factor of what is not finite is no number
        numbers = np.rint(x * np.where(largest > 1e-36, np.float32(127) / largest, 0)).astype(np.int8)
        factors = np.where(np.isfinite(largest), largest / np.float32(127), np.float32(np.nan)).astype(np.float32)
    return np.concatenate([numbers, factors.view(np.int8)], -1)


def _to_floats(pages):
    """Return pages of values as float32, (..., 64, head_dim)."""
    if pages.dtype != np.int8:
        return pages.astype(np.float32)
    factors = np.ascontiguousarray(pages[..., -FACTOR:]).view(np.float32)
    return pages[..., :-FACTOR] * factors


def _keys(k_pages):
    """Return pages of keys laid out as values are: (..., 64, head_dim), int8 with the factors behind."""
    if k_pages.dtype != np.int8:
        return k_pages.swapaxes(-1, -2)
    numbers, factors = k_pages[..., :-FACTOR, :], k_pages[..., -FACTOR:, :]
    return np.concatenate([numbers.swapaxes(-1, -2), factors.reshape(*factors.shape[:-2], PAGE_TOKENS, FACTOR)], -1)


@op(writes=("k_pages", "v_pages"))
def append_kv(k_pages, v_pages, k, v, step):
    """Write the step's keys and values to their pages; returns the new version of both pools.

    k_pages: (pages, kv_heads, head_dim, 64)   v_pages: (pages, kv_heads, 64, head_dim)   k, v: (T, kv_heads * head_dim)
    """
    kv_heads = k_pages.shape[1]
    for s, span in enumerate(step.spans()):
        positions = np.asarray(step.positions[span])
        pages = np.asarray(step.page_table)[s][positions // PAGE_TOKENS]
        places = positions % PAGE_TOKENS
        new_k, new_v = (x[span].reshape(len(positions), kv_heads, -1) for x in (k, v))
        if k_pages.dtype == np.int8:
            new_k, new_v = _to_8_bits(new_k), _to_8_bits(new_v)
            factors = k_pages[:, :, -FACTOR:].reshape(-1, kv_heads, PAGE_TOKENS, FACTOR)
            factors[pages, :, places], new_k = new_k[..., -FACTOR:], new_k[..., :-FACTOR]
            k_pages[:, :, -FACTOR:] = factors.reshape(-1, kv_heads, FACTOR, PAGE_TOKENS)
        k_pages[pages, :, : new_k.shape[-1], places] = new_k
        v_pages[pages, :, places] = new_v
    return k_pages, v_pages


@append_kv.shape
def _(k_pages, v_pages, k, v, step):
    kv_heads, row, places = k_pages[1:]
    expect(places == PAGE_TOKENS, f"pages of {PAGE_TOKENS} positions", places)
    expect(v_pages[1:] == (kv_heads, places, row), f"v_pages of {(kv_heads, places, row)}", v_pages)
    widths = kv_heads * row, kv_heads * (row - FACTOR)
    expect(k[-1] in widths and k == v, f"k and v of width {widths[0]}, or {widths[1]} for 8 bits", (k, v))
    return [k_pages, v_pages]


def paged_step(draw, starts, lengths):
    """Return a step whose sequences begin at `starts`, and the pages it needs, shuffled."""
    widths = [(start + n + PAGE_TOKENS - 1) // PAGE_TOKENS for start, n in zip(starts, lengths, strict=True)]
    order = draw.random.permutation(sum(widths)).astype(np.int32)
    table = np.zeros((len(lengths), max(widths)), np.int32)
    for row, end, width in zip(table, np.cumsum(widths), widths, strict=True):
        row[:width] = order[end - width : end]
    return Step.of([[0] * n for n in lengths], starts=starts, page_table=table), sum(widths)


def draw_pages(draw, pages, kv_heads, head_dim, dtype):
    """Return pools of keys and of values that hold something."""
    if dtype is np.int8:
        k, v = (_to_8_bits(draw.random.normal(size=(pages, kv_heads, PAGE_TOKENS, head_dim))) for _ in range(2))
        factors = np.ascontiguousarray(k[..., -FACTOR:]).reshape(pages, kv_heads, FACTOR, PAGE_TOKENS)
        k = np.concatenate([k[..., :-FACTOR].swapaxes(-1, -2), factors], -2)
        return Drawn("state", k), Drawn("state", v)
    return (
        draw.state(pages, kv_heads, head_dim, PAGE_TOKENS, dtype=dtype),
        draw.state(pages, kv_heads, PAGE_TOKENS, head_dim, dtype=dtype),
    )


PAGED = (((0,), (1,)), ((130,), (1,)), ((63, 0, 7), (3, 1, 5)), ((60,), (70,)))  # (starts, lengths)


@append_kv.samples
def _(draw):
    for starts, lengths in PAGED:
        for kv_heads, head_dim in ((1, 8), (3, 20)):
            for dtype in (np.float32, np.float16, np.int8):
                step, pages = paged_step(draw, starts, lengths)
                k, v = (draw.rows(sum(lengths), kv_heads * head_dim) for _ in range(2))
                k_pages, v_pages = draw_pages(draw, pages, kv_heads, head_dim, dtype)
                yield draw.sample(k_pages, v_pages, k, v, step)


@op
def paged_attention(q, k_pages, v_pages, step, *, scale, window=0):
    """Attend to all positions of the own sequence up to the own one, through the page table.

    q: (T, heads * head_dim); pages as in `append_kv`, which must have written the step's own keys before.
    """
    kv_heads = k_pages.shape[1]
    out = np.zeros(q.shape, q.dtype)
    for s, span in enumerate(step.spans()):
        if span.stop == span.start:
            continue
        positions = np.asarray(step.positions[span])
        context = int(positions.max()) + 1
        pages = np.asarray(step.page_table)[s][: (context + PAGE_TOKENS - 1) // PAGE_TOKENS]
        k, v = (_to_floats(x).swapaxes(0, 1) for x in (_keys(k_pages[pages]), v_pages[pages]))
        k, v = (x.reshape(kv_heads, -1, x.shape[-1])[:, :context] for x in (k, v))
        visible = _visible(positions, np.arange(context), True, window)
        out[span] = _flat(_attend(_heads(q[span], k.shape[-1]), k, v, visible, scale)[0])
    return out


@paged_attention.shape
def _(q, k_pages, v_pages, step, *, scale, window):
    widths = k_pages[1] * k_pages[2], max(1, k_pages[1] * (k_pages[2] - FACTOR))
    expect(any(q[-1] % width == 0 for width in widths), f"q of a multiple of {widths[0]} values", q)
    return q


@paged_attention.samples
def _(draw):
    for starts, lengths in PAGED:
        for heads, kv_heads, head_dim in ((1, 1, 8), (9, 3, 16), (4, 2, 20)):
            windows = (np.float32, 0), (np.float16, 0), (np.int8, 0), (np.float32, 5), (np.float16, 65), (np.int8, 65)
            for dtype, window in windows:
                step, pages = paged_step(draw, starts, lengths)
                k_pages, v_pages = draw_pages(draw, pages, kv_heads, head_dim, dtype)
                q = draw.rows(sum(lengths), heads * head_dim)
                yield draw.sample(q, k_pages, v_pages, step, scale=head_dim**-0.5, window=window)
