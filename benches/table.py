"""Every cell that speed is promised for, one after another beside its rival, two threads, same files, in turns.

    python -m benches table --q8 Q8.gguf --q4 Q4.gguf --smollm2 S.gguf --gemma3 G.gguf --minilm DIR --text wiki.test.raw

Which models are given decides which cells run (--only: those whose name contains a word). Each cell becomes a line of
--out as soon as it is done; the last line of a name counts, and docs/benchmarks.md and .svg are written from all of
them (--render: from what is there). Rounds that others disturbed or in which memory moved are dropped, and a busy
machine is refused, unless --keep-all; --small runs every cell at its smallest, to see that it works. `floor` and `aim`
are what the ratio of medians has to reach; an aim below 1 is a share of a roof. Decode at depth 0 is behind a prompt
of 16. Not a test.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benches.embed import SLICE, cases
from benches.memory import section
from benches.pairs import ALLOWED, Pair, cell
from benches.plot import bars
from benches.report import cores, emit, heading, machine, say
from benches.workers import Worker
from lattice.cli._machine import Others

DOCS = Path(__file__).parents[1] / "docs"
FULL = {  # option: name, then (phase, prompt, generated, floor, aim)
    "q8": ("Qwen3.5-0.8B Q8_0", [("decode", 16, 64, 1.3, 0.9), ("decode", 4096, 32, 1.5, 0.9),
                                 ("prefill", 512, 1, 4.5, 0.6), ("prefill", 2048, 1, 4.5, 0.6)]),
    "q4": ("Qwen3.5-0.8B Q4_0", [("decode", 16, 64, 1.25, 0.9), ("decode", 4096, 32, 1.6, 0.9),
                                 ("prefill", 512, 1, 3.0, 0.6), ("prefill", 2048, 1, 3.0, 0.6)]),
    "smollm2": ("SmolLM2-135M Q4_1", [("decode", 16, 128, 1.8, 2.2), ("prefill", 512, 1, 4.0, 7.0)]),
    "gemma3": ("Gemma 3 270M", [("decode", 16, 128, 1.1, 0.9), ("prefill", 512, 1, 2.0, 3.0)]),
}  # fmt: skip
TASKS = {
    "summarise": "Summarise this text in three sentences, in its own words where possible:\n\n{}",
    "rewrite": "Write this text again, correct mistakes of spelling, and change nothing else:\n\n{}",
}
ENCODERS = [  # dtype, rival, then floor and aim of paragraphs, snippets, one snippet
    ("auto", "onnxruntime f32", (1.5, 2.0), (1.5, 2.0), (2.2, 4.0)),
    ("bf16", "onnxruntime f32", (2.0, 3.0), (2.0, 3.0), (None, None)),
    ("int8", "onnxruntime int8", (1.3, 1.8), (1.3, 1.8), (None, None)),
    ("int8", "openvino int8", (1.3, 1.8), (1.3, 1.8), (None, None)),
]
ABOUT = """# Beside the rivals

{where}. Written by
`python -m benches table` from `{file}`, which has every figure, its spread and the versions. Same files, in turns
within one run; ratio: of medians (round by round, lowest to highest). Roof: the share of the read bandwidth (decode:
weights, state read and written, keys and values) or of the integer products (prefill) that were measured in the same
rounds. In the plot black marks are floors, green ones aims.

![ratios]({plot})

| | Lattice | rival | ratio | floor | aim | roof | |
|---|---|---|---|---|---|---|---|
"""


class Table:
    """What is asked for, and the lines that come of it."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.about = options, machine()

    def wanted(self, name: str) -> bool:
        only = self.options.only
        return not only or any(word.lower() in name.lower() for word in only)

    def keep(self, record: dict[str, Any]) -> None:
        """Print a cell and add it to the file."""
        record |= {key: self.about[key] for key in ("machine", "cores", "versions", "commit")}
        words = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
        record |= {"command": " ".join(["python -m benches table", *words]), "small": self.options.small}
        emit(**record)
        with self.options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    @contextlib.contextmanager
    def pair(self, kind: str, rival: str, model: Path, ours: dict, theirs: dict) -> Iterator[Pair | None]:
        """Give both workers, None where one of them cannot do what is asked for."""
        made: list[Worker] = []
        classes = {"lattice": f"benches.{kind}:Lattice", rival.partition(" ")[0]: f"benches.{kind}:{_class(rival)}"}
        try:
            for (name, engine), settings in zip(classes.items(), (ours, theirs), strict=True):
                made.append(Worker(name, engine, model=str(model.resolve()), threads=cores(), **settings))
        except SystemExit as error:
            say(f"{kind} {ours}: {error}")
            for worker in made:
                worker.close()
            yield None
        else:
            found = Pair(made[0], made[1], self.options.rounds, self.options.keep_all)
            found.theirs.name = rival
            yield found
            found.close()

    # ---- generators ------------------------------------------------------------------------------------------------
    def generators(self, option: str) -> None:
        """The cells of one GGUF, and of it beside one busy process, and with drafts."""
        name, plan = FULL[option]
        shown = {f"{name}, {_what(phase, prompt)}": (phase, prompt, *rest) for phase, prompt, *rest in plan}
        extra = {"q4": f"{name}, decode beside one busy process", "smollm2": f"{name}, with drafts"}.get(option, "")
        if not any(map(self.wanted, [*shown, *([extra] if extra else [])])):
            return
        most = max(prompt + steps for _, prompt, steps, *_ in plan) + 600
        settings = {"context": most}
        with self.pair(
            "generators", "llama.cpp", getattr(self.options, option), {"dtype": "auto"} | settings, settings
        ) as pair:
            if pair is None:
                return
            for label, (phase, prompt, steps, floor, aim) in shown.items():
                if self.wanted(label):
                    self.keep(self.generator(pair, label, phase, prompt, steps, floor=floor, aim=aim))
            if option == "q4" and self.wanted(extra):
                with _hog():
                    self.keep(self.generator(pair, extra, "decode", 16, 16, alone=False, floor=5.0, aim=20.0))
            if option == "smollm2" and self.wanted(extra):
                self.drafts(pair, extra)

    def generator(
        self, pair: Pair, label: str, phase: str, prompt: int, steps: int, alone: bool = True, **goal: Any
    ) -> dict[str, Any]:
        """One cell: speed of a phase, and its share of the roof: of bandwidth, or of integer products."""
        if self.options.small:
            prompt, steps = min(prompt, 32), min(steps, 4)
        tokens = [(7919 * place + 17) % 30000 for place in range(prompt)]
        found = pair.measure(alone=alone, tokens=tokens, steps=steps)
        work = prompt if phase == "prefill" else steps
        about = pair.ours.call("about", position=prompt + steps // 2)
        record = cell(label, "tokens/s", pair, found, lambda one: work / one[phase], phase=phase, **goal)
        roof = record["integer_peak" if phase == "prefill" else "bandwidth_gb_s"]["median"]
        if roof:
            speed = record["lattice"]["median"]
            record["roof"] = about["products" if phase == "prefill" else "bytes"] * speed / roof / 1e9
        return record | {"prompt": prompt, "generated": steps, **about}

    def drafts(self, pair: Pair, label: str) -> None:
        """Our drafts beside the rival's plain decoding, on prompts that ask for much of a given text again."""
        steps = 8 if self.options.small else 128
        texts = cases(self.options.text)["paragraphs"][3:6] if self.options.text else [_own_text()]
        for task, words in TASKS.items():
            totals, same, counts = [], True, [0, 0]
            for text in texts[: 1 if self.options.small else None]:
                tokens = pair.ours.call("chat", text=words.format(text[:1500]))
                plain = pair.ours.call("measure", tokens=tokens, steps=steps)
                found = pair.measure(tokens=tokens, steps=steps, ours={"draft": "auto"})
                same &= all(one["tokens"] == plain["tokens"] for one in found.ours)
                counts = [
                    a + sum(one[b] for one in found.ours) for a, b in zip(counts, ("drafted", "accepted"), strict=True)
                ]
                totals.append(found)
            whole = totals[0]
            for more in totals[1:]:
                for name, value in vars(more).items():
                    setattr(whole, name, getattr(whole, name) + value)
            record = cell(
                f"{label}, {task}", "tokens/s", pair, whole, lambda one: steps / one["decode"], floor=2.0, aim=3.0
            )
            self.keep(record | {"token_identical": same, "drafted": counts[0], "accepted": counts[1]})

    # ---- encoders --------------------------------------------------------------------------------------------------
    def encoders(self) -> None:
        """MiniLM in each dtype, on paragraphs, snippets and one snippet."""
        texts = cases(self.options.text)
        settings = {"onnxruntime int8": {"int8": True}, "openvino int8": {"text": self.options.text}}
        for dtype, rival, *goals in ENCODERS:
            labels = {f"MiniLM {dtype}, {case}": (case, *goal) for case, goal in zip(texts, goals, strict=True)}
            if dtype == "int8":
                labels = {f"{label}, {rival}": rest for label, rest in labels.items()}
            if not any(map(self.wanted, labels)):
                continue
            theirs = settings.get(rival, {})
            with self.pair("encoders", rival, self.options.minilm, {"dtype": dtype}, theirs) as pair:
                if pair is None:
                    continue
                cosine = self.cosine(pair.ours, texts["paragraphs"])
                for label, (case, floor, aim) in labels.items():
                    if self.wanted(label):
                        chosen = texts[case][: 4 if self.options.small else SLICE[case]]
                        repeats = 50 if len(chosen) == 1 and not self.options.small else 1
                        found = pair.measure(texts=chosen, repeats=repeats)
                        count = len(chosen)
                        speed = lambda one, count=count: count / float(np.median(one))  # noqa: E731
                        goal = {"floor": floor, "aim": aim, "cosine": cosine}
                        self.keep(cell(label, "texts/s", pair, found, speed, **goal))

    def cosine(self, worker: Worker, texts: list[str]) -> float:
        """The mean cosine of a worker's vectors with our own in f32."""
        exact = Worker(
            "f32", "benches.encoders:Lattice", model=str(self.options.minilm.resolve()), dtype="f32", threads=cores()
        )
        count = 8 if self.options.small else 64
        ours, theirs = (np.array(each.call("sample", texts=texts[:count])) for each in (worker, exact))
        exact.close()
        return float((ours * theirs).sum(1).mean())


def _class(rival: str) -> str:
    classes = {"llama.cpp": "LlamaCpp", "onnxruntime": "OnnxRuntime", "openvino": "OpenVino"}
    return classes[rival.partition(" ")[0]]


def _what(phase: str, prompt: int) -> str:
    return f"prefill {prompt}" if phase == "prefill" else f"decode at depth {prompt if prompt > 16 else 0}"


def _own_text() -> str:
    from lattice.quant.gate import bundled, paragraphs

    return paragraphs(bundled("evaluation"))[0]


@contextlib.contextmanager
def _hog() -> Iterator[None]:
    """Keep one core busy with a process that does nothing."""
    pin = "if sys.platform == 'linux': os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})"
    code = f"import os, sys\n{pin}\nwhile True: pass"
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        yield
    finally:
        process.kill()
        process.wait()


# ---- docs/benchmarks.md --------------------------------------------------------------------------------------------
def render(out: Path, markdown: Path) -> None:
    """Write the table and the plot from the last line of every cell."""
    records, held = {}, {}
    for line in out.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["kind"] == "memory":
            held[record["name"], record["depth"]] = record
        else:
            records[record["name"]] = record
    if not records:
        return
    last = list(records.values())[-1]
    plot = markdown.with_suffix(".svg")
    where = (
        f"{last['machine']}, {last['cores']} cores, as many threads each; {last['time']} UTC, commit {last['commit']}"
    )
    text = ABOUT.format(where=where, file=out.name, plot=plot.name)
    text += "\n".join(map(_row, records.values())) + "\n" + section(list(held.values()))
    markdown.write_text(text, encoding="utf-8")
    drawn = [
        (r["name"], r["ratio"], r["floor"], r["aim"] if (r["aim"] or 0) >= 1 else None)
        for r in records.values()
        if r["ratio"]
    ]
    plot.write_text(bars(drawn), encoding="utf-8")


def _row(record: dict[str, Any]) -> str:
    def number(value: float | None, digits: int = 1) -> str:
        return "" if value is None else f"{value:,.{digits}f}"

    ratio, between = record["ratio"], record["ratio_by_round"]
    aim, remarks = record["aim"], []
    goal = "" if aim is None else f"{100 * aim:.0f} % of the roof" if aim < 1 else number(aim, 2)
    if record["small"] or not record["dropped"]:
        remarks.append("not a measurement: smallest sizes or a busy machine")
    if "token_identical" in record:
        same = "the same tokens" if record["token_identical"] else "OTHER TOKENS"
        remarks.append(f"{same}, {record['accepted']} of {record['drafted']} drafts right")
    if "cosine" in record:
        remarks.append(f"cosine {record['cosine']:.6f}")
    cells = [
        record["name"], f"{number(record['lattice']['median'])} {record['unit']}",
        f"{record['rival']} {number(record['theirs']['median'])}",
        "none kept" if ratio is None else f"{ratio:.2f} ({between['low']:.2f} to {between['high']:.2f})",
        number(record["floor"], 2), goal,
        f"{100 * record['roof']:.0f} %" if "roof" in record else "",
        "; ".join(remarks),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def refuse_a_busy_machine(keep_all: bool) -> None:
    """End the program where other processes use the cores."""
    watch = Others()
    time.sleep(1)
    used = watch.cores()
    say("whether other processes use the cores is not known here" if used is None else f"others use {used:.2f} cores")
    if used is not None and used > ALLOWED and not keep_all:
        raise SystemExit(f"[benches] expected cores that nobody else uses, got {used:.2f} of them in use")


def main() -> None:
    parser = argparse.ArgumentParser(prog="benches table", description=__doc__)
    for option, (name, _) in FULL.items():
        parser.add_argument(f"--{option}", type=Path, help=f"a GGUF of {name}")
    parser.add_argument("--minilm", type=Path, help="a directory with all-MiniLM-L6-v2")
    parser.add_argument("--text", help="wikitext-2's wiki.test.raw: what encoders read and drafts summarise")
    parser.add_argument("--only", nargs="+", help="cells whose name contains one of these")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=DOCS / "benchmarks.jsonl")
    parser.add_argument("--markdown", type=Path, default=DOCS / "benchmarks.md")
    parser.add_argument(
        "--keep-all", action="store_true", help="measure on a busy machine, keep all rounds, and say so"
    )
    parser.add_argument("--small", action="store_true", help="the smallest sizes: to see that it runs, not to measure")
    parser.add_argument("--render", action="store_true", help="measure nothing: write the table from --out")
    options = parser.parse_args()
    if not options.render:
        heading()
        refuse_a_busy_machine(options.keep_all)
        table = Table(options)
        for option in FULL:
            if getattr(options, option) is not None:
                table.generators(option)
        if options.minilm is not None:
            if options.text is None:
                raise SystemExit("[benches] expected --text with --minilm, got none")
            table.encoders()
    if options.out.exists():
        render(options.out, options.markdown)
        say(f"{os.path.relpath(options.markdown)} written")


if __name__ == "__main__":
    main()
