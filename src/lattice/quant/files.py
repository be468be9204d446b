"""The small files beside the weights of a written checkpoint: configuration, tokenizer, pooling, prompts, licence."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lattice.embed.settings import read_settings
from lattice.errors import LatticeError
from lattice.generate.prompt import GGUF_ENDS
from lattice.tokenizers import load_tokenizer, tokenizer_from_gguf
from lattice.weights.load import OpenModel

COPIED = (
    "tokenizer*.json", "tokenizer.model", "*.model", "*.tiktoken", "special_tokens_map.json", "added_tokens.json",
    "vocab.*", "merges.txt", "chat_template*", "generation_config.json", "modules.json", "sentence_*config.json",
    "config_sentence_transformers.json", "*/config.json", "README.md", "LICEN[CS]E*", "NOTICE*",
)  # fmt: skip
LARGEST = 128 << 20  # bytes; a vocabulary may have tens of millions
# Names that other software goes by; families not listed here call themselves as we do.
ARCHITECTURES = {
    "bert": ("bert", "BertModel"), "gemma3": ("gemma3_text", "Gemma3ForCausalLM"),
    "llama": ("llama", "LlamaForCausalLM"), "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "qwen3_5": ("qwen3_5_text", "Qwen3_5ForCausalLM"),
}  # fmt: skip


def write_files(opened: OpenModel, config: Any, directory: Path) -> None:
    """Write everything but weights, for a model of `opened` whose config is now `config`."""
    written: dict[str, Any] = dict(opened.checkpoint.config)
    if opened.checkpoint.kind == "gguf":
        written = _config_of_gguf(opened)
        _tokenizer_of_gguf(opened, directory)
    else:
        _copy(opened.checkpoint.directory, directory)
    before, after = asdict(opened.config), asdict(config)
    changes = {key: value for key, value in after.items() if not np.array_equal(value, before[key])}
    if isinstance(text := written.get("text_config"), dict):
        written["text_config"] = text | changes  # a multimodal model's
    _write(directory / "config.json", written | changes)


def _copy(source: Path, to: Path) -> None:
    """Copy the small files of a model directory and of its folders (a pooling module's)."""
    for path in sorted({path for pattern in COPIED for path in source.glob(pattern)}):
        if path.is_file() and path.stat().st_size <= LARGEST:
            copy = to / path.relative_to(source)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copy)


def _config_of_gguf(opened: OpenModel) -> dict[str, Any]:
    """Return the config.json that the family reads as the same config."""
    name, metadata = opened.family.__name__.rpartition(".")[2], opened.checkpoint.metadata
    model_type, architecture = ARCHITECTURES.get(name, (name, name))
    config = {"architectures": [architecture], "model_type": model_type, **asdict(opened.config)}
    ends = [metadata.get(f"tokenizer.ggml.{key}") for key in GGUF_ENDS]
    found = sorted({int(token) for token in ends if isinstance(token, int | np.integer)})
    config |= {"eos_token_id": found} if found else {}
    return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in config.items()}


def _tokenizer_of_gguf(opened: OpenModel, directory: Path) -> None:
    """Write the tokenizer inside a GGUF file, or copy the one beside it; a model without stays without."""
    metadata, beside = opened.checkpoint.metadata, opened.checkpoint.directory
    shutil.rmtree(directory / "tokenizer", ignore_errors=True)
    try:
        tokenizer_from_gguf(metadata, directory, "tokenizer")
        for path in (directory / "tokenizer").iterdir():
            path.replace(directory / path.name)
        (directory / "tokenizer").rmdir()
    except LatticeError:
        if (beside / "tokenizer.json").is_file():
            load_tokenizer(beside)
            for path in beside.glob("tokenizer*.json"):
                shutil.copyfile(path, directory / path.name)
    if getattr(opened.model, "head", None) is None and (mode := read_settings(opened.checkpoint).pooling):
        (directory / "1_Pooling").mkdir(exist_ok=True)
        _write(directory / "1_Pooling" / "config.json", {"pooling_mode": "lasttoken" if mode == "last" else mode})


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
