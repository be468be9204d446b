"""Embedding speed of all-MiniLM-L6-v2: Lattice (auto, bf16, int8), ONNX Runtime (f32, int8), OpenVINO (int8) and
sentence-transformers, in turns. Three of them usually; `--engines all` for every cell.

Cases: wikitext paragraphs (~170 tokens each), snippets of 12 words (~17 tokens), one snippet (latency). A turn is short
(48 paragraphs, 128 snippets), so that engines meet the same moods of the machine; ratios are taken round by round.
Each engine sleeps in a process of its own while another runs (see workers.py); engines take turns within a
round and their order turns from round to round. Tokenisation is part of every result. Not a test: it only checks
that vectors agree (cosine), so that the same work is compared.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from benches.calibrate import steady
from benches.report import cores, emit, heading, row, say
from benches.workers import Worker

ENGINES: dict[str, tuple[str, dict[str, Any]]] = {
    "lattice": ("benches.encoders:Lattice", {"dtype": "auto"}),
    "lattice-bf16": ("benches.encoders:Lattice", {"dtype": "bf16"}),
    "lattice-int8": ("benches.encoders:Lattice", {"dtype": "int8"}),
    "onnxruntime": ("benches.encoders:OnnxRuntime", {}),
    "onnxruntime-int8": ("benches.encoders:OnnxRuntime", {"int8": True}),
    "openvino-int8": ("benches.encoders:OpenVino", {}),
    "sentence-transformers": ("benches.encoders:SentenceTransformers", {}),
}
USUAL = ["lattice", "onnxruntime", "sentence-transformers"]

INT8 = ("onnxruntime-int8", "openvino-int8")  # rivals of lattice-int8
SLICE = {"paragraphs": 48, "snippets": 128, "one snippet": 1}  # texts of one turn


def cases(path: str) -> dict[str, list[str]]:
    """The texts of each case, from wikitext-2's wiki.test.raw."""
    lines = (line.strip() for line in Path(path).read_text(encoding="utf-8").split("\n"))
    paragraphs = [line for line in lines if len(line) > 100 and not line.startswith("=")][:512]
    if len(paragraphs) < 512:
        raise SystemExit(f"[benches.embed] expected 512 paragraphs in {path}, got {len(paragraphs)}")
    snippets = [" ".join(paragraph.split()[:12]) for paragraph in paragraphs]
    return {"paragraphs": paragraphs, "snippets": snippets, "one snippet": snippets[:1]}


def agreement(workers: list[Worker], texts: list[str]) -> None:
    """Print the mean and the lowest cosine of each engine with one that is f32."""
    vectors = {worker.name: np.array(worker.call("sample", texts=texts)) for worker in workers}
    exact = next(name for name in ("onnxruntime", "sentence-transformers", *vectors) if name in vectors)
    for name, found in vectors.items():
        cosines = (found * vectors[exact]).sum(-1)
        mean, lowest = float(cosines.mean()), float(cosines.min())
        emit(kind="agreement", engine=name, beside=exact, mean_cosine=mean, lowest_cosine=lowest)
        say(f"{name} beside {exact}: cosine {mean:.6f}, lowest {lowest:.6f}")
        if lowest < (0.8 if name in INT8 else 0.98):
            raise SystemExit("[benches.embed] the engines do not compute the same thing")


def measure(workers: list[Worker], texts: list[str], rounds: int, keep_all: bool) -> tuple[dict[str, list[float]], int]:
    """Seconds of each engine by round (steady ones, unless all are kept), and how many were unsteady."""
    repeats = 50 if len(texts) == 1 else 1
    meter = next((worker for worker in workers if worker.name.startswith("lattice")), None)
    seconds: dict[str, list[float]] = {worker.name: [] for worker in workers}
    unsteady = 0
    for index in range(rounds):
        readings = [meter.call("bandwidth")] if meter else []
        found = {}
        for step in range(len(workers)):
            worker = workers[(index + step) % len(workers)]
            found[worker.name] = float(np.median(worker.call("measure", texts=texts, repeats=repeats)))
            readings += [meter.call("bandwidth")] if meter else []
        kept = meter is None or steady(*readings)
        emit(kind="round", index=index, texts=len(texts), steady=kept, bandwidth=readings, seconds=found)
        if not kept:
            unsteady += 1
            say(f"round {index} unsteady: memory read at {min(readings):.1f} to {max(readings):.1f} GB/s")
        if not kept and not keep_all:
            continue
        for name, value in found.items():
            seconds[name].append(value)
    return seconds, unsteady


def main() -> None:
    parser = argparse.ArgumentParser(prog="benches embed", description=__doc__)
    parser.add_argument("--model", required=True, help="a directory with all-MiniLM-L6-v2")
    parser.add_argument("--text", required=True, help="wikitext-2's wiki.test.raw")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--engines", nargs="+", default=USUAL, choices=["all", *ENGINES])
    parser.add_argument("--keep-all", action="store_true", help="keep rounds of unsteady memory")
    options = parser.parse_args()
    texts = cases(options.text)
    heading()
    workers = []
    for name in ENGINES if "all" in options.engines else options.engines:
        place, extra = ENGINES[name]
        extra = extra | ({"text": options.text} if name == "openvino-int8" else {})
        workers.append(Worker(name, place, model=str(Path(options.model).resolve()), threads=cores(), **extra))
    agreement(workers, texts["paragraphs"][::4])
    for case, chosen in texts.items():
        chosen = chosen[: SLICE[case]]
        for worker in workers:
            worker.call("measure", texts=chosen[:64], repeats=2)
        seconds, unsteady = measure(workers, chosen, options.rounds, options.keep_all)
        note = f"{unsteady} unsteady, {'kept' if options.keep_all else 'dropped'}"
        rivals = {name: seconds[name] for name in INT8 if name in seconds}
        if rivals and "lattice-int8" in seconds:
            ratios = [min(theirs) / own for *theirs, own in zip(*rivals.values(), seconds["lattice-int8"], strict=True)]
            row(f"{case}: lattice-int8 / the fastest of {', '.join(rivals)}", ratios, "x", "round by round", 2)
        for name, values in seconds.items():
            for ours in [] if name.startswith("lattice") else [ours for ours in seconds if ours.startswith("lattice")]:
                ratios = [rival / own for rival, own in zip(values, seconds[ours], strict=True)]
                row(f"{case}: {ours} / {name}", ratios, "x", "round by round", 2)
            if len(chosen) == 1:
                row(f"{case}, {name}", [1e3 * value for value in values], "ms", note, 2)
            else:
                row(
                    f"{case}, {name}",
                    [len(chosen) / value for value in values],
                    "texts/s",
                    note,
                )
    for worker in workers:
        worker.close()


if __name__ == "__main__":
    main()
