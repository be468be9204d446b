"""Write `sentences.txt`, `sentences.npz` and `sentences_smollm2.npz`: what foreign engines make of 200 real lines.

Not a test and never run by `make test`: the results are committed. To regenerate them:

    pip install torch sentence-transformers llama-cpp-python
    python tests/golden/make_sentences.py MINILM_DIRECTORY wiki.test.txt [SMOLLM2.gguf]

sentences.txt           200 lines of wikitext-2's test text, one a line, stripped (see README.md for its licence)
sentences.npz           all-MiniLM-L6-v2 through sentence-transformers, float32, each line alone:
    vectors             (200, 384) float32, normalised
    tokens, offsets     line i's ids, as sentence-transformers cuts them to 256 with [CLS] and [SEP], are
                        tokens[offsets[i]:offsets[i + 1]]
    lengths             (200,) ids before the cut
    sha256              (200,) of each line's UTF-8 bytes
sentences_smollm2.npz   informational: SmolLM2-135M-Instruct (Q4_1) through llama.cpp, which rounds activations to
                        8 bits, so logits differ in the second or third digit and a close race may go the other way:
    prompt_i            ids of a prompt, no template
    greedy_i            the 16 ids of greedy decoding
    margin_i            (16,) the lead of each over the second, in logits
    top_i, top_logits_i (32,) the best ids after the prompt, best first, and their logits
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
LINES, LONG, SHORT, CUT = 200, 24, 60, 256
PROMPTS = (
    "The capital of France is",
    "Once upon a time there was a",
    "def fibonacci(n):\n",
    "1, 2, 3, 4, 5,",
    "Water boils at a temperature of",
    "<|im_start|>user\nName three colours.<|im_end|>\n<|im_start|>assistant\n",
)


def choose(lines: list[str], lengths: list[int]) -> list[int]:
    """Indices of 24 lines that are cut, 60 shorter than 40 tokens and the rest between, evenly spread over the text."""
    groups = ([], [], [])
    for index, length in enumerate(lengths):
        groups[0 if length > CUT else 1 if length < 40 else 2].append(index)
    wanted = (LONG, SHORT, LINES - LONG - SHORT)
    chosen = [
        group[step * len(group) // count] for group, count in zip(groups, wanted, strict=True) for step in range(count)
    ]
    return sorted(chosen, key=lambda index: lines[index].encode()[::-1])  # no order of length or place


def sentences(directory: str, text: str) -> None:
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(1)
    model = SentenceTransformer(directory, device="cpu")
    if model.max_seq_length != CUT:
        raise SystemExit(f"expected max_seq_length {CUT}, got {model.max_seq_length}")
    lines = sorted({line.strip() for line in Path(text).read_text(encoding="utf-8").split("\n")} - {""})
    plain = model.tokenizer.backend_tokenizer
    plain.no_truncation()
    plain.no_padding()
    counts = [len(encoding.ids) for encoding in plain.encode_batch(lines)]
    chosen = choose(lines, counts)
    texts = [lines[index] for index in chosen]
    ids, vectors = [], []
    for line in texts:
        features = model.preprocess([line])
        ids.append(features["input_ids"][0].numpy().astype(np.int32))
        vectors.append(model.encode(line, normalize_embeddings=True, show_progress_bar=False))
    (HERE / "sentences.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    np.savez_compressed(
        HERE / "sentences.npz",
        vectors=np.array(vectors, np.float32),
        tokens=np.concatenate(ids).astype(np.uint16),
        offsets=np.cumsum([0, *map(len, ids)]).astype(np.int32),
        lengths=np.array([counts[index] for index in chosen], np.int32),
        sha256=np.array([hashlib.sha256(line.encode()).hexdigest() for line in texts]),
    )
    print(
        f"{len(texts)} lines, {sum(counts[index] > CUT for index in chosen)} cut, "
        f"shortest {min(map(len, ids))} tokens, {sum(map(len, ids))} in all"
    )


def smollm2(path: str) -> None:
    from llama_cpp import Llama

    model = Llama(path, n_ctx=256, n_threads=1, n_threads_batch=1, logits_all=False, verbose=False)
    values = {}
    for index, prompt in enumerate(PROMPTS):
        tokens = model.tokenize(prompt.encode(), add_bos=False, special=True)
        model.reset()
        model.eval(tokens)
        greedy, margins = [], []
        for step in range(16):
            logits = np.ctypeslib.as_array(model._ctx.get_logits_ith(-1), shape=(model.n_vocab(),)).copy()
            if step == 0:
                best = np.argsort(-logits, kind="stable")[:32].astype(np.int32)
                values |= {f"top_{index}": best, f"top_logits_{index}": logits[best]}
            first, second = np.sort(logits)[:-3:-1]
            greedy.append(int(logits.argmax()))
            margins.append(first - second)
            model.eval([greedy[-1]])
        values |= {
            f"prompt_{index}": np.array(tokens, np.int32),
            f"greedy_{index}": np.array(greedy, np.int32),
            f"margin_{index}": np.array(margins, np.float32),
        }
        print(
            repr(prompt),
            "->",
            repr(model.detokenize(greedy).decode(errors="replace")),
            f"margin {min(margins):.3f}",
        )
    np.savez_compressed(HERE / "sentences_smollm2.npz", **values)


def main(arguments: list[str]) -> None:
    if len(arguments) not in (2, 3):
        raise SystemExit("usage: make_sentences.py MINILM_DIRECTORY WIKITEXT [SMOLLM2.gguf]")
    sentences(*arguments[:2])
    if len(arguments) == 3:
        smollm2(arguments[2])


if __name__ == "__main__":
    main(sys.argv[1:])
