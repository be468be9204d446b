"""Perplexity of one GGUF on one text, Lattice beside llama.cpp, by the rule of llama.cpp's perplexity tool.

One tokenisation of the whole text, windows of --context tokens (the first is BOS where the tokenizer adds one),
each from an empty cache; tokens context/2 + 1 .. context - 1 of each are scored. SmolLM2-135M-Instruct Q4_1 on
wikitext-2's test text, context 512, 40 windows: 19.03. Not a test.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from benches.report import cores, emit, heading, say
from benches.workers import Worker

ENGINES = {"llama.cpp": "benches.generators:LlamaCpp", "lattice": "benches.generators:Lattice"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="benches ppl", description=__doc__)
    parser.add_argument("--model", required=True, help="a .gguf")
    parser.add_argument("--text", required=True)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=40)
    parser.add_argument("--dtype", nargs="+", default=["auto"], help="Lattice's dtypes, one after another")
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--threads", type=int, default=cores(), help="llama.cpp's; fewer where others compute")
    options = parser.parse_args()
    heading()
    model = str(Path(options.model).resolve())
    text = Path(options.text).read_text(encoding="utf-8")
    runs = [(name, dtype) for name in options.engines for dtype in (options.dtype if name == "lattice" else [""])]
    for name, dtype in runs:
        extra = {"dtype": dtype} if dtype else {}
        worker = Worker(name, ENGINES[name], model=model, threads=options.threads, **extra)
        started = time.perf_counter()
        found = worker.call("perplexity", text=text, context=options.context, chunks=options.chunks)
        seconds = time.perf_counter() - started
        worker.close()
        emit(
            kind="perplexity",
            engine=name,
            dtype=dtype or "file",
            context=options.context,
            seconds=seconds,
            **found,
        )
        say(f"{name:10} {dtype:6} perplexity {found['perplexity']:.4f}   {seconds:.0f} s")


if __name__ == "__main__":
    main()
