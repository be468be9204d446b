"""Chat answers: prompts with tools and thinking, and what is read out of the tokens that come back."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import copy_model, hybrid_model, write_chat_tokenizer

from lattice.errors import LatticeError, LatticeWarning
from lattice.generate import load
from lattice.generate.chat import Chat
from lattice.generate.drafts import Drafter, Source
from lattice.generate.prompt import Texts
from lattice.generate.speculative import Choice, Costs
from lattice.tokenizers import ReasoningSplitter, load_tokenizer
from lattice.tokenizers.reasoning import CLOSE, OPEN

ASK = [{"role": "user", "content": "why?"}]
PARAMETERS = {"type": "object", "properties": {"q": {"type": "string"}, "n": {"type": "integer"}}}
TOOLS = [{"type": "function", "function": {"name": "find", "parameters": PARAMETERS}}]
VALUES = '<parameter=q>\n"é"\n</parameter>\n<parameter=n>\n5\n</parameter>\n'
CALL = f"<tool_call>\n<function=find>\n{VALUES}</function>\n</tool_call>"
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
PLAIN = CHATML + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
ALWAYS = CHATML + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}{# </think> #}"
MODES = ["plain", "always", "switch"]


@pytest.fixture(scope="module")
def goldens(golden):
    return json.loads((golden / "tokenizers/tool_chats.json").read_text("utf-8"))


@pytest.fixture(scope="module", params=[True, False], ids=["markers", "letters"])
def models(request, tmp_path_factory, goldens):
    """Return small models by what their template does; `letters` have no tokens for the markers."""
    found = {}
    for name, template in zip(MODES, (PLAIN, ALWAYS, goldens["template"]), strict=True):
        directory = copy_model(tmp_path_factory.mktemp(name))
        write_chat_tokenizer(directory, template, request.param)
        found[name] = load(directory)
    return found


@pytest.fixture
def say(models, monkeypatch):
    """Return a function that makes a model answer with a text instead of what it draws; (chunks, completion)."""

    def answer(name: str, text: str, prompt=ASK, **options):
        lm = models[name]
        script = iter([*lm.tokenizer.encode(text, add_special=False), 2, 2, 2])
        engine, ran = lm.engine, []

        def advance(sequence, tokens, sampler, *, more=False):
            ran.extend(tokens)
            return type(lm.engine).advance(engine, sequence, tokens, sampler)._replace(token=next(script))

        monkeypatch.setattr(engine, "advance", advance)
        with lm.stream(prompt, **{"max_tokens": 500, "draft": "off", **options}) as stream:
            chunks = list(stream)
        done = stream.completion()
        assert "".join(chunk.text for chunk in chunks) == done.text
        assert "".join(chunk.reasoning for chunk in chunks) == (done.reasoning or "")
        assert [chunk.token for chunk in chunks if chunk.token is not None] == done.tokens
        assert done.usage.completion_tokens == len(done.tokens)
        # Whatever was forced, the model has read prompt and answer, all but perhaps its last tokens.
        sent = lm.chat_prompt(prompt, **{k: v for k, v in options.items() if k in ASKED}).tokens
        new = [*sent, *done.tokens][done.usage.reused_tokens :]
        assert ran == new[: len(ran)] and len(ran) >= len(sent) - done.usage.reused_tokens
        return chunks, done

    return answer


ASKED = ("tools", "thinking", "thinking_budget")


# ---- prompts -----------------------------------------------------------------------------------------------
def chat_of(directory, template, **options):
    write_chat_tokenizer(directory, template)
    return Chat(load_tokenizer(directory), **options)


def cases(goldens):
    for case in goldens["cases"]:
        options = dict(case["options"])
        yield case["messages"], {"thinking": options.pop("enable_thinking", None), **options}, case["text"]


def test_prompts_are_those_of_transformers(goldens, tmp_path):
    chat = chat_of(tmp_path, goldens["template"])
    for messages, options, text in cases(goldens):
        prompt = chat.prompt(messages, **options)
        assert prompt.text == text and prompt.opened == text.endswith("<think>\n")
        for message in messages:  # as the protocol has them
            for call in message.get("tool_calls", ()):
                call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
        assert chat.prompt(messages, **options).text == text


def test_marks_are_where_messages_end(goldens, tmp_path):
    chat = chat_of(tmp_path, goldens["template"], ends=frozenset({2}))
    tokenizer = load_tokenizer(tmp_path)
    for messages, options, text in cases(goldens):
        prompt = chat.prompt(messages, **options)
        turns = text.split("<|im_end|>\n")
        befores = ["".join(f"{turn}<|im_end|>\n" for turn in turns[:count]) for count in range(1, len(turns))]
        assert [tokenizer.encode(before) for before in befores] == [prompt.tokens[:mark] for mark in prompt.marks]
    longer = [*messages, {"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]
    before, after = chat.prompt(messages), chat.prompt(longer)
    last = before.marks[-1]
    assert last in after.marks and after.tokens[:last] == before.tokens[:last]


def test_marks_reach_the_engine(models, monkeypatch):
    lm, seen = models["switch"], []
    begin = lm.engine.begin
    monkeypatch.setattr(lm.engine, "begin", lambda *given: seen.append(given) or begin(*given))
    lm.generate(ASK, max_tokens=1)
    lm.generate("abc", max_tokens=1)
    prompt = lm.chat_prompt(ASK)
    assert [given[2] for given in seen] == [prompt.marks, ()] and len(prompt.marks) == 1


def test_what_a_template_cannot_do_is_said(models):
    lm = models["plain"]
    with pytest.raises(LatticeError, match="knows tools"):
        lm.generate(ASK, tools=TOOLS)
    with pytest.raises(LatticeError, match="knows tool calls"):
        lm.generate([*ASK, {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "find"}}]}])
    for prompt in ("a", [3, 4]):
        for asked in (dict(tools=TOOLS), dict(thinking=True), dict(thinking_budget=5)):
            with pytest.raises(LatticeError, match="messages with"):
                lm.generate(prompt, **asked)
    with pytest.raises(LatticeError, match="a finished prompt"):
        lm.generate(lm.chat_prompt(ASK), thinking_budget=5)
    for value in (-1, 1.5, True):
        with pytest.raises(LatticeError, match="thinking_budget"):
            lm.generate(ASK, thinking_budget=value)
    with pytest.raises(LatticeError, match="thinking as True"):
        lm.generate(ASK, thinking="yes")


@pytest.mark.parametrize(
    "tools", [{}, "find", [5], [{"type": "function"}], [{"function": {"name": ""}}], [{"name": "find"}]]
)
def test_tools_have_a_form(models, tools):
    with pytest.raises(LatticeError, match="tool"):
        models["switch"].generate(ASK, tools=tools)


@pytest.mark.parametrize("arguments", ["[1]", "{", "5", 5, "{'a': 1}", "[" * 9999])
def test_arguments_of_earlier_calls_are_objects(models, arguments):
    calls = [{"function": {"name": "find", "arguments": arguments}}]
    with pytest.raises(LatticeError, match="arguments of 'find'"):
        models["switch"].generate([*ASK, {"role": "assistant", "content": "", "tool_calls": calls}])


def test_thinking_is_switched_where_it_can_be(models, tmp_path):
    switch, always, plain = models["switch"], models["always"], models["plain"]
    assert switch.chat_prompt(ASK).opened and switch.chat_prompt(ASK, thinking=True).opened
    off = switch.chat_prompt(ASK, thinking=False)
    assert off.text.endswith("<think>\n\n</think>\n\n") and not off.opened
    assert switch.chat_prompt(ASK, thinking_budget=0).tokens == off.tokens
    with pytest.raises(LatticeError, match="at least 1"):
        switch.chat_prompt(ASK, thinking=True, thinking_budget=0)
    assert always.chat_prompt(ASK, thinking=True).opened
    with pytest.raises(LatticeError, match="hint: thinking_budget=0"):
        always.chat_prompt(ASK, thinking=False)
    assert always.chat_prompt(ASK, thinking_budget=0).text.endswith("<think>\n\n</think>\n\n")
    if plain.tokenizer.token_to_id(OPEN) is None:  # it knows no thinking at all
        assert plain.chat_prompt(ASK, thinking=False).tokens == plain.chat_prompt(ASK).tokens
        for asked in (dict(thinking=True), dict(thinking_budget=3)):
            with pytest.raises(LatticeError, match="a model that thinks"):
                plain.chat_prompt(ASK, **asked)
    else:
        for thinking in (True, False):
            with pytest.raises(LatticeError, match="enable_thinking"):
                plain.chat_prompt(ASK, thinking=thinking)


def test_a_gguf_file_without_a_template_is_chatml_if_its_vocabulary_is(tmp_path):
    write_chat_tokenizer(tmp_path, None)
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    metadata = {"tokenizer.ggml.model": "none of ours"}
    checkpoint = SimpleNamespace(kind="gguf", path=path, directory=tmp_path, metadata=metadata, config=metadata)
    with pytest.warns(LatticeWarning, match="ChatML"):
        prompt = Texts(checkpoint).chat_prompt(ASK)
    assert prompt.text == "<|im_start|>user\nwhy?<|im_end|>\n<|im_start|>assistant\n"
    tokenizer = load_tokenizer(tmp_path)
    with pytest.raises(LatticeError, match="chat template"):
        Chat(tokenizer)  # a directory is not guessed at
    tokenizer.library.add_tokens(["<|im_start|>"])
    with pytest.raises(LatticeError, match="chat template"), warnings.catch_warnings():
        Chat(load_tokenizer(copy_text(tmp_path)), chatml=True)


def copy_text(directory):
    """Write a tokenizer whose ChatML markers are no control tokens."""
    path = directory / "tokenizer.json"
    document = json.loads(path.read_text("utf-8"))
    document["added_tokens"] = [token for token in document["added_tokens"] if token["content"] != "<|im_start|>"]
    path.write_text(json.dumps(document), "utf-8")
    return directory


def test_a_template_for_tools_is_taken_where_there_is_one(tmp_path, goldens):
    write_chat_tokenizer(tmp_path, PLAIN)
    tokenizer = load_tokenizer(tmp_path)
    chat = Chat(replace(tokenizer, templates={"default": PLAIN, "tool_use": goldens["template"]}))
    assert "<tools>" in chat.prompt(ASK, tools=TOOLS).text and chat.prompt(ASK).text.endswith("assistant\n")


# ---- reasoning ---------------------------------------------------------------------------------------------
def test_reasoning_is_split_from_the_answer(say):
    for name, text in (("switch", ""), ("always", ""), ("plain", f" \n{OPEN}")):
        chunks, done = say(name, f"{text}\nhm, <think> of it.\n\n</think>\n\nyes. </think> too.\n")
        if name == "plain" and done.reasoning is None:  # nothing says that this model reasons
            assert done.text.startswith(" \n<think>")
            continue
        assert (done.reasoning, done.text) == ("hm, <think> of it.", "yes. </think> too.\n")
        assert done.finish_reason == "stop" and done.message["reasoning_content"] == done.reasoning
        assert not any(chunk.text and chunk.reasoning for chunk in chunks)
        assert [chunk.reasoning for chunk in chunks if chunk.reasoning][-1] == "."  # as it comes


def test_answers_without_reasoning(say):
    assert say("switch", "yes.", thinking=False)[1].text == "yes."
    done = say("plain", " <thin air")[1]
    assert done.text == " <thin air" and not done.reasoning and "reasoning_content" not in done.message


def test_a_plain_text_is_answered_by_text(models):
    done = models["switch"].generate("abc", max_tokens=5)
    assert done.reasoning is None and done.tool_calls == []


def test_reasoning_that_never_ends_is_reasoning(say):
    done = say("switch", "hm, <thi</thin", max_tokens=14)[1]
    assert (done.reasoning, done.text, done.finish_reason) == ("hm, <thi</thin", "", "length")
    assert say("switch", "hm\n")[1].reasoning == "hm\n"
    assert say("switch", "")[1].reasoning == ""
    assert say("switch", "éxé", max_tokens=4)[1].reasoning == "éx\N{REPLACEMENT CHARACTER}"  # half a letter


def test_stop_strings_are_looked_for_in_the_answer_alone(say):
    done = say("switch", "a stop b</think>c stop d", stop="stop")[1]
    assert (done.reasoning, done.text, done.finish_reason) == ("a stop b", "c ", "stop")
    assert say("switch", "ends in st</think>op stop", stop="stop")[1].text == "op "


def test_a_spent_budget_ends_the_reasoning(say, models):
    for name in ("switch", "always"):
        forced = models[name].tokenizer.encode(f"\n{CLOSE}\n\n", add_special=False)
        done = say(name, "0123456789", thinking_budget=4)[1]
        assert (done.reasoning, done.text) == ("0123", "456789")
        assert done.tokens[4 : 4 + len(forced)] == forced and len(done.tokens) == 10 + len(forced)
        assert done.usage.completion_tokens == len(done.tokens)
        assert say(name, "01</think>23456789", thinking_budget=40)[1].text == "23456789"
        assert say(name, "</think>0123456789", thinking_budget=4)[1].text == "0123456789"  # an end begun is awaited
        assert say(name, "012</th3456789", thinking_budget=4)[1].reasoning.startswith("012</th")
    done = say("switch", "0123456789", thinking_budget=0)[1]
    assert (done.reasoning, done.text) == ("", "0123456789")


def test_a_budget_counts_from_the_marker_on(say, models):
    if models["plain"].tokenizer.token_to_id(OPEN) is None:
        return  # nothing says that this model reasons
    assert say("plain", f" {OPEN}0123456", thinking_budget=2)[1].text == "23456"
    done = say("plain", f"{OPEN}0123456", thinking_budget=0)[1]
    assert (done.reasoning, done.text) == ("", "0123456")
    assert say("plain", "0123456", thinking_budget=2)[1].text == "0123456"


def test_forced_tokens_count_for_the_limit_and_have_no_probability(say):
    done = say("switch", "0123456789", thinking_budget=3, max_tokens=4, logprobs=2)[1]
    assert done.finish_reason == "length" and len(done.tokens) == len(done.logprobs) == 4
    assert math.isnan(done.logprobs[3].logprob) and done.logprobs[3].top == () and len(done.logprobs[2].top) == 2
    assert say("switch", "0123456789", thinking_budget=3, logprobs=0)[1].text == "3456789"


class Foreseen(Source, Drafter):
    """Drafts that are what the answer was without them."""

    def __init__(self, prompt: list[int], answer: list[int]):
        self.text = [*prompt, *answer]

    def start(self, sequence, sampler, prompt, max_tokens):
        return self

    def kind(self, tokens):
        return "foreseen"

    def propose(self, tokens, most):
        return self.text[len(tokens) : len(tokens) + most]


class Always(Costs):
    """Drafts as far as is allowed."""

    def choose(self, kind, most, answer):
        return Choice(most, 1.0)

    def verified(self, kind, drafted, kept, seconds, drafting):
        return 0.0


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory, goldens):
    """Return a model with recurrent state whose template turns thinking on and off."""
    directory = hybrid_model(tmp_path_factory.mktemp("hybrid"))
    write_chat_tokenizer(directory, goldens["template"])
    return load(directory)


@pytest.mark.parametrize("kind", ["attention", "hybrid"])
@pytest.mark.parametrize(
    "options", [dict(temperature=0), dict(temperature=1, seed=5), dict(temperature=1, seed=5, frequency_penalty=1.5)]
)
def test_what_follows_a_forced_end_is_what_the_model_says_behind_it(models, hybrid, kind, options, monkeypatch):
    lm = hybrid if kind == "hybrid" else models["switch"]
    ends = {lm.tokenizer.token_to_id(text) for text in ("<", CLOSE)} - {None}  # of its own accord it shall not end
    options = dict(max_tokens=40, ignore_eos=True, logit_bias=dict.fromkeys(ends, -math.inf), **options)
    prompt, forced = lm.chat_prompt(ASK).tokens, lm.tokenizer.encode(f"\n{CLOSE}\n\n", add_special=False)
    for budget in (1, 6):
        done = lm.generate(ASK, thinking_budget=budget, draft="off", **options)
        free = lm.generate(ASK, draft="off", **options)
        at = budget + len(forced)
        assert done.tokens[:at] == [*free.tokens[:budget], *forced]
        if "frequency_penalty" not in options:
            behind = lm.generate([*prompt, *done.tokens[:at]], draft="off", **{**options, "max_tokens": 40 - at})
            assert behind.tokens == done.tokens[at:]
        monkeypatch.setattr(lm.drafting, "costs", Always())
        monkeypatch.setitem(lm.drafting.sources, "foreseen", Foreseen(prompt, done.tokens))
        drafted = lm.generate(ASK, thinking_budget=budget, draft="foreseen", **options)
        assert drafted.tokens == done.tokens and drafted.text == done.text and drafted.usage.accepted_tokens > 0


def test_conversations_hold_what_was_forced(models):
    lm = models["switch"]
    conversation = lm.conversation()
    first = conversation.generate(ASK, thinking_budget=3, max_tokens=20, ignore_eos=True)
    prompt = [*lm.chat_prompt(ASK).tokens, *first.tokens]
    again = conversation.generate([*prompt, 9], max_tokens=5, ignore_eos=True)
    assert again.usage.reused_tokens >= len(prompt) - 1
    assert again.tokens == lm.generate([*prompt, 9], max_tokens=5, ignore_eos=True).tokens


@settings(max_examples=300)
@given(
    st.lists(st.sampled_from([OPEN, CLOSE, "<", "\n", " ", "x", "think>", "</"]), max_size=12), st.booleans(), st.data()
)
def test_a_split_does_not_depend_on_the_pieces(pieces, opened, data):
    text = "".join(pieces)

    def split(parts):
        splitter = ReasoningSplitter(opened)
        found = [*(splitter.push(part) for part in parts), splitter.finish()]
        return "".join(reasoning for reasoning, _ in found), "".join(content for _, content in found)

    place = data.draw(st.integers(0, len(text)))
    whole = split([text])
    assert split([text[:place], text[place:]]) == whole == split(text)
    if not opened and not text.lstrip().startswith(OPEN):
        assert whole == ("", text)
    elif CLOSE not in text:
        assert whole == ((text if opened else text.lstrip()[len(OPEN) :]).lstrip("\n"), "")


# ---- tool calls --------------------------------------------------------------------------------------------
def test_tool_calls_are_read_and_go_back_into_the_prompt(say, models):
    chunks, done = say("switch", f"i need it.\n</think>\n\nso:\n\n{CALL}\n{CALL}", tools=TOOLS)
    assert (done.reasoning, done.text, done.finish_reason) == ("i need it.", "so:", "tool_calls")
    assert [(call.name, call.arguments) for call in done.tool_calls] == [("find", {"q": '"é"', "n": 5})] * 2
    deltas = [delta for chunk in chunks for delta in chunk.tool_calls]
    for index, call in enumerate(done.tool_calls):
        mine = [delta for delta in deltas if delta.index == index]
        assert (mine[0].id, mine[0].name) == (call.id, call.name)
        assert "".join(delta.arguments for delta in mine) == call.arguments_json == '{"q": "\\"é\\"", "n": 5}'
    results = [{"role": "tool", "tool_call_id": call.id, "content": "ok"} for call in done.tool_calls]
    text = models["switch"].chat_prompt([*ASK, done.message, *results], tools=TOOLS).text
    assert f"<think>\ni need it.\n</think>\n\nso:\n\n{CALL}\n{CALL}<|im_end|>" in text
    direct = {"role": "assistant", "content": "so:", "tool_calls": done.tool_calls}
    assert f"so:\n\n{CALL}\n{CALL}<|im_end|>" in models["switch"].chat_prompt([*ASK, direct, *results]).text


def test_calls_need_tools_and_an_end(say):
    off = dict(thinking=False)
    done = say("switch", CALL, **off)[1]
    assert done.text == CALL and done.tool_calls == [] and done.finish_reason == "stop"
    done = say("switch", f"{CALL} {CALL[:60]}", tools=TOOLS, **off)[1]
    assert done.text == f" {CALL[:60]}" and len(done.tool_calls) == 1 and done.finish_reason == "tool_calls"
    done = say("switch", CALL + CALL, tools=TOOLS, max_tokens=len(CALL) + 40, **off)[1]
    assert len(done.tool_calls) == 1 and done.finish_reason == "length"  # what was cut may have been a call, too
    done = say("switch", CALL + "\nmore", tools=TOOLS, stop="</tool_call>", **off)[1]
    assert (done.text, len(done.tool_calls), done.finish_reason) == ("", 1, "tool_calls")
    done = say("switch", f"<think>{CALL}</think>x", tools=TOOLS)[1]
    assert done.tool_calls == [] and done.text == "x"


def test_a_finished_prompt_is_answered_like_its_messages(models):
    lm = models["switch"]
    prompt = lm.chat_prompt(ASK, tools=TOOLS, thinking_budget=3)
    asked = dict(max_tokens=20, ignore_eos=True)
    assert lm.generate(prompt, **asked).tokens == lm.generate(ASK, tools=TOOLS, thinking_budget=3, **asked).tokens
