"""A tiny sentence encoder on disk: a committed BERT checkpoint, and beside it a tokenizer and settings made here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from lattice.backends.cpu import CpuBackend, best_target, targets
from lattice.backends.reference import ReferenceBackend

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
WORDS = [f"w{number}" for number in range(60)]
SLOWEST_FIRST = {"avx512": ("scalar", "avx2", "avx512"), "avx2": ("scalar", "avx2"), "neon": ("scalar", "neon")}


def backends() -> dict[str, Callable]:
    """Return every backend that this machine runs, by a name for the test's id."""
    runnable = [name for name in SLOWEST_FIRST.get(best_target(), ("scalar",)) if name in targets()]
    native = {name: (lambda name=name: CpuBackend(name)) for name in runnable}
    return {"reference": ReferenceBackend, **native}


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), "utf-8")


def write_tokenizer(directory: Path) -> None:
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    pairs = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=pairs)
    tokenizer.enable_truncation(7)  # as published files have it: the encoder must not obey
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(directory / "tokenizer.json"))


@pytest.fixture
def tiny(tmp_path: Path, golden: Path) -> Path:
    """Return a directory with a complete tiny encoder: 32 dimensions, 136 positions, longest text 20 tokens."""
    directory = tmp_path / "tiny"
    shutil.copytree(golden / "models" / "bert-gelu", directory)
    write_tokenizer(directory)
    write_json(directory / "1_Pooling" / "config.json", {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True})
    write_json(directory / "sentence_bert_config.json", {"max_seq_length": 20, "do_lower_case": False})
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    write_json(
        directory / "modules.json",
        [{"idx": i, "path": path, "type": f"sentence_transformers.models.{kind}"} for i, (path, kind) in enumerate(modules)],
    )
    return directory
