"""`lattice bench`: how fast a model is here, and how fast this machine's memory would let it be.

    roof = bandwidth / bytes;   fraction = tokens per second / roof

Each token that is generated reads every weight once, so memory bandwidth is a roof that decoding cannot pass.
It is measured anew before every run: on shared machines it moves. The first run warms up and does not count.
"""

from __future__ import annotations

from typing import Any

import typer

from lattice.cli._app import DTYPE, JSON, MODEL_HELP, dim, emit, example, load, size, style, waiting


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "bench",
        short_help="Measure how fast a model is here.",
        epilog=example("lattice bench", "lattice bench --prompt 512 --gen 64 --runs 5 --json"),
    )(bench)


def bench(
    model: str = typer.Option("smollm2-135m", "--model", "-m", help=f"{MODEL_HELP} smollm2-135m."),
    prompt: int = typer.Option(512, "--prompt", min=1, help="Tokens of the prompt."),
    gen: int = typer.Option(64, "--gen", min=1, help="Tokens generated behind it."),
    runs: int = typer.Option(5, "--runs", min=1, help="Runs that count."),
    dtype: str = DTYPE,
    json: bool = JSON,
) -> None:
    """Measure prompt and generation speed, and compare the latter with memory bandwidth."""
    from lattice.backends.cpu import bandwidth

    lm = load(model, dtype=dtype)
    measured: dict[str, list[float]] = {"prefill": [], "decode": [], "bandwidth": []}
    for run in range(runs + 1):
        with waiting(f"run {run} of {runs}" if run else "warming up"):
            roof = bandwidth()
            prefill, decode = _once(lm, prompt, gen)
        if run:
            measured["prefill"].append(prefill)
            measured["decode"].append(decode)
            measured["bandwidth"].append(roof)
    report = _report(model, lm, prompt, gen, runs, measured)
    if json:
        emit(report)
    else:
        _print(report)


def _once(lm: Any, prompt: int, gen: int) -> tuple[float, float]:
    """Return tokens a second of one prompt and of what is generated behind it; which ones does not matter."""
    tokens = [(7919 * place + 17) % lm.config.vocab_size for place in range(prompt)]
    with lm.stream(tokens, max_tokens=gen + 1, temperature=0.0, ignore_eos=True) as answer:
        for _ in answer:
            pass
    timings = answer.timings
    return prompt / timings.prefill_seconds, timings.decode_steps / timings.decode_seconds


def _report(model: str, lm: Any, prompt: int, gen: int, runs: int, measured: dict[str, list[float]]) -> dict[str, Any]:
    from statistics import median

    core, read = lm.engine.weights.core, _bytes_read(lm.engine.weights)
    bandwidth, decode = median(measured["bandwidth"]), median(measured["decode"])
    return {
        "model": model,
        "prompt": prompt,
        "gen": gen,
        "runs": runs,
        "target": core.target,
        "threads": core.threads,
        "prefill": _spread(measured["prefill"]),
        "decode": _spread(measured["decode"]),
        "bytes_per_token": read,
        "bandwidth_gb_s": _spread(measured["bandwidth"]),
        "roof_fraction": round(read * decode / bandwidth / 1e9, 4),
    }


def _spread(values: list[float]) -> dict[str, float]:
    from statistics import median

    return {
        "median": round(median(values), 2),
        "min": round(min(values), 2),
        "max": round(max(values), 2),
    }


def _bytes_read(weights: Any) -> int:
    """Return the bytes of weights that one token reads: all but looked-up tables. K/V come on top."""
    from lattice.backends.cpu.native import ROWS

    placed = weights.placed.values()
    return sum(weight.bytes for weight in placed if not (weight.layout == ROWS and len(weight.shape) == 2))


def _print(report: dict[str, Any]) -> None:
    head = f"{report['runs']} runs, {report['target']}"
    typer.echo(f"{style(report['model'], bold=True)}  {dim(head)}")
    lines = [
        ("prefill", report["prefill"], "tokens/s", f"prompt of {report['prompt']}"),
        ("decode", report["decode"], "tokens/s", f"{report['gen']} behind it"),
        ("bandwidth", report["bandwidth_gb_s"], "GB/s", f"read by {report['threads']} threads"),
    ]
    for name, spread, unit, remark in lines:
        between = f"{spread['min']:.1f} to {spread['max']:.1f}"
        typer.echo(f"{name:10}{spread['median']:9.1f} {unit:10}{dim(f'{between:20}{remark}')}")
    read, fraction = size(report["bytes_per_token"]), f"{100 * report['roof_fraction']:.0f} %"
    typer.echo(f"{'roof':10}{fraction:>9} {'':10}{dim(f'of the bandwidth, at {read} of weights a token')}")
