"""The loaded model: goldens, what generate takes and returns, and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
from small_models import GOLDEN, draw_tokens, greedy

import lattice
from lattice.errors import LatticeError
from lattice.generate import Chunk, load

NAMES = sorted(path.name for path in GOLDEN.iterdir() if "llama" in path.name)


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformers(name):
    directory = GOLDEN / name
    lm = lattice.load(next(directory.glob("*.gguf"), directory))
    golden = np.load(directory / "golden.npz")
    loose = {"q8_0": 2e-2, "bf16": 5e-3, "fp16": 5e-3, "f16": 5e-3}  # 8-bit activations; f16 keys and values
    tolerance = next((value for key, value in loose.items() if key in name), 1e-3)
    for index in range(sum(key.startswith("tokens_") for key in golden)):
        tokens, wanted = golden[f"tokens_{index}"], golden[f"logits_{index}"]
        got = lm.logits(tokens)
        assert got.dtype == np.float32 and got.shape == wanted.shape
        assert np.abs(got - wanted).max() <= tolerance * max(1.0, np.abs(wanted).max())


def test_a_directory_without_tokenizer_generates_on_token_ids(small):
    completion = small.generate([1, 2, 3], max_tokens=7)
    assert completion.tokens == greedy(small, [1, 2, 3], 7)
    assert completion.finish_reason == "length" and completion.logprobs is None
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (3, 7)
    assert completion.usage.total_tokens == 10 and completion.usage.reused_tokens == 0
    assert [chunk.token for chunk in small.stream(np.array([1, 2, 3]), max_tokens=7)] == completion.tokens


@pytest.mark.parametrize(
    "use",
    [
        lambda lm: lm.generate("hello"),
        lambda lm: lm.generate([{"role": "user", "content": "hello"}]),
        lambda lm: lm.generate([1, 2], stop="x"),
        lambda lm: lm.generate([1, 2], max_tokens=2).text,
        lambda lm: lm.perplexity("text"),
        lambda lm: lm.tokenizer,
    ],
)
def test_what_needs_text_names_the_missing_file(small, use):
    with pytest.raises(LatticeError, match=r"tokenizer\.json"):
        use(small)


def test_text_is_completed(small_text):
    lm = small_text
    prompt = lm.tokenizer.encode("abc")
    completion = lm.generate("abc", max_tokens=30, ignore_eos=True)
    assert completion.tokens == greedy(lm, prompt, 30)
    assert completion.text == lm.tokenizer.decode(completion.tokens)
    assert completion.usage.prompt_tokens == len(prompt) == 3


def test_messages_are_laid_out_by_the_chat_template(small_text):
    messages = [{"role": "system", "content": "xy"}, {"role": "user", "content": "q"}]
    prompt = small_text.tokenizer.encode("sxy<|im_end|>uq<|im_end|>a", add_special=False)
    assert 2 in prompt
    given = dict(max_tokens=12, ignore_eos=True)
    assert small_text.generate(messages, **given).tokens == small_text.generate(prompt, **given).tokens


def test_chunks_add_up_to_the_text(small_text):
    given = dict(max_tokens=200, temperature=2.0, seed=3, ignore_eos=True)
    completion = small_text.generate("hello", **given)
    stream = small_text.stream("hello", **given)
    chunks = list(stream)
    assert all(isinstance(chunk, Chunk) for chunk in chunks)
    assert "".join(chunk.text for chunk in chunks) == completion.text
    assert [chunk.token for chunk in chunks if chunk.token is not None] == completion.tokens
    assert stream.completion().text == completion.text and stream.finish_reason == "length"
    # every chunk is whole code points: what is not valid is replaced only once nothing can complete it
    assert any(token in range(3, 8) for token in completion.tokens)


def test_a_stream_is_not_complete_before_its_end(small):
    stream = small.stream([1, 2], max_tokens=3)
    next(stream)
    assert stream.usage.completion_tokens == 1
    with pytest.raises(LatticeError, match="1 tokens so far"):
        stream.completion()
    stream.close()
    assert list(stream) == []


# ---- what ends an answer -----------------------------------------------------------------------------------
def test_stop_tokens_end_the_answer_and_are_not_part_of_it(make):
    free = load(make()).generate([1, 2, 3], max_tokens=30).tokens
    first = {token: free.index(token) for token in reversed(free)}
    end = max(first, key=first.get)  # the token that comes up latest for the first time
    for given in (dict(eos_token_id=end), dict(eos_token_id=[69, end] if 69 not in free else [end])):
        completion = load(make(**given)).generate([1, 2, 3], max_tokens=30)
        assert completion.tokens == free[: first[end]] and completion.finish_reason == "stop"
    lm = load(make(generation={"eos_token_id": [end]}))
    assert lm.generate([1, 2, 3], max_tokens=30).tokens == free[: first[end]]
    assert lm.generate([1, 2, 3], max_tokens=30, ignore_eos=True).tokens == free


@pytest.mark.parametrize("value", ["2", 1.5, [True], {"a": 1}])
def test_a_malformed_stop_token_is_refused(make, value):
    with pytest.raises(LatticeError, match="eos_token_id"):
        load(make(eos_token_id=value)).generate([1])


def test_a_known_control_token_ends_a_turn(make):
    assert load(make(text=True))._texts.stop_tokens == {2}  # <|im_end|>, by name alone
    assert load(make())._texts.stop_tokens == frozenset()


def test_a_stop_string_ends_the_answer(small_text):
    given = dict(max_tokens=60, temperature=1.5, seed=1, ignore_eos=True)
    free = small_text.generate("abc", **given)
    place = next(i for i in range(5, 50) if free.text[i : i + 3].isalnum() and free.text[i : i + 3].isascii())
    stop = free.text[place : place + 3]
    wanted = free.text[: free.text.index(stop)]
    completion = small_text.generate("abc", stop=["not in the text", stop], **given)
    assert completion.text == wanted and completion.finish_reason == "stop"
    assert completion.tokens == free.tokens[: len(completion.tokens)]
    assert small_text.tokenizer.decode(completion.tokens).endswith(stop)
    chunks = list(small_text.stream("abc", stop=stop, **given))
    assert "".join(chunk.text for chunk in chunks) == wanted
    nothing = small_text.generate("abc", stop="not in the text", **given)
    assert (nothing.text, nothing.finish_reason) == (free.text, "length")


def test_text_held_back_at_the_end_is_given_out(small_text):
    given = dict(max_tokens=20, ignore_eos=True)
    free = small_text.generate("abc", **given)
    last = free.text[-1]
    completion = small_text.generate("abc", stop=last + "then this", **given)
    assert completion.text == free.text and completion.finish_reason == "length"


# ---- what is refused ---------------------------------------------------------------------------------------
def test_a_prompt_that_does_not_fit_is_refused_with_the_counts(make):
    lm = load(make(), context=100)
    with pytest.raises(LatticeError, match="context of 100 tokens, got 90 prompt tokens and max_tokens 11") as caught:
        lm.generate(draw_tokens(90), max_tokens=11)
    assert "lower max_tokens to 10" in str(caught.value) and "1024" in str(caught.value)
    assert len(lm.generate(draw_tokens(90), max_tokens=10).tokens) == 10
    with pytest.raises(LatticeError, match="got 300 prompt tokens"):
        lm.generate(draw_tokens(300))


@pytest.mark.parametrize(
    "prompt",
    [
        [],
        [70],
        [-1],
        [1.5],
        [[1, 2]],
        None,
        5,
        b"abc",
        [True, "a"],
        {"role": "user"},
        [2**40],
        np.zeros((2, 2)),
    ],
)
def test_a_bad_prompt_is_refused(small, prompt):
    with pytest.raises(LatticeError, match=r"\[generate\] expected"):
        small.generate(prompt)


def test_bad_token_ids_for_logits_are_refused(small):
    for tokens in ([], [70], [-1], [0.5], "abc", np.zeros((1, 2), int)):
        with pytest.raises(LatticeError, match=r"\[logits\] expected"):
            small.logits(tokens)


@pytest.mark.parametrize("messages", [[{}], [{"content": "x"}], [{"role": 1, "content": "x"}], [{"role": "user"}, 5]])
def test_bad_messages_are_refused(small_text, messages):
    with pytest.raises(LatticeError):
        small_text.generate(messages)


def test_an_empty_text_is_refused(small_text):
    with pytest.raises(LatticeError, match="at least one token id"):
        small_text.generate("")


def test_a_model_without_chat_template_says_so(make):
    directory = make(text=True)
    path = directory / "tokenizer_config.json"
    values = json.loads(path.read_text())
    del values["chat_template"]
    path.write_text(json.dumps(values))
    lm = load(directory)
    with pytest.raises(LatticeError, match="chat template"):
        lm.generate([{"role": "user", "content": "x"}])
    assert lm.generate("abc", max_tokens=1).tokens


def test_devices_and_dtypes_that_are_not_offered(make):
    assert load(make(), device="cpu")
    with pytest.raises(LatticeError, match="device auto, cpu or gpu"):
        load(make(), device="tpu")
    with pytest.raises(LatticeError, match="dtype among"):
        load(make(), dtype="q3")


def test_an_encoder_is_not_a_language_model():
    with pytest.raises(LatticeError, match="load_encoder"):
        load(GOLDEN / "bert-gelu")


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_dtypes_are_close_to_each_other(make, dtype):
    tokens = draw_tokens(40)
    exact, other = load(make()).logits(tokens), load(make(), dtype=dtype).logits(tokens)
    assert np.abs(exact - other).max() < 0.05 * np.abs(exact).max()


def test_a_closed_model_says_so(make):
    with load(make()) as lm:
        lm.generate([1], max_tokens=1)
        assert "context 1024" in repr(lm)
    with pytest.raises(LatticeError, match="closed"):
        lm.logits([1])
    assert "closed" in repr(lm)


def test_timings_account_for_the_answer(small):
    timings = small.generate(draw_tokens(100), max_tokens=20).timings
    assert timings.decode_steps == 19
    assert 0 < timings.native_seconds <= timings.decode_seconds
    assert timings.prefill_seconds > 0
