"""Reading config.json into a dataclass whose fields are the checkpoint's own keys, refusing what is not understood."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from lattice.errors import LatticeWarning, expected
from lattice.nn.layers import ACTIVATION_KINDS

C = TypeVar("C", bound=Any)

# Keys that say nothing about the forward computation, whatever their value.
IGNORABLE = frozenset({
    "architectures", "model_type", "transformers_version", "torch_dtype", "dtype", "_name_or_path", "name_or_path",
    "use_cache", "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id",
    "decoder_start_token_id", "initializer_range", "attention_dropout", "hidden_dropout_prob",
    "attention_probs_dropout_prob", "classifier_dropout", "id2label", "label2id", "problem_type",
    "gradient_checkpointing", "return_dict", "output_attentions", "output_hidden_states", "pretraining_tp",
    "chunk_size_feed_forward", "finetuning_task", "auto_map", "task_specific_params", "num_labels",
    "unsloth_version", "unsloth_fixed",
})  # fmt: skip


def read_config(
    kind: type[C], data: Mapping[str, Any], ignorable: frozenset[str] = frozenset(), *, strict: bool = True
) -> C:
    """Return `kind` made from the keys it declares.

    A further key whose value is not null, false, 0 or empty is an error that lists it, unless it is known to be
    harmless; with strict=False it is a warning. `quantization_config` is never harmless.
    """
    known = {field.name for field in fields(kind)}
    unknown = {
        key: value
        for key, value in data.items()
        if key not in known and (key not in IGNORABLE | ignorable or key == "quantization_config") and value
    }
    if unknown:
        listed = ", ".join(f"{key}={str(value)[:60]}" for key, value in sorted(unknown.items()))
        error = expected("config", f"keys that {kind.__module__} knows", listed, hint="strict=False ignores them")
        if strict or "quantization_config" in unknown:
            raise error
        warnings.warn(str(error), LatticeWarning, stacklevel=2)
    required = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    missing = [name for name in required if data.get(name) is None]
    if missing:
        raise expected("config", f"keys {', '.join(required)}", f"none for {', '.join(missing)}")
    return kind(**{key: value for key, value in data.items() if key in known and value is not None})


# Bounds of config values: whatever lies outside is a damaged or hostile file, refused before anything is allocated.
BOUNDS: dict[str, tuple[float, float]] = {
    "vocab_size": (1, 4_000_000), "hidden_size": (1, 1 << 20), "intermediate_size": (1, 1 << 20),
    "num_hidden_layers": (1, 4096), "num_attention_heads": (1, 8192), "num_key_value_heads": (1, 8192),
    "head_dim": (2, 2048), "max_position_embeddings": (1, 1 << 22), "type_vocab_size": (1, 64),
    "rms_norm_eps": (0, 1), "layer_norm_eps": (0, 1), "rope_theta": (1e-3, 1e12), "rope_local_base_freq": (1e-3, 1e12),
    "query_pre_attn_scalar": (1e-3, 1e6), "sliding_window": (1, 1 << 22), "max_window_layers": (0, 4096),
    "linear_conv_kernel_dim": (2, 64), "linear_num_key_heads": (1, 8192), "linear_num_value_heads": (1, 8192),
    "linear_key_head_dim": (1, 2048), "linear_value_head_dim": (1, 2048), "partial_rotary_factor": (1e-3, 1),
    "full_attention_interval": (1, 4096), "mtp_num_hidden_layers": (0, 1), "num_experts": (0, 4096),
    "num_experts_per_tok": (1, 4096), "moe_intermediate_size": (1, 1 << 20),
    "shared_expert_intermediate_size": (1, 1 << 20),
}  # fmt: skip
REAL = frozenset({  # the others are whole numbers
    "rms_norm_eps", "layer_norm_eps", "rope_theta", "rope_local_base_freq", "query_pre_attn_scalar",
    "partial_rotary_factor",
})  # fmt: skip
LAYER_TYPES = ("full_attention", "sliding_attention")
HYBRID_TYPES = ("full_attention", "linear_attention")


def check_config(config: Any) -> None:
    """Raise unless every field that has bounds is a number within them and the activation is known."""
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in BOUNDS and not (value is None and field.default is None):
            low, high = BOUNDS[field.name]
            kinds = (int, float) if field.name in REAL else (int,)
            if type(value) not in kinds or not low <= value <= high:
                raise expected("config", f"{field.name} from {low} to {high}", repr(value))
        elif field.type in (bool, "bool") and type(value) is not bool:
            raise expected("config", f"{field.name} true or false", repr(value))
        if field.name in ("hidden_act", "hidden_activation") and value not in ACTIVATION_KINDS:
            raise expected("config", f"{field.name} among {', '.join(ACTIVATION_KINDS)}", repr(value))


def complete_decoder(config: Any, **derived: Any) -> None:
    """Set the `derived` fields of a decoder's config and those of its heads, then check it."""
    heads = config.num_attention_heads
    derived |= {
        "num_key_value_heads": config.num_key_value_heads or heads,
        "head_dim": config.head_dim or config.hidden_size // max(1, heads),
    }
    for name, value in derived.items():
        object.__setattr__(config, name, value)
    check_config(config)
    if heads % config.num_key_value_heads or config.head_dim % 2:
        raise expected("config", "key heads that divide the query heads, an even head_dim", config)


def check_layer_types(config: Any, kinds: tuple[str, ...] = LAYER_TYPES) -> None:
    """Raise unless `layer_types` names one of `kinds` for every layer, and there is a window where one slides."""
    types = config.layer_types
    if len(types) != config.num_hidden_layers or not set(types) <= set(kinds):
        wanted = f"{config.num_hidden_layers} layer_types among {', '.join(kinds)}"
        raise expected("config", wanted, str(list(types))[:120])
    if "sliding_attention" in types and not config.sliding_window:
        raise expected("config", "a sliding_window for layers of sliding_attention", config.sliding_window)


def complete_hybrid(config: Any) -> None:
    """Set the derived fields of a config with linear attention, partial rotation and perhaps experts, and check it."""
    rope = {"rope_theta": config.rope_theta, "partial_rotary_factor": config.partial_rotary_factor}
    rope |= (config.rope_scaling or {}) | (config.rope_parameters or {})
    rope = {key: value for key, value in rope.items() if not key.startswith("mrope_")}  # of images and videos
    layers, every = range(min(4096, config.num_hidden_layers)), max(1, config.full_attention_interval)
    complete_decoder(
        config, partial_rotary_factor=rope.pop("partial_rotary_factor"), rope_parameters=rope,
        rope_theta=rope["rope_theta"],
        layer_types=config.layer_types or [HYBRID_TYPES[(i + 1) % every > 0] for i in layers],
        intermediate_size=config.intermediate_size or (config.num_experts and config.moe_intermediate_size),
    )  # fmt: skip
    check_layer_types(config, HYBRID_TYPES)
    rotated = int(config.head_dim * config.partial_rotary_factor)
    if rotated % 2 or not rotated:
        got = f"{config.head_dim} * {config.partial_rotary_factor}"
        raise expected("config", "an even number of rotated dimensions", got)
    if config.linear_num_value_heads % config.linear_num_key_heads:
        got = f"{config.linear_num_key_heads} and {config.linear_num_value_heads}"
        raise expected("config", "linear key heads that divide the value heads", got)
    if config.num_experts and config.num_experts_per_tok > config.num_experts:
        raise expected("config", f"num_experts_per_tok up to {config.num_experts}", config.num_experts_per_tok)
    if ACTIVATION_KINDS[config.hidden_act] != "silu" or not config.norm_topk_prob:
        got = f"{config.hidden_act} and {config.norm_topk_prob}"
        raise expected("config", "hidden_act silu and norm_topk_prob true", got)
