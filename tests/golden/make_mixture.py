"""Write `tests/golden/mixture.npz`: a tiny Qwen3.5-MoE feed-forward block, its output and its gradients, from torch.

Not a test and never run by `make test`: the result is committed. To regenerate it:

    pip install torch transformers
    python tests/golden/make_mixture.py

Computed in float64 (the router's softmax in float32, as transformers has it), stored as float32:

    weight/NAME     the parameters, under their checkpoint names
    x, y, dy        (12, 10) input, output, and the gradient of a loss by the output
    grad/NAME       the gradient of sum(y * dy) by each parameter, and by the input: grad/x
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import Qwen3_5MoeTextConfig
from transformers.models.qwen3_5_moe.modeling_qwen3_5_moe import Qwen3_5MoeSparseMoeBlock

OUT = Path(__file__).parent / "mixture.npz"
SIZES = dict(
    hidden_size=10, num_experts=7, num_experts_per_tok=3, moe_intermediate_size=6, shared_expert_intermediate_size=9
)


def main() -> None:
    """Run the block once forward and once backward."""
    torch.manual_seed(0)
    config = Qwen3_5MoeTextConfig(**SIZES)
    config._experts_implementation = "eager"
    block = Qwen3_5MoeSparseMoeBlock(config).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn_like(parameter).float())
    x = torch.randn(1, 12, 10).float().double().requires_grad_()
    dy = torch.randn(1, 12, 10).float().double()
    y = block(x)
    (y * dy).sum().backward()
    arrays = {"x": x[0], "y": y[0], "dy": dy[0], "grad/x": x.grad[0]}
    for name, parameter in block.named_parameters():
        arrays |= {f"weight/{name}": parameter, f"grad/{name}": parameter.grad}
    np.savez_compressed(OUT, **{name: value.detach().numpy().astype(np.float32) for name, value in arrays.items()})
    print(f"{OUT.name}: {OUT.stat().st_size} bytes, {len(arrays)} arrays")


if __name__ == "__main__":
    main()
