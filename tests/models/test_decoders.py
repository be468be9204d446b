"""Qwen3 and Gemma 3 beyond the plain forward pass: pages and windows, cuts, what a file may lack or say otherwise."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from golden_models import MODELS, copy, scores

import lattice
from lattice.backends.cpu import CpuBackend
from lattice.errors import LatticeError
from lattice.generate.engine import Engine
from lattice.models import family
from lattice.nn import attention_factor, inverse_frequencies
from lattice.weights.load import open_model

# What the published config.json files say that is not a default of ours, and some of what is.
QWEN3_06B = {
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024, "initializer_range": 0.02,
    "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3",
    "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
    "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "use_cache": True, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
GEMMA3_270M = {
    "_sliding_window_pattern": 6, "architectures": ["Gemma3ForCausalLM"], "attention_bias": False,
    "attn_logit_softcapping": None, "bos_token_id": 2, "eos_token_id": 1, "final_logit_softcapping": None,
    "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 640, "intermediate_size": 2048,
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3, "max_position_embeddings": 32768,
    "model_type": "gemma3_text", "num_attention_heads": 4, "num_hidden_layers": 18, "num_key_value_heads": 1,
    "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000.0,
    "rope_scaling": None, "rope_theta": 1000000.0, "sliding_window": 512, "use_bidirectional_attention": False,
    "vocab_size": 262144,
}  # fmt: skip
GEMMA3_4B = {
    "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999, "eoi_token_index": 256000,
    "eos_token_id": [1, 106], "image_token_index": 262144, "mm_tokens_per_image": 256, "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
    },
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
}  # fmt: skip


def test_published_configs():
    qwen = family("qwen3").Config.read(QWEN3_06B)
    assert qwen.rope_theta == 1e6 and set(qwen.layer_types) == {"full_attention"} and qwen.sliding_window is None
    small = family("gemma3_text").Config.read(GEMMA3_270M)
    without_types = {key: value for key, value in GEMMA3_270M.items() if key != "layer_types"}
    assert family("gemma3_text").Config.read(without_types) == small
    large = family("gemma3").Config.read(GEMMA3_4B)
    assert (large.vocab_size, large.num_attention_heads, large.num_key_value_heads) == (262208, 8, 4)
    assert [i for i, kind in enumerate(large.layer_types) if kind == "full_attention"] == [5, 11, 17, 23, 29]
    assert large.rope_parameters["full_attention"] == {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0}
    assert large.rope_parameters["sliding_attention"] == {"rope_theta": 1e4}


def rename(path: Path, change) -> None:
    """Rename the tensors of a safetensors file."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    renamed = json.dumps({key if key.startswith("__") else change(key): value for key, value in header.items()})
    path.write_bytes(struct.pack("<Q", len(renamed)) + renamed.encode() + data[8 + size :])


@pytest.mark.parametrize("name", ["qwen3-window", "gemma3-old", "gemma3-sliding", "gguf-gemma3-f16"])
def test_700_tokens_through_pages_in_any_parts(name):
    """Windows of 64, 63, 1 and 65: what transformers computes, and the same bits whole, in chunks, token by token."""
    path = next((MODELS / name).glob("*.gguf"), MODELS / name)
    engine = Engine(open_model(path, family), CpuBackend(threads=1), dtype="f32")
    golden = np.load(MODELS / name / "golden.npz")
    tokens, rows, wanted = (golden[f"{key}_3"] for key in ("tokens", "rows", "logits"))
    whole = scores(engine, tokens.tolist(), len(tokens))
    assert np.abs(whole[rows] - wanted).max() <= 1e-3 * max(1, np.abs(wanted).max())
    for size in (1, 63, 64, 65):
        assert np.array_equal(scores(engine, tokens.tolist(), size), whole), size


def test_an_embedding_model_without_prefix_or_head():
    golden = np.load(MODELS / "qwen3-embedding" / "golden.npz")
    encoder = lattice.load_encoder(MODELS / "qwen3-embedding")
    for index in range(4):
        tokens, rows, wanted = (golden[f"{key}_{index}"] for key in ("tokens", "rows", "hidden"))
        assert np.abs(encoder.hidden(tokens)[rows] - wanted).max() <= 1e-3 * max(1, np.abs(wanted).max())
    with pytest.raises(LatticeError, match="a model that generates text"):
        lattice.load(MODELS / "qwen3-embedding")


@pytest.mark.parametrize("name", ["qwen3-untied", "gemma3-sliding", "llama-untied"])
def test_a_tied_head_may_be_stored_twice(tmp_path, name):
    """Qwen3-0.6B's file has one; transformers ties all the same."""
    opened = open_model(copy(name, tmp_path, tie_word_embeddings=True), family)
    assert "lm_head.weight" in opened.checkpoint.names and "lm_head.weight" not in opened.weights


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_gemma_as_the_text_part_of_a_multimodal_checkpoint(tmp_path, prefix):
    directory = copy("gemma3-full-first", tmp_path)
    path = directory / "config.json"
    text = json.loads(path.read_text())
    path.write_text(json.dumps({"model_type": "gemma3", "text_config": text, "vision_config": {"layers": 3}}))
    rename(directory / "model.safetensors", lambda name: prefix + name.removeprefix("model."))
    golden = np.load(MODELS / "gemma3-full-first" / "golden.npz")
    logits = lattice.load(directory).logits(golden["tokens_2"])[golden["rows_2"]]
    assert np.abs(logits - golden["logits_2"]).max() <= 2e-3 * np.abs(golden["logits_2"]).max()  # f16 keys and values
    path.write_text(json.dumps({"model_type": "gemma3", "text_config": text, "quantization_config": {"bits": 4}}))
    with pytest.raises(LatticeError, match="quantization_config"):
        lattice.load(directory)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("gemma3-full", {"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0"),
        ("gemma3-full", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0"),
        ("gemma3-full", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
        ("gemma3-full", {"layer_types": ["chunked_attention"]}, "1 layer_types among"),
        ("gemma3-full", {"layer_types": ["full_attention"] * 2}, "1 layer_types among"),
        ("gemma3-full", {"rope_parameters": {"rope_type": "linear", "factor": 2}}, "for each layer type"),
        ("gemma3-full", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar from"),
        ("gemma3-full", {"sliding_window": -1}, "sliding_window from 1"),
        ("gemma3-full", {"hidden_activation": "made-up"}, "hidden_activation among"),
        ("qwen3-tied", {"layer_types": ["sliding_attention"] * 2}, "a sliding_window for layers"),
        ("qwen3-tied", {"rope_parameters": {"rope_type": "dynamic", "factor": 2}}, "llama3 or yarn, got dynamic"),
        ("qwen3-tied", {"rope_parameters": {"rope_type": "yarn", "factor": 2}}, "original_max_position_embeddings"),
        ("qwen3-tied", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        ("qwen3-tied", {"head_dim": 7}, "an even head_dim"),
    ],
)  # fmt: skip
def test_what_a_config_asks_and_nobody_computes_is_an_error(tmp_path, name, change, message):
    with pytest.raises(LatticeError, match=message):
        open_model(copy(name, tmp_path, **change), family)


def test_yarn_keeps_short_waves_and_divides_long_ones():
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
    ratio = inverse_frequencies(128, 1e6, yarn) / inverse_frequencies(128, 1e6)
    assert ratio[0] == 1 and np.isclose(ratio[-1], 0.25) and (np.diff(ratio) <= 1e-6).all()
    assert attention_factor(yarn) == pytest.approx(0.1 * np.log(4) + 1)
    assert attention_factor(yarn | {"attention_factor": 1.5}) == 1.5
    assert attention_factor({"rope_type": "linear", "factor": 4.0}) == 1
