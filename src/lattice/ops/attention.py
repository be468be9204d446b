"""Scaled dot-product attention with grouped heads, within a step and through paged keys and values.

Query head h reads key/value head h // (heads / kv_heads). `window` > 0 limits a query to its last `window` positions.
Pages hold 64 positions each: keys (pages, kv_heads, head_dim, 64), so that 64 scores need no horizontal sum, and values
(pages, kv_heads, 64, head_dim).
"""

from __future__ import annotations

import numpy as np

from lattice.ops._op import expect, op
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


@op(writes=("k_pages", "v_pages"))
def append_kv(k_pages, v_pages, k, v, step):
    """Write the step's keys and values to their pages; returns the new version of both pools.

    k_pages: (pages, kv_heads, head_dim, 64)   v_pages: (pages, kv_heads, 64, head_dim)   k, v: (T, kv_heads * head_dim)
    """
    kv_heads, head_dim = k_pages.shape[1:3]
    for s, span in enumerate(step.spans()):
        positions = np.asarray(step.positions[span])
        pages = np.asarray(step.page_table)[s][positions // PAGE_TOKENS]
        places = positions % PAGE_TOKENS
        k_pages[pages, :, :, places] = k[span].reshape(-1, kv_heads, head_dim)
        v_pages[pages, :, places] = v[span].reshape(-1, kv_heads, head_dim)
    return k_pages, v_pages


@append_kv.shape
def _(k_pages, v_pages, k, v, step):
    kv_heads, head_dim, places = k_pages[1:]
    expect(places == PAGE_TOKENS, f"pages of {PAGE_TOKENS} positions", places)
    expect(v_pages[1:] == (kv_heads, places, head_dim), f"v_pages of {(kv_heads, places, head_dim)}", v_pages)
    expect(k[-1] == kv_heads * head_dim and k == v, f"k and v of width {kv_heads * head_dim}", (k, v))
    return [k_pages, v_pages]


def _paged_step(draw, starts, lengths):
    """Return a step whose sequences begin at `starts`, and the pages it needs, shuffled."""
    widths = [(start + n + PAGE_TOKENS - 1) // PAGE_TOKENS for start, n in zip(starts, lengths, strict=True)]
    order = draw.random.permutation(sum(widths)).astype(np.int32)
    table = np.zeros((len(lengths), max(widths)), np.int32)
    for row, end, width in zip(table, np.cumsum(widths), widths, strict=True):
        row[:width] = order[end - width : end]
    return Step.of([[0] * n for n in lengths], starts=starts, page_table=table), sum(widths)


PAGED = (((0,), (1,)), ((130,), (1,)), ((63, 0, 7), (3, 1, 5)), ((60,), (70,)))  # (starts, lengths)


@append_kv.samples
def _(draw):
    for starts, lengths in PAGED:
        for kv_heads, head_dim in ((1, 8), (3, 20)):
            for dtype in (np.float32, np.float16):
                step, pages = _paged_step(draw, starts, lengths)
                k, v = (draw.rows(sum(lengths), kv_heads * head_dim) for _ in range(2))
                k_pages = draw.state(pages, kv_heads, head_dim, PAGE_TOKENS, dtype=dtype)
                v_pages = draw.state(pages, kv_heads, PAGE_TOKENS, head_dim, dtype=dtype)
                yield draw.sample(k_pages, v_pages, k, v, step)


@op
def paged_attention(q, k_pages, v_pages, step, *, scale, window=0):
    """Attend to all positions of the own sequence up to the own one, through the page table.

    q: (T, heads * head_dim); pages as in `append_kv`, which must have written the step's own keys before.
    """
    head_dim = k_pages.shape[2]
    out = np.zeros(q.shape, q.dtype)
    for s, span in enumerate(step.spans()):
        if span.stop == span.start:
            continue
        positions = np.asarray(step.positions[span])
        context = int(positions.max()) + 1
        pages = np.asarray(step.page_table)[s][: (context + PAGE_TOKENS - 1) // PAGE_TOKENS]
        k = k_pages[pages].transpose(1, 0, 3, 2).reshape(k_pages.shape[1], -1, head_dim)[:, :context]
        v = v_pages[pages].swapaxes(0, 1).reshape(k_pages.shape[1], -1, head_dim)[:, :context]
        visible = _visible(positions, np.arange(context), True, window)
        parts = _heads(q[span], head_dim), k.astype(q.dtype), v.astype(q.dtype)
        out[span] = _flat(_attend(*parts, visible, scale)[0])
    return out


@paged_attention.shape
def _(q, k_pages, v_pages, step, *, scale, window):
    width = k_pages[1] * k_pages[2]
    expect(q[-1] % width == 0, f"q of a multiple of {width} values", q)
    return q


@paged_attention.samples
def _(draw):
    for starts, lengths in PAGED:
        for heads, kv_heads, head_dim in ((1, 1, 8), (9, 3, 16), (4, 2, 20)):
            for dtype, window in ((np.float32, 0), (np.float16, 0), (np.float32, 5), (np.float16, 65)):
                step, pages = _paged_step(draw, starts, lengths)
                k_pages = draw.state(pages, kv_heads, head_dim, PAGE_TOKENS, dtype=dtype)
                v_pages = draw.state(pages, kv_heads, PAGE_TOKENS, head_dim, dtype=dtype)
                q = draw.rows(sum(lengths), heads * head_dim)
                yield draw.sample(q, k_pages, v_pages, step, scale=head_dim**-0.5, window=window)
