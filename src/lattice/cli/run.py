"""`lattice run`: one answer."""

from __future__ import annotations

import typer

from lattice.cli._app import DEVICE, DTYPE, JSON, KV, MODEL_HELP, emit, example, load, read_text
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


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "run",
        short_help="Answer one prompt.",
        epilog=example(
            'lattice run "Why is the sky blue?"',
            'lattice run --model ./qwen3.5 --thinking-budget 200 -n 600 "How many r are in strawberry?"',
            'lattice run --raw --max-tokens 20 "Once upon a time"',
            'lattice run --raw --json --max-tokens 1 --logprobs 5 "The capital of France is"',
        ),
    )(run)


def run(
    prompt: str = typer.Argument(..., metavar="PROMPT", help="What to answer; - reads standard input."),
    model: str = typer.Option("smollm2-135m", "--model", "-m", help=f"{MODEL_HELP} smollm2-135m."),
    system: str | None = typer.Option(None, "--system", help="A system message before the prompt."),
    raw: bool = typer.Option(False, "--raw", help="Continue the prompt as it is, without the chat template."),
    max_tokens: int = typer.Option(256, "--max-tokens", "-n", help="Most tokens of the answer."),
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
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Say how fast it was, on standard error."),
    logprobs: int | None = typer.Option(
        None, "--logprobs", metavar="N", help="With --json: how likely each token was, and the N likeliest (0 to 20)."
    ),
    json: bool = JSON,
) -> None:
    """Answer one prompt: through the model's chat template if it has one, else by continuing the text. What a model
    reasons before its answer goes to standard error."""
    if system is not None and raw:
        raise typer.BadParameter("a system message needs the chat template", param_hint="--system with --raw")
    if logprobs is not None and not json:
        raise typer.BadParameter("only --json prints them", param_hint="--logprobs without --json")
    bias = parse_bias(logit_bias)
    text = read_text("-") if prompt == "-" else prompt
    lm = load(model, device=device, dtype=dtype, kv=kv, context=context)
    asked: str | list[dict[str, str]] = text
    if not raw and (system is not None or "default" in lm.tokenizer.templates):
        asked = [{"role": "system", "content": system}] if system is not None else []
        asked.append({"role": "user", "content": text})
    options = dict(
        max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, seed=seed,
        stop=stop or None, repetition_penalty=repetition_penalty, presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty, logit_bias=bias, logprobs=logprobs,
        thinking=think, thinking_budget=thinking_budget,
    )  # fmt: skip
    with lm.stream(asked, **options) as answer:
        out = Writer()
        for chunk in answer:
            if not json:
                out(chunk)
        if json:
            emit(as_dict(model, answer.completion()))
        else:
            out.end()
            write("\n")
        if verbose:
            note(summary(answer))
