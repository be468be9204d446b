"""What files say of the Qwen3.5 family: config.json, alone or multimodal, and GGUF (architectures qwen35, qwen35moe).

GGUF's rows stay as they are: value heads are left in the file's order, which the delta net reads (`tiled`). Its norm
weights are whole. The draft head is the block behind the trunk's last, and counts among the blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lattice.models import _decoder
from lattice.nn import HYBRID_TYPES

IGNORABLE = frozenset({
    "text_config", "vision_config", "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id",
    "mamba_ssm_dtype", "router_aux_loss_coef", "output_router_logits",
})  # fmt: skip

LAYER = {
    **_decoder.norm_names(
        input_layernorm="attn_norm", post_attention_layernorm="post_attention_norm", linear_attn__norm="ssm_norm",
        self_attn__q_norm="attn_q_norm", self_attn__k_norm="attn_k_norm",
    ),
    **{
        name: theirs
        for ours, short in {
            "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
            "self_attn.o_proj": "attn_output", "linear_attn.in_proj_qkv": "attn_qkv",
            "linear_attn.in_proj_z": "attn_gate", "linear_attn.in_proj_b": "ssm_beta",
            "linear_attn.in_proj_a": "ssm_alpha", "linear_attn.conv1d": "ssm_conv1d",
            "linear_attn.out_proj": "ssm_out", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
            "mlp.down_proj": "ffn_down", "mlp.gate": "ffn_gate_inp", "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
            "mlp.shared_expert.up_proj": "ffn_up_shexp", "mlp.shared_expert.down_proj": "ffn_down_shexp",
            "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
        }.items()
        for name, theirs in _decoder.linear_names(ours, short).items()
    },
    **{
        f"model.layers.{{}}.mlp.experts.{ours}": f"blk.{{}}.{theirs}.weight"
        for ours, theirs in {
            "gate_proj": "ffn_gate_exps", "up_proj": "ffn_up_exps", "gate_up_proj": "ffn_gate_up_exps",
            "down_proj": "ffn_down_exps",
        }.items()
    },
    "model.layers.{}.linear_attn.A_log": ("blk.{}.ssm_a", None, lambda a: np.log(-a)),
    "model.layers.{}.linear_attn.dt_bias": "blk.{}.ssm_dt.bias",
}  # fmt: skip
DRAFT = {
    "mtp.fc.weight": "nextn.eh_proj.weight", "mtp.norm.weight": "nextn.shared_head_norm.weight",
    "mtp.pre_fc_norm_embedding.weight": "nextn.enorm.weight", "mtp.pre_fc_norm_hidden.weight": "nextn.hnorm.weight",
}  # fmt: skip


def expert_parts(name: str) -> tuple[str, ...]:
    """Return what transformers saves instead of the experts' matrices: those of each expert."""
    start, _, matrix = name.partition(".experts.")
    kinds = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}.get(matrix, ())
    return tuple(f"{start}.experts.{{}}.{kind}.weight" for kind in kinds)


def gguf_names(config: Any) -> dict[str, Any]:
    """Return the GGUF names of all parameters."""
    block = f"blk.{config.num_hidden_layers}."
    drafts = {
        ours.replace("model.", "mtp.", 1): theirs.replace("blk.{}.", block)
        for ours, theirs in LAYER.items()
        if isinstance(theirs, str)  # its layer is one of attention
    }
    return {**_decoder.GGUF, **LAYER, **drafts, **{ours: block + theirs for ours, theirs in DRAFT.items()}}


def json_config(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a config.json's text part; where one is multimodal, its own tie_word_embeddings holds."""
    experts = {"num_experts": 256} if "moe" in str(data.get("model_type")) else {}
    tied = {key: data[key] for key in ("tie_word_embeddings",) if data.get(key) is not None}
    return {**experts, **data, **(data.get("text_config") or {}), **tied}


def gguf_config(metadata: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the keys of config.json that a hybrid's GGUF metadata and tensors stand for."""
    name = str(metadata["general.architecture"])
    data = _decoder.gguf_config(name, metadata, tensors)
    get: Any = lambda key: metadata.get(f"{name}.{key}")  # noqa: E731
    drafts, heads = get("nextn_predict_layers") or 0, get("ssm.time_step_rank")
    trunk = data["num_hidden_layers"] - drafts
    recurrent = get("attention.recurrent_layers")
    return data | {
        "num_hidden_layers": trunk, "mtp_num_hidden_layers": drafts,
        "layer_types": [] if recurrent is None else [HYBRID_TYPES[bool(kind)] for kind in recurrent[:trunk]],
        "full_attention_interval": get("full_attention_interval"),
        "partial_rotary_factor": get("rope.dimension_count") / data["head_dim"],
        "linear_conv_kernel_dim": get("ssm.conv_kernel"), "linear_key_head_dim": get("ssm.state_size"),
        "linear_value_head_dim": get("ssm.inner_size") // heads, "linear_num_key_heads": get("ssm.group_count"),
        "linear_num_value_heads": heads, "num_experts": get("expert_count"),
        "num_experts_per_tok": get("expert_used_count"), "moe_intermediate_size": get("expert_feed_forward_length"),
        "shared_expert_intermediate_size": get("expert_shared_feed_forward_length"),
        "tiled": True, "split_gate_up": "blk.0.ffn_gate_exps.weight" in tensors,
    }  # fmt: skip
