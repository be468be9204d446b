"""A stack of decoder layers, whatever they are: what stands under a checkpoint's prefix `model.`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lattice.nn.layers import Embedding, RMSNorm
from lattice.nn.module import Module
from lattice.ops import add
from lattice.step import Step


class DecoderLayer(Module):
    """One decoder block, called (x, angles, step, its state): returns x and its new state."""

    self_attn: Any

    def state_shapes(self, pages: int, slots: int) -> Any:
        """Return the shapes of the layer's state: a NamedTuple, by default that of its attention."""
        return self.self_attn.state_shapes(pages, slots)


class HybridLayer(DecoderLayer):
    """A pre-norm block whose mixer, attention or linear attention, stands under the name given.

    x = x + mixer(norm(x));   x = x + mlp(norm(x))
    """

    def __init__(self, hidden: int, eps: float, mlp: Module, **mixer: Module):
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(hidden, eps), RMSNorm(hidden, eps)
        vars(self).update(mixer)
        self.mixer: Any = next(iter(mixer.values()))
        self.mlp: Any = mlp

    def state_shapes(self, pages: int, slots: int) -> Any:
        """Return the shapes of the mixer's state."""
        return self.mixer.state_shapes(pages, slots)

    def __call__(self, x: Any, angles: Any, step: Step, state: Any) -> tuple[Any, Any]:
        mixed, state = self.mixer(self.input_layernorm(x), angles, step, state)
        x = add(x, mixed)
        return add(x, self.mlp(self.post_attention_layernorm(x))), state


class Decoder(Module):
    """Embedding, layers and a last norm."""

    def __init__(self, vocab: int, hidden: int, layers: Sequence[Any], norm: RMSNorm):
        self.embed_tokens, self.layers, self.norm = Embedding(vocab, hidden), list(layers), norm

    def state_shapes(self, pages: int, slots: int = 1) -> list[Any]:
        """Return each layer's state shapes for pools of `pages` pages and `slots` recurrent states."""
        return [layer.state_shapes(pages, slots) for layer in self.layers]

    def trunk(self, x: Any, angles: Any, step: Step, state: list[Any] | None) -> tuple[Any, list[Any] | None]:
        """Run the layers alone: x as the last one leaves it, and their new states."""
        versions: list[Any] = []
        for index, layer in enumerate(self.layers):
            x, version = layer(x, angles, step, state[index] if state else None)
            versions.append(version)
        return x, versions if state else None

    def __call__(self, x: Any, angles: Any, step: Step, state: list[Any] | None) -> tuple[Any, list[Any] | None]:
        x, state = self.trunk(x, angles, step, state)
        return self.norm(x), state
