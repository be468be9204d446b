"""Write the random tiny checkpoints of Qwen3.5 in `tests/golden/models`; see make_models.py, whose form and helpers it
shares.

    pip install torch transformers safetensors
    python tests/golden/make_qwen3_5.py                    # or: make_qwen3_5.py NAME [NAME ...]

transformers drops the draft head (`mtp.*`), so that it stands here, in torch; make_qwen35_gguf.py finds that llama.cpp
computes the same. What it gives is kept beside the logits:

    drafts_i    (rows, vocab) float32    row t: its logits for the token at t + 2, from tokens 0 to t + 1; the last kept
                                         row is left out, because no token follows it
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import make_models
import numpy as np
import torch
from make_models import ROOT, Case, edit_config, main
from safetensors.torch import load_file, save_file
from transformers import Qwen3_5ForCausalLM, Qwen3_5MoeForCausalLM
from transformers.models.qwen3_5 import modeling_qwen3_5 as dense
from transformers.models.qwen3_5_moe import modeling_qwen3_5_moe as moe

LENGTHS = (1, 63, 64, 65, 200, 1000)
ROWS = (0, 62, 63, 64, 199, 998)
FULL, LINEAR = "full_attention", "linear_attention"
BASE = dict(
    vocab_size=37,
    hidden_size=16,
    intermediate_size=12,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    linear_num_key_heads=2,
    linear_num_value_heads=2,
    linear_key_head_dim=8,
    linear_value_head_dim=8,
    layer_types=[LINEAR, FULL],
    max_position_embeddings=2048,
    tie_word_embeddings=True,
    rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5),
)
MOE = {key: value for key, value in BASE.items() if key != "intermediate_size"} | dict(
    num_experts=8,
    num_experts_per_tok=2,
    moe_intermediate_size=8,
    shared_expert_intermediate_size=10,
)
YARN = dict(
    rope_type="yarn",
    rope_theta=1000.0,
    factor=4.0,
    original_max_position_embeddings=128,
    partial_rotary_factor=0.5,
)


def draw(model: torch.nn.Module) -> None:
    """Norms less 1, decays from almost 1 to almost 0, convolutions and experts as wide as matrices."""
    model.config.use_cache = False  # with linear layers alone transformers' cache does not know where it is
    for name, value in model.named_parameters():
        if "norm" in name and "linear_attn" not in name:
            value.data -= 1
        elif name.endswith("A_log"):
            torch.nn.init.uniform_(value, -5, 1)
        elif name.endswith("dt_bias"):
            torch.nn.init.uniform_(value, -1, 1)
        elif value.ndim == 3:
            torch.nn.init.normal_(value, std=(1.5 / value.shape[2]) ** 0.5)


def multimodal(kind: str, **top):
    """config.json and names as published: the text under text_config, vision tensors beside it."""

    def rewrite(directory: Path) -> None:
        path = directory / "model.safetensors"
        tensors = {name.replace("model.", "model.language_model.", 1): v for name, v in load_file(path).items()}
        tensors = fused(tensors)
        for name in ("blocks.0.attn.qkv.weight", "patch_embed.proj.bias", "merger.linear_fc1.weight"):
            tensors[f"model.visual.{name}"] = torch.zeros(4)
        save_file(tensors, path, metadata={"format": "pt"})
        text = make_models.json.loads((directory / "config.json").read_text())
        (directory / "config.json").unlink()
        config = dict(text_config=text, vision_config=dict(depth=1, model_type=kind), image_token_id=3, model_type=kind)
        (directory / "config.json").write_text(make_models.json.dumps(config | top, indent=1, sort_keys=True) + "\n")

    return rewrite


def fused(tensors: dict) -> dict:
    """Experts as published: two stacks a layer; transformers saves them one by one."""
    stacks: dict[str, dict[str, dict[int, torch.Tensor]]] = {}
    for name in [name for name in tensors if ".experts." in name]:
        start, _, rest = name.partition(".experts.")
        index, kind, _ = rest.split(".")
        stacks.setdefault(start, {}).setdefault(kind, {})[int(index)] = tensors.pop(name)
    for start, kinds in stacks.items():
        gate, up, down = (
            torch.stack([k[i] for i in range(len(k))]) for k in map(kinds.get, ("gate_proj", "up_proj", "down_proj"))
        )
        tensors[f"{start}.experts.gate_up_proj"] = torch.cat([gate, up], 1)
        tensors[f"{start}.experts.down_proj"] = down
    return tensors


def without_types(**values):
    def rewrite(directory: Path) -> None:
        edit_config(directory, drop=("layer_types",), **values)

    return rewrite


def flat_rope(directory: Path) -> None:
    """As in the 35B's config.json: the rotary values beside the others."""
    edit_config(
        directory,
        drop=("rope_parameters",),
        rope_theta=500.0,
        partial_rotary_factor=0.25,
        mtp_num_hidden_layers=1,  # and no tensors of it
    )


def bare(directory: Path) -> None:
    """A trunk without its prefix."""
    path = directory / "model.safetensors"
    save_file({k.removeprefix("model."): v for k, v in load_file(path).items()}, path, metadata={"format": "pt"})


# ---- the draft head ------------------------------------------------------------------------------------------------


class Drafts(torch.nn.Module):
    """The draft head: one attention layer over [norm(embedding of t + 1) | norm(state at t)], and its norm."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        c = model.config
        part, name = (moe, "Qwen3_5Moe") if "moe" in c.model_type else (dense, "Qwen3_5")
        norm = partial(getattr(part, name + "RMSNorm"), c.hidden_size, eps=c.rms_norm_eps)
        self.fc = torch.nn.Linear(2 * c.hidden_size, c.hidden_size, bias=False)
        self.norm, self.pre_fc_norm_embedding, self.pre_fc_norm_hidden = norm(), norm(), norm()
        index = c.layer_types.index(FULL)  # a layer is made for its place
        self.layers = torch.nn.ModuleList([getattr(part, name + "DecoderLayer")(c, index)])
        self.model = [model]

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Row t: logits for the token at t + 2."""
        model, steps = self.model[0], len(tokens) - 1
        hidden = model.model(tokens[None]).last_hidden_state[:, :-1]  # behind the final norm
        token = model.model.embed_tokens(tokens[None, 1:])
        x = self.fc(torch.cat([self.pre_fc_norm_embedding(token), self.pre_fc_norm_hidden(hidden)], -1))
        positions = torch.arange(steps)[None]
        angles = model.model.rotary_emb(x, positions[None].expand(3, 1, steps))
        mask = torch.full((steps, steps), -torch.inf).triu(1)[None, None]
        x = self.layers[0](x, position_embeddings=angles, attention_mask=mask, position_ids=positions)
        return model.lm_head(self.norm(x[0] if isinstance(x, tuple) else x))[0]


def random_drafts(model: torch.nn.Module, seed: int) -> Drafts:
    torch.manual_seed(seed)
    drafts = Drafts(model).eval()
    make_models.randomise(drafts)
    drafts.config = model.config
    draw(drafts)
    return drafts


def add_drafts(directory: Path, seed: int) -> None:
    """Add a draft head to a checkpoint, and what it computes to its golden."""
    kind = Qwen3_5MoeForCausalLM if "moe" in directory.name else Qwen3_5ForCausalLM
    model = kind.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    drafts, path = random_drafts(model, seed), directory / "model.safetensors"
    held = {name: value.detach().to(torch.bfloat16) for name, value in drafts.state_dict().items()}
    save_file(load_file(path) | {f"mtp.{k}": v.contiguous() for k, v in held.items()}, path, metadata={"format": "pt"})
    edit_config(directory, mtp_num_hidden_layers=1, mtp_use_dedicated_embeddings=False)
    drafts.load_state_dict({name: value.float() for name, value in held.items()})
    golden = dict(np.load(directory / "golden.npz"))
    with torch.no_grad():
        for index in range(1, len(LENGTHS)):
            rows = golden[f"rows_{index}"][:-1]
            golden[f"drafts_{index}"] = drafts(torch.tensor(golden[f"tokens_{index}"]).long())[rows].numpy()
    np.savez_compressed(directory / "golden.npz", **golden)


qwen = partial(Case, model=Qwen3_5ForCausalLM, lengths=LENGTHS, rows=ROWS, dtype=torch.bfloat16, draw=draw)
mixture = partial(qwen, model=Qwen3_5MoeForCausalLM)
CASES = (
    qwen("qwen35-tied", "as many value heads as key heads; tied", BASE),
    qwen(
        "qwen35-2x",
        "two value heads a key head; no rope_parameters, as in the 35B's file; a draft head that the file lacks",
        BASE
        | dict(
            linear_num_value_heads=4,
            rope_parameters=dict(rope_type="default", rope_theta=500.0, partial_rotary_factor=0.25),
        ),
        rewrite=flat_rope,
    ),
    qwen("qwen35-3x", "three value heads a key head", BASE | dict(linear_num_value_heads=6)),
    qwen(
        "qwen35-unequal",
        "key heads of 6 and value heads of 10, two a key head; a norm's eps of 0.01",
        BASE | dict(linear_key_head_dim=6, linear_value_head_dim=10, linear_num_value_heads=4, rms_norm_eps=1e-2),
    ),
    qwen("qwen35-untied", "an untied head; f32", BASE | dict(tie_word_embeddings=False), dtype=torch.float32),
    qwen(
        "qwen35-types",
        "unusual layer_types: full, linear, linear, full, full",
        BASE | dict(num_hidden_layers=5, layer_types=[FULL, LINEAR, LINEAR, FULL, FULL]),
    ),
    qwen(
        "qwen35-no-types",
        "no layer_types: the fourth of five layers is full",
        BASE | dict(num_hidden_layers=5, layer_types=[LINEAR] * 3 + [FULL, LINEAR]),
        rewrite=without_types(),
    ),
    qwen(
        "qwen35-interval",
        "no layer_types, full_attention_interval 3; no rotation but of 4 dimensions of 16",
        BASE
        | dict(
            num_hidden_layers=3,
            layer_types=[LINEAR, LINEAR, FULL],
            head_dim=16,
            rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.25),
        ),
        rewrite=without_types(full_attention_interval=3),
    ),
    qwen(
        "qwen35-linear",
        "linear layers alone, their convolution 7 wide",
        BASE | dict(layer_types=[LINEAR] * 2, linear_conv_kernel_dim=7),
    ),
    qwen(
        "qwen35-conv2",
        "a convolution 2 wide; one key head of three",
        BASE
        | dict(
            linear_conv_kernel_dim=2,
            linear_num_key_heads=1,
            linear_num_value_heads=3,
        ),
    ),
    qwen(
        "qwen35-bias",
        "attention_bias, whole heads rotate, three queries a key, no prefix; f32",
        BASE
        | dict(
            attention_bias=True,
            num_attention_heads=3,
            rope_parameters=dict(rope_type="default", rope_theta=100.0, partial_rotary_factor=1.0),
        ),
        dtype=torch.float32,
        rewrite=bare,
    ),
    qwen(
        "qwen35-yarn",
        "yarn by 4 from 128 positions: only rotated dimensions grow",
        BASE
        | dict(
            head_dim=16,
            rope_parameters=YARN,
        ),
    ),
    qwen(
        "qwen35-multimodal",
        "the text part of a multimodal checkpoint; the outer tie_word_embeddings holds",
        BASE,
        rewrite=multimodal("qwen3_5", tie_word_embeddings=True),
    ),
    qwen("qwen35-mtp", "a draft head; untied", BASE | dict(tie_word_embeddings=False)),
    mixture("qwen35-moe", "8 experts, 2 a token, a draft head with experts of its own", MOE),
    mixture(
        "qwen35-moe-256",
        "256 experts, 8 a token; names of a multimodal checkpoint",
        MOE
        | dict(
            hidden_size=8,
            num_hidden_layers=1,
            layer_types=[LINEAR],
            num_experts=256,
            num_experts_per_tok=8,
            moe_intermediate_size=4,
            shared_expert_intermediate_size=4,
            linear_num_value_heads=4,
        ),
        lengths=(1, 64, 200),
        rewrite=multimodal("qwen3_5_moe", tie_word_embeddings=True),
    ),
)

if __name__ == "__main__":
    main(sys.argv[1:], CASES, 5000)
    for seed, name in enumerate(("qwen35-mtp", "qwen35-moe")):
        if name in sys.argv[1:] or not sys.argv[1:]:
            add_drafts(ROOT / name, 5100 + seed)
