"""Shared prefixes: what is not run again gives the same bits, and memory has one owner at a time."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from small_models import copy_model, draw_tokens, hybrid_model

from lattice.errors import LatticeError
from lattice.generate import LanguageModel, load
from lattice.generate import engine as engine_module
from lattice.generate.cache import Held, StatePool
from lattice.generate.engine import Engine
from lattice.generate.prefix import Prefixes

PROMPT = draw_tokens(130)
KINDS = ("f32", "f16", "hybrid-f32", "hybrid-f16")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, LanguageModel]:
    """Return small models with attention alone and hybrid ones, by what their keys and values are."""
    to = tmp_path_factory.mktemp("prefix")
    paths = copy_model(to), copy_model(to, "llama-bf16"), hybrid_model(to), hybrid_model(to, bf16=True)
    found = {kind: load(path) for kind, path in zip(KINDS, paths, strict=True)}
    assert [lm.engine._kv for lm in found.values()] == ["f32", "f16", "f32", "f16"]
    assert [lm.engine.recurrent for lm in found.values()] == [False, False, True, True]
    return found


@pytest.fixture(params=KINDS)
def lm(request, models) -> LanguageModel:
    """Return each of the models, without prefixes."""
    models[request.param].engine.forget()
    return models[request.param]


@pytest.fixture
def hybrid(models) -> LanguageModel:
    models["hybrid-f32"].engine.forget()
    return models["hybrid-f32"]


def run(engine: Engine, prompt: list[int], marks: tuple[int, ...] = ()) -> tuple[int, np.ndarray]:
    """Return how many tokens of a prompt were known, and the logits of the others."""
    sequence = engine.begin(prompt, len(prompt), marks)
    logits = np.concatenate(list(engine.score(sequence, prompt[sequence.reused :])))
    return sequence.reused, logits


def lengths(engine: Engine) -> list[int]:
    return sorted(len(entry) for entry in engine.prefixes.entries)


# ---- the same bits -----------------------------------------------------------------------------------------
def test_resuming_at_every_length_gives_the_bits_of_the_whole(lm):
    engine, whole = lm.engine, lm.logits(PROMPT)
    for length in range(1, 130):
        engine.forget()
        run(engine, PROMPT, (length,))
        engine.forget([entry for entry in engine.prefixes.entries if len(entry) > length])
        if not engine.recurrent:
            run(engine, PROMPT[:length])  # keys and values of attention alone are taken up at any length
        reused, logits = run(engine, PROMPT)
        assert reused == length
        assert np.array_equal(logits, whole[length:])


@settings(max_examples=40, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("kind", ["f16", "hybrid-f32"])
def test_any_prompts_that_begin_alike_give_the_bits_of_each_alone(models, kind, data):
    engine = models[kind].engine
    engine.forget()
    known = [PROMPT]
    for seed in range(4):
        begun = data.draw(st.sampled_from(known))
        prompt = begun[: data.draw(st.integers(0, len(begun)))] + draw_tokens(data.draw(st.integers(1, 90)), seed)
        marks = tuple(data.draw(st.lists(st.integers(0, len(prompt) + 5), max_size=4)))
        reused, logits = run(engine, prompt, marks)
        assert np.array_equal(logits, models[kind].logits(prompt)[reused:])
        known.append(prompt)


@pytest.mark.parametrize("chunk", [64, 200])
def test_a_prompt_of_several_chunks_keeps_prefixes_inside_and_at_the_end_of_them(tmp_path, chunk):
    lm = load(hybrid_model(tmp_path))
    engine, prompt = lm.engine, draw_tokens(900)
    whole = lm.logits(prompt)
    engine.chunk = chunk
    sequence = engine.begin(prompt, 901, (333,))
    engine.append(sequence, prompt[:-1])
    assert np.array_equal(next(engine.score(sequence, prompt[-1:]))[0], whole[-1])
    assert lengths(engine) == [333, 899]
    for length in (899, 333):
        engine.forget([entry for entry in engine.prefixes.entries if len(entry) > length])
        reused, logits = run(engine, prompt[: length + 1])
        assert reused == length and np.array_equal(logits[0], whole[length])


def test_two_prompts_that_part_leave_a_prefix_where_they_do(hybrid):
    engine, shared = hybrid.engine, draw_tokens(200, 9)
    assert run(engine, shared + draw_tokens(150, 1), (220,))[0] == 0
    assert run(engine, shared + draw_tokens(150, 2), (220,))[0] == 0  # now it is seen where they part
    reused, logits = run(engine, shared + draw_tokens(150, 3))
    assert reused == 200
    assert np.array_equal(logits, hybrid.logits(shared + draw_tokens(150, 3))[200:])


@pytest.mark.parametrize("new", [1, 20, 32, 33, 100, 256, 300, 499, 700, 990])
def test_without_marks_a_short_end_runs_alone_at_once_and_any_other_from_the_third_prompt_on(hybrid, new):
    shared = draw_tokens(1000 - new, 9)
    run(hybrid.engine, shared + draw_tokens(new, 1))
    reused, _ = run(hybrid.engine, shared + draw_tokens(new, 2))
    assert new > 256 or reused >= min(len(shared), 1000 - 8 * max(32, new))
    reused, _ = run(hybrid.engine, shared + draw_tokens(new, 3))
    assert reused > len(shared) - 64


def test_answers_interleave_over_the_same_prefix(lm):
    prompts = [PROMPT + draw_tokens(9, seed) for seed in (1, 2, 3)]
    options = dict(max_tokens=30, temperature=1.0, seed=4)
    alone = []
    for prompt in prompts:
        lm.engine.forget()
        alone.append(lm.generate(prompt, **options).tokens)
    lm.engine.forget()
    lm.generate(PROMPT, max_tokens=5)
    streams = [lm.stream(prompt, **options) for prompt in prompts]
    assert all(stream.usage.reused_tokens >= 129 for stream in streams)
    chunks = [[chunk.token for chunk in row] for row in zip(*streams, strict=True)]
    assert [list(column) for column in zip(*chunks, strict=True)] == alone


def test_an_answer_under_way_lends_its_prompt(lm):
    first = lm.stream(PROMPT, max_tokens=40)
    tokens = [next(first).token]
    second = lm.stream(PROMPT, max_tokens=40)
    assert second.usage.reused_tokens == 129
    tokens += [next(first).token, next(first).token]
    assert [chunk.token for chunk in second] == [*tokens, *(chunk.token for chunk in first)]


def test_a_conversation_without_an_object_runs_only_what_is_new(lm):
    prompt, known = draw_tokens(90), 0
    for turn in range(4):
        completion = lm.generate(prompt, max_tokens=20)
        assert completion.usage.reused_tokens == known
        known = len(prompt) + 19  # the last token was never run
        prompt = [*prompt, *completion.tokens, *draw_tokens(7, seed=turn)]


def test_decoding_writes_only_what_moved(lm, monkeypatch):
    written = []
    original = Engine._write
    monkeypatch.setattr(
        Engine, "_write", lambda self, *args, **rest: written.append(1) or original(self, *args, **rest)
    )
    cold = lm.generate(PROMPT, max_tokens=50)
    assert len(written) == 2  # the prompt, the first token behind it
    written.clear()
    assert lm.generate(PROMPT, max_tokens=50).tokens == cold.tokens
    assert len(written) <= 3  # what reads from a prefix and saves to its own slot is written once more


# ---- what goes wrong ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("after", [1, 3])
def test_an_interrupted_step_leaves_no_prefix_behind(hybrid, monkeypatch, after):
    stream = hybrid.stream(PROMPT, max_tokens=20, draft="off")
    for _ in range(after):
        next(stream)
    entries = lengths(hybrid.engine)
    original = engine_module.submit_plans

    def interrupted(*args) -> None:
        original(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(engine_module, "submit_plans", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    monkeypatch.undo()
    with pytest.raises(LatticeError, match="interrupted"):
        next(stream)
    sampler, spare = hybrid.engine.sampler(hybrid.sampling), hybrid.engine.take_slots(2)
    with pytest.raises(LatticeError, match="interrupted"):
        hybrid.engine.verify(stream._sequence, 1, [2, 3], sampler, spare)
    stream.close()
    assert lengths(hybrid.engine) == entries
    assert hybrid.generate(PROMPT, max_tokens=20).tokens == fresh(hybrid, PROMPT, 20)


def fresh(lm: LanguageModel, prompt: list[int], count: int) -> list[int]:
    lm.engine.forget()
    return lm.generate(prompt, max_tokens=count).tokens


def test_threads_share_prefixes(tmp_path):
    path = hybrid_model(tmp_path)
    prompts = [draw_tokens(100 + 30 * (i % 4), i % 2) + draw_tokens(5, i) for i in range(8)]
    other = load(path)
    alone = [fresh(other, prompt, 20) for prompt in prompts]
    pool = other.engine.pool
    lm = load(path, cache_bytes=30 * pool.pages.nbytes + 20 * pool.slots.nbytes)
    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(lambda prompt: lm.generate(prompt, max_tokens=20).tokens, prompts * 5))
    assert found == alone * 5
    lm.engine.forget()
    assert lm.engine.pool.used == 0


def test_abandoned_streams_give_back_pages_and_slots(lm):
    pool = lm.engine.pool
    for _ in range(30):
        stream = lm.stream(draw_tokens(200), max_tokens=100)
        next(stream)
        stream = None
    lm.engine.forget()
    assert pool.used == 0


@pytest.mark.parametrize("budget", [0, -1, 10_000, 1.5, True])
def test_a_budget_that_holds_no_sequence_is_refused(tmp_path, budget):
    with pytest.raises(LatticeError, match=r"\[load\] expected cache_bytes of at least"):
        load(hybrid_model(tmp_path), cache_bytes=budget)


def test_the_least_budget_serves_a_full_sequence(tmp_path):
    path = hybrid_model(tmp_path)
    engine = load(path).engine
    least = 16 * engine.pool.pages.nbytes + 2 * engine.pool.slots.nbytes
    small = load(path, cache_bytes=least)
    prompt = draw_tokens(1000)
    wanted = fresh(load(path), prompt, 24)
    for _ in range(3):
        assert small.generate(prompt, max_tokens=24).tokens == wanted
        assert small.engine.pool.used <= least


def test_a_sequence_that_does_not_fit_beside_what_it_would_resume_from_runs_afresh(tmp_path):
    lm = load(copy_model(tmp_path), context=128, cache_bytes=2 * 64 * 2 * 2 * 8 * 2 * 4)  # two pages
    lm.generate(draw_tokens(100), max_tokens=20)
    completion = lm.generate(draw_tokens(100), max_tokens=28)
    assert completion.usage.reused_tokens == 0
    assert completion.tokens == fresh(lm, draw_tokens(100), 28)


# ---- what goes first ---------------------------------------------------------------------------------------
def kept(pool: StatePool, prefixes: Prefixes, length: int, seed: int = 0) -> None:
    slot = prefixes.slot_for(length)
    if slot is not None:
        pages, _ = prefixes.take(-(-length // 64))
        prefixes.insert(np.array(draw_tokens(length, seed), np.int32), pages, slot)


def test_what_is_cheap_to_run_again_goes_first():
    pool = StatePool(5000, page_bytes=10, slot_bytes=1000)
    prefixes = Prefixes(pool)
    for seed, length in enumerate((60, 600, 300, 500, 200)):
        kept(pool, prefixes, length, seed)
    assert sorted(map(len, prefixes.entries)) == [200, 300, 500, 600]
    for seed in (5, 6):
        kept(pool, prefixes, 400, seed)
    assert sorted(map(len, prefixes.entries)) == [400, 400, 500, 600]
    assert pool.used <= pool.budget


def test_what_nobody_asks_for_grows_old():
    pool = StatePool(2500, page_bytes=10, slot_bytes=1000)
    prefixes = Prefixes(pool)
    kept(pool, prefixes, 640, 1)
    kept(pool, prefixes, 640, 2)
    asked = np.array([*draw_tokens(640, 2), 1], np.int32)
    for seed in range(3, 20):
        assert prefixes.find(asked)[1] == 640
        kept(pool, prefixes, 100, seed)
    assert sorted(map(len, prefixes.entries)) == [100, 640]


def test_losing_a_prefix_makes_the_longer_one_dearer():
    pool = StatePool(9000, page_bytes=10, slot_bytes=1000)
    prefixes = Prefixes(pool)
    tokens, pages = np.array(draw_tokens(400), np.int32), prefixes.take(7)[0]
    long = prefixes.insert(tokens, pages, pool.slots.take())
    alone = long.priority
    short = prefixes.insert(tokens[:390], pages, pool.slots.take())
    assert long.base == 390 and long.priority < alone / 10
    prefixes.forget([short])
    assert long.base == 0 and long.priority == pytest.approx(alone)


# ---- one owner at a time -----------------------------------------------------------------------------------
BUDGET_PAGES, BUDGET_SLOTS = 16, 5


class Streams(RuleBasedStateMachine):
    """Streams that begin alike, step by turns, end, are closed or dropped, over memory for hardly two of them."""

    lm: LanguageModel
    other: LanguageModel
    answers: dict[tuple[int, ...], list[int]]

    def __init__(self) -> None:
        super().__init__()
        self.lm.engine.forget()
        self.streams: list = []
        self.prompts = [draw_tokens(150, seed) for seed in (1, 2)]

    @rule(begun=st.integers(0, 5), length=st.integers(0, 200), new=st.integers(1, 40), seed=st.integers(0, 3))
    def start(self, begun: int, length: int, new: int, seed: int) -> None:
        prompt = self.prompts[begun % len(self.prompts)][:length] + draw_tokens(new, seed)
        try:
            self.streams.append((prompt, [], self.lm.stream(prompt, max_tokens=24)))
            self.prompts = [*self.prompts[-5:], prompt]
        except LatticeError as error:
            assert "cache" in str(error) and self.streams

    @rule(which=st.integers(0, 9), steps=st.integers(1, 30))
    def step(self, which: int, steps: int) -> None:
        if not self.streams:
            return
        prompt, tokens, stream = self.streams[which % len(self.streams)]
        for _, chunk in zip(range(steps), stream, strict=False):
            tokens.append(chunk.token)
        key = tuple(prompt)
        if key not in self.answers:
            self.answers[key] = fresh(self.other, prompt, 24)
        assert tokens == self.answers[key][: len(tokens)]
        self.prompts.append(prompt + tokens)

    @rule(which=st.integers(0, 9), close=st.booleans())
    def end(self, which: int, close: bool) -> None:
        if self.streams:
            _, _, stream = self.streams.pop(which % len(self.streams))
            if close:
                stream.close()

    @rule()
    def forget(self) -> None:
        self.lm.engine.forget()

    @invariant()
    def every_page_and_slot_has_one_owner(self) -> None:
        pool, entries = self.lm.engine.pool, self.lm.engine.prefixes.entries
        sequences = [s._sequence for _, _, s in self.streams if s._sequence is not None]
        holders = [*entries, *sequences]
        pages: set[Held] = {page for each in holders for page in each.pages}
        slots: set[Held] = {slot for s in sequences for slot in (s.own, s.slot) if slot}
        slots |= {entry.slot for entry in entries if entry.slot}
        for held, shelf in ((pages, pool.pages), (slots, pool.slots)):
            assert len({each.index for each in held}) == len(held) == shelf.held
            assert all(0 <= each.index < shelf.count for each in held)
        for sequence in sequences:
            assert sequence.table[0, : len(sequence.pages)].tolist() == [page.index for page in sequence.pages]
        assert pool.used <= pool.budget

    def teardown(self) -> None:
        self.streams.clear()
        gc.collect()
        self.lm.engine.forget()
        assert self.lm.engine.pool.used == 0


@pytest.mark.parametrize("kind", ["attention", "hybrid"])
def test_streams_over_little_memory(tmp_path, kind):
    path = (hybrid_model if kind == "hybrid" else copy_model)(tmp_path, max_position_embeddings=320)
    other = load(path)
    pool = other.engine.pool
    budget = BUDGET_PAGES * pool.pages.nbytes + BUDGET_SLOTS * pool.slots.nbytes
    lm = load(path, cache_bytes=budget, draft=None)  # whose depth follows from timings, so runs would not repeat
    machine = type("Machine", (Streams,), {"lm": lm, "other": other, "answers": {}})
    machine.TestCase.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
    machine.TestCase().runTest()


def test_a_default_budget_leaves_the_machine_most_of_its_memory(tmp_path, monkeypatch):
    path = hybrid_model(tmp_path)
    pool = load(path).engine.pool
    one, two = (count * (16 * pool.pages.nbytes + 2 * pool.slots.nbytes) for count in (1, 2))
    found = []
    for memory in (8 * two, 5 * one, 1):
        monkeypatch.setattr(engine_module, "_memory", lambda memory=memory: memory)
        found.append(load(path).engine.pool.budget)
    assert pool.budget == two + (16 + 2 * 7) * pool.slots.nbytes  # of prefixes, and of drafts
    assert found == [min(2 * two, pool.budget), 5 * one // 4, one]
