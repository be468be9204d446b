"""Checkpoints of real models without their data: real configs, real tensor names and shapes, a sparse file of holes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from math import prod
from pathlib import Path

CONFIGS = Path(__file__).parent / "golden" / "configs"
TRUNK = "model.language_model."


def qwen3_5_tensors(config: dict) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the tensors of a multimodal Qwen3.5 or 3.6 checkpoint by its config, a vision tower in small among them."""
    c, mtp = config["text_config"], config["text_config"].get("mtp_num_hidden_layers", 0)
    hidden = c["hidden_size"]
    yield f"{TRUNK}embed_tokens.weight", (c["vocab_size"], hidden)
    yield f"{TRUNK}norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (c["vocab_size"], hidden)
    for index in range(c["num_hidden_layers"]):
        yield from _layer(c, f"{TRUNK}layers.{index}.", (index + 1) % c["full_attention_interval"] == 0)
    for index in range(mtp):
        yield from _layer(c, f"mtp.layers.{index}.", True)
    if mtp:
        yield "mtp.fc.weight", (hidden, 2 * hidden)
        for norm in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden"):
            yield f"mtp.{norm}.weight", (hidden,)
    yield "model.visual.patch_embed.proj.weight", (1152, 3, 2, 16, 16)
    yield "model.visual.merger.norm.weight", (1152,)


def _layer(c: dict, name: str, full: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden = c["hidden_size"]
    for norm in ("input_layernorm", "post_attention_layernorm"):
        yield f"{name}{norm}.weight", (hidden,)
    if full:
        head, queries = c["head_dim"], c["num_attention_heads"] * c["head_dim"]
        rows = {"q_proj": 2 * queries, "k_proj": c["num_key_value_heads"] * head}
        for part, count in (rows | {"v_proj": rows["k_proj"]}).items():
            yield f"{name}self_attn.{part}.weight", (count, hidden)
        yield f"{name}self_attn.o_proj.weight", (hidden, queries)
        for norm in ("q_norm", "k_norm"):
            yield f"{name}self_attn.{norm}.weight", (head,)
    else:
        heads, out = c["linear_num_value_heads"], c["linear_num_value_heads"] * c["linear_value_head_dim"]
        channels = 2 * c["linear_num_key_heads"] * c["linear_key_head_dim"] + out
        for part, count in {"in_proj_qkv": channels, "in_proj_z": out, "in_proj_b": heads, "in_proj_a": heads}.items():
            yield f"{name}linear_attn.{part}.weight", (count, hidden)
        yield f"{name}linear_attn.conv1d.weight", (channels, 1, c["linear_conv_kernel_dim"])
        yield f"{name}linear_attn.A_log", (heads,)
        yield f"{name}linear_attn.dt_bias", (heads,)
        yield f"{name}linear_attn.norm.weight", (c["linear_value_head_dim"],)
        yield f"{name}linear_attn.out_proj.weight", (hidden, out)
    if "num_experts" not in c:
        yield from _mlp(f"{name}mlp.", hidden, c["intermediate_size"])
        return
    experts, width = c["num_experts"], c["moe_intermediate_size"]
    yield f"{name}mlp.gate.weight", (experts, hidden)
    yield f"{name}mlp.experts.gate_up_proj", (experts, 2 * width, hidden)
    yield f"{name}mlp.experts.down_proj", (experts, hidden, width)
    yield from _mlp(f"{name}mlp.shared_expert.", hidden, c["shared_expert_intermediate_size"])
    yield f"{name}mlp.shared_expert_gate.weight", (1, hidden)


def _mlp(name: str, hidden: int, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for part in ("gate_proj", "up_proj"):
        yield f"{name}{part}.weight", (width, hidden)
    yield f"{name}down_proj.weight", (hidden, width)


def write_headers(directory: Path, name: str) -> Path:
    """Write the config of that name and a bf16 file of its tensors that holds no data; return the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copy(CONFIGS / f"{name}.json", directory / "config.json")
    header, end = {}, 0
    for tensor, shape in qwen3_5_tensors(json.loads((CONFIGS / f"{name}.json").read_text("utf-8"))):
        begin, end = end, end + 2 * prod(shape)
        header[tensor] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(directory / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return directory
