"""A step that is submitted before the token that it begins with was read.

A card draws a token, and the host learns of it some tenths of a millisecond later: with nothing else to do the card
would stand still until the next step has come. So the next step is submitted at once, and takes its token on the card
itself. It saves recurrent state to a spare slot: until its token is known to be what the answer goes on with, nothing
that anybody reads has changed, and a step that nobody asks for is dropped by forgetting it: the card runs in order, so
whoever owns that slot next writes it later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lattice.generate.cache import Held
from lattice.generate.sampling import Sampler


@dataclass
class Ahead:
    """The step behind `length` tokens of the sequence that holds it; `wait` gives the token that it draws."""

    length: int
    token: int  # that it begins with
    sampler: Sampler
    slot: Held | None  # has the recurrent state behind it
    wait: Callable[[], np.ndarray]

    def serves(self, length: int, tokens: Sequence[int], sampler: Sampler) -> bool:
        """Return whether this is the step that is asked for."""
        return (self.length, [self.token]) == (length, list(tokens)) and self.sampler is sampler
