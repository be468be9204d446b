"""What a backend is: something that turns a program into a plan, and a plan runs steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lattice.dtypes import Array
from lattice.program import Program
from lattice.step import Step


@dataclass(frozen=True)
class Capacity:
    """The largest counts a plan can be run with; they fix its memory."""

    tokens: int = 1
    rows: int = 1
    sequences: int = 1

    def size(self, dimension: int | str) -> int:
        """Return a dimension as a number: T, R, S (or "S+1") at capacity, an int as it is."""
        if isinstance(dimension, int):
            return dimension
        name, _, extra = dimension.partition("+")
        return {"T": self.tokens, "R": self.rows, "S": self.sequences}[name] + int(extra or 0)


class Plan(ABC):
    """A compiled program."""

    @abstractmethod
    def run(self, step: Step | None = None, **inputs: Any) -> dict[str, np.ndarray]:
        """Run one step and return the outputs by name, as arrays that the caller owns."""


class Backend(ABC):
    """A place where programs run."""

    name: str

    @abstractmethod
    def kernels(self) -> frozenset[str]:
        """Return the names of the ops this backend can run."""

    @abstractmethod
    def load(self, program: Program, weights: Mapping[str, Array], *, products: str | None = None) -> Any:
        """Take over the weights that a program uses, in the form its kernels read.

        `products` allows matrices and what they multiply to be rounded to integers with one scale a row: "row8" to 8
        bits, "row16" to 12. A backend without such kernels stays exact.
        """

    @abstractmethod
    def state(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """Return a zeroed state buffer."""

    @abstractmethod
    def compile(
        self, program: Program, weights: Any, capacity: Capacity, state: Mapping[str, np.ndarray] | None = None
    ) -> Plan:
        """Plan a program over loaded weights and state buffers (by name of the state input)."""
