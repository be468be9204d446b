"""Sampling: settings and their checks, seeds, and the distribution that was asked for."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from op_harness import close
from small_models import copy_model, draw_tokens

import lattice
from lattice.backends._backend import Capacity
from lattice.backends.cpu import CpuBackend
from lattice.errors import LatticeError
from lattice.generate import LanguageModel
from lattice.generate.sampling import Sampler, SamplingSettings
from lattice.models import family
from lattice.ops import sample
from lattice.ops.sample import _edited
from lattice.program import trace
from lattice.step import Sampling
from lattice.weights.load import open_model

NEUTRAL = SamplingSettings()
BAD = {
    "temperature": [-0.1, math.nan, math.inf, 1e308, 10**400, "1", True, [1.0], 1j],
    "top_p": [-0.1, 1.1, math.nan, "0.9", True, -math.inf],
    "min_p": [-0.1, 1.1, math.nan, "0.9", True],
    "top_k": [-1, 1.0, math.nan, "5", True, 2**31, 10**400],
    "repetition_penalty": [0.0, -1.0, math.nan, math.inf, "1", True],
    "seed": [1.5, "1", True, 2**63, -(2**63) - 1, math.nan],
    "presence_penalty": [-2.1, 2.1, math.nan, "0", True],
    "frequency_penalty": [-2.1, 2.1, math.inf, "0", True],
    "logit_bias": [
        [(1, 2)],
        "1=2",
        {"1": 2},
        {1.0: 2},
        {-1: 2},
        {1: 101},
        {1: -100.5},
        {1: math.nan},
        {1: math.inf},
        {1: "2"},
        {1: True},
        {True: 1},
        {70: 1},
        {2**40: 1},
        dict.fromkeys(range(70), -math.inf),
    ],
    "logprobs": [-1, 21, 1.0, "5", True],
    "max_tokens": [0, -1, 1.5, "5", True, None, math.nan, 2**40],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_setting_out_of_range_is_refused_by_name(small, name, value):
    with pytest.raises(LatticeError, match=rf"\[generate\] expected .*{name}"):
        small.generate([1, 2, 3], **{name: value})


def test_an_unknown_setting_is_refused(small):
    with pytest.raises(TypeError, match="frequency"):
        small.generate([1], frequency=1)
    with pytest.raises(LatticeError, match=r"expected logit_bias for token ids from 0 to 69, got 70$"):
        small.generate([1], logit_bias={3: 1, 70: 1})
    with pytest.raises(TypeError, match="frequency"):
        small.stream([1], frequency=1)


def test_numpy_numbers_are_numbers(small):
    given = dict(temperature=np.float32(0.5), top_k=np.int64(5), top_p=np.float64(1), seed=np.int32(7))
    plain = dict(temperature=0.5, top_k=5, top_p=1, seed=7)
    runs = [small.generate(np.array([1, 2, 3]), max_tokens=9, **each).tokens for each in (given, plain)]
    assert runs[0] == runs[1]


def test_defaults_come_from_the_file_and_only_if_it_samples():
    values = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.1, "max_new_tokens": 5}
    assert SamplingSettings.of_file({}) == NEUTRAL
    assert SamplingSettings.of_file({"do_sample": True}) == SamplingSettings(temperature=1.0)
    assert SamplingSettings.of_file({"do_sample": True} | values) == SamplingSettings(0.7, 0.8, 20, 0.0, 1.1)
    assert SamplingSettings.of_file(values) == SamplingSettings(0.0, 0.8, 20, 0.0, 1.1)
    with pytest.raises(LatticeError, match="top_p"):
        SamplingSettings.of_file({"top_p": 7})


def test_what_the_caller_says_wins_over_the_file(make):
    directory = make(generation={"do_sample": True, "temperature": 0.9, "top_k": 3})
    lm = lattice.load(directory)
    assert lm.sampling == SamplingSettings(temperature=0.9, top_k=3)
    plain = lattice.load(make())
    prompt = draw_tokens(20)
    sampled = lm.generate(prompt, seed=3, max_tokens=20).tokens
    assert sampled == plain.generate(prompt, seed=3, max_tokens=20, temperature=0.9, top_k=3).tokens
    assert (
        lm.generate(prompt, temperature=0, max_tokens=20).tokens
        == plain.generate(prompt, max_tokens=20).tokens
        != sampled
    )


def test_tiny_temperatures_are_greedy(small):
    prompt = draw_tokens(10)
    assert small.generate(prompt, temperature=1e-30, max_tokens=9).tokens == small.generate(prompt, max_tokens=9).tokens


def test_a_seed_repeats_and_no_seed_does_not(small):
    def run(**given):
        return tuple(small.generate([1, 2], temperature=1.5, max_tokens=20, **given).tokens)

    assert run(seed=11) == run(seed=11) != run(seed=12)
    assert run(seed=-1) == run(seed=-1)
    assert len({run() for _ in range(5)}) > 1


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Return the small model on one thread: thousands of tiny steps gain nothing from two."""
    opened = open_model(copy_model(tmp_path_factory.mktemp("alone")), family)
    return LanguageModel(opened, CpuBackend(threads=1))


def frequencies(lm, prompt, count, **given):
    """Return how often each token follows the prompt, over seeds."""
    engine, found = lm.engine, np.zeros(lm.engine.vocab, int)
    sequence = engine.sequence()
    engine.reserve(sequence, len(prompt))
    engine.append(sequence, prompt[:-1])
    for seed in range(count):
        sampler = engine.sampler(SamplingSettings(seed=seed, **given))
        sampler.read(prompt)
        found[engine.advance(sequence, prompt[-1:], sampler).token] += 1
        sequence.tokens.pop()
    return found


def chi_square_fits(found, probabilities):
    """Return whether Pearson's statistic is within 5 standard deviations of its mean (cells of 5 or more)."""
    expected = probabilities * found.sum()
    assert not found[expected == 0].any()
    rare = expected < 5
    cells = [
        (found[~rare], expected[~rare]),
        (found[rare].sum(keepdims=True), expected[rare].sum(keepdims=True)),
    ]
    pairs = [(f, e) for some, wanted in cells for f, e in zip(some, wanted, strict=True) if e > 0]
    statistic = sum((f - e) ** 2 / e for f, e in pairs)
    freedom = len(pairs) - 1
    return statistic < freedom + 5 * math.sqrt(2 * freedom)


def softmax(x):
    weights = np.exp(x - x.max())
    return weights / weights.sum()


PROMPT = draw_tokens(12, seed=8)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5])
def test_tokens_are_drawn_with_the_probabilities_of_the_softmax(alone, temperature):
    probabilities = softmax(alone.logits(PROMPT)[-1].astype(np.float64) / temperature)
    found = frequencies(alone, PROMPT, 2000, temperature=temperature)
    assert chi_square_fits(found, probabilities)
    assert not chi_square_fits(found, softmax(alone.logits(PROMPT)[-1].astype(np.float64) / temperature / 1.5))


@pytest.mark.parametrize("limit", [{"top_k": 4}, {"top_p": 0.6}, {"min_p": 0.2}])
def test_limits_cut_the_distribution(alone, limit):
    probabilities = softmax(alone.logits(PROMPT)[-1].astype(np.float64))
    order = np.argsort(-probabilities, kind="stable")
    kept = np.zeros(70, bool)
    if "top_k" in limit:
        kept[order[:4]] = True
    elif "top_p" in limit:
        kept[order[: np.searchsorted(np.cumsum(probabilities[order]), 0.6) + 1]] = True
    else:
        kept = probabilities >= 0.2 * probabilities.max()
    assert 1 < kept.sum() < 70
    cut = np.where(kept, probabilities, 0)
    assert chi_square_fits(frequencies(alone, PROMPT, 2000, temperature=1.0, **limit), cut / cut.sum())


# ---- edits of single logits, against NumPy in double precision ---------------------------------------------
def restated(logits, prompt, answer, given):
    """Return what bias and penalties make of the logits, straight from their definitions."""
    x = logits.astype(np.float64)
    for token, amount in given.get("logit_bias", {}).items():
        x[token] += amount
    for token in set(prompt) | set(answer):
        factor = given.get("repetition_penalty", 1)
        x[token] = x[token] / factor if x[token] > 0 else x[token] * factor
    for token in set(answer):
        x[token] -= given.get("presence_penalty", 0) + given.get("frequency_penalty", 0) * answer.count(token)
    return x


EDITS = st.fixed_dictionaries(
    {},
    optional={
        "repetition_penalty": st.floats(0.5, 3),
        "presence_penalty": st.floats(-2, 2),
        "frequency_penalty": st.floats(-2, 2),
        "logit_bias": st.dictionaries(st.integers(0, 69), st.floats(-100, 100) | st.just(-math.inf), max_size=60),
    },
)
TOKENS = st.lists(st.integers(0, 69), min_size=1, max_size=40)


@hypothesis.given(EDITS, TOKENS, st.lists(st.integers(0, 69), max_size=40))
def test_edited_logits_are_those_of_the_definitions(edits, prompt, answer):
    """The op's reference and the way that counts travel, one token after another."""
    sampler = Sampler(SamplingSettings(**edits), 70)
    sampler.read(prompt)
    logits = np.random.default_rng(len(prompt)).normal(size=70).astype(np.float32) * 5
    for token in answer:
        sampler.draw(token)
    got = _edited(logits, sampler.arrays(9), 0)
    wanted = restated(logits, prompt, answer, edits)
    forbidden = np.isneginf(wanted)
    assert np.array_equal(np.isneginf(got), forbidden)
    assert close(got[~forbidden], wanted[~forbidden], 1e-5)


CASES = [
    {"presence_penalty": 1.2},
    {"frequency_penalty": 0.7},
    {"frequency_penalty": -0.2, "temperature": 0.9, "seed": 4},
    {"repetition_penalty": 1.7},
    {"repetition_penalty": 1.7, "temperature": 0.9, "seed": 5},
    {"repetition_penalty": 0.8, "temperature": 2.0, "top_k": 9, "seed": 6},
    {"logit_bias": dict.fromkeys(range(0, 70, 2), -math.inf)},
    {"logit_bias": {7: 9, 8: 9.5, 9: -100}, "presence_penalty": 2, "frequency_penalty": 1.5, "repetition_penalty": 1.2},
    {"logit_bias": {7: 5.5}, "presence_penalty": 0.3, "temperature": 1.1, "top_p": 0.9, "min_p": 0.01, "seed": 7},
]


@pytest.mark.parametrize("given", CASES)
def test_answers_follow_the_edits_token_by_token(small, given):
    """The whole path with its buffers, against logits computed afresh and edited in double precision."""
    answer = small.generate(PROMPT, max_tokens=25, **given).tokens
    limits = {
        name: value for name, value in given.items() if name in ("temperature", "top_k", "top_p", "min_p", "seed")
    }
    for index, token in enumerate(answer):
        before = answer[:index]
        edited = restated(small.logits(PROMPT + before)[-1], PROMPT, before, given)
        plain = Sampler(SamplingSettings(**limits), 70).arrays(len(PROMPT) + index)
        assert token == sample(edited[None].astype(np.float32), plain)[0]
    assert answer != small.generate(PROMPT, max_tokens=25, **limits).tokens


def test_interleaved_answers_keep_their_own_counts(small):
    alone = [small.generate(PROMPT, max_tokens=25, **each).tokens for each in CASES]
    streams = [small.stream(PROMPT, max_tokens=25, **each) for each in CASES]
    assert [[chunk.token for chunk in column] for column in zip(*zip(*streams, strict=True), strict=True)] == alone


@pytest.mark.parametrize("given", [{}, {"temperature": 1.2, "seed": 3}, {"temperature": 0.8, "top_p": 0.9, "seed": 3}])
def test_neutral_values_change_nothing(small, given):
    neutral = dict(presence_penalty=0, frequency_penalty=0.0, repetition_penalty=1, logit_bias={})
    plain = small.generate(PROMPT, max_tokens=40, **given).tokens
    assert small.generate(PROMPT, max_tokens=40, **given, **neutral).tokens == plain
    assert small.generate(PROMPT, max_tokens=40, **given, logit_bias={3: 0, 9: 0.0}).tokens == plain
    assert small.generate(PROMPT, max_tokens=40, **given, logprobs=5).tokens == plain


def test_what_is_forbidden_never_comes_and_a_large_bias_always(small):
    allowed = {5, 40, 69}
    bias = {token: -math.inf for token in range(70) if token not in allowed}
    for given in ({}, {"temperature": 1e4, "seed": 1}, {"temperature": 5, "top_k": 9, "seed": 2}):
        assert set(small.generate(PROMPT, max_tokens=60, logit_bias=bias, **given).tokens) <= allowed
    assert small.generate(PROMPT, max_tokens=20, logit_bias={33: 100}, temperature=1.0).tokens == [33] * 20


def test_the_prompt_counts_for_repetition_alone():
    """OpenAI's two penalties count what was generated; the repetition penalty covers the prompt as well."""
    for settings, ids in (({"presence_penalty": 1}, []), ({"repetition_penalty": 1.1}, [4, 5]), ({}, [])):
        sampler = Sampler(SamplingSettings(**settings), 70)
        sampler.read([4, 5, 4])
        arrays = sampler.arrays(3)
        assert arrays.edit_ids.tolist() == ids and arrays.edit_counts.tolist() == [0] * len(ids)
    sampler = Sampler(SamplingSettings(presence_penalty=1, logit_bias={9: 2, 4: -3}), 70)
    for token in (4, 6, 4):
        sampler.draw(token)
    arrays = sampler.arrays(3)
    assert arrays.edit_ids.tolist() == [9, 4, 6] and arrays.edit_bias.tolist() == [2, -3, 0]
    assert arrays.edit_counts.tolist() == [-1, 2, 1]


def test_without_penalties_nothing_is_counted():
    sampler = Sampler(NEUTRAL, 70)
    sampler.read([1, 2, 3])
    sampler.draw(4)
    assert sampler.size == 0 and not sampler.changed


@pytest.mark.parametrize("threads", [1, 3])
def test_a_row_of_edits_does_not_depend_on_its_neighbours(cpu_target, threads):
    """Seven rows of different settings at once, and each by itself: the same tokens."""
    vocab, random = 9001, np.random.default_rng(3)
    logits = (random.normal(size=(7, vocab)) * 3).astype(np.float32)
    rows = []
    for index, given in enumerate([*CASES[:6], {"temperature": 1.3, "seed": 9}]):
        sampler = Sampler(SamplingSettings(**given), vocab)
        likely = np.argsort(-logits[index])[:20].tolist()
        sampler.read(likely[10:])
        for token in likely[:10] * 2:
            sampler.draw(token)
        rows.append(sampler.arrays(40 + index))
    joined = {f.name: np.concatenate([getattr(row, f.name) for row in rows]) for f in fields(Sampling)}
    joined["edit_offsets"] = np.cumsum([0, *(len(row.edit_ids) for row in rows)]).astype(np.int32)
    program = trace(lambda p: {"tokens": sample(p.input("logits", "R", vocab), p.sampling(edits=200))})
    plan = CpuBackend(cpu_target, threads).compile(program, None, Capacity(rows=7))
    together = plan.run(sampling=Sampling(**joined), logits=logits)["tokens"].tolist()
    assert together == sample(logits.copy(), Sampling(**joined)).tolist()
    for index, row in enumerate(rows):
        assert (
            plan.run(sampling=row, logits=logits[index : index + 1])["tokens"].tolist() == together[index : index + 1]
        )


def test_hostile_logits_lose_to_a_ban(cpu_target):
    """NaN never wins, and -inf forbids even an infinite logit."""
    logits = np.array([[np.nan, np.inf, 3, -np.inf, 2]], np.float32)
    sampler = Sampler(SamplingSettings(logit_bias={1: -math.inf, 3: 100, 0: 50}), 5)
    program = trace(lambda p: {"tokens": sample(p.input("logits", "R", 5), p.sampling(edits=5))})
    plan = CpuBackend(cpu_target).compile(program, None, Capacity())
    assert plan.run(sampling=sampler.arrays(1), logits=logits)["tokens"].tolist() == [2]
    assert sample(logits.copy(), sampler.arrays(1)).tolist() == [2]


def test_lists_of_edits_that_do_not_match_are_refused(cpu_target):
    program = trace(lambda p: {"tokens": sample(p.input("logits", "R", 5), p.sampling(edits=5))})
    plan = CpuBackend(cpu_target).compile(program, None, Capacity())
    good = Sampler(SamplingSettings(logit_bias={1: 1, 3: 1}), 5).arrays(1)
    for change, message in (
        ({"edit_ids": np.array([1, 5], np.int32)}, "edit_ids from 0 to 4"),
        ({"edit_offsets": np.array([0, 3], np.int32)}, "edit_offsets from 0 to 2"),
        ({"edit_bias": np.zeros(1, np.float32)}, "edit_counts of 2 entries"),
    ):
        with pytest.raises(LatticeError, match=message):
            plan.run(sampling=replace(good, **change), logits=np.zeros((1, 5), np.float32))
