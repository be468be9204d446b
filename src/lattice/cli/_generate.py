"""What `run` and `chat` share: the options of an answer, and text on its way to a terminal."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Any

import typer

from lattice.cli._app import style

if TYPE_CHECKING:
    from lattice.generate import Chunk, Completion, Generation, TokenLogprob

TEMPERATURE = typer.Option(None, "--temperature", "-t", help="0 is greedy; the model's own default if not given.")
TOP_P = typer.Option(None, "--top-p", help="Draw among the likeliest tokens that have this probability together.")
TOP_K = typer.Option(None, "--top-k", help="Draw among this many of the likeliest tokens; 0 is all.")
MIN_P = typer.Option(None, "--min-p", help="Drop tokens less likely than this share of the likeliest.")
REPETITION = typer.Option(None, "--repetition-penalty", help="Above 1: tokens of the context become less likely.")
PRESENCE = typer.Option(None, "--presence-penalty", help="-2 to 2; above 0: tokens of the answer become less likely.")
FREQUENCY = typer.Option(None, "--frequency-penalty", help="-2 to 2; the same for every time the answer holds them.")
LOGIT_BIAS = typer.Option(
    None,
    "--logit-bias",
    metavar="ID=VALUE",
    help="Add -100 to 100 to a token's logit, -inf forbids it; may be given again.",
)
SEED = typer.Option(None, "--seed", help="Draw the same every time.")
STOP = typer.Option(None, "--stop", help="End the answer before this text; may be given again.")
THINK = typer.Option(
    None, "--think/--no-think", help="Reason before the answer, or not; the model's own default if not given."
)
THINKING_BUDGET = typer.Option(
    None, "--thinking-budget", metavar="N", min=0, help="Most tokens of reasoning; 0 is none."
)
CONTEXT = typer.Option(None, "--context", help="Most tokens of prompt and answer together.")


def clean(text: str, stream: IO[str] | None = None) -> str:
    """Return text without the characters that a terminal would obey; a pipe gets what the model wrote."""
    if not (stream or sys.stdout).isatty():
        return text
    return "".join(c for c in text if c in "\n\t" or not (c < " " or "\x7f" <= c < "\xa0"))


def write(text: str) -> None:
    """Write a piece of an answer at once."""
    sys.stdout.write(clean(text))
    sys.stdout.flush()


class Writer:
    """Writes an answer as it comes: text to standard output, reasoning to standard error, grey on a terminal."""

    def __init__(self) -> None:
        self._reasoned = False  # and its last line is still open

    def __call__(self, chunk: Chunk) -> None:
        """Write what is new."""
        if chunk.reasoning:
            text = clean(chunk.reasoning, sys.stderr)
            sys.stderr.write(style(text, sys.stderr, dim=True))
            sys.stderr.flush()
            self._reasoned = True
        if chunk.text:
            self.end()
            write(chunk.text)

    def end(self) -> None:
        """End the reasoning, if there was any."""
        if self._reasoned:
            sys.stderr.write("\n\n")
            sys.stderr.flush()
            self._reasoned = False


def parse_bias(given: Sequence[str] | None) -> dict[int, float] | None:
    """Return --logit-bias as a dict of token ids to numbers, None if it was not given."""
    found: dict[int, float] = {}
    for text in given or ():
        token, _, value = text.partition("=")
        try:
            pair = int(token), float(value)
        except ValueError:
            raise typer.BadParameter(
                f"expected ID=VALUE, such as 42=-5, got {text!r}", param_hint="--logit-bias"
            ) from None
        if pair[0] in found:
            raise typer.BadParameter(f"token {pair[0]} is given twice", param_hint="--logit-bias")
        found[pair[0]] = pair[1]
    return found or None


def as_dict(model: str, completion: Completion) -> dict[str, Any]:
    """Return a finished answer as --json prints it."""
    usage, timings = completion.usage, completion.timings
    entries = None if completion.logprobs is None else [_entry(entry) for entry in completion.logprobs]
    return {
        "model": model,
        "text": completion.text,
        **({} if not completion.reasoning else {"reasoning": completion.reasoning}),
        "finish_reason": completion.finish_reason,
        "tokens": completion.tokens,
        **({} if entries is None else {"logprobs": entries}),
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "reused_tokens": usage.reused_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
        },
        "timings": {
            "prefill_seconds": round(timings.prefill_seconds, 6),
            "decode_seconds": round(timings.decode_seconds, 6),
            "tokens_per_second": speed(timings),
        },
    }


def _entry(entry: TokenLogprob) -> dict[str, Any]:
    """Return a token with its logprob and alternatives; JSON has no infinities, they are null."""

    def plain(each: TokenLogprob) -> dict[str, Any]:
        value = round(each.logprob, 6) if math.isfinite(each.logprob) else None
        return {"token": each.token, "text": each.text, "logprob": value}

    return {**plain(entry), "top": [plain(other) for other in entry.top]}


def speed(timings: Any) -> float | None:
    """Return tokens a second after the first one, None for an answer that has no second."""
    return round(timings.decode_steps / timings.decode_seconds, 2) if timings.decode_seconds else None


def summary(generation: Generation) -> str:
    """Return one line about an answer: how much was written and how fast."""
    usage, timings = generation.usage, generation.timings
    parts = [f"{usage.completion_tokens} tokens"]
    rate = speed(timings)
    if rate is not None:
        parts.append(f"{rate:.1f} tokens/s")
    new = usage.prompt_tokens - usage.reused_tokens
    parts.append(f"first after {timings.prefill_seconds:.2f} s ({new} new of {usage.prompt_tokens} prompt tokens)")
    if generation.finish_reason == "length":
        parts.append("cut at --max-tokens")
    return ", ".join(parts)


def note(text: str) -> None:
    """Print a line beside the point, in grey on a terminal, to standard error."""
    typer.echo(typer.style(text, dim=True) if sys.stderr.isatty() else text, err=True)
