"""The engine: the same bits however a prompt is cut, and whoever else is served meanwhile."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import islice, pairwise, zip_longest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import copy_model, draw_tokens, greedy

from lattice.backends.cpu import CpuBackend
from lattice.errors import LatticeError
from lattice.generate import LanguageModel, load
from lattice.generate.engine import Engine
from lattice.generate.sampling import SamplingSettings
from lattice.models import family
from lattice.weights.load import open_model

PROMPT = draw_tokens(300)


@pytest.fixture(scope="module", params=["f32", "f16"])
def cached(request, tmp_path_factory):
    """Return an engine with f32 or f16 keys and values, and how to make one of another chunk size."""
    name = {"f32": "llama-untied", "f16": "llama-bf16"}[request.param]
    opened = open_model(copy_model(tmp_path_factory.mktemp("engine"), name), family)
    backend = CpuBackend()
    engine = Engine(opened, backend)
    assert engine._kv == request.param
    return engine, lambda chunk: Engine(opened, backend, chunk=chunk)


def last_logits(engine: Engine, parts: list[list[int]]) -> np.ndarray:
    """Return the logits behind all parts but the last token, each part appended by itself."""
    sequence = engine.sequence()
    engine.reserve(sequence, sum(map(len, parts)))
    for part in parts[:-1]:
        engine.append(sequence, part)
    engine.append(sequence, parts[-1][:-1])
    return np.concatenate(list(engine.score(sequence, parts[-1][-1:])))


def cut(tokens: list[int], size: int) -> list[list[int]]:
    return [tokens[i : i + size] for i in range(0, len(tokens), size)]


@pytest.mark.parametrize("size", [1, 7, 63, 64, 65, 299])
def test_a_prompt_in_parts_gives_the_bits_of_the_whole(cached, size):
    engine, _ = cached
    assert np.array_equal(last_logits(engine, cut(PROMPT, size)), last_logits(engine, [PROMPT]))


@settings(max_examples=25)
@given(st.lists(st.integers(1, 299), max_size=12))
def test_any_cut_gives_the_bits_of_the_whole(cached, places):
    engine, _ = cached
    edges = [0, *sorted(set(places)), 300]
    parts = [PROMPT[a:b] for a, b in pairwise(edges)]
    assert np.array_equal(last_logits(engine, parts), last_logits(engine, [PROMPT]))


@pytest.mark.parametrize("chunk", [1, 63, 64])
def test_every_logit_is_the_same_in_chunks_of_any_size(cached, chunk):
    engine, other = cached
    rows = []
    for each in (engine, other(chunk)):
        sequence = each.sequence()
        each.reserve(sequence, 300)
        rows.append(np.concatenate(list(each.score(sequence, PROMPT))))
    assert rows[0].shape == (300, 70)
    assert np.array_equal(*rows)


def test_a_prompt_longer_than_a_chunk_is_generated_from(cached):
    engine, other = cached
    results = []
    for each in (engine, other(64)):
        sequence = each.sequence()
        each.reserve(sequence, 400)
        sampler = each.sampler(SamplingSettings())
        tokens = [each.advance(sequence, PROMPT, sampler)[0]]
        for _ in range(20):
            tokens.append(each.advance(sequence, tokens[-1:], sampler)[0])
        assert sequence.tokens == PROMPT + tokens[:-1]
        results.append(tokens)
    assert results[0] == results[1]


def test_decoding_gives_what_running_everything_afresh_gives(small):
    prompt = draw_tokens(60, seed=3)  # the answer crosses a page
    assert small.generate(prompt, max_tokens=12).tokens == greedy(small, prompt, 12)


def test_interleaved_answers_are_those_of_each_alone(small):
    options = [
        dict(prompt=draw_tokens(5, 1), max_tokens=40),
        dict(prompt=draw_tokens(70, 2), max_tokens=30, temperature=1.0, seed=5),
        dict(prompt=draw_tokens(9, 3), max_tokens=35, temperature=0.8, seed=6, repetition_penalty=1.4),
        dict(prompt=draw_tokens(9, 3), max_tokens=35, repetition_penalty=1.4),
    ]
    alone = [small.generate(**each).tokens for each in options]
    streams = [small.stream(**each) for each in options]
    chunks = [[chunk.token for chunk in column if chunk] for column in zip(*zip_longest(*streams), strict=True)]
    assert chunks == alone
    assert alone[2] != alone[3]


def test_a_stream_that_nobody_reads_blocks_nobody(small):
    waiting = small.stream(draw_tokens(100), max_tokens=50)
    next(waiting)
    held = small.engine.pool.pages.held
    assert small.generate([1, 2, 3], max_tokens=5).usage.completion_tokens == 5
    assert small.engine.pool.pages.held == held + 1  # its prefix
    assert [c.token for c in waiting] == small.generate(draw_tokens(100), max_tokens=50).tokens[1:]


def test_threads_queue(small):
    prompts = [draw_tokens(3 + 11 * i, i) for i in range(6)]
    run = lambda prompt: small.generate(prompt, max_tokens=25, temperature=0.9, seed=1).tokens  # noqa: E731
    alone = [run(prompt) for prompt in prompts]
    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(run, prompts * 3)) == alone * 3


def test_logits_while_an_answer_is_under_way(small):
    stream = small.stream([5, 6, 7], max_tokens=10)
    tokens = [next(stream).token]
    wanted = small.logits([5, 6, 7, *tokens])
    assert int(wanted[-1].argmax()) == next(stream).token
    assert np.array_equal(small.logits([5, 6, 7, *tokens]), wanted)
    stream.close()


@pytest.mark.parametrize("how", ["close", "drop", "break", "error"])
def test_an_abandoned_stream_gives_its_pages_back(small, how):
    pool = small.engine.pool.pages
    for _ in range(50):
        stream = small.stream(draw_tokens(200), max_tokens=100)
        if how != "drop":
            list(islice(stream, 2))
        assert pool.held == 5
        if how == "close":
            stream.close()
        elif how == "error":
            with pytest.raises(ZeroDivisionError), stream:
                raise ZeroDivisionError
        stream = None
        small.engine.forget()
        assert pool.held == 0


def test_pages_that_run_out_are_an_error_and_nothing_is_lost(make):
    lm = load(make(), context=128)
    streams = [lm.stream(draw_tokens(60), max_tokens=60) for _ in range(2)]
    with pytest.raises(LatticeError, match=r"\[cache\] expected 1 free pages .*, got 0 of 4"):
        lm.stream([1], max_tokens=1)
    tokens = [[chunk.token for chunk in stream] for stream in streams]
    assert tokens[0] == tokens[1] == lm.generate(draw_tokens(60), max_tokens=60).tokens
    lm.engine.forget()
    assert lm.engine.pool.pages.free == 4


def test_reused_pages_leave_no_trace(make):
    lm = load(make(), context=128)
    first = lm.logits(draw_tokens(128, 1))
    lm.logits(draw_tokens(128, 2))
    lm.generate(draw_tokens(100, 3), max_tokens=20)
    assert np.array_equal(lm.logits(draw_tokens(128, 1)), first)


def test_the_whole_context_can_be_used(make):
    lm = load(make(), context=100)
    assert len(lm.generate(draw_tokens(60), max_tokens=40).tokens) == 40
    assert lm.logits(draw_tokens(100)).shape == (100, 70)
    with pytest.raises(LatticeError, match="at most 100 tokens of context, got 101"):
        lm.logits(draw_tokens(101))


def test_defaults_of_context_and_keys(make):
    assert load(make(max_position_embeddings=20000)).context == 8192
    assert load(make(max_position_embeddings=20000), context=9000).context == 9000
    assert load(make()).engine._kv == "f32"  # an f32 checkpoint is loaded as f32
    assert load(make("llama-bf16")).engine._kv == "f16"
    assert load(make("llama-bf16"), dtype="f32").engine._kv == "f32"


@pytest.mark.parametrize("context", [0, -1, 1025, 10**12, 1.5, "64", True])
def test_a_context_out_of_range_is_refused(make, context):
    with pytest.raises(LatticeError, match=r"\[load\] expected a context from 1 to the model's 1024"):
        load(make(), context=context)


def test_one_and_two_threads_give_the_same_bits(make):
    opened = open_model(make(), family)
    models = [LanguageModel(opened, CpuBackend(threads=threads)) for threads in (1, 2)]
    rows = [lm.logits(draw_tokens(200)) for lm in models]
    assert np.array_equal(*rows)
    answers = [lm.generate(draw_tokens(200), max_tokens=30, temperature=1.0, seed=4).tokens for lm in models]
    assert answers[0] == answers[1]
