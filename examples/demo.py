"""What Lattice is for, in a minute: compare sentences by meaning, then let a small model answer a question.

Runs on the processor alone. The first run downloads two models (92 MB and 98 MB) into ~/.cache/lattice.
"""

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

print("1. Meaning as numbers: all-MiniLM-L6-v2, 22 million weights (92 MB)\n")
encoder = lattice.load_encoder("minilm")
vectors = encoder.encode([QUERY, *SENTENCES])
scores = vectors[1:] @ vectors[0]  # the vectors have length 1, so products are cosines
print(f"   {len(vectors)} sentences became {encoder.dimensions} numbers each.\n   How close is each to: {QUERY}\n")
for score, sentence in sorted(zip(scores, SENTENCES, strict=True), reverse=True):
    print(f"   {score:6.3f}  {'█' * max(0, round(20 * score)):14}  {sentence}")

print("\n2. Text: SmolLM2-135M-Instruct, 135 million weights in 4 bits (98 MB)\n")
model = lattice.load("smollm2-135m")
print(f"   > {QUESTION}\n   ", end="")
answer = model.stream([{"role": "user", "content": QUESTION}], max_tokens=120, temperature=0)
for chunk in answer:
    print(chunk.text.replace("\n", "\n   "), end="", flush=True)
timings = answer.timings
speed = timings.decode_steps / timings.decode_seconds
first = 1000 * timings.prefill_seconds
print(f"\n\n   {len(answer.tokens)} tokens, {speed:.0f} tokens/s, the first after {first:.0f} ms")
print("\nMore: lattice chat, lattice embed, lattice --help, and the files beside this one.")
