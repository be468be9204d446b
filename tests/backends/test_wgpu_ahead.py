"""Steps submitted before their token is read: the same tokens, nothing of a dropped one left, and no wait for them."""

from __future__ import annotations

import os

import numpy as np
import pytest
from small_models import copy_model, draw_tokens, hybrid_model

from lattice.backends.wgpu import WgpuBackend, native, open_device
from lattice.errors import LatticeError
from lattice.generate import engine as engine_module
from lattice.generate.model import LanguageModel
from lattice.models import family
from lattice.weights.load import open_model

PROMPT = draw_tokens(70)
MODELS = {"llama": copy_model, "hybrid": hybrid_model}


@pytest.fixture(scope="module")
def backend():
    return WgpuBackend(open_device(software="LATTICE_TEST_CARD" not in os.environ))


def loaded(backend, path, **options) -> LanguageModel:
    return LanguageModel(open_model(path, family), backend, **{"kv": "f32", "context": 192, "draft": None, **options})


@pytest.fixture(params=MODELS)
def lm(request, backend, tmp_path) -> LanguageModel:
    return loaded(backend, MODELS[request.param](tmp_path))


def plain(lm: LanguageModel, prompt: list[int], count: int, **settings) -> list[int]:
    """Return the tokens of an answer whose steps are submitted one by one."""
    lm.engine.forget()
    lm.engine._backend.ahead = False
    try:
        return lm.generate(prompt, max_tokens=count, ignore_eos=True, **settings).tokens
    finally:
        lm.engine._backend.ahead = True
        lm.engine.forget()


def fed(monkeypatch) -> list[bool]:
    """Return a list that will tell of every step whether it was submitted ahead."""
    found: list[bool] = []
    original = engine_module.submit_plans

    def told(plans, gives, feed=None):
        found.append(feed is not None)
        return original(plans, gives, feed)

    monkeypatch.setattr(engine_module, "submit_plans", told)
    return found


DRAWS = ({"temperature": 0}, {"temperature": 0.9, "top_p": 0.9, "seed": 3, "logit_bias": {5: 2.0}})


@pytest.mark.parametrize("settings", DRAWS, ids=("greedy", "drawn"))
def test_the_same_tokens(lm, settings, monkeypatch):
    wanted = plain(lm, PROMPT, 24, **settings)
    found = fed(monkeypatch)
    assert lm.generate(PROMPT, max_tokens=24, ignore_eos=True, **settings).tokens == wanted
    assert found.count(True) == 22  # all but the prompt's step and the first one behind it
    assert len(found) == 24


@pytest.mark.parametrize("settings", [{"presence_penalty": 0.5}, {"repetition_penalty": 1.2}], ids=str)
def test_penalties_need_the_token_before(lm, settings, monkeypatch):
    wanted = plain(lm, PROMPT, 12, temperature=0, **settings)
    found = fed(monkeypatch)
    assert lm.generate(PROMPT, max_tokens=12, ignore_eos=True, temperature=0, **settings).tokens == wanted
    assert not any(found)


def test_logprobs_are_those_of_their_token(lm, monkeypatch):
    found = fed(monkeypatch)
    answer = lm.generate(PROMPT, max_tokens=6, ignore_eos=True, temperature=0, logprobs=2)
    assert [each.token for each in answer.logprobs] == answer.tokens
    assert not any(found)


def test_an_answer_that_ends_early_leaves_no_trace(lm):
    """The step under way is dropped: its slot comes back, and who goes on from the prefix gets what others get."""
    wanted = plain(lm, PROMPT, 20, temperature=0)
    pool = lm.engine.pool
    with lm.stream(PROMPT, max_tokens=20, ignore_eos=True, temperature=0) as stream:
        begun = [next(stream).token for _ in range(8)]
    assert begun == wanted[:8]
    again = lm.stream([*PROMPT, *begun], max_tokens=12, ignore_eos=True, temperature=0)
    assert [chunk.token for chunk in again] == wanted[8:]
    assert again.usage.reused_tokens >= len(PROMPT)
    lm.engine.forget()
    assert (pool.pages.held, pool.slots.held) == (0, 0)


def test_an_abandoned_stream_gives_everything_back(lm):
    stream = lm.stream(PROMPT, max_tokens=20, ignore_eos=True, temperature=0)
    for _ in range(5):
        next(stream)
    assert stream._sequence.ahead is not None
    del stream
    lm.engine.forget()
    assert (lm.engine.pool.pages.held, lm.engine.pool.slots.held) == (0, 0)


def test_answers_in_turns(lm):
    prompts = [PROMPT, draw_tokens(66, 1), draw_tokens(9, 2)]
    wanted = [plain(lm, prompt, 10, temperature=0) for prompt in prompts]
    streams = [lm.stream(prompt, max_tokens=10, ignore_eos=True, temperature=0) for prompt in prompts]
    random = np.random.default_rng(0)
    got: list[list[int]] = [[], [], []]
    while any(len(tokens) < 10 for tokens in got):
        which = int(random.integers(3))
        for _ in range(int(random.integers(1, 4))):
            if len(got[which]) < 10:
                got[which].append(next(streams[which]).token)
    assert got == wanted


def test_a_token_that_nobody_foresaw(lm):
    """An answer may go on with another token than the one drawn: the step under way is not it."""
    engine = lm.engine
    sampler = engine.sampler(lm.sampling.with_({"temperature": 0.0}))
    sequence = engine.begin(PROMPT, len(PROMPT) + 10)
    token = engine.advance(sequence, PROMPT, sampler, more=True).token
    for _ in range(2):
        token = engine.advance(sequence, [token], sampler, more=True).token
    assert sequence.ahead is not None
    other = (token + 1) % 70
    got = engine.advance(sequence, [other], sampler, more=True).token
    tokens = list(sequence.tokens)
    engine.finish(sequence)
    assert got == plain(lm, tokens, 1, temperature=0)[0]


def test_without_room_for_a_slot_steps_wait(backend, tmp_path, monkeypatch):
    lm = loaded(backend, hybrid_model(tmp_path))
    wanted = plain(lm, PROMPT, 10, temperature=0)

    def none_left(count):
        raise LatticeError("no slots")

    monkeypatch.setattr(lm.engine, "take_slots", none_left)
    found = fed(monkeypatch)
    assert lm.generate(PROMPT, max_tokens=10, ignore_eos=True, temperature=0).tokens == wanted
    assert not any(found)


def test_drafts_and_steps_ahead_are_the_same_tokens(backend, tmp_path, monkeypatch):
    lm = loaded(backend, hybrid_model(tmp_path), draft="ngram")
    prompt = draw_tokens(20) * 4
    wanted = plain(lm, prompt, 40, temperature=0, draft="off")
    found = fed(monkeypatch)
    assert lm.generate(prompt, max_tokens=40, ignore_eos=True, temperature=0).tokens == wanted
    assert any(found)


def test_by_methods_alone(lm, monkeypatch):
    """Where wgpu's library is not to be had."""
    wanted = plain(lm, PROMPT, 10, temperature=0)
    monkeypatch.setattr(native, "lib", None)
    assert lm.generate(PROMPT, max_tokens=10, ignore_eos=True, temperature=0).tokens == wanted


def test_a_step_is_recorded_while_the_one_before_it_runs(lm):
    """From the third like it on, commands are there before they are needed; another step in between is none of them."""
    stream = lm.stream(PROMPT, max_tokens=12, ignore_eos=True, temperature=0)
    recorder = lm.engine._plan._recorder
    for _ in range(4):
        next(stream)
    key, (first, second) = recorder._last, recorder._ready
    next(stream)
    assert recorder._last == key
    assert recorder._ready[0] is second  # every one is submitted once
    assert first not in recorder._ready


def test_a_long_step_takes_no_more_tokens_than_a_sequence_has(backend, tmp_path):
    engine = loaded(backend, copy_model(tmp_path), context=600).engine
    sequence = engine.begin(draw_tokens(560), 600)
    engine.append(sequence, draw_tokens(560))
    assert (engine._long.capacity.tokens, len(sequence)) == (600, 560)
