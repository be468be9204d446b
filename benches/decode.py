"""Prefill and decode speed on one GGUF: Lattice and llama.cpp in turns, each in a process of its own.

Greedy, one sequence, no drafts, every prompt from its beginning. Read bandwidth is measured before and after every
run; a round during which it moved by more than a tenth is dropped, and how many were is printed. llama.cpp: n_threads
= cores, n_ctx that holds the text (at least 2048), n_batch 512, default flash attention, by its
C interface. Its threads spin, so a busy machine makes it many times slower than it is:
compare on an idle one only, and read the load that is printed. Not a test.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benches import calibrate
from benches.report import cores, emit, heading, row, say
from benches.workers import Worker


def one_round(workers: list[Worker], tokens: list[int], steps: int) -> tuple[dict[str, dict], list[float]]:
    """What each engine took, and the calibrations around it."""
    meter = next(worker for worker in workers if worker.name == "lattice")
    readings, found = [meter.call("bandwidth")], {}
    for worker in workers:
        found[worker.name] = worker.call("measure", tokens=tokens, steps=steps)
        readings.append(meter.call("bandwidth"))
    return found, readings


def agreement(found: dict[str, dict]) -> int:
    """How many tokens the engines have in common before they part."""
    pairs = zip(*(result["tokens"] for result in found.values()), strict=True)
    return next(
        (place for place, pair in enumerate(pairs) if len(set(pair)) > 1),
        len(next(iter(found.values()))["tokens"]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="benches decode", description=__doc__)
    parser.add_argument("--model", required=True, help="a .gguf")
    parser.add_argument("--text", help="the prompt is its first tokens; without: made-up ids")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--gen", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", default="auto", help="Lattice's dtype")
    parser.add_argument("--keep-all", action="store_true", help="keep rounds of unsteady memory")
    options = parser.parse_args()
    heading()
    model = str(Path(options.model).resolve())
    context = max(2048, options.prompt + options.gen + 2)
    workers = [
        Worker(
            "lattice", "benches.generators:Lattice", model=model, dtype=options.dtype, threads=cores(), context=context
        ),
        Worker("llama.cpp", "benches.generators:LlamaCpp", model=model, threads=cores(), context=context),
    ]
    if options.text:
        text = Path(options.text).read_text(encoding="utf-8")[: 16 * options.prompt]
        tokens = workers[1].call("tokens", text=text)[: options.prompt]
    else:
        tokens = [(7919 * place + 17) % 30000 for place in range(options.prompt)]
    common = agreement({worker.name: worker.call("measure", tokens=tokens, steps=options.gen) for worker in workers})
    emit(kind="agreement", tokens=common, of=options.gen + 1)
    say(f"greedy tokens in common before the first difference: {common} of {options.gen + 1}")
    kept: list[dict[str, dict]] = []
    speeds: list[float] = []
    unsteady = 0
    for index in range(options.rounds):
        found, readings = one_round(workers if index % 2 == 0 else workers[::-1], tokens, options.gen)
        steady = calibrate.steady(*readings)
        took = {name: {phase: one[phase] for phase in ("prefill", "decode")} for name, one in found.items()}
        emit(kind="round", index=index, steady=steady, bandwidth=readings, seconds=took)
        if not steady:
            unsteady += 1
            say(f"round {index} unsteady: memory read at {min(readings):.1f} to {max(readings):.1f} GB/s")
        if steady or options.keep_all:
            kept.append(found)
            speeds += readings
    note = f"{unsteady} unsteady, {'kept' if options.keep_all else 'dropped'}"
    for worker in workers:
        results = [found[worker.name] for found in kept]
        row(
            f"prefill {options.prompt}, {worker.name}",
            [options.prompt / one["prefill"] for one in results],
            "tokens/s",
            note,
        )
        row(
            f"decode {options.gen}, {worker.name}",
            [options.gen / one["decode"] for one in results],
            "tokens/s",
            note,
        )
    for phase in ("prefill", "decode"):
        row(
            f"{phase}: lattice / llama.cpp",
            [one["llama.cpp"][phase] / one["lattice"][phase] for one in kept],
            "x",
            "round by round",
            2,
        )
    row("memory", speeds, "GB/s")
    for worker in workers:
        worker.close()


if __name__ == "__main__":
    main()
