"""SmolLM2-135M-Instruct: text that makes sense, perplexity, the same bits however a prompt is cut."""

from __future__ import annotations

import numpy as np
import pytest
from small_models import draw_tokens

import lattice
from lattice.generate.sampling import SamplingSettings

pytestmark = pytest.mark.real

TEXT = (
    "Water is a liquid at room temperature. When water is heated to one hundred degrees Celsius, it boils "
    "and turns into steam. When water is cooled to zero degrees Celsius, it freezes and turns into ice. Ice "
    "floats on water because ice is less dense than liquid water. The water cycle describes how water moves "
    "from the oceans into the air, falls as rain or snow, and flows back to the oceans through rivers and "
    "streams. All living things need water to survive."
)


@pytest.fixture(scope="module")
def smollm2():
    return lattice.load("smollm2-135m", context=2048)


def test_greedy_text_makes_sense(smollm2):
    completion = smollm2.generate("One, two, three, four, five, six,", max_tokens=8)
    assert completion.text.startswith(" seven, eight")
    answer = smollm2.generate([{"role": "user", "content": "What color is the sky on a clear day?"}], max_tokens=60)
    assert "blue" in answer.text
    assert "<|" not in answer.text


def test_an_answer_ends_with_its_turn(smollm2):
    answer = smollm2.generate([{"role": "user", "content": "Say hello."}], max_tokens=100)
    assert answer.finish_reason == "stop" and 0 < answer.usage.completion_tokens < 100
    assert answer.text == smollm2.tokenizer.decode(answer.tokens)


def test_the_next_turn_reuses_the_conversation(smollm2):
    conversation = smollm2.conversation()
    messages = [{"role": "user", "content": "Say hello."}]
    first = conversation.generate(messages, max_tokens=30)
    messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "And goodbye?"}]
    second = conversation.generate(messages, max_tokens=20)
    assert second.usage.reused_tokens >= first.usage.prompt_tokens
    assert second.tokens == smollm2.generate(messages, max_tokens=20).tokens


def test_perplexity_is_that_of_a_trained_model(smollm2):
    tokens = smollm2.tokenizer.encode(TEXT)
    assert 88 <= len(tokens) < 120
    plain = smollm2.perplexity(TEXT, context=88)
    shuffled = smollm2.tokenizer.decode(np.random.default_rng(0).permutation(tokens))
    assert 2 < plain < 15
    assert smollm2.perplexity(shuffled, context=80) > 10 * plain


def test_a_prompt_of_1000_tokens_gives_the_same_bits_in_any_parts(smollm2):
    engine, prompt = smollm2.engine, draw_tokens(1000, vocab=49152)
    edges = [sorted(np.random.default_rng(1).integers(1, 999, 9).tolist()), [64, 65, 600]]
    results = []
    for cuts in edges:
        sequence = engine.sequence()
        engine.reserve(sequence, 1000)
        for start, end in zip([0, *cuts], [*cuts, 999], strict=True):
            engine.append(sequence, prompt[start:end])
        results.append(np.concatenate(list(engine.score(sequence, prompt[999:]))))
    assert np.array_equal(*results)
    # and the token behind a prefill in chunks of 512 is the largest of these logits
    sequence = engine.sequence()
    engine.reserve(sequence, 1000)
    token = engine.advance(sequence, prompt, engine.sampler(SamplingSettings())).token
    assert token == results[0].argmax()
