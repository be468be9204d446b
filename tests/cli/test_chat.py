"""Conversations, run in this process."""

from __future__ import annotations

import json
import os
import signal
from types import SimpleNamespace

import pytest

import lattice
from lattice.cli.chat import Session


def answers(done):
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_line_is_answered_with_all_that_was_said(cli, chat_model):
    got = answers(cli("chat", "-m", chat_model, "-n", 5, "--json", input="w1 w2\n\nw3\n"))
    model, messages = lattice.load(chat_model), []
    for text, answer in zip(("w1 w2", "w3"), got, strict=True):
        messages.append({"role": "user", "content": text})
        assert answer["text"] == model.generate(messages, max_tokens=5).text
        messages.append({"role": "assistant", "content": answer["text"]})
    first, second = (answer["usage"] for answer in got)
    assert first["reused_tokens"] == 0
    assert second["reused_tokens"] >= first["prompt_tokens"]  # only what is new is run


def test_answers_go_to_standard_output_and_speeds_to_standard_error(cli, chat_model):
    text = answers(cli("chat", "-m", chat_model, "-n", 5, "--json", input="w1\n"))[0]["text"]
    done = cli("chat", "-m", chat_model, "-n", 5, input="w1\n")
    assert done.stdout == f"{text}\n"
    assert "tokens/s" in done.stderr and "\x1b" not in done.output


def test_reset_and_system_begin_anew(cli, chat_model):
    alone = answers(cli("chat", "-m", chat_model, "-n", 5, "--json", input="w3\n"))[0]
    after = answers(cli("chat", "-m", chat_model, "-n", 5, "--json", input="w1\n/reset\nw3\n"))[1]
    assert (after["tokens"], after["usage"]) == (alone["tokens"], alone["usage"])
    option = answers(cli("chat", "-m", chat_model, "-n", 5, "--json", "--system", "w9", input="w3\n"))[0]
    typed = answers(cli("chat", "-m", chat_model, "-n", 5, "--json", input="w1\n/system w9\nw3\n"))[1]
    assert typed["tokens"] == option["tokens"] != alone["tokens"]


def test_chat_hands_penalties_and_biases_on(cli, chat_model):
    flags = ("--presence-penalty", 1.5, "--frequency-penalty", 0.5, "--logit-bias", "9=3", "--logit-bias", "8=-inf")
    got = answers(cli("chat", "-m", chat_model, "-n", 12, "--json", *flags, input="w1\n"))[0]
    given = dict(presence_penalty=1.5, frequency_penalty=0.5, logit_bias={9: 3, 8: -float("inf")})
    model, messages = lattice.load(chat_model), [{"role": "user", "content": "w1"}]
    assert got["tokens"] == model.generate(messages, max_tokens=12, **given).tokens
    assert got["tokens"] != model.generate(messages, max_tokens=12).tokens
    assert cli("chat", "-m", chat_model, "--logit-bias", "w9").exit_code == 2


def test_retry_answers_the_last_message_again(cli, chat_model):
    first, second = answers(cli("chat", "-m", chat_model, "-n", 5, "--json", input="w1\n/retry\n"))
    assert first["tokens"] == second["tokens"]
    assert "nothing to answer" in cli("chat", "-m", chat_model, input="/retry\n").stderr


def test_a_backslash_continues_a_line(cli, chat_model):
    joined = answers(cli("chat", "-m", chat_model, "-n", 5, "--json", input="w1 \\\nw2\n"))
    plain = answers(cli("chat", "-m", chat_model, "-n", 5, "--json", input="w1 w2\n"))
    assert [answer["tokens"] for answer in joined] == [answer["tokens"] for answer in plain]


def test_reasoning_goes_to_standard_error(cli, thinking_model):
    for command, given in (("chat", None), ("run", "w1")):
        arguments = [command, *([given] if given else []), "-m", thinking_model, "-n", 9, "--thinking-budget", 3]
        got = json.loads(cli(*arguments, "--json", input="w1\n").stdout)
        model, asked = lattice.load(thinking_model), [{"role": "user", "content": "w1"}]
        wanted = model.generate(asked, max_tokens=9, thinking_budget=3)
        assert (got["tokens"], got["text"], got["reasoning"]) == (wanted.tokens, wanted.text, wanted.reasoning)
        assert wanted.reasoning and wanted.text
        done = cli(*arguments, input="w1\n")
        assert done.stdout == f"{wanted.text}\n" and done.stderr.startswith(f"{wanted.reasoning}\n\n")
        off = json.loads(cli(*arguments[:-2], "--no-think", "--json", input="w1\n").stdout)
        assert off["tokens"] == model.generate(asked, max_tokens=9, thinking=False).tokens
        assert off["usage"]["prompt_tokens"] == wanted.usage.prompt_tokens + 1  # the end of an empty reasoning


def test_what_was_reasoned_is_not_told_again(cli, thinking_model):
    first, second = answers(cli("chat", "-m", thinking_model, "-n", 9, "--json", input="w1\nw2\n"))
    model = lattice.load(thinking_model)
    messages = [
        {"role": "user", "content": "w1"},
        {"role": "assistant", "content": first["text"]},
        {"role": "user", "content": "w2"},
    ]
    assert second["tokens"] == model.generate(messages, max_tokens=9).tokens


def test_thinking_needs_a_model_that_thinks(cli, chat_model, refused):
    refused(cli("chat", "-m", chat_model, "--think", input="w1\n"), "a model that thinks")
    refused(cli("run", "w1", "-m", chat_model, "--thinking-budget", 5), "a model that thinks")
    assert cli("run", "w1", "-m", chat_model, "-n", 3, "--no-think").exit_code == 0


@pytest.mark.parametrize("leave", ["/exit", "/quit", "/bye"])
def test_leaving(cli, chat_model, leave):
    done = cli("chat", "-m", chat_model, input=f"{leave}\nw1\n")
    assert (done.exit_code, done.stdout) == (0, "")


def test_help_and_unknown_commands(cli, chat_model):
    done = cli("chat", "-m", chat_model, input="/help\n/nonsense\n/\n/system\n")
    assert done.exit_code == 0
    assert all(command in done.stdout for command in ("/reset", "/system", "/retry", "/exit"))
    assert "no command /nonsense" in done.stderr and "no system message" in done.stderr


def test_a_full_context_is_said_and_the_message_forgotten(cli, chat_model):
    long = " ".join(["w1"] * 300)
    done = cli("chat", "-m", chat_model, "-n", 5, "--json", input=f"{long}\nw3\n")
    assert done.exit_code == 0 and "/reset" in done.stderr
    alone = json.loads(cli("chat", "-m", chat_model, "-n", 5, "--json", input="w3\n").stdout)
    assert json.loads(done.stdout)["tokens"] == alone["tokens"]


def test_an_answer_ends_at_the_context(cli, chat_model):
    (answer,) = answers(cli("chat", "-m", chat_model, "--context", 40, "--json", input="w1\n"))
    assert answer["usage"]["total_tokens"] == 40 and answer["finish_reason"] == "length"


def test_a_model_without_a_template_is_refused(cli, chat_model, tmp_path):
    import shutil

    shutil.copytree(chat_model, tmp_path / "base")
    (tmp_path / "base" / "tokenizer_config.json").write_text("{}", "utf-8")
    done = cli("chat", "-m", tmp_path / "base", input="w1\n")
    assert done.exit_code == 1 and "chat template" in done.stderr and "Traceback" not in done.output


# ---- Ctrl-C ------------------------------------------------------------------------------------------------
class Slow:
    """A model that is interrupted while it answers: `signals` says how often, after its third word."""

    context = 100

    def __init__(self, signals):
        self.signals, self.closed, self.prompts = signals, 0, []

    def chat_prompt(self, messages):
        self.prompts.append([dict(message) for message in messages])
        return SimpleNamespace(tokens=[1])

    def conversation(self):
        return SimpleNamespace(clear=lambda: None, stream=lambda prompt, **options: SlowAnswer(self))


class SlowAnswer:
    finish_reason = None
    usage = SimpleNamespace(prompt_tokens=1, reused_tokens=0, completion_tokens=3, total_tokens=4)
    timings = SimpleNamespace(prefill_seconds=0.1, decode_seconds=0.1, decode_steps=2)

    def __init__(self, model):
        self.model, self.tokens = model, []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.model.closed += 1

    def __iter__(self):
        for number in range(50):
            if number == 3:
                for _ in range(self.model.signals):
                    os.kill(os.getpid(), signal.SIGINT)
            self.tokens.append(number)
            yield SimpleNamespace(text=f"w{number} ", token=number, reasoning="")


def test_ctrl_c_ends_the_answer_and_keeps_what_was_written(capsys):
    model = Slow(1)
    session = Session("slow", model, 10, {}, False, None)
    before = signal.getsignal(signal.SIGINT)
    session.say("w1")
    assert session.messages[-1] == {"role": "assistant", "content": "w0 w1 w2 w3 "}
    captured = capsys.readouterr()
    assert captured.out == "w0 w1 w2 w3 \n" and captured.err.startswith("stopped, ")
    assert model.closed == 1 and signal.getsignal(signal.SIGINT) is before
    session.say("w2")
    assert [message["role"] for message in model.prompts[-1]] == ["user", "assistant", "user"]


def test_an_interrupted_answer_as_json(capsys):
    Session("slow", Slow(1), 10, {}, True, None).say("w1")
    got = json.loads(capsys.readouterr().out)
    assert got == {
        "model": "slow",
        "text": "w0 w1 w2 w3 ",
        "finish_reason": "interrupted",
        "tokens": [0, 1, 2, 3],
    }


def test_a_second_ctrl_c_does_not_wait(capsys):
    model = Slow(2)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        Session("slow", model, 10, {}, False, None).say("w1")
    assert model.closed == 1 and signal.getsignal(signal.SIGINT) is before
