"""Qwen3.5 beyond the plain forward pass, which test_goldens.py holds to transformers and llama.cpp: what configs and
files may say, the draft head, state cut anywhere, and a really trained model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from golden_models import MODELS, close, copy, open_golden, scores

import lattice
from lattice.backends._backend import Capacity
from lattice.backends.cpu import CpuBackend
from lattice.errors import LatticeError, LatticeWarning
from lattice.generate.engine import Engine
from lattice.models import family
from lattice.nn import KV, Recurrent
from lattice.program import trace
from lattice.step import Step
from lattice.weights.load import open_model

# What the published config.json files say, but for what no text model reads.
SMALL = {
    "architectures": ["Qwen3_5ForConditionalGeneration"], "image_token_id": 248056, "model_type": "qwen3_5",
    "text_config": {
        "attention_bias": False, "attention_dropout": 0.0, "attn_output_gate": True, "dtype": "bfloat16",
        "eos_token_id": 248044, "full_attention_interval": 4, "head_dim": 256, "hidden_act": "silu",
        "hidden_size": 1024, "initializer_range": 0.02, "intermediate_size": 3584, "linear_conv_kernel_dim": 4,
        "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 6, "linear_key_head_dim": 128,
        "linear_num_key_heads": 16, "linear_num_value_heads": 16, "linear_value_head_dim": 128,
        "max_position_embeddings": 262144, "mlp_only_layers": [], "model_type": "qwen3_5_text",
        "mtp_num_hidden_layers": 1, "mtp_use_dedicated_embeddings": False, "num_attention_heads": 8,
        "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "tie_word_embeddings": True,
        "use_cache": True, "vocab_size": 248320, "mamba_ssm_dtype": "float32",
        "rope_parameters": {
            "mrope_interleaved": True, "mrope_section": [11, 11, 10], "rope_type": "default", "rope_theta": 10000000,
            "partial_rotary_factor": 0.25,
        },
    },
    "tie_word_embeddings": True, "transformers_version": "4.57.0.dev0", "video_token_id": 248057,
    "vision_config": {"depth": 12, "model_type": "qwen3_5"}, "vision_end_token_id": 248054,
    "vision_start_token_id": 248053,
}  # fmt: skip
EXPERTS = {
    "architectures": ["Qwen3_5MoeForConditionalGeneration"], "model_type": "qwen3_5_moe", "tie_word_embeddings": False,
    "text_config": {
        "model_type": "qwen3_5_moe_text", "hidden_size": 2048, "num_hidden_layers": 40, "vocab_size": 248320,
        "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256, "intermediate_size": 6144,
        "linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_key_head_dim": 128,
        "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4, "full_attention_interval": 4, "num_experts": 256,
        "num_experts_per_tok": 8, "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512,
        "tie_word_embeddings": True, "eos_token_id": 248044, "max_position_embeddings": 262144,
        "rope_theta": 10000000.0, "partial_rotary_factor": 0.25, "router_aux_loss_coef": 0.001,
    },
}  # fmt: skip


def test_published_configs():
    small = family("qwen3_5").Config.read(SMALL)
    assert (small.rope_theta, small.partial_rotary_factor, small.num_experts) == (1e7, 0.25, 0)
    assert small.tie_word_embeddings and small.mtp_num_hidden_layers == 1
    untyped = {key: value for key, value in SMALL["text_config"].items() if key != "layer_types"}
    assert family("qwen3_5_text").Config.read(untyped) == small
    experts = family("qwen3_5_moe").Config.read(EXPERTS)
    assert [i for i, kind in enumerate(experts.layer_types) if kind == "full_attention"] == [*range(3, 40, 4)]
    assert not experts.tie_word_embeddings  # the outer one holds
    fewer = {key: value for key, value in EXPERTS["text_config"].items() if key != "num_experts"}
    assert family("qwen3_5_moe").Config.read(EXPERTS | {"text_config": fewer}) == experts


@pytest.mark.parametrize("config", [SMALL, EXPERTS], ids=["0.8b", "35b-a3b"])
def test_the_published_sizes_have_the_published_shapes(config):
    c = family(config["model_type"]).Config.read(config)
    model = family(config["model_type"]).Model(c)
    shapes = {name: p.shape for name, p in model.parameters().items()}
    gated, queries = "model.layers.3.self_attn", c.num_attention_heads * 256
    assert shapes[f"{gated}.q_proj.weight"] == (2 * queries, c.hidden_size)  # with its gate
    assert shapes[f"{gated}.k_norm.weight"] == (256,)
    values = 128 * c.linear_num_value_heads
    assert shapes["model.layers.0.linear_attn.conv1d.weight"] == (4096 + values, 4)
    assert shapes["model.layers.0.linear_attn.in_proj_z.weight"] == (values, c.hidden_size)
    if c.num_experts:
        assert shapes["model.layers.0.mlp.experts.gate_up_proj"] == (256, 1024, 2048)
        assert shapes["model.layers.0.mlp.experts.down_proj"] == (256, 2048, 512)
    else:
        assert shapes["mtp.fc.weight"] == (1024, 2048)
        assert model.mtp.state_shapes(5) == KV((5, 2, 256, 64), (5, 2, 64, 256))
    state = model.state_shapes(5, 3)
    assert state[0] == Recurrent((3, 4096 + values, 3), (3, c.linear_num_value_heads, 128, 128))
    assert sum(isinstance(layer, KV) for layer in state) == c.num_hidden_layers // 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"linear_num_value_heads": 3}, "linear key heads that divide the value heads, got 2 and 3"),
        ({"layer_types": ["sliding_attention"] * 2}, "2 layer_types among full_attention, linear_attention"),
        ({"linear_conv_kernel_dim": 1}, "linear_conv_kernel_dim from 2"),
        ({"linear_key_head_dim": 1 << 40}, "linear_key_head_dim from 1"),
        ({"rope_parameters": {"partial_rotary_factor": 0.375}}, "even number of rotated dimensions, got 8 . 0.375"),
        ({"rope_parameters": {"partial_rotary_factor": 2}}, "partial_rotary_factor from"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2}}, "llama3 or yarn, got dynamic"),
        ({"hidden_act": "gelu"}, "hidden_act silu"),
        ({"num_experts": 4}, "num_experts_per_tok up to 4, got 8"),
        ({"num_experts": 8, "norm_topk_prob": False}, "norm_topk_prob true"),
        ({"mtp_use_dedicated_embeddings": True}, "mtp_use_dedicated_embeddings=True"),
        ({"mtp_num_hidden_layers": 2}, "mtp_num_hidden_layers from 0 to 1"),
        ({"mlp_only_layers": [1]}, "mlp_only_layers"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"made_up": 3}, "made_up=3"),
    ],
)  # fmt: skip
def test_what_a_config_asks_and_nobody_computes_is_an_error(tmp_path, change, message):
    with pytest.raises(LatticeError, match=message):
        open_model(copy("qwen35-tied", tmp_path, **change), family)


def test_an_outer_key_of_a_multimodal_config_is_not_ignored():
    with pytest.raises(LatticeError, match="made_up=1"):
        family("qwen3_5").Config.read(SMALL | {"made_up": 1})


def test_skipped_vision_tensors_are_said():
    with pytest.warns(LatticeWarning, match="3 tensors of the vision part are skipped"):
        opened = open_model(MODELS / "qwen35-multimodal", family)
    assert len(opened.skipped) == 3 and all(name.startswith("model.visual.") for name in opened.skipped)


def test_a_draft_head_needs_both_config_and_tensors(tmp_path):
    assert open_golden("qwen35-mtp")[0].model.mtp is not None
    assert open_model(copy("qwen35-mtp", tmp_path, mtp_num_hidden_layers=0), family).model.mtp is None
    assert json.loads((MODELS / "qwen35-2x" / "config.json").read_text())["mtp_num_hidden_layers"] == 1
    assert open_golden("qwen35-2x")[0].model.mtp is None  # the file has none of its tensors


# ---- the draft head ------------------------------------------------------------------------------------------------
DRAFTING = ("qwen35-mtp", "qwen35-moe", "gguf-qwen35-f32", "gguf-qwen35-f16", "gguf-qwen35-3x", "gguf-qwen35moe")


def drafts(golden):
    """Yield tokens, the rows whose drafts are known, and these."""
    for key in sorted(key for key in golden if key.startswith("drafts_")):
        index = key.removeprefix("drafts_")
        tokens, rows = golden[f"tokens_{index}"], golden[f"rows_{index}"]
        yield tokens, rows[rows < len(tokens) - 1][: len(golden[key])], golden[key]


@pytest.mark.parametrize("name", DRAFTING)
def test_drafts_agree_with_torch_and_llama_cpp(name):
    """The state is that behind the final norm: of the trunk's rows before it the drafts are others."""
    opened, golden = open_golden(name)
    model = opened.model
    model.bind(opened.weights)
    tokens, rows, wanted = next(drafts(golden))
    x, _ = model.trunk(Step.of([tokens]))
    step = Step.of([tokens[1:]])  # tokens at t + 1, positions of t
    assert close(model.head(model.mtp(step, model.norm(x)[:-1])[0])[rows], wanted, 1e-3)
    assert not close(model.head(model.mtp(step, x[:-1])[0])[rows], wanted, 1e-2)


def paged(p, model, build, pages):
    """Return inputs of a step with pages, and what `build` makes of them."""
    step = p.step(pages)
    shapes = model.mtp.state_shapes(pages)._asdict()
    state = KV(*(p.input(f"mtp.{key}", *shape, kind="state") for key, shape in shapes.items()))
    return build(step, state)


@pytest.mark.parametrize("name", ["qwen35-mtp", "qwen35-moe", "gguf-qwen35-3x"])
def test_drafts_on_the_cpu_in_any_parts(name, cpu_target):
    opened, golden = open_golden(name)
    model, hidden = opened.model, opened.config.hidden_size
    tokens, rows, wanted = max(drafts(golden), key=lambda case: len(case[0]) if len(case[0]) < 256 else 0)
    model.bind(opened.weights)
    states = model(Step.of([tokens]))[0]
    backend = CpuBackend(cpu_target, threads=1)

    def program(p):
        def build(step, state):
            return {"out": model.head(model.mtp(step, p.input("states", "T", hidden), state)[0])}

        return paged(p, model, build, 4)

    traced = trace(program)
    memory = {s.name: backend.state(s.shape, s.dtype) for s in traced.of_kind("state")}
    plan = backend.compile(traced, backend.load(traced, opened.weights), Capacity(len(tokens), 0, 1), memory)
    table, results = np.arange(4, dtype=np.int32)[None], []
    for size in (len(tokens), 1, 63, 64):
        parts = []
        for start in range(0, len(tokens) - 1, size):
            part = tokens[start + 1 : start + 1 + size]
            step = Step.of([part], starts=[start], page_table=table, rows=[])
            parts.append(plan.run(step, states=states[start : start + len(part)])["out"])
        results.append(np.concatenate(parts))
    assert close(results[0][rows], wanted, 1e-3)
    assert all(np.array_equal(result, results[0]) for result in results[1:])


# ---- state ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["qwen35-3x", "qwen35-unequal", "qwen35-moe", "gguf-qwen35-3x"])
def test_the_same_bits_however_a_text_is_cut(name):
    path = next((MODELS / name).glob("*.gguf"), MODELS / name)
    engine = Engine(open_model(path, family), CpuBackend(threads=1), dtype="f32")
    golden = np.load(MODELS / name / "golden.npz")
    index = max(int(key.removeprefix("tokens_")) for key in golden if key.startswith("tokens_"))
    tokens, rows, wanted = (golden[f"{key}_{index}"] for key in ("tokens", "rows", "logits"))
    whole = scores(engine, tokens.tolist(), len(tokens))
    assert close(whole[rows], wanted, 1e-3)
    for size in (1, 63, 64, 65):
        assert np.array_equal(scores(engine, tokens.tolist(), size), whole), size


# ---- a trained model -----------------------------------------------------------------------------------------------
TRAINED = Path(__file__).parents[3] / "shared" / "data" / "tiny-hybrid"


@pytest.mark.skipif(not TRAINED.is_dir(), reason="the trained model lies beside the repository in some places only")
def test_a_trained_model_continues_as_in_transformers():
    golden = json.loads((TRAINED / "golden.json").read_text())["prompts"]
    lm = lattice.load(TRAINED, dtype="f32")
    model = lm.engine._model
    model.bind(open_model(TRAINED, family).weights.cast("f32"))
    for prompt in golden:
        ids, greedy = prompt["ids"], prompt["greedy_ids"]
        assert lm.generate(ids, max_tokens=len(greedy), temperature=0, ignore_eos=True).tokens == greedy
        tokens, last = np.array(ids + greedy), len(ids) - 1
        top = prompt["top5_last_prompt_position"]
        assert np.abs(lm.logits(tokens)[last][top["ids"]] - top["logits"]).max() <= 1e-3
        x, _ = model.trunk(Step.of([tokens]))
        found = model.head(model.mtp(Step.of([tokens[1:]]), x[:-1])[0])  # its goldens: the state before the norm
        top = prompt["mtp_top5_last_prompt_position_given_first_greedy_token"]
        assert np.abs(found[last][top["ids"]] - top["logits"]).max() <= 1e-3
        accepted = int((found.argmax(-1)[last:-1][: len(greedy) - 1] == greedy[1:]).sum())
        assert f"{accepted} of {len(greedy) - 1}" == prompt["mtp_draft_accepted"]
