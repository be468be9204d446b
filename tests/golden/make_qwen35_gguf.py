"""Write the GGUF checkpoints of Qwen3.5 in `tests/golden/models`, with what llama.cpp computes; see make_qwen3_5.py.

    pip install torch transformers safetensors gguf llama-cpp-python==0.3.36 numpy tokenizers
    PYTHONPATH=src python tests/golden/make_qwen35_gguf.py             # needs no native library

The files are Lattice's own writer's. Names and layout follow llama.cpp's converter: norm weights whole, but the delta
net's own as they are; ssm_a = -exp(A_log); value heads from groups (those of key head 0 first) to tiles (the first of
each key head first), in the rows of everything that makes them and the columns of ssm_out; the draft head is one more
block. `golden.npz` as in make_models.py: logits_i and drafts_i are llama.cpp's, from f32 keys and values; transformers
and the draft head of make_qwen3_5.py must agree with them, on the values that the file holds.
"""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path

import llama_cpp
import numpy as np
import torch
from llama_cpp import llama_cpp_ext
from make_gguf import MERGES
from make_models import ROOT, Case, build
from make_qwen3_5 import FULL, LINEAR, Drafts, draw, random_drafts
from transformers import Qwen3_5ForCausalLM, Qwen3_5MoeForCausalLM

from lattice.dtypes import F16, F32, dense, encode
from lattice.weights.gguf_write import write_gguf

LENGTHS = (1, 65, 200)
ROWS = (0, 31, 63, 64, 198, 199)
SMALL = dict(
    vocab_size=112,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    layer_types=[LINEAR, FULL],
    linear_num_key_heads=2,
    linear_key_head_dim=8,
    linear_value_head_dim=8,
    max_position_embeddings=512,
    rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5),
)
DENSE = SMALL | dict(intermediate_size=16)
EXPERTS = SMALL | dict(num_experts=5, num_experts_per_tok=2, moe_intermediate_size=4, shared_expert_intermediate_size=8)
CASES = (
    ("gguf-qwen35-f32", Qwen3_5ForCausalLM, DENSE | dict(linear_num_value_heads=2, tie_word_embeddings=True), F32),
    ("gguf-qwen35-f16", Qwen3_5ForCausalLM, DENSE | dict(linear_num_value_heads=4, tie_word_embeddings=False), F16),
    ("gguf-qwen35-3x", Qwen3_5ForCausalLM, DENSE | dict(linear_num_value_heads=6, tie_word_embeddings=True), F32),
    ("gguf-qwen35moe", Qwen3_5MoeForCausalLM, EXPERTS | dict(linear_num_value_heads=4, tie_word_embeddings=True), F32),
)
LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "linear_attn.in_proj_qkv.weight": "attn_qkv.weight",
    "linear_attn.in_proj_z.weight": "attn_gate.weight",
    "linear_attn.in_proj_b.weight": "ssm_beta.weight",
    "linear_attn.in_proj_a.weight": "ssm_alpha.weight",
    "linear_attn.conv1d.weight": "ssm_conv1d.weight",
    "linear_attn.A_log": "ssm_a",
    "linear_attn.dt_bias": "ssm_dt.bias",
    "linear_attn.norm.weight": "ssm_norm.weight",
    "linear_attn.out_proj.weight": "ssm_out.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.experts.down_proj": "ffn_down_exps.weight",
    "mlp.shared_expert.gate_proj.weight": "ffn_gate_shexp.weight",
    "mlp.shared_expert.up_proj.weight": "ffn_up_shexp.weight",
    "mlp.shared_expert.down_proj.weight": "ffn_down_shexp.weight",
    "mlp.shared_expert_gate.weight": "ffn_gate_inp_shexp.weight",
}
REST = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
DRAFT = {
    "fc.weight": "nextn.eh_proj.weight",
    "norm.weight": "nextn.shared_head_norm.weight",
    "pre_fc_norm_embedding.weight": "nextn.enorm.weight",
    "pre_fc_norm_hidden.weight": "nextn.hnorm.weight",
}


def tiled(values: np.ndarray, name: str, c: object) -> np.ndarray:
    """Value heads from groups to tiles, in whatever axis holds them."""
    keys, ratio = c.linear_num_key_heads, c.linear_num_value_heads // c.linear_num_key_heads

    def reorder(part: np.ndarray) -> np.ndarray:
        return part.reshape(keys, ratio, -1, *part.shape[1:]).swapaxes(0, 1).reshape(part.shape)

    if "in_proj_qkv" in name or "conv1d" in name:
        start = 2 * keys * c.linear_key_head_dim
        return np.concatenate([values[:start], reorder(values[start:])])
    if any(part in name for part in ("in_proj_z", "in_proj_a", "in_proj_b", "A_log", "dt_bias")):
        return reorder(values)
    return reorder(values.T).T if "out_proj" in name else values


def converted(state: dict[str, torch.Tensor], c: object) -> dict[str, np.ndarray]:
    """A state dict under GGUF's names."""
    made = {}
    for name, tensor in state.items():
        values = tensor.numpy()
        values = values[:, 0] if "conv1d" in name else values
        if "linear_attn" in name:
            values = tiled(values, name, c)
        values = -np.exp(values) if "A_log" in name else values
        values = values[0] if "shared_expert_gate" in name else values
        if "norm" in name and "linear_attn" not in name:
            values = values + 1
        if name.startswith("model.layers."):
            index, _, rest = name.removeprefix("model.layers.").partition(".")
        else:
            index, rest = str(c.num_hidden_layers), name.removeprefix("layers.0.")
        if rest == "mlp.experts.gate_up_proj":
            gate, up = np.split(values, 2, 1)
            made |= {f"blk.{index}.ffn_gate_exps.weight": gate, f"blk.{index}.ffn_up_exps.weight": up}
        elif name in REST:
            made[REST[name]] = values
        else:
            made[f"blk.{index}.{LAYER.get(rest) or DRAFT[rest]}"] = values
    if c.tie_word_embeddings:
        made.pop("output.weight", None)
    return made


def metadata(c: object, architecture: str) -> dict[str, object]:
    values = {
        "block_count": c.num_hidden_layers + 1,
        "nextn_predict_layers": 1,
        "context_length": c.max_position_embeddings,
        "embedding_length": c.hidden_size,
        "feed_forward_length": getattr(c, "intermediate_size", 0) or 16,
        "attention.head_count": c.num_attention_heads,
        "attention.head_count_kv": c.num_key_value_heads,
        "attention.key_length": c.head_dim,
        "attention.value_length": c.head_dim,
        "attention.layer_norm_rms_epsilon": c.rms_norm_eps,
        "attention.recurrent_layers": np.array([kind == LINEAR for kind in c.layer_types] + [False]),
        "rope.freq_base": c.rope_parameters["rope_theta"],
        "rope.dimension_count": int(c.head_dim * c.rope_parameters["partial_rotary_factor"]),
        "rope.dimension_sections": np.array([1, 1, 0, 0], np.int32),
        "full_attention_interval": 4,
        "ssm.conv_kernel": c.linear_conv_kernel_dim,
        "ssm.state_size": c.linear_key_head_dim,
        "ssm.group_count": c.linear_num_key_heads,
        "ssm.time_step_rank": c.linear_num_value_heads,
        "ssm.inner_size": c.linear_num_value_heads * c.linear_value_head_dim,
    }
    if architecture == "qwen35moe":
        values |= {
            "expert_count": c.num_experts,
            "expert_used_count": c.num_experts_per_tok,
            "expert_feed_forward_length": c.moe_intermediate_size,
            "expert_shared_feed_forward_length": c.shared_expert_intermediate_size,
        }
    merged = (merge.replace(" ", "") for merge in MERGES)
    tokens = ["<|begin|>", "<|end|>", *map(chr, range(33, 127)), "Ġ", "Ċ", *merged]
    tokens += [f"[PAD{index}]" for index in range(len(tokens), c.vocab_size)]
    words = {
        "model": "gpt2",
        "pre": "qwen35",
        "tokens": tokens,
        "merges": list(MERGES),
        "token_type": np.array([3, 3] + [1] * 105 + [5] * (c.vocab_size - 107), np.int32),
        "eos_token_id": 1,
    }
    return (
        {"general.architecture": architecture, "general.name": "lattice golden", "general.file_type": 0}
        | {f"{architecture}.{key}": value for key, value in values.items()}
        | {f"tokenizer.ggml.{key}": value for key, value in words.items()}
    )


class Llama:
    """llama.cpp on one file: the trunk with its states, and the draft head over them."""

    def __init__(self, path: Path):
        parameters = llama_cpp.llama_model_default_params()
        parameters.load_mtp = True
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        if not self.model or llama_cpp.llama_model_n_layer_nextn(self.model) != 1:
            raise SystemExit(f"llama.cpp does not load {path} with its draft head")
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.width = llama_cpp.llama_model_n_embd(self.model)

    def context(self, kind: int) -> object:
        wanted = llama_cpp.llama_context_default_params()
        wanted.n_ctx = wanted.n_batch = wanted.n_ubatch = 512
        wanted.type_k = wanted.type_v = 0  # f32
        wanted.flash_attn_type, wanted.n_threads, wanted.n_threads_batch, wanted.ctx_type = 0, 1, 1, kind
        context = llama_cpp.llama_init_from_model(self.model, wanted)
        llama_cpp_ext.llama_set_embeddings_nextn(context, True, False)
        return context

    def run(self, kind: int, tokens: np.ndarray, states: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Logits and states of every token; `states` are those that a draft head takes."""
        context = self.context(kind)
        batch = llama_cpp.llama_batch_ext_init(context)
        for index, token in enumerate(tokens.tolist()):
            at = llama_cpp.llama_batch_ext_add_token(batch, 0, token)
            position = llama_cpp.llama_pos(index)
            llama_cpp.llama_batch_ext_set_pos(batch, at, ctypes.byref(position))
            llama_cpp.llama_batch_ext_set_output_logits(batch, at, True)
            if states is not None:
                row = np.ascontiguousarray(states[index], np.float32)
                pointer = row.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
                llama_cpp.llama_batch_ext_set_embd_token(batch, at, llama_cpp.llama_embd(pointer, 1, self.width))
        if llama_cpp.llama_process(context, llama_cpp.LLAMA_PROCESS_TYPE_DECODE, batch):
            raise SystemExit("llama.cpp fails to run")
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), (len(tokens), self.vocab)).copy()
        found = llama_cpp_ext.llama_get_embeddings_nextn(context)
        behind = np.ctypeslib.as_array(found, (len(tokens), self.width)).copy()
        llama_cpp.llama_batch_ext_free(batch)
        llama_cpp.llama_free(context)
        return logits, behind


def held(model: torch.nn.Module, drafts: Drafts, dtype: object) -> None:
    """Round matrices to what the file will hold."""
    for part in (model, drafts):
        for name, value in part.named_parameters():
            if value.ndim > 1 and "conv1d" not in name:
                value.data = torch.from_numpy(dense(encode(value.detach().numpy(), dtype)).copy())


def compare(name: str, what: str, got: np.ndarray, wanted: np.ndarray, tolerance: float) -> None:
    error = float(np.abs(got - wanted).max()) / max(1.0, float(np.abs(wanted).max()))
    print(f"{name:16} {what:24} {error:.1e} of the largest")
    if not error <= tolerance:
        raise SystemExit(f"{name}: {what} differ")


def make(name: str, kind: type, values: dict, dtype: object, seed: int) -> None:
    directory = ROOT / name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    model = build(Case(name, "", values, model=kind, draw=draw), seed)
    drafts = random_drafts(model, seed + 50)
    held(model, drafts, dtype)
    architecture = "qwen35moe" if "moe" in name else "qwen35"
    arrays = converted(model.state_dict(), model.config) | converted(drafts.state_dict(), model.config)
    plain = ("ssm_conv1d",)  # f32 in every file
    write_gguf(
        directory / "model.gguf",
        metadata(model.config, architecture),
        {
            key: encode(
                np.ascontiguousarray(value, np.float32), dtype if value.ndim > 1 and plain[0] not in key else F32
            )
            for key, value in arrays.items()
        },
    )
    llama, random, golden = Llama(directory / "model.gguf"), np.random.default_rng(seed), {}
    tolerance = 1e-4 if dtype is F32 else 2e-2  # llama.cpp rounds what it multiplies with f16 matrices to f16
    for index, length in enumerate(LENGTHS):
        tokens = random.integers(0, model.config.vocab_size, length).astype(np.int32)
        with torch.no_grad():
            row = torch.tensor(tokens).long()
            wanted = model(row[None]).logits[0].numpy()
            hidden = model.model(row[None]).last_hidden_state[0].numpy()
            drafted = drafts(row).numpy() if length > 1 else None
        logits, states = llama.run(0, tokens)
        compare(name, f"{length} logits", logits, wanted, tolerance)
        compare(name, "states, final norm", states, hidden, tolerance)
        rows = np.array([row for row in ROWS if row < length], np.int32)
        golden |= {f"tokens_{index}": tokens, f"rows_{index}": rows}
        golden[f"logits_{index}"] = (logits if dtype is F32 else wanted)[rows]
        if drafted is not None:
            found, _ = llama.run(1, tokens[1:], states[:-1])
            compare(name, "drafts", found, drafted, tolerance)
            golden[f"drafts_{index}"] = (found if dtype is F32 else drafted)[rows[rows < length - 1]]
    np.savez_compressed(directory / "golden.npz", **golden)
    print(f"{name:16} {sum(path.stat().st_size for path in directory.iterdir()) / 1000:.1f} kB")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for seed, (name, kind, values, dtype) in enumerate(CASES):
        make(name, kind, values, dtype, 5200 + seed)
