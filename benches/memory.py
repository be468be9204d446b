"""Resident memory beside llama.cpp: the most bytes either process ever held, on the same file and the same tokens.

    python -m benches memory MODEL.gguf ... --depths 1 512 4096

Every figure is of a new process that loads the model, reads a prompt as long as the depth and decodes 16 tokens with a
context of just that, at least 2048. Each becomes a line of --out; `python -m benches table --render` writes them down.
The floor: at most 1.05 times the rival's; the aim: 0.9. Memory does not vary with what else runs, so a busy machine is
welcome. Not a test.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from benches.report import cores, emit, heading, machine, say
from benches.workers import Worker

STEPS = 16
FLOOR, AIM = 1.05, 0.9
SECTION = """
## Resident memory

The most bytes that each process held, MB, weights in the file's mapping included: a new process loads the model, reads
the prompt and decodes 16 tokens (`python -m benches memory`). At most {floor} times the rival's is the floor, {aim} the
aim.

| | prompt | Lattice | llama.cpp | ratio |
|---|---|---|---|---|
"""


def most(engine: str, model: Path, depth: int, **settings: Any) -> int:
    """The most resident bytes of a process that decodes behind `depth` tokens."""
    worker = Worker(engine, f"benches.generators:{engine}", model=str(model), threads=cores(), **settings)
    worker.call("measure", tokens=[(7919 * place + 17) % 30000 for place in range(depth)], steps=STEPS)
    found = worker.memory()
    worker.close()
    if found is None:
        raise SystemExit("[benches] expected a system that says what a process held (/proc/PID/status), got none")
    return found


def section(records: list[dict[str, Any]]) -> str:
    """The figures as Markdown; empty without any."""
    rows = [
        f"| {r['name']} | {r['depth']:,} | {r['lattice'] >> 20:,} | {r['theirs'] >> 20:,} | {r['ratio']:.2f} |"
        for r in records
    ]
    return SECTION.format(floor=FLOOR, aim=AIM) + "\n".join(rows) + "\n" if rows else ""


def main() -> None:
    parser = argparse.ArgumentParser(prog="benches memory", description=__doc__)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL.gguf")
    parser.add_argument("--names", nargs="+", default=[], help="what each is called, default its file")
    parser.add_argument("--depths", nargs="+", type=int, default=[1, 512])
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "benchmarks.jsonl")
    options = parser.parse_args()
    heading()
    about = {key: value for key, value in machine().items() if key in ("machine", "cores", "versions", "commit")}
    for index, model in enumerate(options.models):
        name = options.names[index] if index < len(options.names) else model.stem
        for depth in options.depths:
            settings = {"context": max(2048, depth + STEPS + 2)}
            ours = most("Lattice", model.resolve(), depth, dtype="auto", **settings)
            theirs = most("LlamaCpp", model.resolve(), depth, **settings)
            record = {"kind": "memory", "name": name, "depth": depth, "lattice": ours, "theirs": theirs}
            record |= {"ratio": ours / theirs, "time": time.strftime("%Y-%m-%d %H:%M", time.gmtime()), **about}
            emit(**record)
            say(f"{name:24} {depth:6} {ours >> 20:6} MB {theirs >> 20:6} MB {ours / theirs:5.2f}")
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
