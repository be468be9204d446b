"""Texts a second on the graphics card beside sentence-transformers on torch CUDA: all-MiniLM-L6-v2's shape.

    python -m benches gpu-encoders --rounds 5

Weights and tokenizer are made from a seed, so nothing is downloaded; both engines read the same files, and their
vectors must agree. Cases: paragraphs (about 170 tokens), snippets (17) and one snippet. Engines are warm, run the same
texts in turns, and tokenising is part of every result. The rival runs in float32, its default, and in float16, in
batches of 32, its default, and of 256. `--profile` adds the card's time by op, from its timestamps. Not a test.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from benches.gpu import by_op
from benches.report import emit, row, say
from lattice.backends.wgpu import WgpuBackend, open_device
from lattice.dtypes import F32, Array
from lattice.embed import Encoder
from lattice.embed.batching import batches
from lattice.models import family
from lattice.weights import save_safetensors
from lattice.weights.load import open_model

LAYERS, HIDDEN, HEADS, INTERMEDIATE, VOCAB, POSITIONS = 6, 384, 12, 1536, 30522, 512
LONGEST = 256  # tokens of a text, as all-MiniLM-L6-v2 has it
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = 6000  # of the vocabulary that only follow others
LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz"))
CASES = {"paragraphs": (2048, 150), "snippets": (4096, 13), "one snippet": (1, 13)}  # texts, words of each
AGREE = 0.999  # the least cosine of two engines' vectors of a text
Encode = Callable[[Sequence[str]], np.ndarray]


def vocabulary(rng: np.random.Generator) -> list[str]:
    """Return tokens: special ones, words, and pieces that follow others."""
    found = dict.fromkeys(SPECIAL)
    while len(found) < VOCAB - PIECES:
        found["".join(rng.choice(LETTERS, rng.integers(3, 9)))] = None
    while len(found) < VOCAB:
        found["##" + "".join(rng.choice(LETTERS, rng.integers(2, 5)))] = None
    return list(found)


def texts(tokens: list[str], count: int, words: int, rng: np.random.Generator) -> list[str]:
    """Return texts of about so many words; one word of nine has a second piece."""
    whole, pieces = tokens[len(SPECIAL) : VOCAB - PIECES], [piece[2:] for piece in tokens[VOCAB - PIECES :]]
    made = []
    for length in rng.integers(words * 2 // 3, words * 4 // 3 + 1, count):
        chosen = [whole[index] for index in rng.integers(0, len(whole), length)]
        longer = rng.integers(0, length, max(1, length // 9))
        for index, piece in zip(longer, rng.integers(0, PIECES, len(longer)), strict=True):
            chosen[index] += pieces[piece]
        made.append(" ".join(chosen) + ".")
    return made


def tensors(rng: np.random.Generator) -> dict[str, Array]:
    """Return a BERT's weights: matrices of a standard deviation that lets attention tell tokens apart."""
    widths = {"word": VOCAB, "position": POSITIONS, "token_type": 2}
    shapes: dict[str, tuple[int, ...]] = {f"embeddings.{n}_embeddings.weight": (w, HIDDEN) for n, w in widths.items()}
    norms, products = ["embeddings.LayerNorm"], {}
    for layer in (f"encoder.layer.{index}." for index in range(LAYERS)):
        products |= {f"{layer}attention.self.{name}": (HIDDEN, HIDDEN) for name in ("query", "key", "value")}
        products |= {
            f"{layer}attention.output.dense": (HIDDEN, HIDDEN),
            f"{layer}intermediate.dense": (INTERMEDIATE, HIDDEN),
            f"{layer}output.dense": (HIDDEN, INTERMEDIATE),
        }
        norms += [f"{layer}attention.output.LayerNorm", f"{layer}output.LayerNorm"]
    shapes |= {f"{name}.weight": shape for name, shape in products.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in products.items()}
    made = {name: 0.05 * rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    for name in norms:
        made[f"{name}.weight"] = 1 + 0.05 * rng.standard_normal(HIDDEN, np.float32)
        made[f"{name}.bias"] = 0.05 * rng.standard_normal(HIDDEN, np.float32)
    return {name: Array(values, F32, values.shape) for name, values in made.items()}


def write_tokenizer(path: Path, tokens: list[str]) -> None:
    """Write a WordPiece tokenizer as BERT's are."""
    made = Tokenizer(models.WordPiece({token: index for index, token in enumerate(tokens)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.add_special_tokens(SPECIAL)
    made.save(str(path))


def write_model(folder: Path, tokens: list[str], rng: np.random.Generator) -> None:
    """Write everything that both engines read."""
    save_safetensors(folder / "model.safetensors", tensors(rng), {"format": "pt"})
    write_tokenizer(folder / "tokenizer.json", tokens)
    config = {
        "model_type": "bert", "architectures": ["BertModel"], "vocab_size": VOCAB, "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "hidden_act": "gelu", "max_position_embeddings": POSITIONS, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    }  # fmt: skip
    special = {f"{name.strip('[]').lower()}_token": name for name in SPECIAL}
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    listed = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(kinds)
    ]
    written: dict[str, Any] = {
        "config.json": config,
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": LONGEST, **special
        },
        "sentence_bert_config.json": {"max_seq_length": LONGEST, "do_lower_case": False},
        "modules.json": listed,
        "1_Pooling/config.json": {"word_embedding_dimension": HIDDEN, "pooling_mode_mean_tokens": True},
        "2_Normalize/config.json": {},
    }  # fmt: skip
    for name, value in written.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(value), "utf-8")


def rivals(folder: Path) -> dict[str, Encode]:
    """Return sentence-transformers on torch CUDA; none, with the reason said, where a part of that is missing."""
    try:
        import torch
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        say(f"no rival: {error}; it needs torch with CUDA and sentence-transformers")
        return {}
    if not torch.cuda.is_available():
        say("no rival: this torch sees no CUDA device")
        return {}
    say(f"torch {torch.__version__}, {torch.cuda.get_device_name()}, TF32 {torch.backends.cuda.matmul.allow_tf32}")
    whole = SentenceTransformer(str(folder), device="cuda")
    half = SentenceTransformer(str(folder), device="cuda").half()
    options = {"normalize_embeddings": True, "show_progress_bar": False}
    return {
        f"torch {name}, {size} a batch": partial(model.encode, batch_size=size, **options)
        for name, model in (("f32", whole), ("f16", half))
        for size in (32, 256)
    }


def agreement(engines: dict[str, Encode], chosen: list[str]) -> None:
    """Stop unless every engine's vectors are those of the first: the same work is compared."""
    first = next(iter(engines.values()))(chosen)
    for name, encode in engines.items():
        lowest = float((np.asarray(encode(chosen), np.float32) * first).sum(-1).min())
        emit(kind="agreement", engine=name, lowest_cosine=lowest)
        say(f"{name:24} lowest cosine with Lattice {lowest:.7f}")
        if not lowest > AGREE:
            raise SystemExit("[benches.gpu_encoders] the engines do not compute the same thing")


def measure(engines: dict[str, Encode], chosen: list[str], rounds: int) -> dict[str, list[float]]:
    """Return the texts a second of each engine by round; their order turns from round to round."""
    repeats = 50 if len(chosen) == 1 else 1
    speeds: dict[str, list[float]] = {name: [] for name in engines}
    for encode in engines.values():
        encode(chosen)
    names = list(engines)
    for index in range(rounds):
        for name in names[index % len(names) :] + names[: index % len(names)]:
            seconds = []
            for _ in range(repeats):
                started = perf_counter()
                engines[name](chosen)
                seconds.append(perf_counter() - started)
            speeds[name].append(len(chosen) / statistics.median(seconds))
    return speeds


def main() -> None:
    parser = argparse.ArgumentParser(prog="benches gpu-encoders", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--texts", type=int, help="fewer than a case has")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--software", action="store_true", help="the software adapter, to see that it works")
    options = parser.parse_args()
    device = open_device(software=options.software)
    info = {key: device.info[key] for key in ("device", "description", "backend_type")}
    emit(kind="device", **info)
    say(f"{info['device']}, {info['description']}, {info['backend_type']}")
    rng = np.random.default_rng(0)
    tokens = vocabulary(rng)
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), tokens, rng)
        ours = Encoder(open_model(Path(folder), family), WgpuBackend(device), dtype=options.dtype)
        engines: dict[str, Encode] = {"Lattice": partial(ours.encode, show_progress=False), **rivals(Path(folder))}
    for case in options.cases:
        count, words = CASES[case]
        chosen = texts(tokens, min(count, options.texts or count), words, rng)
        mean = statistics.fmean(map(len, ours.tokenizer.encode_batch(chosen)))
        agreement(engines, chosen[:128])
        speeds = measure(engines, chosen, options.rounds)
        for name, values in speeds.items():
            row(f"{case}, {name}", values, "texts/s", f"{mean:.0f} tokens each")
            if name != "Lattice":
                ratios = [own / rival for own, rival in zip(speeds["Lattice"], values, strict=True)]
                row(f"{case}: Lattice / {name}", ratios, "x", "round by round", 2)
        if options.profile:
            tokenized = ours.tokenizer.encode_batch(chosen)
            full = next(batches(list(map(len, tokenized)), ours._backend.encoder_tokens))
            plan, packer = ours._plan("pooled", sum(len(tokenized[index]) for index in full))
            plan.run(packer.step([tokenized[index] for index in full]))
            found = by_op(plan.profile())
            say(f"{int(plan.counts[0])} tokens: " + ", ".join(f"{n} {c}: {t:.0f} us" for n, (c, t) in found.items()))


if __name__ == "__main__":
    main()
