"""Write the random tiny checkpoints of Qwen3 and Gemma 3 in `tests/golden/models`; see make_models.py, whose form and
helpers these share.

    pip install torch transformers safetensors gguf
    python tests/golden/make_decoders.py                   # or: make_decoders.py NAME [NAME ...]

Of every sequence a few positions are kept: those around the edges of pages and windows, and the last.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch
from make_gguf import write_gemma3, write_qwen3
from make_models import Case, edit_config, main
from transformers import Gemma3ForCausalLM, Qwen3ForCausalLM, Qwen3Model

BF16 = torch.bfloat16
LONG = (1, 9, 66, 700)  # longer than any window here, and over ten pages
ROWS = (0, 4, 5, 8, 63, 64, 65, 128, 511, 512, 513)
QWEN3 = dict(
    vocab_size=41,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    intermediate_size=20,
    max_position_embeddings=1024,
    tie_word_embeddings=True,
)
GEMMA3 = dict(
    vocab_size=41,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    intermediate_size=20,
    max_position_embeddings=1024,
    query_pre_attn_scalar=8,
    sliding_window=5,
)
FULL, SLIDING = "full_attention", "sliding_attention"
YARN = dict(rope_type="yarn", rope_theta=1000.0, factor=4.0, original_max_position_embeddings=128)
qwen3 = partial(Case, model=Qwen3ForCausalLM, lengths=LONG, rows=ROWS, dtype=BF16)
gemma3 = partial(Case, model=Gemma3ForCausalLM, lengths=LONG, rows=ROWS, dtype=BF16)


def old_qwen3(directory: Path) -> None:
    """config.json as transformers 4 wrote it for the published models."""
    edit_config(
        directory,
        drop=("rope_parameters", "layer_types", "dtype"),
        rope_theta=1000000,
        rope_scaling=None,
        sliding_window=None,
        torch_dtype="bfloat16",
    )


def headless(directory: Path) -> None:
    """As Qwen3-Embedding-8B is published: an untied head in config.json, and none in the file."""
    edit_config(directory, architectures=["Qwen3ForCausalLM"])


def old_gemma3(directory: Path) -> None:
    """config.json as transformers 4 wrote it: thetas and scaling beside each other, a pattern instead of types."""
    edit_config(
        directory,
        drop=("rope_parameters", "layer_types", "dtype"),
        rope_theta=5000.0,
        rope_local_base_freq=100.0,
        rope_scaling=dict(rope_type="linear", factor=8.0),
        sliding_window_pattern=3,
        cache_implementation="hybrid",
        torch_dtype="bfloat16",
    )


CASES = (
    qwen3("qwen3-tied", "tied, head_dim 8 where hidden / heads is 6, 4 q and 2 kv heads", QWEN3),
    qwen3(
        "qwen3-untied",
        "an untied head; 3 q heads share one kv head; attention_bias; f32; rms_norm_eps 1e-2",
        QWEN3
        | dict(
            tie_word_embeddings=False,
            num_attention_heads=3,
            num_key_value_heads=1,
            attention_bias=True,
            rms_norm_eps=1e-2,
            num_hidden_layers=1,
        ),
        dtype=torch.float32,
    ),
    qwen3(
        "qwen3-old",
        "config.json of transformers 4; rope theta 1000000; head_dim 10, 5 heads, none shared",
        QWEN3
        | dict(
            num_attention_heads=5,
            num_key_value_heads=5,
            head_dim=10,
            rope_parameters=dict(rope_type="default", rope_theta=1000000.0),
        ),
        rewrite=old_qwen3,
    ),
    qwen3(
        "qwen3-window",
        "use_sliding_window with max_window_layers 1: the second layer sees 64 positions",
        QWEN3 | dict(use_sliding_window=True, sliding_window=64, max_window_layers=1),
    ),
    qwen3(
        "qwen3-yarn",
        "yarn by 4 from 128 positions, head_dim 16: kept, mixed and divided frequencies",
        QWEN3 | dict(head_dim=16, num_attention_heads=2, num_key_value_heads=1, rope_parameters=YARN),
    ),
    qwen3(
        "qwen3-yarn-factors",
        "yarn with mscale and mscale_all_dim, betas 8 and 2, without truncation",
        QWEN3
        | dict(
            head_dim=16,
            num_attention_heads=2,
            num_key_value_heads=1,
            num_hidden_layers=1,
            rope_parameters=YARN | dict(mscale=1.5, mscale_all_dim=0.5, beta_fast=8.0, beta_slow=2.0, truncate=False),
        ),
    ),
    qwen3(
        "qwen3-embedding",
        "an embedding model: no model. prefix, an untied head that the file does not hold",
        QWEN3 | dict(tie_word_embeddings=False),
        model=Qwen3Model,
        rewrite=headless,
    ),
    qwen3(
        "gguf-qwen3-f16",
        "as llama.cpp stores it: rows of q and k as they are; yarn; untied",
        QWEN3
        | dict(
            vocab_size=112,
            head_dim=16,
            num_attention_heads=2,
            num_key_value_heads=1,
            num_hidden_layers=1,
            tie_word_embeddings=False,
            rope_parameters=YARN,
        ),
        gguf="F16",
        write=write_qwen3,
    ),
    gemma3(
        "gemma3-pattern6",
        "the default pattern over seven layers: the sixth sees all; window 64",
        GEMMA3 | dict(hidden_size=16, num_hidden_layers=7, sliding_window=64, intermediate_size=12),
    ),
    gemma3(
        "gemma3-full-first",
        "layer_types full, sliding; window 5; rotary bases 500 and 20; query_pre_attn_scalar 3",
        GEMMA3
        | dict(
            layer_types=[FULL, SLIDING],
            query_pre_attn_scalar=3,
            rope_parameters={
                FULL: dict(rope_type="default", rope_theta=500.0),
                SLIDING: dict(rope_type="default", rope_theta=20.0),
            },
        ),
    ),
    gemma3(
        "gemma3-sliding",
        "only sliding layers, window 1: every layer sees its own token; untied, f32",
        GEMMA3 | dict(layer_types=[SLIDING], num_hidden_layers=1, sliding_window=1, tie_word_embeddings=False),
        dtype=torch.float32,
    ),
    gemma3(
        "gemma3-full",
        "no sliding layer; linear scaling by 4; 3 q heads and 1 kv head; attention_bias; f32",
        GEMMA3
        | dict(
            layer_types=[FULL],
            num_hidden_layers=1,
            num_attention_heads=3,
            attention_bias=True,
            rope_parameters={FULL: dict(rope_type="linear", rope_theta=10000.0, factor=4.0)},
        ),
        dtype=torch.float32,
    ),
    gemma3(
        "gemma3-old",
        "config.json of transformers 4: sliding_window_pattern 3, scaling of the full layers only, window 63",
        GEMMA3
        | dict(
            num_hidden_layers=4,
            sliding_window=63,
            layer_types=[SLIDING, SLIDING, FULL, SLIDING],
            rope_parameters={
                FULL: dict(rope_type="linear", rope_theta=5000.0, factor=8.0),
                SLIDING: dict(rope_type="default", rope_theta=100.0),
            },
        ),
        rewrite=old_gemma3,
    ),
    gemma3(
        "gguf-gemma3-f16",
        "as llama.cpp stores it: whole norms; pattern 6, base 10000 and scale are its own; linear by 8; window 65",
        GEMMA3
        | dict(
            vocab_size=112,
            hidden_size=16,
            num_hidden_layers=7,
            intermediate_size=12,
            sliding_window=65,
            rope_parameters={
                FULL: dict(rope_type="linear", rope_theta=1000000.0, factor=8.0),
                SLIDING: dict(rope_type="default", rope_theta=10000.0),
            },
        ),
        gguf="F16",
        write=write_gemma3,
    ),
)

if __name__ == "__main__":
    main(sys.argv[1:], CASES, 3000)
