"""Decode and prefill on the graphics card: a random Qwen3.5-0.8B, made from a seed. Needs the wheel, wgpu and NumPy.

    python -m benches gpu --dtype q8_0 q4_0 --depths 0 16384 --prompt 2048

Medians of `--rounds`; the device line says which card, through what. The host's share of a token is what a token takes
beyond a step that nobody waits for. `--profile` adds where the card's own time goes, by op, from its timestamps.
`--software` runs on the software adapter, to see that it works. Not a test.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections import Counter
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benches.random_model import SIZES, VOCAB, metadata, tensors
from benches.report import emit, say
from lattice.backends._backend import run_plans
from lattice.backends.wgpu import WgpuBackend, open_device
from lattice.generate.model import LanguageModel
from lattice.models import family
from lattice.weights.gguf_write import write_gguf
from lattice.weights.load import open_model


def prompt(tokens: int, seed: int) -> list[int]:
    """Return token ids that no other seed begins with."""
    return np.random.default_rng(seed).integers(0, VOCAB - 1, tokens).tolist()


def decode(lm: Any, depth: int, tokens: int, rounds: int, **sampling: float) -> float:
    """Return the median of tokens a second behind `depth` tokens."""
    sampling = sampling or {"temperature": 0.0}
    speeds = []
    for seed in range(rounds + 1):
        lm.engine.forget()
        stream = lm.stream(prompt(max(1, depth), seed), max_tokens=tokens + 1, ignore_eos=True, **sampling)
        next(stream)
        started = perf_counter()
        made = sum(1 for _ in stream)
        speeds.append(made / (perf_counter() - started))
    return statistics.median(speeds[1:])


def unread(lm: Any, depth: int, tokens: int, rounds: int) -> float:
    """Return the median of seconds a step takes where the next one is submitted without a look at its token.

    What a token takes beyond that is the host's: reading, and what of writing and recording the card does not hide.
    """
    lm.engine.forget()
    with lm.stream(prompt(max(1, depth), 98), max_tokens=8, temperature=0, ignore_eos=True) as stream:
        for _ in range(3):  # behind the third the plans hold a step of one token
            next(stream)
        plans, seconds = [lm.engine._plan, lm.engine._sample], []
        for _ in range(rounds + 1):
            started = perf_counter()
            for _ in range(tokens):
                run_plans(plans)
            plans[-1].output("tokens")
            seconds.append((perf_counter() - started) / tokens)
    return statistics.median(seconds[1:])


def prefill(lm: Any, tokens: int, rounds: int) -> float:
    """Return the median of a prompt's tokens a second."""
    speeds = []
    for seed in range(rounds + 1):
        lm.engine.forget()
        started = perf_counter()
        next(lm.stream(prompt(tokens, seed), max_tokens=1, temperature=0))
        speeds.append(tokens / (perf_counter() - started))
    return statistics.median(speeds[1:])


def _name(node: Any) -> str:
    """Return the op, a product with its shape."""
    if node.op.name != "project":
        return node.op.name
    rows = sum(weight.shape[0] for weight in node.args[4::2] if weight is not None)
    return f"{rows}x{node.args[0].shape[-1]}"


def profile(lm: Any, tokens: int) -> dict[str, list[float]]:
    """Return how often each op runs in a step, and its microseconds together."""
    plan = lm.engine._plan
    sequence = lm.engine.begin(prompt(tokens, 99), tokens + 1)
    lm.engine._write(plan, sequence, prompt(tokens, 99), 1)
    plan.profile()
    return by_op(plan.profile())


def by_op(found: list[tuple[Any, float]]) -> dict[str, list[float]]:
    """Return how often each op ran, and its microseconds together, the longest first."""
    counts, totals = Counter(_name(node) for node, _ in found), Counter[str]()
    for node, seconds in found:
        totals[_name(node)] += round(1e6 * seconds, 1)
    return {name: [counts[name], total] for name, total in totals.most_common()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="benches gpu", description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="0.8b")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--dtype", nargs="+", default=["q8_0", "q4_0"])
    parser.add_argument("--depths", nargs="+", type=int, default=[0, 4096])
    parser.add_argument("--prompt", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--software", action="store_true")
    options = parser.parse_args()
    device = open_device(software=options.software)
    info = {key: device.info[key] for key in ("device", "description", "backend_type")}
    emit(kind="device", **info)
    say(f"{info['device']}, {info['description']}, {info['backend_type']}")
    layers = options.layers or SIZES[options.size][0]
    for dtype in options.dtype:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{dtype}.gguf"
            write_gguf(path, metadata(options.size, layers), tensors(options.size, layers, dtype, 0))
            context = max(*options.depths, options.prompt, 1) + options.tokens + 8
            lm = LanguageModel(open_model(path, family), WgpuBackend(device), context=context, draft=None)
        for depth in options.depths:
            speed = decode(lm, depth, options.tokens, options.rounds)
            share = 1 - unread(lm, depth, options.tokens, options.rounds) * speed
            emit(kind="decode", dtype=dtype, depth=depth, tokens_per_second=speed, host_share=share)
            say(
                f"{dtype:6} decode at depth {depth:6}  {speed:9.1f} tokens/s, of a token the host's {100 * share:.1f} %"
            )
        speed = decode(lm, 0, options.tokens, options.rounds, temperature=0.8, top_p=0.95)
        emit(kind="draws", dtype=dtype, tokens_per_second=speed)
        say(f"{dtype:6} temperature 0.8, top-p 0.95 {speed:9.1f} tokens/s")
        speed = prefill(lm, options.prompt, options.rounds)
        emit(kind="prefill", dtype=dtype, tokens=options.prompt, tokens_per_second=speed)
        say(f"{dtype:6} prefill {options.prompt:6}         {speed:9.1f} tokens/s")
        if options.profile:
            for tokens in (1, min(512, options.prompt)):
                found = profile(lm, tokens)
                say(f"{dtype:6} {tokens} tokens: " + ", ".join(f"{n} {c}: {t:.0f} us" for n, (c, t) in found.items()))


if __name__ == "__main__":
    main()
