"""What rounding costs: KLD, perplexity and agreement of quantised models beside llama.cpp's files of the same source.

    python -m benches quality tiny DIRECTORY --text valid.txt      a really trained hybrid model in bf16
    python -m benches quality smol SOURCE --text wikitext2.txt     SmolLM2's 4-bit file, taken off its grid
    python -m benches quality embed SOURCE --text wikitext2.txt    cosines of an encoder over 512 paragraphs

The 4-bit file is dequantised and its residual stream turned by one random orthogonal matrix, norms folded: the same
function, whose weights lie on no grid. llama.cpp's files come from llama_model_quantize of an f16 GGUF of the same
weights, and are read and run by Lattice, so that both sides have the same arithmetic. Calibration reads the last third
of the text or another one, the measurement the first two. Bits are the tensors' bytes * 8 / parameters.
Not a test.
"""

from __future__ import annotations

import argparse
import ctypes
import logging
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benches.embed import cases
from benches.report import emit, heading, say
from lattice.backends.select import select
from lattice.dtypes import BY_NAME, F16, F32, Array, dense, encode
from lattice.embed.encoder import Encoder
from lattice.generate.model import LanguageModel
from lattice.models import family
from lattice.quant.rotate import rotate
from lattice.quant.rounding import compensated, nearest
from lattice.quant.walk import Product, walk
from lattice.weights.gguf_write import write_gguf
from lattice.weights.load import OpenModel, open_model
from lattice.weights.sources import resolve

WINDOW = 512
Rules = tuple[tuple[str, str], ...]  # patterns of parameter names and dtypes; the first that fits holds

# What is dear: the head, values, and what the feed-forward layers give back to the residual stream. A table that is
# only looked up ("table:") is less so. Encoders pool what values and feed-forward layers make over all tokens.
HEADS: Rules = (("table:*", "q5_k"), ("*embed_tokens*", "q6_k"), ("lm_head*", "q6_k"), ("*word_embeddings*", "q5_k"))
VALUES, DOWN = ("*v_proj*", "*.self.value*"), ("*down_proj*", "*[0-9].output.dense*")
RECIPES: dict[str, Rules] = {
    "q8": (*((name, "f16") for name in (*VALUES, "*.intermediate.dense*")), ("*", "q8_0")),
    "q4": (*HEADS, *((name, "q6_k") for name in VALUES), *((name, "q5_k") for name in DOWN), ("*", "q4_k")),
    "q8_0": (("*", "q8_0"),),
    "q4_0": (("*", "q4_0"),),
    "q4_1": (("*", "q4_1"),),
    "q4_k": (("*", "q4_k"),),
    "mixed q4_0": (*HEADS, *((name, "q5_0") for name in (*VALUES, *DOWN)), ("*", "q4_0")),
    "mixed q4_1": (*HEADS, *((name, "q5_1") for name in (*VALUES, *DOWN)), ("*", "q4_1")),
}
PLAIN = {"q4_k": "q4_1", "q5_k": "q5_1", "q6_k": "q8_0"}  # where rows are no multiple of 256
RIVALS = {"Q4_0": 2, "Q4_K_M": 15}


class Given(Mapping[str, Array]):
    """Weights in memory, as an engine takes them."""

    def __init__(self, arrays: Mapping[str, Array]):
        self.arrays = arrays

    def __getitem__(self, name: str) -> Array:
        return self.arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    def cast(self, *_: object, **__: object) -> Given:
        """Return the same."""
        return self


def with_weights(opened: OpenModel, arrays: Mapping[str, Array]) -> OpenModel:
    """Return the model with other weights."""
    weights: Any = Given(arrays)
    return replace(opened, weights=weights)


def runner(opened: OpenModel) -> LanguageModel:
    """Return the model, loaded as its weights are, keys and values in f32."""
    return LanguageModel(opened, select("auto"), dtype="f32", kv="f32", draft=None, context=WINDOW)


def wanted(name: str, shape: tuple[int, ...], rules: Rules) -> str:
    """Return the dtype that rules give a parameter."""
    if len(shape) < 2 or "conv1d" in name:
        return "f32"
    dtype = next(dtype for pattern, dtype in rules if fnmatch(name, pattern))
    dtype = PLAIN.get(dtype, dtype) if shape[-1] % 256 else dtype
    return "f16" if shape[-1] % 32 else dtype


def rounded(opened: OpenModel, rules: Rules, method: str, tokens: list[list[int]]) -> dict[str, Array]:
    """Return all parameters by rules; method "plain" (the formats' own), "nearest", "weighted" or "compensated"."""
    shapes = {name: parameter.shape for name, parameter in opened.model.parameters().items()}
    untied = "lm_head.weight" in shapes
    roles = {name: f"table:{name}" if untied and "embed_tokens" in name else name for name in shapes}
    kinds = {name: BY_NAME[wanted(roles[name], shape, rules)] for name, shape in shapes.items()}
    made: dict[str, Array] = {}

    def visit(product: Product) -> Array:
        kind, values = kinds[product.name], dense(product.values)
        if product.kind == "linear" and kind.block > 1:
            moments, _ = product.moments()
            call = compensated if method == "compensated" else lambda v, k, h: nearest(v, k, h.diagonal())
            made[product.name] = call(values, kind, moments)
        else:
            made[product.name] = nearest(values, kind)
        return made[product.name]

    if method in ("weighted", "compensated"):
        walk(opened.model, opened.weights, tokens, visit)
    call = nearest if method == "nearest" else encode
    return {name: made.get(name) or call(dense(opened.weights[name]), kind) for name, kind in kinds.items()}


# ---- measures ------------------------------------------------------------------------------------------------------
def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return log-probabilities, float64."""
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def divergence(source: list[np.ndarray], model: LanguageModel, windows: list[list[int]]) -> dict[str, Any]:
    """Return perplexity, mean and 99.9 % KLD and agreement with the source's log-probabilities (`predictions`)."""
    klds, losses, agreed = [], [], []
    for p, window in zip(source, windows, strict=True):
        q = predictions(model, window)
        klds.append((np.exp(p, dtype=np.float64) * (p - q)).sum(1))
        agreed.append(p.argmax(1) == q.argmax(1))
        losses.append(-np.take_along_axis(q, np.asarray(window[len(window) // 2 + 1 :])[:, None], 1)[:, 0])
    kld, loss = np.concatenate(klds), np.concatenate(losses)
    return {
        "perplexity": float(np.exp(loss.mean())), "kld": float(kld.mean()),
        "error": float(kld.std() / np.sqrt(len(kld))), "tail": float(np.quantile(kld, 0.999)),
        "agreement": float(np.concatenate(agreed).mean()), "tokens": len(kld),
    }  # fmt: skip


def predictions(model: LanguageModel, window: list[int]) -> np.ndarray:
    """Return log-probabilities of a window's second half, float64."""
    return log_softmax(model.logits(window)[len(window) // 2 : -1])


def bits(arrays: Mapping[str, Array]) -> float:
    """Return bits a parameter, as written."""
    return 8 * sum(array.nbytes for array in arrays.values()) / sum(array.size for array in arrays.values())


# ---- llama.cpp ----------------------------------------------------------------------------------------------------
def export(opened: OpenModel, path: Path) -> None:
    """Write a model as an f16 GGUF, for llama.cpp to quantise."""
    names = opened.family.GGUF(opened.config) if callable(opened.family.GGUF) else opened.family.GGUF
    tensors = {}
    for ours in opened.model.parameters():
        values = dense(opened.weights[ours])
        layer = re.search(r"\.(\d+)\.", ours)
        entry = names[ours if layer is None else ours.replace(layer[0], ".{}.", 1)]
        theirs, order = (entry[0], entry[1]) if isinstance(entry, tuple) else (entry, None)
        if order is not None:
            values = values[np.argsort(order(opened.config))]
        if ours.endswith("A_log"):
            values = -np.exp(values)
        matrix = values.ndim > 1 and "conv1d" not in ours
        tensors[theirs.format(layer and layer[1])] = encode(values, F16 if matrix else F32)
    write_gguf(path, _metadata(opened), tensors)


def _metadata(opened: OpenModel) -> dict[str, Any]:
    c = opened.config
    name = "qwen35" if hasattr(c, "linear_num_key_heads") else "llama"
    common = {
        "block_count": c.num_hidden_layers, "context_length": c.max_position_embeddings,
        "embedding_length": c.hidden_size, "feed_forward_length": c.intermediate_size,
        "attention.head_count": c.num_attention_heads, "attention.head_count_kv": c.num_key_value_heads,
        "attention.key_length": c.head_dim, "attention.value_length": c.head_dim,
        "attention.layer_norm_rms_epsilon": c.rms_norm_eps, "rope.dimension_count": c.head_dim,
        "rope.freq_base": float((c.rope_parameters or {}).get("rope_theta", c.rope_theta)),
    }  # fmt: skip
    if name == "qwen35":
        inner = c.linear_num_value_heads * c.linear_value_head_dim
        common |= {
            "rope.dimension_count": int(c.head_dim * c.partial_rotary_factor),
            "rope.dimension_sections": [11, 11, 10, 0], "ssm.conv_kernel": c.linear_conv_kernel_dim,
            "ssm.state_size": c.linear_key_head_dim, "ssm.group_count": c.linear_num_key_heads,
            "ssm.time_step_rank": c.linear_num_value_heads, "ssm.inner_size": inner,
            "full_attention_interval": c.full_attention_interval,
        }  # fmt: skip
    return {
        "general.architecture": name, "general.file_type": 1, **{f"{name}.{key}": v for key, v in common.items()},
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": [f"t{number}" for number in range(c.vocab_size)],
        "tokenizer.ggml.token_type": [1] * c.vocab_size, "tokenizer.ggml.merges": ["t 0"],
    }  # fmt: skip


def rival(source: Path, kind: str) -> OpenModel:
    """Return the model that llama.cpp makes of an f16 GGUF."""
    import llama_cpp

    logging.getLogger("llama-cpp-python").setLevel(logging.CRITICAL + 1)
    made = source.with_suffix(f".{kind}.gguf")
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = RIVALS[kind], 1
    if llama_cpp.llama_model_quantize(str(source).encode(), str(made).encode(), ctypes.byref(parameters)):
        raise SystemExit(f"llama.cpp could not make {kind}")
    return open_model(made, family)


# ---- sources -------------------------------------------------------------------------------------------------------
def off_grid(opened: OpenModel, seed: int = 0) -> OpenModel:
    """Return the same function with the residual stream turned by a random orthogonal matrix, weights in f16."""
    width = opened.config.hidden_size
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((width, width)))
    matrix = q * np.sign(r.diagonal())
    turned = rotate(opened, lambda values: values @ matrix)
    return with_weights(turned, {
        name: encode(dense(turned.weights[name]), F16 if len(shape.shape) > 1 else F32)
        for name, shape in turned.model.parameters().items()
    })  # fmt: skip


def trunk(opened: OpenModel) -> OpenModel:
    """Return the model without its draft head, whose quality no logits show."""
    if getattr(opened.model, "mtp", None) is not None:
        opened.model.mtp = None
    return opened


def read(path: str) -> str:
    """Return a text file."""
    return Path(path).read_text(encoding="utf-8")


def generators(options: argparse.Namespace) -> None:
    opened = trunk(open_model(resolve(options.source), family))
    tokenizer = LanguageModel(opened, select("auto"), draft=None).tokenizer
    source_tokens = tokenizer.encode(read(options.text), parse_special=options.kind == "tiny")
    cut = len(source_tokens) * 2 // 3
    windows = [source_tokens[i * WINDOW : (i + 1) * WINDOW] for i in range(min(options.windows, cut // WINDOW))]
    calibration = source_tokens[cut:] if options.calibration is None else tokenizer.encode(read(options.calibration))
    length = 256
    step = max(length, (len(calibration) - length) // options.sequences)
    tokens = [calibration[i : i + length] for i in range(0, len(calibration) - length, step)][: options.sequences]
    if options.kind == "smol":
        opened = off_grid(opened)
    base = [predictions(source, window) for source in (runner(opened),) for window in windows]
    with tempfile.TemporaryDirectory() as directory:
        if options.rivals:
            export(opened, Path(directory) / "source.gguf")
            for kind in RIVALS:
                theirs = rival(Path(directory) / "source.gguf", kind)
                arrays = {name: theirs.weights[name] for name in theirs.model.parameters()}
                report(f"llama.cpp {kind}", arrays, base, with_weights(theirs, arrays), windows)
    turned = rotate(opened)
    for name in options.recipes or RECIPES:
        for method in options.methods:
            for prefix, model in (("", opened), ("turned ", turned)):
                if prefix and not options.turned:
                    continue
                started = perf_counter()
                arrays = rounded(model, RECIPES[name], method, tokens)
                note = f"{perf_counter() - started:.0f} s"
                report(f"{prefix}{name} {method}", arrays, base, with_weights(model, arrays), windows, note)


def report(
    name: str, arrays: Mapping[str, Array], base: list[np.ndarray], model: OpenModel, windows: list, note: str = ""
) -> None:
    """Measure one model and print it."""
    found = divergence(base, runner(model), windows)
    size = bits(arrays)
    emit(kind="quality", name=name, bits=size, **found)
    say(
        f"{name:32} {size:6.3f} bits  ppl {found['perplexity']:8.4f}  KLD {found['kld']:.5f} +- {found['error']:.5f}  "
        f"99.9 % {found['tail']:.4f}  top-1 {100 * found['agreement']:.2f} %  {note}"
    )


def encoders(options: argparse.Namespace) -> None:
    opened = open_model(resolve(options.source), family)
    base = Encoder(opened, select("auto"), dtype="f32")
    paragraphs = cases(options.text)["paragraphs"]
    texts = paragraphs[:: options.every]
    lines = read(options.text).split("\n")
    others = [line for line in lines if len(line) > 100 and line.strip() not in set(paragraphs)]
    others = others[:: max(1, len(others) // options.sequences)][: options.sequences]
    tokens = [ids[:256] for ids in base.tokenizer.encode_batch(others)]
    source = base.encode(texts, show_progress=False).astype(np.float64)
    for name in options.recipes or RECIPES:
        for method in options.methods:
            arrays = rounded(opened, RECIPES[name], method, tokens)
            model = Encoder(with_weights(opened, arrays), select("auto"), dtype="f32")
            cosines = (model.encode(texts, show_progress=False) * source).sum(1)
            least, mean = float(cosines.min()), float(cosines.mean())
            emit(kind="quality", name=f"{name} {method}", bits=bits(arrays), cosine=mean, least=least)
            say(f"{name + ' ' + method:32} {bits(arrays):6.3f} bits  cosine {mean:.6f}, least {least:.6f}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="benches quality", description=__doc__)
    parser.add_argument("kind", choices=("tiny", "smol", "embed"))
    parser.add_argument("source", help="a directory, file or alias")
    parser.add_argument("--text", required=True)
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--every", type=int, default=1, help="n-th paragraph of an encoder's 512")
    parser.add_argument("--sequences", type=int, default=32, help="of 256 tokens, for calibration")
    parser.add_argument("--calibration", help="a text to calibrate with instead")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES)
    parser.add_argument("--methods", nargs="+", default=["plain", "nearest", "weighted", "compensated"])
    parser.add_argument("--rivals", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--turned", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    heading()
    calls: dict[str, Callable[[argparse.Namespace], None]] = {"embed": encoders}
    calls.get(options.kind, generators)(options)


if __name__ == "__main__":
    main()
