"""SmolLM2-135M-Instruct: text that makes sense, perplexity, the same bits however a prompt is cut."""

from __future__ import annotations

import numpy as np
import pytest
from small_models import draw_tokens

import lattice
from lattice.backends.cpu import CpuBackend, runnable_targets
from lattice.generate import LanguageModel
from lattice.generate.sampling import SamplingSettings
from lattice.models import family
from lattice.weights.load import open_model
from lattice.weights.sources import resolve

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


PROMPTS = (
    "The capital of France is", "One, two, three, four, five,", "Once upon a time there was a",
    "The sky is blue because", "Water boils at", "My favourite book is", "The three primary colours are",
    "In 1969, people first", "A dog is an animal that", "To make a cup of tea,",
    "The largest planet of the solar system is", "def add(a, b):\n    return",
    "Photosynthesis is the process by which", "Dear Sir or Madam,", "The opposite of hot is", "Shakespeare wrote",
    "The recipe needs two eggs,", "If it rains tomorrow,", "Mathematics is the study of",
    "The train leaves at noon and",
)  # fmt: skip


def test_every_target_writes_the_same_text():
    """Greedy text of 20 prompts (the slow portable target: 4 of them), and the bits of the logits."""
    found = {}
    for target in runnable_targets():
        model = LanguageModel(open_model(resolve("smollm2-135m"), family), CpuBackend(target), context=256)
        prompts = PROMPTS[:4] if target == "scalar" else PROMPTS
        texts = [model.generate(prompt, max_tokens=16, temperature=0).tokens for prompt in prompts]
        found[target] = texts, model.logits(model.tokenizer.encode(PROMPTS[1])).tobytes()
        model.close()
    texts, logits = found.popitem()[1]
    assert all(texts[: len(others)] == others and logits == bits for others, bits in found.values())


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
