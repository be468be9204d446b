"""Write a GGUF of Qwen3.5's exact geometry with random weights: what speed needs, without a download. Not a test.

    python -m benches random-model OUT.gguf [--size 0.8b] [--dtype q8_0] [--seed 0]

Matrices are drawn as blocks: random quants under one scale, chosen so that values have a standard deviation of about
0.02. Norms are near 1, decays as a trained model has them. The same seed and NumPy give the same file. The vocabulary
is as large as the model's, and every token but a byte is a merge of two, so that it weighs what a real one does.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from lattice.dtypes import BY_NAME, F32, Array
from lattice.tokenizers.stream import byte_table
from lattice.weights.gguf_write import write_gguf

# layers, hidden, intermediate, query heads, K/V heads, key heads, value heads: the published configs
SIZES = {
    "0.8b": (24, 1024, 3584, 8, 2, 16, 16),
    "2b": (24, 2048, 6144, 8, 2, 16, 16),
}
VOCAB, HEAD_DIM, STATE, CONV, INTERVAL = 248_320, 256, 128, 4, 4
SCALES = {"q8_0": 0.02 / 74, "q4_0": 0.02 / 4.6}  # of uniform quants


def main() -> None:
    parser = argparse.ArgumentParser(prog="benches random-model", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", choices=SIZES, default="0.8b")
    parser.add_argument("--dtype", choices=SCALES, default="q8_0")
    parser.add_argument("--layers", type=int, help="fewer than the model has")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    layers = options.layers or SIZES[options.size][0]
    write_gguf(options.out, metadata(options.size, layers), tensors(options.size, layers, options.dtype, options.seed))


def metadata(size: str, layers: int) -> dict[str, Any]:
    """Return the metadata of a size with so many layers."""
    _, hidden, intermediate, heads, kv_heads, key_heads, value_heads = SIZES[size]
    tokens, merges = vocabulary()
    return {
        "general.architecture": "qwen35", "general.name": f"random {size}",
        "qwen35.block_count": layers, "qwen35.context_length": 262_144, "qwen35.embedding_length": hidden,
        "qwen35.feed_forward_length": intermediate, "qwen35.attention.head_count": heads,
        "qwen35.attention.head_count_kv": kv_heads, "qwen35.attention.key_length": HEAD_DIM,
        "qwen35.attention.value_length": HEAD_DIM, "qwen35.attention.layer_norm_rms_epsilon": 1e-6,
        "qwen35.rope.freq_base": 1e7, "qwen35.rope.dimension_count": HEAD_DIM // 4,
        "qwen35.rope.dimension_sections": [11, 11, 10, 0], "qwen35.ssm.conv_kernel": CONV,
        "qwen35.ssm.state_size": STATE, "qwen35.ssm.group_count": key_heads,
        "qwen35.ssm.time_step_rank": value_heads, "qwen35.ssm.inner_size": value_heads * STATE,
        "qwen35.full_attention_interval": INTERVAL,
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": [1] * VOCAB, "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": VOCAB - 1,
    }  # fmt: skip


def vocabulary() -> tuple[list[str], list[str]]:
    """Return the tokens, all bytes before those of two and then of three, and the merges that make them."""
    tokens = sorted(byte_table(), key=byte_table().__getitem__)
    merges = []
    for left, right in (divmod(number, 256) for number in range(VOCAB - 256)):
        tokens.append(tokens[left] + tokens[right])
        merges.append(f"{tokens[left]} {tokens[right]}")
    return tokens, merges


def tensors(size: str, layers: int, dtype: str, seed: int) -> dict[str, Array]:
    """Return the tensors of a size with so many layers."""
    _, hidden, intermediate, heads, kv_heads, key_heads, value_heads = SIZES[size]
    random = np.random.default_rng(seed)
    inner, channels = value_heads * STATE, (2 * key_heads + value_heads) * STATE

    def matrix(rows: int, columns: int) -> Array:
        return _blocks(random, rows, columns, dtype)

    def plain(*shape: int, mean: float = 0.0, spread: float = 0.1) -> Array:
        values = (mean + spread * random.standard_normal(shape)).astype(np.float32)
        return Array(values, F32, shape)

    made = {"token_embd.weight": matrix(VOCAB, hidden), "output_norm.weight": plain(hidden, mean=1)}
    for layer in range(layers):
        parts: dict[str, Array] = {"attn_norm.weight": plain(hidden, mean=1)}
        if (layer + 1) % INTERVAL:
            rates = -np.exp(random.uniform(0, np.log(16), value_heads)).astype(np.float32)
            parts |= {
                "attn_qkv.weight": matrix(channels, hidden), "attn_gate.weight": matrix(inner, hidden),
                "ssm_conv1d.weight": plain(channels, CONV, spread=0.3), "ssm_dt.bias": plain(value_heads, mean=-4),
                "ssm_a": Array(rates, F32, rates.shape), "ssm_beta.weight": matrix(value_heads, hidden),
                "ssm_alpha.weight": matrix(value_heads, hidden), "ssm_norm.weight": plain(STATE, mean=1),
                "ssm_out.weight": matrix(hidden, inner),
            }  # fmt: skip
        else:
            parts |= {
                "attn_q.weight": matrix(2 * heads * HEAD_DIM, hidden),
                "attn_k.weight": matrix(kv_heads * HEAD_DIM, hidden),
                "attn_v.weight": matrix(kv_heads * HEAD_DIM, hidden),
                "attn_output.weight": matrix(hidden, heads * HEAD_DIM),
                "attn_q_norm.weight": plain(HEAD_DIM, mean=1), "attn_k_norm.weight": plain(HEAD_DIM, mean=1),
            }  # fmt: skip
        parts |= {
            "post_attention_norm.weight": plain(hidden, mean=1), "ffn_gate.weight": matrix(intermediate, hidden),
            "ffn_up.weight": matrix(intermediate, hidden), "ffn_down.weight": matrix(hidden, intermediate),
        }  # fmt: skip
        made |= {f"blk.{layer}.{name}": value for name, value in parts.items()}
    return made


def _blocks(random: np.random.Generator, rows: int, columns: int, dtype: str) -> Array:
    kind = BY_NAME[dtype]
    raw = random.integers(0, 256, (rows, columns // kind.block, kind.nbytes), np.uint8)
    raw[..., :2] = np.float16([SCALES[dtype]]).view(np.uint8)
    return Array(raw, kind, (rows, columns))


if __name__ == "__main__":
    main()
