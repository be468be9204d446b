"""`lattice chat`: a conversation, line by line.

Works with a person at a terminal and with lines from a pipe alike. Ctrl-C ends an answer and keeps what was
written of it; at the prompt it leaves. Every turn gives the model all messages again, without what it reasoned; only
what is new of them is run.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import typer

from lattice.cli._app import DEVICE, DTYPE, KV, MODEL_HELP, dim, emit, example, load, style
from lattice.cli._generate import (
    CONTEXT,
    FREQUENCY,
    LOGIT_BIAS,
    MIN_P,
    PRESENCE,
    REPETITION,
    SEED,
    STOP,
    TEMPERATURE,
    THINK,
    THINKING_BUDGET,
    TOP_K,
    TOP_P,
    Writer,
    as_dict,
    note,
    parse_bias,
    summary,
    write,
)
from lattice.errors import LatticeError

HELP = """\
/help            this list
/reset           forget the conversation
/system TEXT     set the system message and start anew; without TEXT show it
/retry           answer the last message again
/exit            leave (also /quit, Ctrl-D)
A line that ends in \\ goes on in the next. Ctrl-C ends an answer."""
LEAST_ROOM = 8  # tokens of context below which an answer is not worth beginning


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "chat",
        short_help="Talk with a model.",
        epilog=example("lattice chat", 'lattice chat --system "Answer in one sentence." -t 0.7'),
    )(chat)


def chat(
    model: str = typer.Option("smollm2-135m", "--model", "-m", help=f"{MODEL_HELP} smollm2-135m."),
    system: str | None = typer.Option(None, "--system", help="A system message before the conversation."),
    max_tokens: int = typer.Option(1024, "--max-tokens", "-n", min=1, help="Most tokens of an answer."),
    temperature: float | None = TEMPERATURE,
    top_p: float | None = TOP_P,
    top_k: int | None = TOP_K,
    min_p: float | None = MIN_P,
    repetition_penalty: float | None = REPETITION,
    presence_penalty: float | None = PRESENCE,
    frequency_penalty: float | None = FREQUENCY,
    logit_bias: list[str] | None = LOGIT_BIAS,
    seed: int | None = SEED,
    stop: list[str] | None = STOP,
    think: bool | None = THINK,
    thinking_budget: int | None = THINKING_BUDGET,
    context: int | None = CONTEXT,
    device: str = DEVICE,
    dtype: str = DTYPE,
    kv: str = KV,
    json: bool = typer.Option(False, "--json", help="Print one JSON object an answer, one a line."),
) -> None:
    """Talk with a model; /help lists what else can be typed."""
    bias = parse_bias(logit_bias)
    lm = load(model, device=device, dtype=dtype, kv=kv, context=context)
    asked = dict(thinking=think, thinking_budget=thinking_budget)
    lm.chat_prompt([{"role": "user", "content": "x"}], **asked)  # raises now what would fail every time
    options = dict(
        temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, seed=seed, stop=stop or None,
        repetition_penalty=repetition_penalty, presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty, logit_bias=bias,
    )  # fmt: skip
    session = Session(model, lm, max_tokens, options, json, system, asked)
    if sys.stdin.isatty():
        note(f"{model}, {lm.context} tokens of context. /help for commands, Ctrl-D to leave.")
    for line in _lines():
        if line.startswith("/"):
            if not session.command(*line[1:].split(maxsplit=1)):
                return
        elif line.strip():
            session.say(line)


@dataclass
class Session:
    """The messages so far and the model that answers them."""

    name: str
    model: Any
    max_tokens: int
    options: dict[str, Any]
    json: bool
    system: str | None
    thinking: dict[str, Any] = field(default_factory=dict)
    messages: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.conversation = self.model.conversation()
        self.reset()

    def reset(self) -> None:
        """Forget all messages but the system's."""
        self.conversation.clear()
        self.messages = [] if self.system is None else [{"role": "system", "content": self.system}]

    def command(self, name: str = "", rest: str = "") -> bool:
        """Do what a line with a slash asks for; False to leave."""
        if name in ("exit", "quit", "bye"):
            return False
        if name == "help":
            typer.echo(dim(HELP), err=self.json)
        elif name == "reset":
            self.reset()
            note("the conversation is forgotten")
        elif name == "system":
            self._set_system(rest.strip())
        elif name == "retry":
            self._retry()
        else:
            _complain(f"no command /{name}; /help lists them")
        return True

    def _set_system(self, text: str) -> None:
        if not text:
            note(f"system message: {self.system}" if self.system else "no system message")
            return
        self.system = text
        self.reset()
        note("system message set, the conversation begins anew")

    def _retry(self) -> None:
        if len(self.messages) < 2 or self.messages[-1]["role"] != "assistant":
            _complain("nothing to answer again")
            return
        self.messages.pop()
        self.say(self.messages.pop()["content"])

    def say(self, text: str) -> None:
        """Answer a message of the user; what cannot be answered is forgotten again."""
        self.messages.append({"role": "user", "content": text})
        try:
            answer = self._answer()
        except LatticeError as error:
            self.messages.pop()
            _complain(str(error))
            return
        self.messages.append({"role": "assistant", "content": answer})

    def _answer(self) -> str:
        """Stream the answer to the messages and return its text, also where Ctrl-C ended it."""
        prompt = self.model.chat_prompt(self.messages, **self.thinking)
        room = self.model.context - len(prompt.tokens)
        if room < LEAST_ROOM:
            raise LatticeError(f"the conversation has filled the context of {self.model.context} tokens\nhint: /reset")
        pieces, reasoned, out = [], [], Writer()
        with (
            _interrupts() as interrupted,
            self.conversation.stream(prompt, max_tokens=min(self.max_tokens, room), **self.options) as answer,
        ):
            for chunk in answer:
                pieces.append(chunk.text)
                reasoned.append(chunk.reasoning)
                if not self.json:
                    out(chunk)
                if interrupted:
                    break
        text = "".join(pieces)
        if self.json:
            emit(_object(self.name, answer, text, "".join(reasoned)))
        else:
            out.end()
            write("\n")
            note(("stopped, " if answer.finish_reason is None else "") + summary(answer))
        return text


def _object(name: str, answer: Any, text: str, reasoning: str) -> dict[str, Any]:
    """Return an answer as --json prints it; one that Ctrl-C ended is not a completion."""
    if answer.finish_reason is None:
        given = {"text": text, **({"reasoning": reasoning} if reasoning else {})}
        return {"model": name, **given, "finish_reason": "interrupted", "tokens": answer.tokens}
    return as_dict(name, answer.completion())


def _complain(text: str) -> None:
    typer.echo(style(text, sys.stderr, fg="red"), err=True)


@contextmanager
def _interrupts() -> Iterator[list[bool]]:
    """Give a list that is empty until Ctrl-C, so no step is torn apart; a second Ctrl-C does not wait."""
    seen: list[bool] = []

    def handler(number: int, frame: Any) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(True)

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


def _lines() -> Iterator[str]:
    """Yield what is typed or piped in; a line that ends in a backslash is joined with the next."""
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if terminal:
        _line_editing()
    held: list[str] = []
    while True:
        prompt = (".. " if held else ">> ") if terminal else ""
        try:
            line = input(prompt)
        except EOFError:
            if terminal:
                typer.echo()
            if held:
                yield "\n".join(held)
            return
        if line.endswith("\\"):
            held.append(line[:-1])
            continue
        yield "\n".join([*held, line])
        held = []


def _line_editing() -> None:
    """Give `input` arrow keys and a history, where Python was built with them."""
    with suppress(ImportError):
        import readline  # noqa: F401
