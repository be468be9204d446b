"""Speed by context, 64 to 8192 tokens, beside llama.cpp: prefill of so many tokens, and decode behind them. Not a test.

    python -m benches scaling --model model.gguf

Lines of --out are cells as `table` has them; two plots beside it show tokens a second by context.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benches.pairs import Pair, cell
from benches.plot import lines
from benches.report import cores, emit, heading
from benches.table import DOCS, refuse_a_busy_machine
from benches.workers import Worker

CONTEXTS = (64, 128, 256, 1024, 4096, 8192)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benches scaling", description=__doc__)
    parser.add_argument("--model", required=True, type=Path, help="a .gguf")
    parser.add_argument("--contexts", type=int, nargs="+", default=CONTEXTS)
    parser.add_argument("--gen", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=DOCS / "scaling.jsonl")
    parser.add_argument("--keep-all", action="store_true", help="measure on a busy machine, keep all rounds")
    options = parser.parse_args()
    heading()
    refuse_a_busy_machine(options.keep_all)
    model, context = str(options.model.resolve()), max(options.contexts) + options.gen + 2
    settings = {"model": model, "threads": cores(), "context": context}
    pair = Pair(
        Worker("lattice", "benches.generators:Lattice", dtype="auto", **settings),
        Worker("llama.cpp", "benches.generators:LlamaCpp", **settings),
        options.rounds,
        options.keep_all,
    )
    plots: dict[str, dict[str, list[tuple[float, float]]]] = {"prefill": {}, "decode": {}}
    for count in options.contexts:
        tokens = [(7919 * place + 17) % 30000 for place in range(count)]
        found = pair.measure(tokens=tokens, steps=options.gen)
        about = pair.ours.call("about", position=count + options.gen // 2)
        for phase, work in (("prefill", count), ("decode", options.gen)):
            speed = lambda one, phase=phase, work=work: work / one[phase]  # noqa: E731
            record = cell(f"{options.model.name}, {phase} at {count}", "tokens/s", pair, found, speed, context=count)
            emit(**record | about)
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record | about) + "\n")
            for name, side in (("Lattice", "lattice"), ("llama.cpp", "theirs")):
                if record[side]["median"] is not None:
                    plots[phase].setdefault(name, []).append((count, record[side]["median"]))
    pair.close()
    for phase, series in plots.items():
        if series:
            title = f"{options.model.name}: {phase}, tokens/s by context"
            options.out.with_name(f"scaling-{phase}.svg").write_text(lines(title, series), encoding="utf-8")


if __name__ == "__main__":
    main()
