"""What `run` and `chat` share: the options of an answer, and text on its way to a terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from lattice.generate import Completion, Generation

TEMPERATURE = typer.Option(None, "--temperature", "-t", help="0 is greedy; the model's own default if not given.")
TOP_P = typer.Option(None, "--top-p", help="Draw among the likeliest tokens that have this probability together.")
TOP_K = typer.Option(None, "--top-k", help="Draw among this many of the likeliest tokens; 0 is all.")
MIN_P = typer.Option(None, "--min-p", help="Drop tokens less likely than this share of the likeliest.")
REPETITION = typer.Option(None, "--repetition-penalty", help="Above 1: tokens of the context become less likely.")
SEED = typer.Option(None, "--seed", help="Draw the same every time.")
STOP = typer.Option(None, "--stop", help="End the answer before this text; may be given again.")
CONTEXT = typer.Option(None, "--context", help="Most tokens of prompt and answer together.")


def clean(text: str) -> str:
    """Return text without the characters that a terminal would obey; a pipe gets what the model wrote."""
    if not sys.stdout.isatty():
        return text
    return "".join(c for c in text if c in "\n\t" or not (c < " " or "\x7f" <= c < "\xa0"))


def write(text: str) -> None:
    """Write a piece of an answer at once."""
    sys.stdout.write(clean(text))
    sys.stdout.flush()


def as_dict(model: str, completion: Completion) -> dict[str, Any]:
    """Return a finished answer as --json prints it."""
    usage, timings = completion.usage, completion.timings
    return {
        "model": model,
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "tokens": completion.tokens,
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
