"""Write a tiny transformers model as the .gguf that llama.cpp expects; used by `make_models.py`.

Names, metadata keys and layout follow llama.cpp's converter:

- Llama's q and k rows are reordered: transformers rotates (i, i + head_dim/2), llama.cpp's "llama"
  architecture rotates neighbours (2i, 2i + 1), so row i of a head's first half goes to 2i, of
  its second to 2i + 1.
- llama3 rotary scaling is a tensor of divisors, `rope_freqs.weight`, one for each of head_dim/2 frequencies.
- Qwen3's and Gemma's rows stay as they are; Gemma's norm weights, less 1 in transformers, are stored whole.
- One-dimensional tensors stay f32, whatever the format of the matrices; so do BERT's other tables.

The vocabularies are real small ones (byte-level BPE with a few merges; WordPiece with a few words), so that a
reader can build its tokenizer from the file.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, PoolingType, RopeScalingType, TokenType
from gguf.quants import dequantize, quantize

MERGES = ("t h", "th e", "Ġ the", "i n", "Ġ a", "a n", "an d", "Ġ and", "e r")
WORDS = ("the", "cat", "sat", "##ing", "run", "and")
LLAMA_LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
LLAMA_REST = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
QWEN3_LAYER = LLAMA_LAYER | {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
GEMMA3_LAYER = QWEN3_LAYER | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
BERT_LAYER = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
BERT_REST = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
}
PLAIN = ("position_embd.weight", "token_types.weight")  # two-dimensional and f32 all the same


def interleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from halves to neighbours, as llama.cpp rotates them: (heads * head_dim, ...)."""
    split = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(rows.shape)


def halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of `interleave`."""
    split = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(rows.shape)


def translate(name: str, prefix: str, layer_names: dict[str, str], rest: dict[str, str]) -> str | None:
    """The GGUF name of a checkpoint's tensor, or None for one that the format does not hold."""
    stem, _, ending = name.rpartition(".")
    if stem in rest:
        return f"{rest[stem]}.{ending}"
    if not stem.startswith(prefix):
        return None
    layer, _, part = stem.removeprefix(prefix).partition(".")
    return f"blk.{layer}.{layer_names[part]}.{ending}"


def add(writer: GGUFWriter, name: str, values: np.ndarray, kind: str) -> np.ndarray:
    """Store one tensor and return the values that the file now holds."""
    if values.ndim == 1 or name in PLAIN:
        kind = "F32"
    if kind in ("F32", "F16"):
        stored = values.astype(np.float32 if kind == "F32" else np.float16)
        writer.add_tensor(name, stored)
        return stored.astype(np.float32)
    wanted = GGMLQuantizationType[kind]
    blocks = quantize(values, wanted)
    writer.add_tensor(name, blocks, raw_dtype=wanted)
    return dequantize(blocks, wanted)


def common(writer: GGUFWriter, config: object, kind: str, name: str) -> None:
    writer.add_name(name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(LlamaFileType.ALL_F32 if kind == "F32" else LlamaFileType[f"MOSTLY_{kind}"])
    writer.add_quantization_version(2)


def finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_rope(writer: GGUFWriter, config: object) -> None:
    rope, head_dim = config.rope_parameters, config.head_dim
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] != "llama3":
        return
    context, factor = rope["original_max_position_embeddings"], rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    divisors = []
    for index in range(0, head_dim, 2):
        turns = context / (2 * math.pi * rope["rope_theta"] ** (index / head_dim))  # in the original context
        share = min(1.0, max(0.0, (turns - low) / (high - low)))  # 1: kept, 0: divided
        divisors.append(1 / ((1 - share) / factor + share))
    if len({1.0, factor} & set(divisors)) < 2 or len(set(divisors)) < 3:
        raise SystemExit(f"llama3 scaling does not hit all three bands: {divisors}")
    writer.add_tensor("rope_freqs.weight", np.array(divisors, np.float32))


def add_bpe(writer: GGUFWriter, size: int) -> None:
    """A byte-level vocabulary: two specials, printable ASCII, space, newline, the merges, unused entries."""
    merged = (merge.replace(" ", "") for merge in MERGES)
    tokens = ["<|begin|>", "<|end|>", *map(chr, range(33, 127)), "Ġ", "Ċ", *merged]
    kinds = [TokenType.CONTROL] * 2 + [TokenType.NORMAL] * (len(tokens) - 2)
    kinds += [TokenType.UNUSED] * (size - len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens + [f"[PAD{index}]" for index in range(len(tokens), size)])
    writer.add_token_types(kinds)
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(False)


def add_wordpiece(writer: GGUFWriter, size: int) -> None:
    """llama.cpp's spelling of WordPiece: a word's first piece starts with U+2581, a later one has no `##`."""
    letters = [*map(chr, range(97, 123))]
    pieces = [*letters, *("##" + letter for letter in letters), *".,!?'-0123456789", *WORDS]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    kinds = [TokenType.CONTROL, TokenType.UNKNOWN] + [TokenType.CONTROL] * 3
    kinds += [TokenType.NORMAL] * len(pieces)
    tokens += [piece[2:] if piece.startswith("##") else "\u2581" + piece for piece in pieces]
    kinds += [TokenType.UNUSED] * (size - len(tokens))
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens + [f"[unused{index}]" for index in range(len(tokens), size)])
    writer.add_token_types(kinds)
    setters = (
        writer.add_pad_token_id,
        writer.add_unk_token_id,
        writer.add_bos_token_id,  # bos is [CLS]
        writer.add_sep_token_id,
        writer.add_mask_token_id,
    )
    for index, set_id in enumerate(setters):
        set_id(index)


def write_llama(path: Path, model: torch.nn.Module, kind: str) -> dict[str, torch.Tensor]:
    """Write a LlamaForCausalLM; returns the state dict of the values that the file holds."""
    config = model.config
    writer = GGUFWriter(path, "llama")
    common(writer, config, kind, "lattice golden llama")
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if config.head_dim * config.num_attention_heads != config.hidden_size:
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    add_bpe(writer, config.vocab_size)
    add_rope(writer, config)
    stored = {}
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            stored[name] = stored["model.embed_tokens.weight"]
            continue
        rotated = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        heads = rotated.get(name.split(".")[-2])
        values = value.numpy() if heads is None else interleave(value.numpy(), heads)
        held = add(writer, translate(name, "model.layers.", LLAMA_LAYER, LLAMA_REST), values, kind)
        stored[name] = torch.from_numpy(held if heads is None else halves(held, heads))
    finish(writer)
    return stored


def write_qwen3(path: Path, model: torch.nn.Module, kind: str) -> dict[str, torch.Tensor]:
    """Write a Qwen3ForCausalLM; returns the state dict of the values that the file holds."""
    writer = decoder(path, model.config, kind, "qwen3")
    rope = model.config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    return add_all(writer, model, kind, QWEN3_LAYER)


def write_gemma3(path: Path, model: torch.nn.Module, kind: str) -> dict[str, torch.Tensor]:
    """Write a Gemma3ForCausalLM; returns the state dict of the values that the file holds.

    The file says nothing of the order of full and sliding layers, of the sliding layers' rotary base, or of the scale.
    """
    writer = decoder(path, model.config, kind, "gemma3")
    rope = model.config.rope_parameters["full_attention"]
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    writer.add_sliding_window(model.config.sliding_window)
    return add_all(writer, model, kind, GEMMA3_LAYER, less=1)


def decoder(path: Path, config: object, kind: str, architecture: str) -> GGUFWriter:
    writer = GGUFWriter(path, architecture)
    common(writer, config, kind, f"lattice golden {architecture}")
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    add_bpe(writer, config.vocab_size)
    return writer


def add_all(writer: GGUFWriter, model: torch.nn.Module, kind: str, layer: dict, less: int = 0) -> dict:
    """Store all tensors, norm weights with `less` added, and return what the file holds of them."""
    stored = {}
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            stored[name] = stored["model.embed_tokens.weight"]
            continue
        shift = less if name.endswith("norm.weight") else 0
        held = add(writer, translate(name, "model.layers.", layer, LLAMA_REST), value.numpy() + shift, kind)
        stored[name] = torch.from_numpy(held - shift)
    finish(writer)
    return stored


def write_bert(path: Path, model: torch.nn.Module, kind: str) -> dict[str, torch.Tensor]:
    """Write a BertModel (mean pooling); returns the state dict of the values that the file holds."""
    config = model.config
    writer = GGUFWriter(path, "bert")
    common(writer, config, kind, "lattice golden bert")
    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_causal_attention(False)
    writer.add_pooling_type(PoolingType.MEAN)
    writer.add_token_type_count(config.type_vocab_size)
    add_wordpiece(writer, config.vocab_size)
    stored = {}
    for name, value in model.state_dict().items():
        new = translate(name, "encoder.layer.", BERT_LAYER, BERT_REST)
        stored[name] = value if new is None else torch.from_numpy(add(writer, new, value.numpy(), kind))
    finish(writer)
    return stored
