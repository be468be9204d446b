"""logprobs: the model's own probabilities of the tokens of an answer, and of what else was likely."""

from __future__ import annotations

import math

import numpy as np
import pytest
from op_harness import close
from small_models import draw_tokens

from lattice.backends._backend import Capacity
from lattice.backends.cpu import CpuBackend
from lattice.errors import LatticeError
from lattice.generate import Chunk
from lattice.ops import logprobs
from lattice.program import trace

PROMPT = draw_tokens(15, seed=2)


def log_softmax(logits):
    x = logits.astype(np.float64)
    x -= x.max()
    return x - np.log(np.exp(x).sum())


SETTINGS = [
    {},
    {"temperature": 1.3, "seed": 1, "top_p": 0.9},
    {"repetition_penalty": 1.5, "presence_penalty": 1, "frequency_penalty": 0.5, "logit_bias": {4: 6.0, 5: -math.inf}},
]


@pytest.mark.parametrize("given", SETTINGS)
def test_they_are_the_log_softmax_of_the_logits_whatever_chose_the_token(small, given):
    completion = small.generate(PROMPT, max_tokens=20, logprobs=3, **given)
    rows = [log_softmax(row) for row in small.logits(PROMPT + completion.tokens)[len(PROMPT) - 1 : -1]]
    assert len(completion.logprobs) == len(completion.tokens) == 20
    for token, row, entry in zip(completion.tokens, rows, completion.logprobs, strict=True):
        best = np.argsort(-row, kind="stable")[:3]
        assert (entry.token, entry.text) == (token, None)
        assert entry.logprob == pytest.approx(row[token], abs=1e-5)
        assert [other.token for other in entry.top] == best.tolist()
        assert [other.logprob for other in entry.top] == pytest.approx(row[best], abs=1e-5)
        assert all(other.top == () for other in entry.top)
    assert completion.tokens == small.generate(PROMPT, max_tokens=20, **given).tokens


@pytest.mark.parametrize("count", [0, 1, 20])
def test_as_many_alternatives_as_asked_for(small, count):
    completion = small.generate(PROMPT, max_tokens=3, logprobs=count)
    assert [len(entry.top) for entry in completion.logprobs] == [count] * 3
    if count:  # greedy takes the first of them
        assert [entry.top[0].token for entry in completion.logprobs] == completion.tokens
        assert [entry.top[0].logprob for entry in completion.logprobs] == [e.logprob for e in completion.logprobs]


def test_nobody_asked(small):
    assert small.generate(PROMPT, max_tokens=3).logprobs is None
    assert [chunk.logprob for chunk in small.stream(PROMPT, max_tokens=2)] == [None, None]


def test_chunks_carry_theirs(small_text):
    given = dict(max_tokens=40, temperature=1.5, seed=3, ignore_eos=True, logprobs=2)
    stream = small_text.stream("hello", **given)
    chunks = list(stream)
    assert all(isinstance(chunk, Chunk) for chunk in chunks)
    assert [c.logprob for c in chunks if c.token is not None] == stream.completion().logprobs
    assert all((c.logprob is None) == (c.token is None) for c in chunks)
    assert stream.completion().logprobs == small_text.generate("hello", **given).logprobs


def test_the_text_is_that_of_the_token_alone(small_text):
    tokenizer = small_text.tokenizer
    bias = dict.fromkeys([tokenizer.token_to_id("<0xE2>"), tokenizer.token_to_id("q"), 2], 90.0)
    completion = small_text.generate(
        "abc", max_tokens=30, temperature=9.0, seed=1, logit_bias=bias, ignore_eos=True, logprobs=0
    )
    texts = {entry.token: entry.text for entry in completion.logprobs}
    assert texts == {tokenizer.token_to_id("<0xE2>"): "\ufffd", tokenizer.token_to_id("q"): "q", 2: "<|im_end|>"}


def test_a_stop_string_leaves_one_entry_a_token(small_text):
    free = small_text.generate("abc", max_tokens=20, ignore_eos=True)
    completion = small_text.generate("abc", max_tokens=20, ignore_eos=True, stop=free.text[4:7], logprobs=1)
    assert len(completion.logprobs) == len(completion.tokens) < 20


def test_a_stop_token_has_no_entry(small_text):
    completion = small_text.generate("abc", max_tokens=9, logit_bias={2: 100}, logprobs=1)
    assert (completion.tokens, completion.logprobs, completion.finish_reason) == ([], [], "stop")


def test_with_and_without_interleave(small):
    options = [dict(logprobs=2), {}, dict(logprobs=0, temperature=1.0, seed=2)]
    alone = [small.generate(PROMPT, max_tokens=12, **each) for each in options]
    streams = [small.stream(PROMPT, max_tokens=12, **each) for each in options]
    for _ in zip(*streams, strict=True):
        pass
    together = [stream.completion() for stream in streams]
    assert [each.tokens for each in together] == [each.tokens for each in alone]
    assert [each.logprobs for each in together] == [each.logprobs for each in alone]
    assert together[1].logprobs is None


# ---- the op ------------------------------------------------------------------------------------------------
def plan_of(backend, vocab, top, rows):
    def build(program):
        logits, tokens = program.input("logits", "R", vocab), program.input("tokens", "R", dtype="i32")
        return dict(zip(("chosen", "ids", "top"), logprobs(logits, tokens, top=top), strict=True))

    return backend.compile(trace(build), None, Capacity(rows=rows))


def test_a_row_depends_neither_on_its_neighbours_nor_on_threads(cpu_target):
    random, vocab = np.random.default_rng(0), 20_011
    logits = (random.normal(size=(5, vocab)) * 6).astype(np.float32)
    tokens = random.integers(0, vocab, 5).astype(np.int32)
    whole = None
    for threads in (1, 3):
        plan = plan_of(CpuBackend(cpu_target, threads), vocab, 20, 5)
        results = plan.run(logits=logits, tokens=tokens)
        whole = whole or results
        for name, value in results.items():
            assert np.array_equal(value, whole[name])
        for row in range(5):
            one = plan.run(logits=logits[row : row + 1], tokens=tokens[row : row + 1])
            assert all(np.array_equal(value, whole[name][row : row + 1]) for name, value in one.items())


def test_equal_logits_come_by_id_and_nan_comes_last(cpu_target):
    logits = np.zeros((3, 9000), np.float32)
    logits[0, [8500, 3, 8999, 17]] = 2  # in both chunks of the row
    logits[1] = -np.arange(9000)
    logits[1, :8997] = np.nan
    logits[2] = np.nan
    logits[2, 5] = -1e30
    tokens = np.array([17, 0, 5], np.int32)
    got = plan_of(CpuBackend(cpu_target), 9000, 6, 3).run(logits=logits, tokens=tokens)
    assert got["ids"].tolist() == [[3, 17, 8500, 8999, 0, 1], [8997, 8998, 8999, 0, 1, 2], [5, 0, 1, 2, 3, 4]]
    wanted = logprobs(logits, tokens, top=6)
    assert np.array_equal(got["ids"], wanted[1])
    for name, value in (("chosen", wanted[0]), ("top", wanted[2])):
        finite = np.isfinite(value)
        assert close(got[name][finite], value[finite], 1e-5) and np.array_equal(got[name][~finite], value[~finite])
    assert got["chosen"].tolist()[1:] == [-math.inf, 0.0]


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_without_a_finite_largest_logit_there_is_no_probability(cpu_target, value):
    logits = np.full((1, 50), min(value, 0) if value == value else value, np.float32)
    logits[0, 7] = value
    got = plan_of(CpuBackend(cpu_target), 50, 2, 1).run(logits=logits, tokens=np.array([3], np.int32))
    assert np.isnan(got["chosen"]).all() and np.isnan(got["top"]).all()
    assert all(np.isnan(each).all() for each in logprobs(logits, np.array([3], np.int32), top=2)[::2])


def test_huge_spreads_do_not_overflow(cpu_target):
    logits = np.array([[3e38, -3e38, 0, 1e38]], np.float32)
    got = plan_of(CpuBackend(cpu_target), 4, 4, 1).run(logits=logits, tokens=np.array([0], np.int32))
    assert got["chosen"].tolist() == [0.0] and got["ids"].tolist() == [[0, 3, 2, 1]]


def test_a_token_that_the_row_lacks_is_refused():
    plan = plan_of(CpuBackend(), 7, 2, 1)
    with pytest.raises(LatticeError, match="tokens from 0 to 6, got 7"):
        plan.run(logits=np.zeros((1, 7), np.float32), tokens=np.array([7], np.int32))
