"""How soon something happens, medians over fresh processes whose files are in the page cache. Not a test.

An empty process, `import lattice`, the first token of a fresh process, and the share of a decode step that is
Python (the decode loop without what is spent inside native calls).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from benches.report import cores, heading, row
from benches.workers import Worker

EMPTY = "print(0, flush=True)"
IMPORT = "import lattice; print(0, flush=True)"
FIRST = """
import sys, lattice
stream = lattice.load(sys.argv[1], dtype=sys.argv[2]).stream("The capital of France is", max_tokens=2, temperature=0.0)
next(iter(stream)); print(0, flush=True)
"""


def until_line(code: str, *arguments: str) -> float:
    """Seconds from the start of a fresh process to its first line."""
    started = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE) as process:
        line = process.stdout.readline()
        seconds = time.perf_counter() - started
    if not line or process.returncode:
        raise SystemExit(f"[benches.start] a process ended with status {process.returncode}")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(prog="benches start", description=__doc__)
    parser.add_argument("--model", required=True, help="a generator: a source that Lattice knows")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    heading()
    source = str(Path(options.model).resolve()) if Path(options.model).exists() else options.model
    until_line(FIRST, source, options.dtype)
    found: dict[str, list[float]] = {"empty process": [], "import lattice": [], "first token": []}
    for _ in range(options.rounds):
        found["empty process"].append(until_line(EMPTY))
        found["import lattice"].append(until_line(IMPORT))
        found["first token"].append(until_line(FIRST, source, options.dtype))
    for name, values in found.items():
        row(name, [1e3 * value for value in values], "ms", "from process start")
    worker = Worker("lattice", "benches.generators:Lattice", model=source, dtype=options.dtype, threads=cores())
    steps, tokens = 64, [(7919 * place + 17) % 30000 for place in range(32)]
    results = [worker.call("measure", tokens=tokens, steps=steps) for _ in range(options.rounds + 1)][1:]
    worker.close()
    outside = [one["decode"] - one["native"] for one in results]
    row("a decode step", [1e3 * one["decode"] / steps for one in results], "ms", "", 3)
    row("of it outside native calls", [1e3 * value / steps for value in outside], "ms", "", 3)
    row(
        "Python's share",
        [100 * value / one["decode"] for value, one in zip(outside, results, strict=True)],
        "%",
        "",
        2,
    )


if __name__ == "__main__":
    main()
