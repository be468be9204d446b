"""What decoders have in common in GGUF files: the metadata of their configs and most tensor names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

SCALING = {"original_context_length": "original_max_position_embeddings", "type": "rope_type"}


def gguf_config(architecture: str, metadata: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the keys of config.json that a decoder's GGUF metadata and tensors stand for."""
    get: Any = lambda key: metadata.get(f"{architecture}.{key}")  # noqa: E731
    return {
        "vocab_size": len(metadata.get("tokenizer.ggml.tokens", ())) or get("vocab_size"),
        "hidden_size": get("embedding_length"), "intermediate_size": get("feed_forward_length"),
        "num_hidden_layers": get("block_count"), "num_attention_heads": get("attention.head_count"),
        "num_key_value_heads": get("attention.head_count_kv"),
        "head_dim": get("attention.key_length") or get("embedding_length") // max(1, get("attention.head_count")),
        "max_position_embeddings": get("context_length"), "rms_norm_eps": get("attention.layer_norm_rms_epsilon"),
        "rope_theta": get("rope.freq_base"), "rope_scaling": gguf_rope_scaling(architecture, metadata),
        "tie_word_embeddings": "output.weight" not in tensors, "attention_bias": "blk.0.attn_q.bias" in tensors,
    }  # fmt: skip


def gguf_rope_scaling(architecture: str, metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return rope_scaling as config.json has it; keys that we have no name for stay, and are refused later."""
    start = f"{architecture}.rope.scaling."
    given = {key.removeprefix(start): value for key, value in metadata.items() if key.startswith(start)}
    given.pop("finetuned", None)  # says how the model was made
    if given.get("attn_factor") == 1:
        del given["attn_factor"]
    if given.get("type", "none") == "none":
        return None
    return {SCALING.get(key, key.removeprefix("yarn_")): value for key, value in given.items()}


def linear_names(ours: str, theirs: str, order: Callable | None = None) -> dict[str, Any]:
    """Return the GGUF names of a layer's product, and how its rows are put back in order."""
    names = {f"model.layers.{{}}.{ours}.{end}": f"blk.{{}}.{theirs}.{end}" for end in ("weight", "bias")}
    return {name: (theirs, order) if order else theirs for name, theirs in names.items()}


def norm_names(**names: str) -> dict[str, str]:
    """Return the GGUF names of a layer's norms; `__` in ours stands for a dot."""
    pairs = {ours.replace("__", "."): theirs for ours, theirs in names.items()}
    return {f"model.layers.{{}}.{ours}.weight": f"blk.{{}}.{theirs}.weight" for ours, theirs in pairs.items()}


GGUF: dict[str, Any] = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    **linear_names("self_attn.q_proj", "attn_q"),
    **linear_names("self_attn.k_proj", "attn_k"),
    **linear_names("self_attn.v_proj", "attn_v"),
    **linear_names("self_attn.o_proj", "attn_output"),
    **linear_names("mlp.gate_proj", "ffn_gate"),
    **linear_names("mlp.up_proj", "ffn_up"),
    **linear_names("mlp.down_proj", "ffn_down"),
}
