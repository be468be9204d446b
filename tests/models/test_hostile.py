"""Configurations that are damaged or hostile: a clear error each, before anything is allocated."""

from __future__ import annotations

import json
import shutil
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from lattice.errors import FormatError, LatticeError
from lattice.models import family
from lattice.tokenizers import tokenizer_from_gguf
from lattice.weights import GGUFFile, write_gguf
from lattice.weights.load import open_model

MODELS = Path(__file__).parents[1] / "golden" / "models"
CASES = [
    ("llama-tied", {"hidden_size": "32"}, "usable values|hidden_size from"),
    ("llama-tied", {"hidden_size": True}, "usable values|hidden_size from"),
    ("llama-tied", {"hidden_size": -1}, "hidden_size from 1"),
    ("llama-tied", {"hidden_size": 10**12}, "hidden_size from 1 to 1048576"),
    ("llama-tied", {"num_hidden_layers": 10**6}, "num_hidden_layers from 1 to 4096"),
    ("llama-tied", {"num_attention_heads": 0}, "num_attention_heads from 1"),
    ("llama-tied", {"num_key_value_heads": 3}, "key heads that divide"),
    ("llama-tied", {"vocab_size": 1e30}, "vocab_size from 1"),
    ("llama-tied", {"rms_norm_eps": "small"}, "rms_norm_eps from"),
    ("llama-tied", {"rope_parameters": [1]}, "usable values"),
    ("llama-tied", {"rope_parameters": {"rope_type": "llama3"}}, "usable values"),
    ("llama-tied", {"rope_parameters": {"rope_type": "made-up"}}, "rope scaling default, linear, llama3 or yarn"),
    ("llama-tied", {"hidden_act": "made-up"}, "hidden_act among"),
    ("llama-tied", {"sliding_stuff": 4}, "sliding_stuff=4"),
    ("llama-tied", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ("llama-tied", {"model_type": "made-up"}, "a model type among bert, .*llama"),
    ("llama-tied", {"model_type": "../../etc"}, "a model type among"),
    ("llama-tied", {"vocab_size": 69}, "of shape"),
    ("llama-tied", {"rope_parameters": {"rope_type": "linear", "factor": 0}}, "usable values"),
    ("llama-tied", {"rope_parameters": {"rope_type": "linear", "factor": [2]}}, "usable values"),
    ("llama-tied", {"rope_parameters": {"rope_type": "default", "rope_theta": True}}, "rope_theta from"),
    ("llama-tied", {"rms_norm_eps": 2**70}, "rms_norm_eps from"),
    ("llama-tied", {"max_position_embeddings": 2**63}, "max_position_embeddings from"),
    ("llama-tied", {"model_type": None}, "a model type among"),
    ("llama-tied", {"model_type": ["llama"]}, "a model type among"),
    ("llama-tied", {"tie_word_embeddings": "no"}, "tie_word_embeddings true or false"),
    ("llama-tied", {"attention_bias": 2}, "attention_bias true or false"),
    ("bert-gelu", {"is_decoder": True}, "an encoder"),
    ("bert-gelu", {"num_attention_heads": 5}, "the heads divide"),
    ("bert-gelu", {"type_vocab_size": 0}, "type_vocab_size from 1"),
    ("bert-gelu", {"hidden_size": None}, "none for hidden_size"),
]


@pytest.mark.parametrize(("model", "change", "message"), CASES)
def test_a_hostile_config_is_a_clear_error(model, change, message, tmp_path):
    directory = tmp_path / model
    shutil.copytree(MODELS / model, directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | change))
    tracemalloc.start()
    try:
        with pytest.raises(LatticeError, match=message):
            opened = open_model(directory, family)
            for name in opened.weights:
                opened.weights[name]
        assert tracemalloc.get_traced_memory()[1] < 10 << 20  # a config of up to 8 MiB is read in one piece
    finally:
        tracemalloc.stop()


GGUF: list[tuple[dict, str]] = [
    ({"llama.block_count": np.uint32(2**31)}, "num_hidden_layers from 1 to 4096"),
    ({"llama.block_count": np.uint32(513)}, "none for model.layers.2"),  # more layers than a table of 512 holds
    ({"llama.block_count": np.uint32(0)}, "num_hidden_layers from 1 to 4096"),
    ({"llama.block_count": -1}, "num_hidden_layers from 1 to 4096"),
    ({"llama.block_count": "2"}, "num_hidden_layers from 1 to 4096"),
    ({"llama.block_count": np.array([2, 2], np.int32)}, "num_hidden_layers from 1"),
    ({"llama.block_count": True}, "num_hidden_layers from 1"),
    ({"llama.attention.head_count": 0}, "num_attention_heads from 1"),
    ({"llama.attention.head_count": 2.0}, "num_attention_heads from 1"),
    ({"llama.attention.head_count": np.array([2, 2], np.int32)}, "usable values|num_attention_heads"),
    ({"llama.attention.head_count_kv": np.uint32(3)}, "key heads that divide"),
    ({"llama.attention.key_length": np.uint32(2**31)}, "head_dim from 2 to 2048"),
    ({"llama.embedding_length": np.uint64(2**40)}, "hidden_size from 1 to"),
    ({"llama.embedding_length": np.uint64(2**64 - 1)}, "hidden_size from 1 to"),
    ({"llama.feed_forward_length": np.uint32(2**32 - 1)}, "intermediate_size from 1 to"),
    ({"llama.context_length": np.uint64(2**60)}, "max_position_embeddings from 1"),
    ({"llama.context_length": -5}, "max_position_embeddings from 1"),
    ({"llama.rope.freq_base": float("nan")}, "a finite number for llama.rope.freq_base"),
    ({"llama.rope.freq_base": float("inf")}, "a finite number for llama.rope.freq_base"),
    ({"llama.rope.freq_base": 0.0}, "rope_theta from"),
    ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "a finite number for"),
    ({"llama.attention.layer_norm_rms_epsilon": -1.0}, "rms_norm_eps from 0 to 1"),
    ({"llama.rope.scaling.type": 3}, "rope scaling default"),
    ({"llama.rope.scaling.type": ["linear"]}, "rope scaling default|usable values"),
    ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 0.0}, "usable values"),
    ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": float("nan")}, "a finite number for"),
    ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": "x"}, "usable values"),
    ({"general.architecture": ["llama"]}, "a model type among"),
    ({"general.architecture": 3}, "a model type among"),
    ({"general.architecture": "../llama"}, "a model type among"),
    ({"general.architecture": "_family"}, "a model type among"),
    ({"general.architecture": "llama\0"}, "a model type among"),
    ({"general.architecture": "os"}, "a model type among"),
    ({"tokenizer.ggml.tokens": 3}, "usable values"),
]


@pytest.mark.parametrize(("change", "message"), GGUF, ids=[str(change)[:60] for change, _ in GGUF])
def test_hostile_metadata_is_a_clear_error(change, message, tmp_path):
    written = GGUFFile(MODELS / "gguf-llama-f32" / "model.gguf")
    tensors = {name: written.tensor(name) for name in written.names}
    write_gguf(tmp_path / "m.gguf", written.metadata | change, tensors)
    tracemalloc.start()
    try:
        with pytest.raises(LatticeError, match=message):
            open_model(tmp_path / "m.gguf", family)
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


VOCABULARY = [
    {"tokenizer.ggml.model": ["gpt2"]},
    {"tokenizer.ggml.model": np.arange(3, dtype=np.int32)},
    {"tokenizer.ggml.pre": ["gpt-2"]},
    {"tokenizer.ggml.tokens": 3},
    {"tokenizer.ggml.tokens": np.arange(112, dtype=np.int32)},
    {"tokenizer.ggml.tokens": "x" * 112},
    {"tokenizer.ggml.tokens": ["<0x-1>"] * 112},
    {"tokenizer.ggml.tokens": []},
    {"tokenizer.ggml.token_type": ["a"] * 112},
    {"tokenizer.ggml.token_type": np.full(112, np.nan, np.float32)},
    {"tokenizer.ggml.token_type": np.full(112, np.inf, np.float64)},
    {"tokenizer.ggml.token_type": np.ones(3, np.int32)},
    {"tokenizer.ggml.merges": np.arange(4, dtype=np.float32)},
    {"tokenizer.ggml.merges": "a b"},
    {"tokenizer.ggml.merges": ["zzz yyy"]},
    {"tokenizer.ggml.merges": ["a"]},
    {"tokenizer.ggml.merges": [""]},
    {"tokenizer.ggml.bos_token_id": -1},
    {"tokenizer.ggml.bos_token_id": np.uint32(2**32 - 1)},
    {"tokenizer.ggml.bos_token_id": 0.5},
    {"tokenizer.ggml.bos_token_id": np.array([1], np.int32)},
    {"tokenizer.ggml.add_bos_token": np.array([True, False])},
    {"tokenizer.ggml.add_bos_token": "x"},
    {"tokenizer.ggml.add_bos_token": 2},
    {"tokenizer.chat_template": ["x"]},
    {"tokenizer.chat_template": 3},
]


@pytest.mark.parametrize("change", VOCABULARY, ids=[str(change)[:60] for change in VOCABULARY])
def test_a_hostile_vocabulary_is_a_clear_error(change, tmp_path):
    """Arrays of one type where another is expected, ids with a sign, merges of nothing."""
    written = GGUFFile(MODELS / "gguf-llama-f32" / "model.gguf")
    write_gguf(tmp_path / "m.gguf", written.metadata | change, {})
    with pytest.raises(FormatError, match=r"^\[tokenizer"):
        tokenizer_from_gguf(GGUFFile(tmp_path / "m.gguf").metadata)


def test_code_that_a_config_names_is_not_imported(tmp_path):
    directory = tmp_path / "model"
    shutil.copytree(MODELS / "llama-tied", directory)
    (directory / "modeling_evil.py").write_text("raise SystemExit('imported')")
    config = json.loads((directory / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_evil.Model", "AutoConfig": "modeling_evil--hub.Config"}
    (directory / "config.json").write_text(json.dumps(config))
    assert len(open_model(directory, family).weights)
    assert "modeling_evil" not in sys.modules
