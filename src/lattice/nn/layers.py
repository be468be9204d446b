"""The small blocks: products, norms, look-ups and feed-forward layers."""

from __future__ import annotations

from typing import Any

from lattice.nn.module import Module
from lattice.ops import Parameter, activation, embedding, gated_activation, layer_norm, linear, rms_norm

# The activation names of config.json files, in terms of ours.
ACTIVATION_KINDS = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh", "relu": "relu",
}  # fmt: skip


class Linear(Module):
    """y = x W^T + b."""

    def __init__(self, inputs: int, outputs: int, bias: bool = False, weight: Parameter | None = None):
        self.weight = weight if weight is not None else Parameter((outputs, inputs))
        self.bias = Parameter((outputs,)) if bias else None

    def __call__(self, x: Any) -> Any:
        return linear(x, self.weight, self.bias)


class Embedding(Module):
    """Rows of a table."""

    def __init__(self, rows: int, width: int):
        self.weight = Parameter((rows, width))

    def __call__(self, ids: Any) -> Any:
        return embedding(self.weight, ids)


class RMSNorm(Module):
    """Unit root mean square, times a weight."""

    def __init__(self, width: int, eps: float):
        self.weight, self.eps = Parameter((width,)), eps

    def __call__(self, x: Any) -> Any:
        return rms_norm(x, self.weight, eps=self.eps)


class LayerNorm(Module):
    """Zero mean and unit variance, then a weight and a bias."""

    def __init__(self, width: int, eps: float):
        self.weight, self.bias, self.eps = Parameter((width,)), Parameter((width,)), eps

    def __call__(self, x: Any) -> Any:
        return layer_norm(x, self.weight, self.bias, eps=self.eps)


class GatedMLP(Module):
    """The SwiGLU family: down(activation(gate x) * up x)."""

    def __init__(self, hidden: int, intermediate: int, kind: str, bias: bool = False):
        self.gate_proj = Linear(hidden, intermediate, bias)
        self.up_proj = Linear(hidden, intermediate, bias)
        self.down_proj = Linear(intermediate, hidden, bias)
        self.kind = kind

    def __call__(self, x: Any) -> Any:
        return self.down_proj(gated_activation(self.gate_proj(x), self.up_proj(x), kind=self.kind))


class Activation(Module):
    """A nonlinearity by its name."""

    def __init__(self, kind: str):
        self.kind = kind

    def __call__(self, x: Any) -> Any:
        return activation(x, kind=self.kind)
