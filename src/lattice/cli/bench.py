"""`lattice bench`: how fast a model is here, and how fast this machine's memory would let it be.

    roof = bandwidth / bytes;   fraction = tokens per second / roof
    bytes = weights read + recurrent state read and written + keys and values read and written

Each token that is generated reads every weight once (of tables a row, of experts those that it chooses), the state of
recurrent layers, and the keys and values of all positions before it, so memory bandwidth is a roof that decoding cannot
pass. It is measured anew before and after every run: on shared machines it moves. The first run warms up and does not
count. Nothing is drafted, and no prompt is known: each is run whole. On a graphics card the speeds are measured alone:
what its memory would allow is not.
"""

from __future__ import annotations

import time
from itertools import pairwise
from statistics import median
from typing import Any

import typer

from lattice.cli._app import DEVICE, DTYPE, JSON, KV, MODEL_HELP, dim, emit, example, load, size, style, waiting
from lattice.cli._machine import Others
from lattice.errors import expected

ALLOWED = 0.1  # of a core may others use: a shell, a clock, a daemon
LISTEN = 0.5  # seconds for which it is looked who else is there
STEADY = 0.1  # of the larger of two bandwidths may they differ


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "bench",
        short_help="Measure how fast a model is here.",
        epilog=example("lattice bench", "lattice bench --depth 4096 --prompt 512 --gen 64 --runs 5 --json"),
    )(bench)


def bench(
    model: str = typer.Option("smollm2-135m", "--model", "-m", help=f"{MODEL_HELP} smollm2-135m."),
    prompt: int = typer.Option(512, "--prompt", min=1, help="Tokens of the prompt."),
    gen: int = typer.Option(64, "--gen", min=1, help="Tokens generated behind it."),
    runs: int = typer.Option(5, "--runs", min=1, help="Runs that count."),
    depth: int = typer.Option(0, "--depth", min=0, help="Tokens that are there before the prompt, not timed."),
    force: bool = typer.Option(False, "--force", help="Measure although other processes use the cores."),
    device: str = DEVICE,
    dtype: str = DTYPE,
    kv: str = KV,
    json: bool = JSON,
) -> None:
    """Measure prompt and generation speed, and on the processor compare the latter with memory bandwidth.

    Refuses where other processes use the cores, unless forced to; where the system does not say, the result does.
    """
    from lattice.backends.cpu import CpuWeights, bandwidth

    before = Others()
    time.sleep(LISTEN)
    others = [_idle(before, force, "before the first run")]
    lm = _open(model, depth + prompt + gen, device=device, dtype=dtype, kv=kv)
    on_processor = isinstance(lm.engine.weights, CpuWeights)
    speeds: list[tuple[float, float]] = []
    readings: list[float] = []
    for run in range(runs + 1):
        with waiting(f"run {run} of {runs}" if run else "warming up"):
            readings += [bandwidth()] if on_processor else []
            watch = Others()
            speeds.append(_once(lm.engine, depth, prompt, gen))
        if run:
            others.append(_idle(watch, force, f"during run {run}"))
    about = {"model": model, "prompt": prompt, "gen": gen, "depth": depth, "runs": runs}
    report = about | _speeds(lm.engine.target, speeds[1:], others)
    if on_processor:
        readings.append(bandwidth())
        report |= _roof(lm.engine, depth + prompt + gen // 2, speeds[1:], readings[1:])
    if json:
        emit(report)
    else:
        _print(report)


def _open(model: str, positions: int, **options: Any) -> Any:
    """Return the model without drafts, with room for so many positions."""
    lm = load(model, draft=None, **options)
    if positions <= lm.context:
        return lm
    lm.close()
    return load(model, draft=None, context=positions, **options)


def _idle(watch: Others, force: bool, when: str) -> float | None:
    """Return how many cores others have used, None where that is unknown; LatticeError if too many and not forced."""
    used = watch.cores()
    if used is not None and used > ALLOWED and not force:
        raise expected(
            "bench", "cores that nobody else uses", f"{used:.2f} of them in use {when}",
            hint="wait, end what runs, or take --force and mistrust the figures",
        )  # fmt: skip
    return used


def _once(engine: Any, depth: int, prompt: int, gen: int) -> tuple[float, float]:
    """Return tokens a second of one prompt and of what is generated behind it; which ones does not matter."""
    from lattice.generate.sampling import SamplingSettings

    tokens = [(7919 * place + 17) % engine.vocab for place in range(depth + prompt)]
    sampler = engine.sampler(SamplingSettings(temperature=0.0))
    sequence = engine.sequence()  # not `begin`: it knows no prefix, and none is kept of it
    engine.reserve(sequence, depth + prompt + gen)
    engine.append(sequence, tokens[:depth])
    started = time.perf_counter()
    token = engine.advance(sequence, tokens[depth:], sampler).token
    first = time.perf_counter()
    for _ in range(gen):
        token = engine.advance(sequence, [token], sampler).token
    ended = time.perf_counter()
    sequence.clear()
    return prompt / (first - started), gen / (ended - first)


def _speeds(target: str, speeds: list[tuple[float, float]], others: list[float | None]) -> dict[str, Any]:
    known = [used for used in others if used is not None]
    return {
        "target": target,
        "threads": None,
        "prefill": _spread([speed for speed, _ in speeds]),
        "decode": _spread([speed for _, speed in speeds]),
        "bytes_per_token": None,
        "bytes": None,
        "bandwidth_gb_s": None,
        "roof_fraction": None,
        "unsteady_runs": None,
        "others_cores": round(max(known), 3) if known else None,
    }


def _roof(engine: Any, position: int, speeds: list[tuple[float, float]], readings: list[float]) -> dict[str, Any]:
    """Return what the processor's memory allows; a card's bandwidth is not measured."""
    parts = bytes_of_token(engine, position)
    read, around = sum(parts.values()), list(pairwise(readings))
    shares = [read * speed / sum(pair) * 2e-9 for (_, speed), pair in zip(speeds, around, strict=True)]
    return {
        "threads": engine.weights.core.threads,
        "bytes_per_token": read,
        "bytes": parts,
        "bandwidth_gb_s": _spread(readings),
        "roof_fraction": round(median(shares), 4),
        "unsteady_runs": sum(max(pair) - min(pair) > STEADY * max(pair) for pair in around),
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(median(values), 2),
        "min": round(min(values), 2),
        "max": round(max(values), 2),
    }


def bytes_of_token(engine: Any, position: int) -> dict[str, int]:
    """Return the bytes that a token at `position` moves: of weights, recurrent state, and keys and values.

    Layers that see a window only read that much; what a token adds to keys, values and state is written once.
    """
    from lattice.step import PAGE_TOKENS

    weights, model, config = 0.0, engine.opened.model, engine.opened.config
    for weight in engine.weights.placed.values():
        rows = {2: 1 / weight.shape[0], 3: vars(config).get("num_experts_per_tok", 1) / weight.shape[0]}
        weights += weight.bytes * (rows.get(len(weight.shape), 1) if weight.use == "mapped" else 1)
    kept = 0
    for name, buffer in engine.paged.items():
        window = model.model.layers[int(name.split(".")[1])].self_attn.window
        kept += buffer[0].nbytes // PAGE_TOKENS * ((min(position, window) if window else position) + 1)
    return {"weights": round(weights), "state": 2 * engine.pool.slots.nbytes, "kv": kept}


def _print(report: dict[str, Any]) -> None:
    head = f"{report['runs']} run{'s' if report['runs'] > 1 else ''}, {report['target']}"
    typer.echo(f"{style(report['model'], bold=True)}  {dim(head)}")
    behind = f" behind {report['depth']}" if report["depth"] else ""
    lines = [
        ("prefill", report["prefill"], "tokens/s", f"prompt of {report['prompt']}{behind}"),
        ("decode", report["decode"], "tokens/s", f"{report['gen']} behind it"),
    ]
    if report["bytes"]:
        lines.append(("bandwidth", report["bandwidth_gb_s"], "GB/s", f"read by {report['threads']} threads"))
    for name, spread, unit, remark in lines:
        between = f"{spread['min']:.1f} to {spread['max']:.1f}"
        typer.echo(f"{name:10}{spread['median']:9.1f} {unit:10}{dim(f'{between:20}{remark}')}")
    if report["bytes"]:
        parts = ", ".join(f"{size(count)} of {name}" for name, count in report["bytes"].items() if count)
        fraction = f"{100 * report['roof_fraction']:.0f} %"
        typer.echo(f"{'roof':10}{fraction:>9} {'':10}{dim(f'of the bandwidth, a token moves {parts}')}")
    if report["unsteady_runs"]:
        typer.echo(dim(f"the bandwidth moved by more than a tenth around {report['unsteady_runs']} of them"))
    if report["others_cores"] is None:
        typer.echo(dim("whether other processes used the cores is not known on this system"))
    elif report["others_cores"] > ALLOWED:
        typer.echo(f"other processes used up to {report['others_cores']:.2f} cores meanwhile: mistrust these figures")
