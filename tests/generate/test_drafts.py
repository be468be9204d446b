"""Where drafts come from: each source by itself, and what the loaded model makes of the option `draft`."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import copy_model, draw_tokens, hybrid_model, write_tokenizer
from speculation import OPTIONS, Always, same

from lattice.errors import LatticeError
from lattice.generate import LanguageModel, drafts, load
from lattice.generate.draft_head import ROWS
from lattice.generate.drafts import LEVELS, LONGEST, NgramDrafter
from lattice.generate.speculative import MOST

GREEDY = {"temperature": 0}


# ---- n-grams ---------------------------------------------------------------------------------------------------------
def longest_match(tokens: list[int]) -> int:
    """Return how many tokens the ending has in common with one that ends earlier, at most LONGEST."""
    ends = range(1, len(tokens))
    common = lambda end: next((n for n in range(end) if tokens[end - 1 - n] != tokens[-1 - n]), end)  # noqa: E731
    return min(LONGEST, max(map(common, ends), default=0))


@settings(max_examples=200)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=80), st.lists(st.integers(1, 9), max_size=30), st.integers(1, 12)
)
def test_a_match_is_one_and_as_long_as_a_level_that_fits(tokens, parts, most):
    """However the text arrives: what is proposed followed the ending before, and the longest level is found."""
    drafter, known = NgramDrafter(), tokens[:1]
    for part in [*parts, len(tokens)]:
        known = tokens[: len(known) + part]
        drafter.kind(known)
    length, place = drafter._length, drafter._next
    assert length >= max((level for level in LEVELS if level <= longest_match(tokens)), default=0)
    assert (drafter.kind(tokens) is None) == (length == 0)
    proposed = drafter.propose(tokens, most)
    assert len(proposed) == (most if length else 0)
    if length:
        assert 0 < place < len(tokens) and tokens[place - length : place] == tokens[-length:]
        assert proposed == [(tokens + proposed)[place + i] for i in range(most)]


def test_a_period_goes_on_for_ever():
    assert NgramDrafter().propose([1, 2, 3, 1, 2, 3, 1, 2], 8) == [3, 1, 2, 3, 1, 2, 3, 1]


def test_the_latest_of_equal_matches_counts():
    assert NgramDrafter().propose([1, 2, 3, 1, 2, 4, 1, 2], 1) == [4]


def test_a_longer_match_beats_a_later_one():
    assert NgramDrafter().propose([9, 8, 1, 2, 3, 7, 1, 2, 4, 9, 8, 1, 2], 1) == [3]


def test_a_match_is_followed_without_looking_up(monkeypatch):
    text = draw_tokens(300, vocab=5000)
    drafter, tokens = NgramDrafter(), [*text, *text[:20]]
    drafter.kind(tokens)
    monkeypatch.setattr(drafter, "_match", None)  # would raise
    drafter._match = lambda tokens: None
    for token in text[20:120]:
        tokens.append(token)
        assert drafter.propose(tokens, 3) == text[len(tokens) - 300 :][:3]
    assert drafter.kind(tokens) == ("ngram", LONGEST.bit_length())


def test_the_index_forgets_what_is_long_past(monkeypatch):
    monkeypatch.setattr(drafts, "GENERATION", 64)
    drafter, tokens = NgramDrafter(), []
    for token in draw_tokens(2000, vocab=10**6):
        tokens.append(token)
        drafter.kind(tokens)
        assert sum(map(len, drafter._index)) + sum(map(len, drafter._old)) <= 2 * 64 * len(LEVELS)
    assert drafter.propose([*tokens, *tokens[1950:1960]], 2) == tokens[1960:1962]
    forgetful = NgramDrafter()
    forgetful.kind(tokens)
    assert forgetful.propose([*tokens, *tokens[100:110]], 2) == []


def test_repeated_text_is_drafted(small):
    small.drafting.costs, before = Always(8), small.drafting.costs
    try:
        bias = {"logit_bias": {token: -np.inf for token in range(70) if token > 1}, **GREEDY}
        plain = small.generate(draw_tokens(9), max_tokens=60, draft="off", **bias)
        told = small.generate(draw_tokens(9), max_tokens=60, draft="ngram", **bias)
    finally:
        small.drafting.costs = before
    same(plain, told)
    assert told.usage.accepted_tokens > 30


# ---- a smaller model -------------------------------------------------------------------------------------------------
def paired(to: Path, kind: str, twin: bool) -> LanguageModel:
    """Return a model with a draft model: itself, or another of the same tokenizer."""
    make = hybrid_model if kind == "hybrid" else copy_model
    first = make(to, text=True)
    if twin:
        second = first
    else:
        second = hybrid_model(to, text=True, seed=5) if kind == "hybrid" else copy_model(to, "llama-tied", text=True)
    lm = load(first, draft=second)
    lm._texts.__dict__["stop_tokens"] = frozenset()
    return lm


@pytest.mark.parametrize("kind", ["attention", "hybrid"])
@pytest.mark.parametrize("twin", [True, False])
def test_a_smaller_model_drafts(tmp_path, kind, twin):
    lm = paired(tmp_path, kind, twin)
    small = lm.drafting.sources["model"]._engine
    for depth in (1, 3, MOST):
        lm.drafting.costs = Always(depth)
        for name, options in OPTIONS.items():
            prompt = draw_tokens(70, 2, vocab=60)
            plain = lm.generate(prompt, max_tokens=40, draft="off", **options)
            told = lm.generate(prompt, max_tokens=40, draft="model", **options)
            same(plain, told)
            assert told.usage.drafted_tokens > 0
            if twin and name in ("greedy", "seeded", "limits", "bias"):  # the same draws, rejected at no place
                assert told.usage.accepted_tokens == told.usage.drafted_tokens
    gc.collect()
    small.forget()
    assert small.pool.used == 0


@pytest.mark.parametrize("kind", ["attention", "hybrid"])
def test_the_smaller_models_state_is_cut_back_exactly(tmp_path, kind):
    """After wrong drafts it drafts what one that never ran ahead would draft."""
    lm = paired(tmp_path, kind, twin=False)
    source, sampler = lm.drafting.sources["model"], lm.engine.sampler(lm.sampling)
    text = draw_tokens(60, 3, vocab=60)
    running = source.start(None, sampler, text[:20], 60)
    for place, kept in zip(range(20, 60, 4), (0, 3, 1, 4, 2) * 2, strict=True):
        known = text[:place]
        running.prepare(known)
        proposed = running.propose(known, 5)
        running.accepted(min(kept, next((i for i in range(5) if proposed[i] != text[place + i : place + i + 1]), 0)))
        anew = source.start(None, sampler, text[:20], 60)
        source._engine.forget()
        anew.prepare(known)
        assert anew.propose(known, 5) == proposed
        anew.close()
    running.close()


def test_the_smaller_model_stops_at_the_end_of_its_context(tmp_path):
    first = copy_model(tmp_path, text=True)
    lm = load(first, draft=copy_model(tmp_path, text=True, max_position_embeddings=50))
    lm.drafting.costs = Always(4)
    options = dict(max_tokens=40, ignore_eos=True)
    prompt = draw_tokens(30, vocab=60)
    told = lm.generate(prompt, draft="model", **options)
    same(lm.generate(prompt, draft="off", **options), told)
    assert 15 <= told.usage.drafted_tokens <= 20
    assert lm.generate(draw_tokens(60, vocab=60), draft="model", **options).usage.drafted_tokens == 0


def test_a_conversation_reuses_the_smaller_models_prefix(tmp_path):
    lm = paired(tmp_path, "attention", twin=True)
    lm.drafting.costs = Always(4)
    prompt = draw_tokens(200, vocab=60)
    told = lm.generate(prompt, max_tokens=20, draft="model")
    engine, ran = lm.drafting.sources["model"]._engine, []
    append = engine.append
    engine.append = lambda sequence, tokens: (ran.append(len(tokens)), append(sequence, tokens))
    lm.generate([*prompt, *told.tokens, 5, 6, 7], max_tokens=20, draft="model")
    assert sum(ran) < 10


def test_other_tokens_are_refused(tmp_path):
    first, second, bare = copy_model(tmp_path, text=True), copy_model(tmp_path), copy_model(tmp_path)
    write_tokenizer(second, 40)
    with pytest.raises(LatticeError, match=r"\[draft\] expected a model .* same token ids, got 30 tokens that differ"):
        load(first, draft=second)
    for pair in ((first, bare), (bare, first)):
        with pytest.raises(LatticeError, match=r"tokenizer\.json"):
            load(pair[0], draft=pair[1])


# ---- the draft head --------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def headed(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """Return a model with a draft head, whose chunks are longer than what the head reads of a prompt."""
    return load(hybrid_model(tmp_path_factory.mktemp("head"), mtp_num_hidden_layers=1))


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, ROWS - 1, ROWS, ROWS + 1, 600])
@pytest.mark.parametrize("depth", [1, 5])
def test_the_head_drafts_behind_prompts_of_any_length(headed, length, depth):
    headed.drafting.costs = Always(depth)
    for options in (GREEDY, OPTIONS["all"]):
        plain = headed.generate(draw_tokens(length), max_tokens=70, draft="off", **options)
        told = headed.generate(draw_tokens(length), max_tokens=70, draft="mtp", **options)
        same(plain, told)
        assert told.usage.drafted_tokens >= 70 - told.usage.accepted_tokens - 3


@pytest.mark.parametrize("start", [0, 1, 63, 64, 90])
def test_what_the_head_drafts_does_not_depend_on_how_it_came_there(headed, start):
    """After drafts right and wrong, plain steps and restarts it drafts what it drafts with everything read at once."""
    engine, source = headed.engine, headed.drafting.sources["mtp"]
    text, sampler = draw_tokens(150, 8), headed.engine.sampler(headed.sampling)

    def follow(steps):
        engine.forget()
        sequence = engine.sequence()
        engine.reserve(sequence, 200)
        if start:
            engine.append(sequence, text[:start])  # run before anybody asked for drafts, as a shared prefix is
        drafter, found = source.start(sequence, sampler, text[:1], 150), {}
        for end, most in steps:
            engine.append(sequence, text[len(sequence) : end - 1])
            if most:
                assert drafter.kind(text[:end]) == "mtp"
                drafter.prepare(text[:end])
                found[end] = drafter.propose(text[:end], most)
        drafter.close()
        sequence.clear()
        return found

    often = follow([(end, (0, 1, 6, 2)[end % 4]) for end in range(start + 2, 124)])
    for end in {start + 5, start + 6, 101, 122} & often.keys():  # within ROWS, of which it reads all
        assert often[end] == follow([(end, (0, 1, 6, 2)[end % 4])])[end]


def test_a_head_that_is_far_behind_reads_the_latest_only(headed):
    engine, source = headed.engine, headed.drafting.sources["mtp"]
    sequence = engine.sequence()
    engine.reserve(sequence, 900)
    text, found = draw_tokens(800), []
    for first in (700, 300):
        sequence.clear()
        engine.reserve(sequence, 900)
        drafter = source.start(sequence, engine.sampler(headed.sampling), text[:1], 900)
        engine.append(sequence, text[:first])
        assert len(drafter.propose(text[: first + 1], 2)) == 2
        for place in range(first, 799):
            engine.append(sequence, text[place : place + 1])
        assert ROWS // 2 <= drafter._count <= ROWS
        found.append(drafter.propose(text, 4))
        assert drafter._origin >= first - ROWS
        drafter.close()
    assert len(found[0]) == len(found[1]) == 4
    sequence.clear()


def test_an_answer_that_is_given_up_leaves_no_follower(headed):
    headed.drafting.costs = Always(3)
    stream = headed.stream(draw_tokens(30), max_tokens=50, draft="mtp")
    tokens = [next(stream).token for _ in range(7)]
    sequence = stream._sequence
    stream.close()
    assert sequence.trail is None
    assert tokens == headed.generate(draw_tokens(30), max_tokens=7, draft="off").tokens
    headed.engine.forget()
    del stream, sequence
    assert headed.engine.pool.used == 0


# ---- the option ------------------------------------------------------------------------------------------------------
def test_what_each_option_uses(tmp_path):
    plain, head = copy_model(tmp_path, text=True), hybrid_model(tmp_path, text=True, mtp_num_hidden_layers=1)
    wanted = {
        (plain, None): (), (plain, "off"): (), (plain, "auto"): ("ngram",), (plain, "ngram"): ("ngram",),
        (plain, plain): ("ngram", "model"), (head, "auto"): ("ngram", "mtp"), (head, "mtp"): ("mtp",),
        (head, "ngram"): ("ngram",), (head, None): (),
    }  # fmt: skip
    for (source, draft), names in wanted.items():
        lm = load(source, draft=draft)
        assert lm.drafting.names(None) == names
        assert lm.drafting.names("off") == ()
        assert lm.drafting.names("ngram") == ("ngram",)
        assert lm.engine.draft_head == (source == head and draft in ("auto", "mtp"))
        assert any(name.startswith("mtp") for name in lm.engine.weights.placed) == lm.engine.draft_head
    assert load(plain).drafting.names(None) == ("ngram",)


def test_a_draft_that_there_is_not_is_refused_by_name(make, small, tmp_path):
    with pytest.raises(
        LatticeError, match=r"\[draft\] expected a draft among auto, ngram, off, got 'mtp'\n.*no draft head"
    ):
        load(make(), draft="mtp")
    for draft in ("mtp", "model", "llama", str(tmp_path)):
        with pytest.raises(LatticeError, match=r"\[draft\] expected a draft among auto, ngram, off"):
            small.generate([1, 2], draft=draft)
    with pytest.raises(LatticeError):
        load(make(), draft=tmp_path / "nothing")


def test_memory_that_drafts_cannot_have_costs_speed_alone(tmp_path):
    path = hybrid_model(tmp_path, mtp_num_hidden_layers=1, max_position_embeddings=320)
    pool = load(path).engine.pool
    lm = load(path, cache_bytes=5 * pool.pages.nbytes + 2 * pool.slots.nbytes)
    lm.drafting.costs = Always(MOST)
    prompt = draw_tokens(20)
    with lm.stream(prompt, max_tokens=250, draft="mtp") as stream:
        tokens = [chunk.token for chunk in stream]
    assert tokens == load(path, draft=None).generate(prompt, max_tokens=250).tokens
