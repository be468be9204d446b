"""Small language models for tests: golden checkpoints with other config values and a tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from lattice.dtypes import BF16, F32, encode
from lattice.generate import LanguageModel
from lattice.models.qwen3_5 import Config, Model
from lattice.weights import save_safetensors

GOLDEN = Path(__file__).parent / "golden" / "models"
BYTES = "€ü".encode()  # byte tokens, so that a code point takes several of them
TEMPLATE = "{% for m in messages %}{{ m.role[0] }}{{ m.content }}<|im_end|>{% endfor %}a"
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
CONTROL = ("<unk>", "<s>", "<|im_end|>")


def write_tokenizer(directory: Path, vocab: int, bos: bool = False) -> None:
    """Write a tokenizer of one letter a token, behind control tokens 0 to 2 and the bytes of `BYTES`."""
    pieces = [*CONTROL, *(f"<0x{byte:02X}>" for byte in BYTES)]
    pieces += LETTERS[: vocab - len(pieces)]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    tokenizer.add_special_tokens(list(CONTROL))
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "bos_token": "<s>",
        "eos_token": "<|im_end|>",
        "chat_template": TEMPLATE,
        "add_bos_token": bos,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def copy_model(
    to: Path,
    name: str = "llama-untied",
    *,
    text: bool = False,
    bos: bool = False,
    generation: dict | None = None,
    **config,
) -> Path:
    """Copy a golden model with 1024 positions, no stop tokens and `config`; with a tokenizer if `text`."""
    directory = to / f"{name}-{len(list(to.iterdir()))}"
    shutil.copytree(GOLDEN / name, directory)
    path = directory / "config.json"
    values = json.loads(path.read_text()) | {"max_position_embeddings": 1024, "eos_token_id": None} | config
    path.write_text(json.dumps(values))
    if text:
        write_tokenizer(directory, values["vocab_size"], bos)
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    return directory


def draw_tokens(count: int, seed: int = 0, vocab: int = 70) -> list[int]:
    """Return random token ids."""
    return np.random.default_rng(seed).integers(0, vocab, count).tolist()


def greedy(lm: LanguageModel, prompt: list[int], count: int) -> list[int]:
    """Return what greedy generation must be: the largest logit of the whole sequence, run afresh."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(lm.logits(tokens)[-1].argmax()))
    return tokens[len(prompt) :]


HYBRID = {
    "model_type": "qwen3_5_text", "vocab_size": 70, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 16, "max_position_embeddings": 1024,
    "tie_word_embeddings": False, "rope_theta": 10000.0,
}  # fmt: skip


def hybrid_model(to: Path, *, text: bool = False, bf16: bool = False, seed: int = 0, **config) -> Path:
    """Write a random model with three recurrent layers and one with attention; its keys and values are f32 or f16."""
    directory = to / f"hybrid-{len(list(to.iterdir()))}"
    directory.mkdir()
    values = HYBRID | config
    (directory / "config.json").write_text(json.dumps(values))
    rng, tensors = np.random.default_rng(seed), {}
    for name, parameter in Model(Config.read(values)).parameters().items():
        scale = 0.3 if len(parameter.shape) > 1 else 0.1
        drawn = (scale * rng.standard_normal(parameter.shape)).astype(np.float32)
        tensors[name] = encode(drawn, BF16 if bf16 and len(parameter.shape) > 1 else F32)
    save_safetensors(directory / "model.safetensors", tensors)
    if text:
        write_tokenizer(directory, values["vocab_size"])
    return directory
