"""`python -m benches NAME [options]`: run one of the benches; without a name, list them."""

from __future__ import annotations

import sys
from importlib import import_module

NAMES = {
    "embed": "texts a second beside ONNX Runtime and sentence-transformers",
    "decode": "prefill and decode tokens a second beside llama.cpp",
    "ppl": "perplexity beside llama.cpp's own figure",
    "prefix": "first token of a prompt whose beginning is known, beside a cold one",
    "speculate": "decoding with drafts beside the same answers without",
    "quality": "what quantising costs, beside llama.cpp's files of the same source",
    "random-model": "write a GGUF of Qwen3.5's geometry with random weights, for the others to run",
    "table": "every cell beside its rival, into docs/benchmarks.md",
    "scaling": "prefill and decode at contexts from 64 to 8192, beside llama.cpp",
    "gpu": "decode and prefill on the graphics card",
    "gpu-encoders": "texts a second on the graphics card beside sentence-transformers on torch CUDA",
    "agree": "logits of the graphics card beside the processor's",
    "memory": "most resident bytes beside llama.cpp",
    "start": "import, first token from process start, Python's share of a step",
}


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        listing = "\n".join(f"  {name:13} {what}" for name, what in NAMES.items())
        raise SystemExit(f"usage: python -m benches NAME [--help]\n{listing}")
    name = sys.argv.pop(1)
    import_module(f"benches.{name.replace('-', '_')}").main()


if __name__ == "__main__":
    main()
