"""Speculation: the same answer, bit for bit, whoever drafts and however much; and it pays or it stops."""

from __future__ import annotations

import math
import random
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import draw_tokens, hybrid_model
from speculation import OPTIONS, Always, Scripted, same

from lattice.generate import LanguageModel, load
from lattice.generate.speculative import ANSWER, MOST, SHARE, Account, Costs, Speculation


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """Return a model with recurrent state and a draft head."""
    return load(hybrid_model(tmp_path_factory.mktemp("hybrid"), mtp_num_hidden_layers=1))


@pytest.fixture(params=["attention", "hybrid"])
def model(request: pytest.FixtureRequest, small: LanguageModel, hybrid: LanguageModel):
    """Return a model with and one without recurrent state; whatever a test does, all its memory comes back."""
    lm = {"attention": small, "hybrid": hybrid}[request.param]
    yield lm
    lm.engine.forget()
    assert lm.engine.pool.used == 0


def answer(lm: LanguageModel, how: str, depth: int, prompt, **options):
    """Return the plain answer and that with drafts."""
    plain = lm.generate(prompt, draft="off", **options)
    source = Scripted(how, plain.tokens)
    lm.drafting.sources["scripted"], before = source, lm.drafting.costs
    lm.drafting.costs = Always(depth)
    try:
        return plain, lm.generate(prompt, draft=how if how in ("ngram", "mtp") else "scripted", **options), source
    finally:
        lm.drafting.costs = before
        del lm.drafting.sources["scripted"]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("how", ["right", "wrong", "half", "random", "ids", "longer", "ngram", "mtp"])
def test_answers_are_the_same_token_by_token(model, how, options):
    how = "ngram" if how == "mtp" and not model.engine.draft_head else how
    for depth in (1, 4, MOST):
        plain, drafted, _ = answer(model, how, depth, draw_tokens(50, 2), max_tokens=40, **OPTIONS[options])
        same(plain, drafted)
        assert drafted.usage.drafted_tokens or how == "ngram"
        if how == "right":
            steps = math.ceil(39 / (min(depth, model.engine.drafts) + 1))
            assert drafted.usage.accepted_tokens == drafted.usage.drafted_tokens == 39 - steps
        if how == "wrong":
            assert drafted.usage.accepted_tokens == 0


@pytest.mark.parametrize("length", [1, 2, 61, 62, 63, 64, 65, 127, 128])
@pytest.mark.parametrize("how", ["right", "half"])
def test_at_the_borders_of_pages(model, length, how):
    same(*answer(model, how, 7, draw_tokens(length, 4), max_tokens=12)[:2])


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 17, 18])
@pytest.mark.parametrize("how", ["right", "longer"])
def test_no_draft_reaches_past_the_last_token(model, count, how):
    plain, drafted, source = answer(model, how, MOST, draw_tokens(9), max_tokens=count)
    same(plain, drafted)
    if count < 3:
        assert source.offered == []
    elif count < 9:
        assert source.offered == [count - 2]


def test_the_whole_context_can_be_filled(make):
    lm = load(make(), context=100)
    same(*answer(lm, "right", MOST, draw_tokens(70), max_tokens=30)[:2])
    same(*answer(lm, "half", MOST, draw_tokens(37), max_tokens=63)[:2])


@settings(max_examples=40)
@given(
    st.booleans(), st.lists(st.integers(0, 69), min_size=1, max_size=130), st.integers(1, 40), st.integers(1, MOST),
    st.sampled_from(["right", "half", "random", "longer", "ngram", "mtp"]), st.sampled_from(sorted(OPTIONS)),
)  # fmt: skip
def test_any_answer_is_the_same(small, hybrid, recurrent, prompt, count, depth, how, options):
    lm = hybrid if recurrent else small
    how = "ngram" if how == "mtp" and not recurrent else how
    same(*answer(lm, how, depth, prompt, max_tokens=count, **OPTIONS[options])[:2])


@pytest.mark.parametrize("how", ["right", "half"])
@pytest.mark.parametrize("depth", [1, 3, MOST])
def test_a_stop_token_within_a_run_ends_the_answer(make, small, how, depth):
    told = small.generate(draw_tokens(20), max_tokens=30, temperature=1.5, seed=3).tokens
    for place in (1, 2, 7, 20):
        lm = load(make(eos_token_id=told[place]))
        plain, drafted, _ = answer(lm, how, depth, draw_tokens(20), max_tokens=30, temperature=1.5, seed=3)
        assert plain.finish_reason == "stop"
        same(plain, drafted)
        unending = dict(max_tokens=30, temperature=1.5, seed=3, ignore_eos=True)
        same(*answer(lm, how, depth, draw_tokens(20), **unending)[:2])


@pytest.mark.parametrize("how", ["right", "half"])
def test_stop_strings_within_a_run(small_text, how):
    options = dict(max_tokens=40, temperature=1.6, seed=4)
    text = small_text.generate("abc", draft="off", **options).text
    for start, length in product((1, 5, 17), (1, 2, 4)):
        for depth in (2, MOST):
            plain, drafted, _ = answer(small_text, how, depth, "abc", stop=text[start : start + length], **options)
            assert plain.finish_reason == "stop"
            same(plain, drafted)


def state_of(lm: LanguageModel, sequence) -> dict[str, np.ndarray]:
    """Return keys and values of a sequence's positions, and the recurrent state behind them, by layer."""
    engine, count = lm.engine, len(sequence)
    pages, found = sequence.table[0, : -(-count // 64)], {}
    for name, buffer in engine.paged.items():
        if not name.startswith("mtp"):
            rows = buffer[pages].transpose((0, 3, 1, 2) if name.endswith("k_pages") else (0, 2, 1, 3))
            found[name] = rows.reshape(-1, *rows.shape[2:])[:count].copy()
    return {**found, **{name: buffer[sequence.slot.index].copy() for name, buffer in engine.slotted.items()}}


@pytest.mark.parametrize("how", ["right", "wrong", "half", "random"])
@pytest.mark.parametrize("ends", ["length", "stop", "closed"])
def test_what_is_kept_is_what_plain_decoding_leaves(model, how, ends):
    """Prefixes for later prompts: the same tokens, and state that goes on the same way."""
    prompt = draw_tokens(60)
    told = model.generate(prompt, max_tokens=30, temperature=1.5, seed=3, draft="off").tokens
    stops = frozenset(told[12:13] if ends == "stop" else ())
    before, left = model.drafting.costs, []
    model._texts.__dict__["stop_tokens"] = stops
    for depth in (0, 4, MOST):
        model.engine.forget()
        model.drafting.sources["scripted"], model.drafting.costs = Scripted(how, told), Always(depth)
        options = dict(max_tokens=30, temperature=1.5, seed=3, draft="scripted" if depth else "off")
        with model.stream(prompt, **options) as stream:
            tokens = [next(stream).token for _ in range(9)]
            if ends != "closed":
                tokens += [chunk.token for chunk in stream]
        kept = sorted(entry.tokens.tolist() for entry in model.engine.prefixes.entries)
        after = model.generate([*prompt, *tokens, 5, 6], max_tokens=20, draft="off", logprobs=0)
        left.append((tokens, kept, after.tokens, after.usage.reused_tokens, after.logprobs))
    model.drafting.costs, model._texts.__dict__["stop_tokens"] = before, frozenset()
    del model.drafting.sources["scripted"]
    model.engine.forget()
    assert left[0] == left[1] == left[2]
    assert left[0][3] == 60 + len(left[0][0]) - (ends != "stop")


@pytest.mark.parametrize("how", ["right", "half", "random", "mtp"])
def test_state_after_rejected_drafts_is_bit_equal(model, how):
    prompt, engine = draw_tokens(60), model.engine
    truth = model.generate(prompt, max_tokens=30, draft="off").tokens
    states = []
    for depth in (0, 2, 5, MOST):
        sequence = engine.sequence()
        sampler = engine.sampler(model.sampling)
        engine.reserve(sequence, 100)
        source = Scripted(how, truth) if how != "mtp" or not engine.draft_head else model.drafting.sources["mtp"]
        drafter = source.start(sequence, sampler, prompt, 40)
        known = [*prompt, engine.advance(sequence, prompt, sampler).token]
        speculation = Speculation(engine, sequence, sampler, [drafter] if depth else [], Always(depth))
        while len(known) < 90:
            known += (each.token for each in speculation.step(known, 90 - len(known)))
        assert sequence.tokens == known[:-1] == [*prompt, *truth][:89]
        states.append(state_of(model, sequence))
        back = 0 if not depth or speculation._last is None else len(speculation._last.tokens) - 1
        speculation.close(89 - back)  # as if the answer had ended within the last step
        assert len(sequence) == 89 - back
        rest = np.concatenate(list(engine.score(sequence, known[89 - back : 90])))
        states[-1] |= {"logits": rest[-1]} | state_of(model, sequence)
        sequence.clear()
        del speculation, drafter
    for other in states[1:]:
        assert states[0].keys() == other.keys()
        assert all(np.array_equal(states[0][name], other[name]) for name in other)


def test_interleaved_answers_do_not_disturb_each_other(model):
    model.drafting.costs, before = Always(6), model.drafting.costs
    try:
        prompt = draw_tokens(6) * 5
        options = [dict(given, max_tokens=30) for given in OPTIONS.values()]
        alone = [model.generate(prompt, draft="off", **each).tokens for each in options]
        streams = [model.stream(prompt, draft=("ngram", "off")[i % 2], **each) for i, each in enumerate(options)]
        found = [[chunk.token for chunk in column] for column in zip(*zip(*streams, strict=True), strict=True)]
        assert found == alone
        del streams
    finally:
        model.drafting.costs = before


def test_the_distribution_of_sampled_tokens_is_unchanged(model):
    """Two tokens behind the first, of four that a bias allows: 16 cells, over seeds, against what logits say."""
    engine, prompt, allowed, draws = model.engine, [*draw_tokens(8), 5], [5, 17, 40, 69], 1600
    bias = {token: -math.inf for token in range(70) if token not in allowed}

    def chances(tokens):
        logits = model.logits(tokens)[-1][allowed].astype(np.float64)
        weights = np.exp((logits - logits.max()) / 1.3)
        return weights / weights.sum()

    wanted = draws * chances(prompt)[:, None] * np.array([chances([*prompt, token]) for token in allowed])
    drafter = Scripted("any", [])
    drafter.propose = lambda tokens, most: [allowed[drafter.random.randrange(4)] for _ in range(most)]
    sequence = engine.sequence()
    engine.reserve(sequence, 20)
    engine.append(sequence, prompt[:-1])
    base = sequence.slot
    if engine.recurrent:
        (sequence.own,) = engine.take_slots(1)
    found, kept = np.zeros((4, 4)), 0
    for seed in range(draws):
        sampler = engine.sampler(model.sampling.with_({"temperature": 1.3, "seed": seed, "logit_bias": bias}))
        speculation, known = Speculation(engine, sequence, sampler, [drafter], Always(2)), [*prompt]
        while len(known) < len(prompt) + 2:
            known += (each.token for each in speculation.step(known, 3))
        kept += speculation.accepted
        found[allowed.index(known[len(prompt)]), allowed.index(known[len(prompt) + 1])] += 1
        sequence.cut(len(prompt) - 1, base)
    del base, speculation
    sequence.clear()
    assert draws / 8 < kept < draws * 2
    assert abs(((found - wanted) ** 2 / wanted).sum() - 15) < 5 * math.sqrt(2 * 15)


# ---- what it costs ---------------------------------------------------------------------------------------------------
class World:
    """A machine and a text: seconds of a step by its tokens, of a draft, and the chance of each draft."""

    def __init__(self, growth: float, chance: float, drafting: float = 0.0, jitter: float = 0.0):
        self.growth, self.chance, self.drafting, self.jitter = growth, chance, drafting, jitter
        self.random = random.Random(1)

    def step(self, tokens: int) -> float:
        noise = 1 + self.jitter * self.random.random() ** 4
        return 0.01 * (1 + self.growth * (tokens - 1)) * noise

    def best(self) -> float:
        """Return the highest expected rate, in plain steps."""
        tokens = lambda d: sum(self.chance**i for i in range(d + 1))  # noqa: E731
        return max(tokens(d) / (1 + d * (self.growth + self.drafting)) for d in range(MOST + 1))

    def run(self, costs: Costs, count: int) -> tuple[float, list[int]]:
        """Generate an answer of `count` tokens; return seconds over those of plain steps, and the depths chosen."""
        answer, spent, done, depths, plain = Account(ANSWER), 0.0, 0, [], 0.0
        while done < count:
            depth = costs.choose("kind", MOST, answer).depth
            depths.append(depth)
            seconds = self.step(depth + 1)
            kept = next((i for i in range(depth) if self.random.random() >= self.chance), depth)
            drafting = 0.01 * self.drafting * depth
            if depth:
                answer.add(costs.verified("kind", depth, kept, seconds, drafting))
            else:
                costs.plain(seconds)
                answer.add(SHARE)
            spent += seconds + drafting
            done += kept + 1
        plain = sum(self.step(1) for _ in range(done))
        return spent / plain, depths


@pytest.mark.parametrize("growth", [0.0, 0.02, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("drafting", [0.0, 0.1, 0.4, 2.0])
def test_drafts_that_never_hit_are_given_up(growth, drafting):
    costs = Costs()
    World(growth, 0.0, drafting).run(costs, 300)
    ratio, depths = World(growth, 0.0, drafting).run(costs, 3000)
    assert ratio < 1.015
    if growth + drafting >= 0.1:
        assert depths.count(0) > 0.9 * len(depths)


@pytest.mark.parametrize("chance", [0.05, 0.3, 0.6, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("growth", [0.02, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("drafting", [0.0, 0.3])
def test_the_depth_is_the_one_of_the_best_rate(chance, growth, drafting):
    """Within a twelfth of the best constant depth, which knows all in advance; and never slower than plain."""
    costs, world = Costs(), World(growth, chance, drafting, jitter=0.3)
    world.run(costs, 1500)
    ratio, _ = world.run(costs, 6000)
    assert ratio < 1.015
    assert 1 / ratio > world.best() * 0.92


@pytest.mark.parametrize("seed", range(4))
def test_a_change_of_text_is_noticed(seed):
    costs, bad, good = Costs(), World(0.1, 0.0, 0.1, 0.2), World(0.1, 0.9, 0.1, 0.2)
    bad.random.seed(seed), good.random.seed(seed)
    spent = [world.run(costs, 2000)[0] for world in (good, bad, good, bad)]
    assert spent[0] < 0.6 and spent[2] < 0.7
    assert spent[1] < 1.03 and spent[3] < 1.03
    assert sum(spent) < 3.2


@pytest.mark.parametrize("growth", [0.02, 0.1, 0.3])
def test_an_answer_does_not_lose_what_another_has_won(growth):
    costs, good, bad = Costs(), World(growth, 0.9), World(growth, 0.0)
    lost = []
    for _ in range(20):
        good.run(costs, 128)
        lost.append(bad.run(costs, 128)[0] - 1)
    assert sum(lost) / len(lost) < 0.02
    assert max(lost) < 0.04


def test_one_slow_step_proves_nothing():
    costs, world = Costs(), World(0.05, 0.9)
    world.run(costs, 200)
    depth = costs.choose("kind", MOST, Account(1)).depth
    costs.verified("kind", depth, depth, 5.0, 0.0)
    assert world.run(costs, 400)[0] < 0.6


def test_nothing_is_drafted_before_a_plain_step_was_measured_or_past_what_is_allowed():
    costs = Costs()
    assert costs.choose("kind", MOST, Account(1)).depth == 0
    costs.plain(0.01)
    assert [costs.choose("kind", most, Account(1)).depth <= most for most in (1, 2, 5)] == [True] * 3
    assert costs.choose("kind", 1, Account(1)).depth == 1


def test_kinds_are_told_apart():
    costs = Costs()
    for _ in range(50):
        costs.plain(0.01)
        costs.verified("good", 4, 4, 0.012, 0.0)
        costs.verified("bad", 4, 0, 0.012, 0.0)
    assert costs.choose("good", MOST, Account(1)).depth > 4
    assert costs.choose("bad", MOST, Account(1)).depth == 0


def test_a_model_that_is_on_its_own_gets_plain_decoding(make, tmp_path: Path):
    lm = load(make(), draft=None)
    assert lm.generate(draw_tokens(5) * 9, max_tokens=40).usage.drafted_tokens == 0
    assert lm.engine._verifier is None
