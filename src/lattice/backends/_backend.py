"""What a backend is: something that turns a program into a plan, and a plan runs steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lattice.dtypes import Array
from lattice.errors import LatticeError, expected
from lattice.program import Program
from lattice.step import Sampling, Step

# Attributes that are words among a few: the numbers are what kernels in C++ see.
CHOICES: dict[str, dict[Any, int]] = {
    "kind": {None: -1, "silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3, "sigmoid": 4},
    "mode": {"mean": 0, "cls": 1, "last": 2},
    "norm": {None: -1, "rms": 0, "layer": 1},
}


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
    """A compiled program.

    Plans of the CPU and of cards have buffers that a step is written into, and outputs that the next step overwrites:
    `inputs` by name and `counts` (T, R, S) may be written straight, by who knows that they fit; `outputs` by name can
    be read, and be bound to the inputs of another plan. The reference's have neither.
    """

    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, Any]
    counts: np.ndarray

    @abstractmethod
    def run(self, step: Step | None = None, sampling: Sampling | None = None, **inputs: Any) -> dict[str, np.ndarray]:
        """Run one step and return the outputs by name, as arrays that the caller owns."""

    def begin(self, step: Step) -> Callable[[], dict[str, np.ndarray]]:
        """Begin a step, and return what gives its outputs, which may wait for them; others may begin before."""
        found = self.run(step)
        return lambda: found

    def write(self, step: Step | None = None, sampling: Sampling | None = None, **inputs: Any) -> None:
        """Copy a step's inputs into the buffers and set the counts; LatticeError where they do not fit together."""
        raise self._without_buffers()

    def output(self, name: str) -> np.ndarray:
        """Return an output of the last step, as many rows as it had; the next step may overwrite it."""
        raise self._without_buffers()

    def together(self, plans: Sequence[Any]) -> None:
        """Run plans of this backend, whose steps are written, one after another."""
        raise self._without_buffers()

    def submit(self, plans: Sequence[Any], gives: tuple[Any, str] | None = None, feed: str | None = None) -> Any:
        """Run plans as `together` does, perhaps without waiting for them; `gives`: a plan among them and its output.

        What is returned is to be called once, and gives that output: it waits for this step only. On backends that run
        ahead, `feed` names an input of the first plan, which takes that output of the step before it on the card.
        """
        if feed is not None:
            raise expected("plan", "a backend that runs ahead", type(self).__name__)
        self.together(plans)
        return None if gives is None else lambda: gives[0].outputs[gives[1]]

    def _without_buffers(self) -> LatticeError:
        return expected("plan", "a backend whose plans keep buffers", type(self).__name__)


def run_plans(plans: Sequence[Plan]) -> None:
    """Run plans whose steps are written, one after another, at once."""
    plans[0].together(plans)


def submit_plans(plans: Sequence[Plan], gives: tuple[Plan, str], feed: str | None = None) -> Callable[[], np.ndarray]:
    """Run them, and return what gives an output; see `Plan.submit`."""
    return plans[0].submit(plans, gives, feed)


class Backend(ABC):
    """A place where programs run.

    A full step of texts to be embedded has `encoder_tokens`, one of a prompt `prompt_chunks` times an engine's chunk:
    enough to amortise reading the weights, few enough to stay in a processor's cache.
    """

    name: str
    target: str  # what its results may depend on: a family of instructions, a card
    ahead = False  # whether a step may be submitted before what it begins with was read
    prompt_chunks = 1
    encoder_tokens = 512
    texts_ahead = 4096  # that are tokenised before the first of them is run
    beside_host = False  # whether the host is free while a step runs

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
    def state(self, shape: tuple[int, ...], dtype: str) -> Any:
        """Return a zeroed state buffer."""

    @abstractmethod
    def compile(
        self,
        program: Program,
        weights: Any = None,
        capacity: Capacity | None = None,
        state: Mapping[str, Any] | None = None,
        bound: Mapping[str, Any] | None = None,
    ) -> Plan:
        """Plan a program over loaded weights and state buffers (by name of the state input).

        `bound` gives inputs what another plan puts out.
        """
