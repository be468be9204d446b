"""Conversations: what is reused is exact, and who needs the pages of an idle one gets them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import draw_tokens

from lattice.errors import LatticeError
from lattice.generate import load

OPTIONS = dict(max_tokens=20, ignore_eos=True)


def test_a_turn_runs_only_what_is_new_and_answers_the_same(small, fresh):
    conversation = small.conversation()
    prompt, reused = draw_tokens(90), []
    for turn in range(4):
        completion = conversation.generate(prompt, **OPTIONS)
        assert completion.tokens == fresh(prompt, **OPTIONS).tokens
        reused.append(completion.usage.reused_tokens)
        assert completion.usage.prompt_tokens == len(prompt)
        prompt = [*prompt, *completion.tokens, *draw_tokens(7, seed=turn)]
    assert reused == [0, 109, 136, 163]  # all but the last token of each answer, which was never run


@settings(max_examples=30)
@given(data=st.data())
def test_any_turn_gives_the_bits_of_a_fresh_one(small, fresh, data):
    conversation = small.conversation()
    known = draw_tokens(150)
    for turn in range(3):
        kept = data.draw(st.integers(0, len(known)))
        prompt = known[:kept] + draw_tokens(data.draw(st.integers(1, 80)), seed=turn)
        given_ = dict(max_tokens=data.draw(st.integers(1, 9)), temperature=1.0, seed=turn)
        completion = conversation.generate(prompt, **given_)
        assert completion.tokens == fresh(prompt, **given_).tokens
        known = prompt + completion.tokens


def test_logits_after_reuse_are_bit_equal(small):
    engine, prompt = small.engine, draw_tokens(200)
    conversation = small.conversation()
    conversation.generate(prompt[:130], max_tokens=9)
    sequence = engine.begin(prompt, 200)
    assert sequence.reused == len(sequence) == 130
    warm = np.concatenate(list(engine.score(sequence, prompt[130:])))
    assert np.array_equal(warm, small.logits(prompt)[130:])


def test_the_same_prompt_again_runs_one_token(small):
    conversation = small.conversation()
    first = conversation.generate(draw_tokens(70), max_tokens=5)
    again = conversation.generate(draw_tokens(70), max_tokens=5)
    assert again.tokens == first.tokens and again.usage.reused_tokens == 69


def test_messages_share_their_beginning(small_text):
    conversation = small_text.conversation()
    messages = [{"role": "system", "content": "be terse" * 9}, {"role": "user", "content": "one"}]
    answer = conversation.generate(messages, **OPTIONS)
    longer = [*messages, {"role": "assistant", "content": answer.text}, {"role": "user", "content": "two"}]
    completion = conversation.generate(longer, **OPTIONS)
    assert completion.usage.reused_tokens >= answer.usage.prompt_tokens
    small_text.engine.forget()
    assert completion.text == small_text.generate(longer, **OPTIONS).text


def test_a_later_turn_ends_an_open_stream(small, fresh):
    conversation = small.conversation()
    stream = conversation.stream([1, 2, 3], max_tokens=9)
    next(stream)
    other = conversation.stream([1, 2, 3], max_tokens=9)
    with pytest.raises(LatticeError, match="later turn"):
        next(stream)
    stream.close()
    assert [c.token for c in other] == fresh([1, 2, 3], max_tokens=9).tokens


def test_a_stream_closed_early_keeps_what_was_run(small):
    conversation = small.conversation()
    with conversation.stream(draw_tokens(100), max_tokens=100) as stream:
        tokens = [next(stream).token for _ in range(5)]
    completion = conversation.generate([*draw_tokens(100), *tokens, 1], max_tokens=3)
    assert completion.usage.reused_tokens == 104


def test_clear_forgets(small):
    conversation = small.conversation()
    conversation.generate(draw_tokens(100), max_tokens=3)
    conversation.clear()
    assert small.engine.pool.used == 0
    assert conversation.generate(draw_tokens(100), max_tokens=3).usage.reused_tokens == 0


def test_idle_conversations_yield_their_pages_oldest_first(make):
    lm = load(make(), context=128)  # four pages
    old, new = lm.conversation(), lm.conversation()
    for conversation in (old, new):
        conversation.generate(draw_tokens(60), max_tokens=3)
    lm.generate(draw_tokens(128 + 0)[:100], max_tokens=28)
    lm.generate(draw_tokens(100), max_tokens=28)
    assert new.generate(draw_tokens(60), max_tokens=3).usage.reused_tokens == 59  # two pages were free: enough
    streams = [lm.stream(draw_tokens(60), max_tokens=4) for _ in range(3)]
    assert old.generate(draw_tokens(60), max_tokens=3).usage.reused_tokens == 0
    for stream in streams:
        stream.close()
    answer = old.generate(draw_tokens(60), max_tokens=3)
    lm.engine.forget()
    assert answer.tokens == lm.generate(draw_tokens(60), max_tokens=3).tokens


def test_a_turn_that_does_not_fit_leaves_the_conversation_usable(make):
    lm = load(make(), context=128)
    conversation = lm.conversation()
    conversation.generate(draw_tokens(60), max_tokens=3)
    with pytest.raises(LatticeError, match="context of 128"):
        conversation.generate(draw_tokens(120), max_tokens=20)
    assert conversation.generate(draw_tokens(60), max_tokens=3).usage.reused_tokens == 59
