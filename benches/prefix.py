"""Time to the first token where a prompt's beginning is known, beside the same prompt run from nothing. Not a test.

Each round draws a new prefix and new endings. Cold: no prefix is kept, and the prompt is cut where the warm one
resumes, so that both run the same steps behind it. Warm: the prefix was a prompt before. Parted: two prompts with the
prefix and endings of their own were run before, as users of one system prompt do. The logits of the new tokens are
compared bit for bit.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from time import perf_counter

import numpy as np

import lattice
from benches.report import emit, heading, row, say


def first_token(lm, prompt: list[int]) -> tuple[float, int, int]:
    """Return the seconds until a prompt's first token, how many of its tokens were known, and that token."""
    started = perf_counter()
    stream = lm.stream(prompt, max_tokens=1, temperature=0.0)
    token = next(stream).token
    return perf_counter() - started, stream.usage.reused_tokens, token


def cold(lm, prompt: list[int], cut: int) -> tuple[float, int]:
    """Return the seconds until the first token of a prompt that is run in two parts, and that token."""
    engine = lm.engine
    engine.forget()
    started = perf_counter()
    sequence = engine.begin(prompt, len(prompt) + 1)
    engine.append(sequence, prompt[:cut])
    advance = engine.advance(sequence, prompt[cut:], engine.sampler(lm.sampling.with_({"temperature": 0.0})))
    return perf_counter() - started, advance.token


def logits(lm, prompt: list[int], wanted: int) -> tuple[int, np.ndarray]:
    """Return how many tokens of a prompt were known, and the logits of its last `wanted`."""
    engine = lm.engine
    sequence = engine.begin(prompt, len(prompt))
    reused = len(sequence)
    engine.append(sequence, prompt[reused : len(prompt) - wanted])
    return reused, np.concatenate(list(engine.score(sequence, prompt[len(sequence) :])))


def main() -> None:
    parser = argparse.ArgumentParser(prog="benches prefix", description=__doc__)
    parser.add_argument("--model", required=True, help="a generator: a source that Lattice knows")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--prefix", type=int, default=4000)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    heading()
    source = str(Path(options.model).resolve()) if Path(options.model).exists() else options.model
    count = options.prefix + options.new
    lm = lattice.load(source, dtype=options.dtype, context=count + 64)
    found: dict[str, list[float]] = {"cold": [], "warm": [], "parted": []}
    same, resumed = True, 0
    for place in range(options.rounds + 1):
        draw = np.random.default_rng(place)
        prefix, *endings = (draw.integers(0, lm.engine.vocab, n).tolist() for n in (options.prefix, *[options.new] * 4))
        prompts = [prefix + ending for ending in endings]
        lm.engine.forget()
        lm.generate(prefix, max_tokens=1)
        warm, resumed, token = first_token(lm, prompts[0])
        lm.engine.forget()
        first_token(lm, prompts[1])
        first_token(lm, prompts[2])
        parted, _, _ = first_token(lm, prompts[3])
        seconds, again = cold(lm, prompts[0], resumed)
        same &= token == again
        for name, value in (("cold", seconds), ("warm", warm), ("parted", parted)):
            found[name] += [value] if place else []  # the first round warms memory up
    lm.engine.forget()
    _, whole = logits(lm, prompts[0], options.new)
    lm.engine.forget()
    lm.generate(prefix, max_tokens=1)
    reused, rest = logits(lm, prompts[0], options.new)
    same &= reused == resumed and np.array_equal(whole, rest)
    emit(kind="agreement", bits=bool(same), reused=reused, of=count)
    say(f"{reused} of {count} tokens known; logits and tokens {'bit for bit the same' if same else 'DIFFER'}")
    for name, values in found.items():
        row(f"first token of {count}, {name}", [1e3 * value for value in values], "ms", "", 2)
    for name in ("warm", "parted"):
        ratios = [a / b for a, b in zip(found["cold"], found[name], strict=True)]
        row(f"cold / {name}", ratios, "x", "round by round")
    if not same:
        raise SystemExit("[benches.prefix] expected the same bits, got others")


if __name__ == "__main__":
    main()
