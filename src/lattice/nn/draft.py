"""The head that drafts the token after next: multi-token prediction (DeepSeek-V3, 2024, arXiv:2412.19437, 2.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lattice.nn.attention import KV
from lattice.nn.decoder import HybridLayer
from lattice.nn.layers import Embedding, Linear, RMSNorm
from lattice.nn.module import Module
from lattice.ops import concat
from lattice.step import Step


class DraftHead(Module):
    """One decoder layer over [norm(embedding of the next token) | norm(state)], with pages of its own."""

    def __init__(
        self, embed_tokens: Embedding, hidden: int, eps: float, layer: HybridLayer, angles: Callable[[Step], Any]
    ):
        self.embed_tokens, self.angles = embed_tokens, angles
        self.pre_fc_norm_embedding, self.pre_fc_norm_hidden = RMSNorm(hidden, eps), RMSNorm(hidden, eps)
        self.fc, self.layers, self.norm = Linear(2 * hidden, hidden), [layer], RMSNorm(hidden, eps)

    def state_shapes(self, pages: int, slots: int = 1) -> KV:
        """Return the shapes of the keys and values for a pool of `pages` pages."""
        return self.layers[0].state_shapes(pages, slots)

    def __call__(self, step: Step, hidden: Any, state: KV | None = None) -> tuple[Any, KV | None]:
        """Return rows for the model's head, (T, hidden), and the new state; without state, sequences stand alone.

        step: tokens at t + 1, everything else (positions, pages) of t
        hidden: (T, hidden), the states at t: what the trunk hands to the model's head, or what this returned
        """
        token = self.pre_fc_norm_embedding(self.embed_tokens(step.tokens))
        x = self.fc(concat(token, self.pre_fc_norm_hidden(hidden)))
        x, state = self.layers[0](x, self.angles(step), step, state)
        return self.norm(x), state
