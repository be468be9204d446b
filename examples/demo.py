"""What Lattice is for, in a minute: compare sentences by meaning, then let a small model answer a question.

Runs on the processor alone. The first run downloads two models (92 MB and 98 MB) into ~/.cache/lattice.
"""

from time import perf_counter

import lattice

QUERY = "How can I sleep better?"
SENTENCES = [
    "A dark, quiet room and a fixed bedtime help most people rest.",
    "Avoid coffee and bright screens in the evening.",
    "My phone's battery lasts longer in airplane mode.",
    "The night train to Vienna has sleeping cars.",
    "Interest rates rose again in the spring.",
]
QUESTION = "Give me one short tip for sleeping better."


def compare() -> None:
    print("1. Meaning as numbers: all-MiniLM-L6-v2, 22 million weights (92 MB)\n")
    start = perf_counter()
    encoder = lattice.load_encoder("minilm")
    print(f"   loaded in {perf_counter() - start:.1f} s")
    start = perf_counter()
    vectors = encoder.encode([QUERY, *SENTENCES])
    milliseconds = 1000 * (perf_counter() - start)
    print(f"   {len(vectors)} sentences became {encoder.dimensions} numbers each in {milliseconds:.0f} ms\n")
    scores = vectors[1:] @ vectors[0]  # the vectors have length 1, so products are cosines
    print(f"   How close is each sentence to: {QUERY}\n")
    for score, sentence in sorted(zip(scores, SENTENCES, strict=True), reverse=True):
        print(f"   {score:6.3f}  {'█' * max(0, round(20 * score)):14}  {sentence}")


def chat() -> None:
    print("\n2. Text: SmolLM2-135M-Instruct, 135 million weights in 4 bits (98 MB)\n")
    start = perf_counter()
    model = lattice.load("smollm2-135m")
    print(f"   loaded in {perf_counter() - start:.1f} s\n\n   > {QUESTION}\n   ", end="")
    answer = model.stream([{"role": "user", "content": QUESTION}], max_tokens=120, temperature=0)
    for chunk in answer:
        print(chunk.text.replace("\n", "\n   "), end="", flush=True)
    timings = answer.timings
    speed = timings.decode_steps / timings.decode_seconds
    print(f"\n\n   {len(answer.tokens)} tokens, {speed:.0f} tokens/s", end="")
    print(f", the first after {1000 * timings.prefill_seconds:.0f} ms")
    print("\nMore: lattice chat, lattice embed, lattice --help, and the files beside this one.")


if __name__ == "__main__":
    compare()
    chat()
