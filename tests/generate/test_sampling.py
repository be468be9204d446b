"""Sampling: settings and their checks, seeds, and the distribution that was asked for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from small_models import copy_model, draw_tokens

import lattice
from lattice.backends.cpu import CpuBackend
from lattice.errors import LatticeError
from lattice.generate import LanguageModel
from lattice.generate.sampling import Sampler, SamplingSettings
from lattice.models import family
from lattice.ops.sample import sample as reference_sample
from lattice.weights.load import open_model

NEUTRAL = SamplingSettings()
BAD = {
    "temperature": [-0.1, math.nan, math.inf, 1e308, 10**400, "1", True, [1.0], 1j],
    "top_p": [-0.1, 1.1, math.nan, "0.9", True, -math.inf],
    "min_p": [-0.1, 1.1, math.nan, "0.9", True],
    "top_k": [-1, 1.0, math.nan, "5", True, 2**31, 10**400],
    "repetition_penalty": [0.0, -1.0, math.nan, math.inf, "1", True],
    "seed": [1.5, "1", True, 2**63, -(2**63) - 1, math.nan],
    "max_tokens": [0, -1, 1.5, "5", True, None, math.nan, 2**40],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_setting_out_of_range_is_refused_by_name(small, name, value):
    with pytest.raises(LatticeError, match=rf"\[generate\] expected .*{name}"):
        small.generate([1, 2, 3], **{name: value})


def test_an_unknown_setting_is_refused(small):
    with pytest.raises(TypeError, match="frequency"):
        small.generate([1], frequency=1)
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
        sampler.see(prompt)
        found[engine.advance(sequence, prompt[-1:], sampler)[0]] += 1
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


@pytest.mark.parametrize("given", [{}, {"temperature": 0.9, "seed": 5}, {"temperature": 2.0, "top_k": 9, "seed": 6}])
def test_the_repetition_penalty_is_that_of_the_reference(small, given):
    """Token by token, against the NumPy op over logits computed afresh and the ids that the context holds."""
    tokens = list(PROMPT)
    answer = small.generate(PROMPT, max_tokens=25, repetition_penalty=1.7, **given).tokens
    for token in answer:
        sampler = Sampler(SamplingSettings(repetition_penalty=1.7, **given), 70)
        sampler.see(tokens)
        assert sampler.count == len(set(tokens))
        assert token == reference_sample(small.logits(tokens)[-1:].copy(), sampler.arrays(len(tokens)))[0]
        tokens.append(token)
    assert answer != small.generate(PROMPT, max_tokens=25, **given).tokens


def test_no_penalty_keeps_no_history():
    sampler = Sampler(NEUTRAL, 70)
    sampler.see([1, 2, 3])
    assert sampler.history is None and sampler.count == 0
