"""Write `tests/golden/delta.npz`: convolution and gated delta rule of Qwen3.5, forward and gradient, from torch.

Not a test and never run by `make test`: the results are committed. To regenerate them:

    pip install torch transformers
    python tests/golden/make_delta.py

Two sequences, each from position 0, through `causal_conv1d_fn` and `torch_recurrent_gated_delta_rule` in float32:

    lengths, key_heads, value_heads, key_dim
    x (T, channels), weight (channels, width), a, b (T, value_heads), a_log, dt_bias (value_heads,)
    mixed (T, channels)                      behind the convolution and SiLU
    out (T, value_heads * value_dim)         behind the delta rule
    state_i (value_heads, key_dim, value_dim)   behind the last token of sequence i
    dy                                       loss = sum(out * dy); grad/NAME is its gradient by x, weight, a, ...
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from transformers.models.qwen3_5 import modeling_qwen3_5 as qwen

LENGTHS, KEY_HEADS, VALUE_HEADS, KEY_DIM, VALUE_DIM, WIDTH = (3, 21), 2, 4, 6, 10, 4


def mix(x, weight, a, b, a_log, dt_bias):
    """Return (mixed, out, state) of one sequence."""
    mixed = qwen.causal_conv1d_fn(x.T[None], weight, None, activation="silu")[0].T
    keys = KEY_HEADS * KEY_DIM
    q, k, v = torch.split(mixed, [keys, keys, VALUE_HEADS * VALUE_DIM], 1)
    out, state = qwen.torch_recurrent_gated_delta_rule(
        q.reshape(1, len(x), KEY_HEADS, KEY_DIM),
        k.reshape(1, len(x), KEY_HEADS, KEY_DIM),
        v.reshape(1, len(x), VALUE_HEADS, VALUE_DIM),
        g=(-a_log.exp() * functional.softplus(a + dt_bias))[None],
        beta=b.sigmoid()[None],
        output_final_state=True,
        use_qk_l2norm_in_kernel=True,
    )
    return mixed, out[0].reshape(len(x), -1), state[0]


def main() -> None:
    """Draw the inputs, run both sequences, go back, and write everything."""
    torch.manual_seed(0)
    total, channels = sum(LENGTHS), 2 * KEY_HEADS * KEY_DIM + VALUE_HEADS * VALUE_DIM
    inputs = {
        "x": torch.randn(total, channels),
        "weight": torch.randn(channels, WIDTH) / 2,
        "a": torch.randn(total, VALUE_HEADS),
        "b": torch.randn(total, VALUE_HEADS),
        "a_log": torch.empty(VALUE_HEADS).uniform_(0.01, 2).log(),
        "dt_bias": torch.randn(VALUE_HEADS),
    }
    for value in inputs.values():
        value.requires_grad_()
    per_token = {name: torch.split(inputs[name], LENGTHS) for name in ("x", "a", "b")}
    shared = {name: inputs[name] for name in ("weight", "a_log", "dt_bias")}
    parts = [mix(**{n: v[i] for n, v in per_token.items()}, **shared) for i in range(len(LENGTHS))]
    out, dy = torch.cat([part[1] for part in parts]), torch.randn(total, VALUE_HEADS * VALUE_DIM)
    (out * dy).sum().backward()
    results = {"mixed": torch.cat([part[0] for part in parts]), "out": out, "dy": dy, **inputs}
    results |= {f"state_{i}": part[2] for i, part in enumerate(parts)}
    results |= {f"grad/{name}": value.grad for name, value in inputs.items()}
    sizes = {"lengths": LENGTHS, "key_heads": KEY_HEADS, "value_heads": VALUE_HEADS, "key_dim": KEY_DIM}
    arrays = {name: value.detach().numpy() for name, value in results.items()}
    np.savez_compressed(Path(__file__).parent / "delta.npz", **arrays, **sizes)


if __name__ == "__main__":
    main()
