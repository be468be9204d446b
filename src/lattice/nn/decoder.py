"""A stack of decoder layers, whatever they are: what stands under a checkpoint's prefix `model.`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lattice.nn.attention import KV
from lattice.nn.layers import Embedding, RMSNorm
from lattice.nn.module import Module
from lattice.step import Step


class Decoder(Module):
    """Embedding, layers and a last norm. A layer is called (x, angles, step, its state) and returns x and its state."""

    def __init__(self, vocab: int, hidden: int, layers: Sequence[Any], norm: RMSNorm):
        self.embed_tokens, self.layers, self.norm = Embedding(vocab, hidden), list(layers), norm

    def state_shapes(self, pages: int) -> list[KV]:
        """Return each layer's state shapes for a pool of `pages` pages."""
        return [layer.self_attn.state_shapes(pages) for layer in self.layers]

    def __call__(self, x: Any, angles: Any, step: Step, state: list[KV] | None) -> tuple[Any, list[KV] | None]:
        versions: list[Any] = []
        for index, layer in enumerate(self.layers):
            x, version = layer(x, angles, step, state[index] if state else None)
            versions.append(version)
        return self.norm(x), versions if state else None
