"""Write the random tiny checkpoints of `tests/golden/models` with the outputs that transformers computes.

Not a test and never run by `make test`: the results are committed. To regenerate all of them:

    pip install torch transformers safetensors gguf
    python tests/golden/make_models.py                     # or: make_models.py NAME [NAME ...]

Each directory is what a user would have on disk (config.json and weights, or one .gguf) plus `golden.npz`:

    tokens_i    (length,) int32             the i-th sequence, run alone from position 0
    rows_i      (n,) int32                  where not every position's result is kept: which are
    hidden_i    (length, hidden) float32    BERT: the last hidden state
    logits_i    (length, vocab) float32     decoders: the logits of every position

Weights are drawn wide enough that attention is far from uniform and every bias and norm matters. What is
expected is computed in float32 from the weights as the file holds them (rounded to fp16, bf16 or blocks).
`manifest.json` says what each checkpoint is there for.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import transformers
from make_gguf import write_bert, write_llama
from safetensors.torch import load_file, save_file
from transformers import (
    BertForMaskedLM,
    BertForPreTraining,
    BertModel,
    LlamaForCausalLM,
)

ROOT = Path(__file__).parent / "models"
SHORT = (1, 6, 65)  # lengths of the sequences
LONG = (1, 2, 17, 64, 130)
BERT = dict(
    vocab_size=70,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=72,
    type_vocab_size=2,
)
LLAMA = dict(
    vocab_size=70,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=40,
    max_position_embeddings=256,
    tie_word_embeddings=False,
)
BERT_ONE = BERT | dict(num_hidden_layers=1)
LLAMA_ONE = LLAMA | dict(num_hidden_layers=1, tie_word_embeddings=True)
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=10000.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)


@dataclass(frozen=True)
class Case:
    """One directory: what it is for, the config values, how the model is saved."""

    name: str
    why: str
    values: dict = field(default_factory=dict)
    lengths: tuple[int, ...] = SHORT
    dtype: torch.dtype = torch.float32
    shard: str | None = None  # save_pretrained's max_shard_size
    model: type = LlamaForCausalLM
    rewrite: Callable[[Path], None] | None = None  # last change to the saved files
    gguf: str | None = None  # weight format of the one .gguf, instead of safetensors
    write: Callable | None = None  # what writes it
    draw: Callable[[torch.nn.Module], None] | None = None  # last change to the weights drawn
    rows: tuple[int, ...] | None = None  # positions whose results are kept, beside the last; None: all


def edit_config(directory: Path, drop: tuple[str, ...] = (), **values) -> None:
    path = directory / "config.json"
    config = {key: value for key, value in json.loads(path.read_text()).items() if key not in drop}
    path.write_text(json.dumps(config | values, indent=2, sort_keys=True) + "\n")


def old_names(directory: Path) -> None:
    """BERT as checkpoints of 2019 to 2022 hold it: gamma, beta, a buffer of position ids, old config keys."""
    path = directory / "model.safetensors"
    tensors = {
        name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): value
        for name, value in load_file(path).items()
    }
    prefix = "bert." if any(name.startswith("bert.") for name in tensors) else ""
    count = tensors[prefix + "embeddings.position_embeddings.weight"].shape[0]
    tensors[prefix + "embeddings.position_ids"] = torch.arange(count).unsqueeze(0)
    save_file(tensors, path, metadata={"format": "pt"})
    edit_config(
        directory,
        drop=("dtype",),
        position_embedding_type="absolute",
        torch_dtype="float32",
        gradient_checkpointing=False,
        transformers_version="4.8.2",
    )


def old_rope(scaling: dict | None, theta: float) -> Callable[[Path], None]:
    """config.json as transformers 4 wrote it: rope_theta and rope_scaling beside each other, torch_dtype."""

    def rewrite(directory: Path) -> None:
        edit_config(
            directory,
            drop=("rope_parameters", "dtype"),
            rope_theta=theta,
            rope_scaling=scaling,
            torch_dtype="float32",
            transformers_version="4.45.0",
        )

    return rewrite


def bare_names(directory: Path) -> None:
    """A checkpoint of the trunk alone: no `model.` prefix, no head (the embedding is tied)."""
    path = directory / "model.safetensors"
    tensors = {name.removeprefix("model."): value for name, value in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    edit_config(directory, architectures=["LlamaModel"])


def without_theta(values: dict) -> dict:
    return {key: value for key, value in values.items() if key != "rope_theta"}


CASES = (
    Case(
        "bert-gelu",
        "the plain encoder, up to 130 tokens",
        BERT | dict(max_position_embeddings=136),
        LONG,
        model=BertModel,
    ),
    Case(
        "bert-heads12",
        "12 heads of 3: an odd head_dim; hidden 36, vocab 67",
        BERT | dict(hidden_size=36, num_attention_heads=12, intermediate_size=52, vocab_size=67),
        model=BertModel,
    ),
    Case("bert-type1", "one token type", BERT_ONE | dict(type_vocab_size=1), model=BertModel),
    Case(
        "bert-gelu-new",
        "tanh gelu; layer_norm_eps 1e-5",
        BERT_ONE | dict(hidden_act="gelu_new", layer_norm_eps=1e-5),
        model=BertModel,
    ),
    Case(
        "bert-relu",
        "relu; hidden 40, 5 heads of 8, intermediate 60",
        BERT_ONE | dict(hidden_act="relu", hidden_size=40, num_attention_heads=5, intermediate_size=60),
        model=BertModel,
    ),
    Case(
        "bert-short-table",
        "a position table of 40: a sequence of exactly 40; a longer one must be refused",
        BERT_ONE | dict(max_position_embeddings=40),
        (1, 7, 40),
        model=BertModel,
    ),
    Case(
        "bert-eps",
        "tiny embeddings, so that layer_norm_eps 0.1 matters",
        BERT_ONE | dict(layer_norm_eps=0.1),
        model=BertModel,
    ),
    Case("bert-prefix", "bert. prefix, masked-LM head, no pooler", BERT, model=BertForMaskedLM),
    Case(
        "bert-old-names",
        "bert. prefix, gamma, beta, position_ids, pooler and both heads, old config keys",
        BERT,
        model=BertForPreTraining,
        rewrite=old_names,
    ),
    Case("bert-fp16", "weights in fp16", BERT, model=BertModel, dtype=torch.float16),
    Case("bert-bf16", "weights in bf16", BERT, model=BertModel, dtype=torch.bfloat16),
    Case("bert-sharded", "three files and an index", BERT, model=BertModel, shard="34KB"),
    Case("llama-untied", "an untied head, 4 q and 2 kv heads, up to 130 tokens", LLAMA, LONG),
    Case("llama-tied", "the embedding is the head", LLAMA | dict(tie_word_embeddings=True)),
    Case(
        "llama-bare",
        "no model. prefix, no head tensor, tied",
        LLAMA | dict(tie_word_embeddings=True),
        rewrite=bare_names,
    ),
    Case("llama-biases", "attention_bias and mlp_bias", LLAMA | dict(attention_bias=True, mlp_bias=True)),
    Case(
        "llama-9q3kv",
        "9 q and 3 kv heads of 4 (SmolLM2's counts), hidden 36, tied",
        LLAMA
        | dict(
            hidden_size=36,
            num_attention_heads=9,
            num_key_value_heads=3,
            tie_word_embeddings=True,
            rope_parameters=dict(rope_type="default", rope_theta=100000.0),
        ),
    ),
    Case(
        "llama-3q1kv",
        "3 q heads share one kv head; hidden 42, head_dim 14, vocab 101",
        LLAMA_ONE | dict(hidden_size=42, num_attention_heads=3, num_key_value_heads=1, vocab_size=101),
    ),
    Case(
        "llama-5mha",
        "5 heads, none shared; hidden 40; gelu; rms_norm_eps 1e-2",
        LLAMA_ONE
        | dict(hidden_size=40, num_attention_heads=5, num_key_value_heads=5, hidden_act="gelu", rms_norm_eps=1e-2),
    ),
    Case(
        "llama-head-dim",
        "head_dim 16 where hidden / heads is 14; hidden 56, intermediate 36",
        LLAMA_ONE
        | dict(hidden_size=56, num_attention_heads=4, num_key_value_heads=2, head_dim=16, intermediate_size=36),
    ),
    Case(
        "llama-theta",
        "rope_theta 500000; rms_norm_eps 1e-5; hidden 72, 6 and 2 heads of 12",
        LLAMA_ONE
        | dict(
            hidden_size=72,
            num_attention_heads=6,
            num_key_value_heads=2,
            rms_norm_eps=1e-5,
            rope_parameters=dict(rope_type="default", rope_theta=500000.0),
        ),
    ),
    Case(
        "llama-theta-old",
        "rope_theta 1000 beside a null rope_scaling, as transformers 4 wrote it",
        LLAMA_ONE | dict(rope_parameters=dict(rope_type="default", rope_theta=1000.0)),
        rewrite=old_rope(None, 1000.0),
    ),
    Case(
        "llama-linear",
        "linear rotary scaling by 4, new keys",
        LLAMA_ONE | dict(rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=4.0)),
    ),
    Case(
        "llama-linear-old",
        "linear rotary scaling by 2.5, the old `type` key",
        LLAMA_ONE | dict(rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=2.5)),
        rewrite=old_rope(dict(type="linear", factor=2.5), 10000.0),
    ),
    Case(
        "llama-llama3",
        "llama3 rotary scaling, original context 32, head_dim 16: in all three bands",
        LLAMA | dict(num_attention_heads=2, num_key_value_heads=1, rope_parameters=LLAMA3),
        LONG,
    ),
    Case(
        "llama-llama3-old",
        "llama3 rotary scaling in rope_scaling with rope_theta beside it",
        LLAMA_ONE | dict(num_attention_heads=2, num_key_value_heads=1, rope_parameters=LLAMA3 | dict(rope_theta=500.0)),
        rewrite=old_rope(without_theta(LLAMA3), 500.0),
    ),
    Case("llama-bf16", "weights in bf16", LLAMA, dtype=torch.bfloat16),
    Case("llama-fp16", "weights in fp16", LLAMA, dtype=torch.float16),
    Case("llama-sharded", "three files and an index; untied", LLAMA, shard="32KB"),
    Case(
        "gguf-llama-f32",
        "llama-llama3's values as llama.cpp stores them: permuted q and k, rope_freqs",
        LLAMA | dict(vocab_size=112, num_attention_heads=2, num_key_value_heads=1, rope_parameters=LLAMA3),
        gguf="F32",
    ),
    Case(
        "gguf-llama-f16",
        "9 q and 3 kv heads, hidden 72, f16, tied, rope theta 100000",
        LLAMA
        | dict(
            vocab_size=112,
            hidden_size=72,
            num_attention_heads=9,
            num_key_value_heads=3,
            tie_word_embeddings=True,
            rope_parameters=dict(rope_type="default", rope_theta=100000.0),
        ),
        gguf="F16",
    ),
    Case(
        "gguf-llama-q8_0",
        "q8_0 matrices and embedding, hidden 64, intermediate 128, linear by 2",
        LLAMA
        | dict(
            vocab_size=112,
            hidden_size=64,
            num_hidden_layers=1,
            intermediate_size=128,
            tie_word_embeddings=True,
            rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=2.0),
        ),
        gguf="Q8_0",
    ),
    Case(
        "gguf-bert-f32",
        "an encoder as llama.cpp stores it",
        BERT | dict(vocab_size=112),
        model=BertModel,
        gguf="F32",
    ),
)


def randomise(model: torch.nn.Module, scale: float = 1.0) -> None:
    """Matrices N(0, 1.5 / inputs), embeddings N(0, 1), norm weights U(0.5, 1.5), biases N(0, 0.25)."""
    for name, value in model.named_parameters():
        if value.ndim == 2 and "embed" not in name:
            torch.nn.init.normal_(value, std=(1.5 / value.shape[1]) ** 0.5)
        elif value.ndim == 2:
            torch.nn.init.normal_(value, std=scale)
        elif name.endswith("bias"):
            torch.nn.init.normal_(value, std=0.25)
        else:
            torch.nn.init.uniform_(value, 0.5, 1.5)


def build(case: Case, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    config = case.model.config_class(**case.values)
    config._attn_implementation = "eager"
    model = case.model(config).eval()
    gemma = config.model_type == "gemma3_text"
    randomise(model, 0.2 if case.name == "bert-eps" or gemma else 1.0)
    for name, value in model.named_parameters():
        if gemma and name.endswith("norm.weight"):
            value.data -= 1  # stored less 1
    if case.draw:
        case.draw(model)
    return model


def generates(case: Case) -> bool:
    return case.model.__name__.endswith("ForCausalLM")


def golden(model: torch.nn.Module, case: Case, seed: int) -> dict[str, np.ndarray]:
    """Every sequence alone through `model` in float32."""
    random = np.random.default_rng(seed)
    encoder = getattr(model, "bert", model)
    results = {}
    for index, length in enumerate(case.lengths):
        tokens = random.integers(0, case.values["vocab_size"], length)
        results[f"tokens_{index}"] = tokens.astype(np.int32)
        with torch.no_grad():
            if generates(case):
                found = model(torch.tensor(tokens)[None]).logits[0].numpy()
            else:
                found = encoder(torch.tensor(tokens)[None]).last_hidden_state[0].numpy()
        if case.rows is not None:
            rows = sorted({row for row in case.rows if row < length} | {length - 1})
            results[f"rows_{index}"], found = np.array(rows, np.int32), found[rows]
        results[f"{'logits' if generates(case) else 'hidden'}_{index}"] = found
    return results


def make(case: Case, seed: int) -> None:
    directory = ROOT / case.name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    model = build(case, seed)
    if case.gguf:
        write = case.write or (write_llama if case.model is LlamaForCausalLM else write_bert)
        model.load_state_dict(write(directory / "model.gguf", model, case.gguf))  # what the file holds
    else:
        model.to(case.dtype).save_pretrained(directory, max_shard_size=case.shard or "1GB")
        (directory / "generation_config.json").unlink(missing_ok=True)
        if case.rewrite:
            case.rewrite(directory)
        rounded = model.state_dict()
        model = build(case, seed)  # a new one: a cast to bf16 also rounds the rotary frequencies
        model.load_state_dict(rounded)
    np.savez_compressed(directory / "golden.npz", **golden(model, case, seed))
    check(directory, case)


def check(directory: Path, case: Case) -> None:
    """Refuse a checkpoint that transformers itself reads otherwise, or whose values prove nothing."""
    expected = np.load(directory / "golden.npz")
    key = "logits" if generates(case) else "hidden"
    last = len(case.lengths) - 1
    tokens, want = torch.tensor(expected[f"tokens_{last}"])[None].long(), expected[f"{key}_{last}"]
    if not np.isfinite(want).all() or want.std() < 0.2:
        raise SystemExit(f"{case.name}: values out of range, deviation {want.std()}")
    if case.gguf is None:
        again = case.model.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
        with torch.no_grad():
            output = again(tokens) if key == "logits" else getattr(again, "bert", again)(tokens)
            got = output.logits[0] if key == "logits" else output.last_hidden_state[0]
        got = got[expected[f"rows_{last}"]] if f"rows_{last}" in expected else got
        difference = float(np.abs(got.numpy() - want).max())
        if difference > 1e-5 * max(1.0, float(np.abs(want).max())):
            raise SystemExit(f"{case.name}: transformers reads the saved files differently, {difference}")
    size = sum(path.stat().st_size for path in directory.iterdir())
    if size > 150_000:
        raise SystemExit(f"{case.name}: {size} bytes is more than a golden should take")
    print(f"{case.name:20} {size / 1000:6.1f} kB  {sorted(path.name for path in directory.iterdir())}")


def main(names: list[str], cases: tuple[Case, ...] = CASES, first_seed: int = 1000) -> None:
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    ROOT.mkdir(exist_ok=True)
    for seed, case in enumerate(cases):
        if not names or case.name in names:
            make(case, first_seed + seed)
    path = ROOT / "manifest.json"
    manifest = json.loads(path.read_text()) if path.exists() else {}
    manifest |= {case.name: case.why for case in cases}
    path.write_text(json.dumps(manifest, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
