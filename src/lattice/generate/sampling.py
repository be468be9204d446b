"""How the next token is chosen: what a caller asks for, checked, and as the arrays that `sample` reads.

Where the caller is silent the model's generation_config.json speaks, and where that is silent nothing is
done: greedy, no limits, no penalty. A file without `do_sample: true` means greedy, as in transformers,
whatever else it holds.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np

from lattice.errors import expected
from lattice.step import Sampling

TINY = 1e-5  # temperatures below this would overflow; they are greedy anyhow


@dataclass(frozen=True)
class SamplingSettings:
    """Settings of one answer; 0, 1 and no seed are neutral.

    The penalty divides positive logits (multiplies negative ones) of every token that the context holds.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))

    def with_(self, asked: Mapping[str, Any]) -> SamplingSettings:
        """Return these settings with those of `asked` that are not None."""
        given = {name: value for name, value in asked.items() if value is not None}
        return SamplingSettings(**{**vars(self), **given})

    @classmethod
    def of_file(cls, config: Mapping[str, Any]) -> SamplingSettings:
        """Return the defaults of a generation_config.json."""
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        given = {name: config[name] for name in names if config.get(name) is not None}
        if config.get("do_sample") is not True:
            given["temperature"] = 0.0
        else:
            given.setdefault("temperature", 1.0)
        return cls(**given)


def _real(least: float, most: float, wanted: str) -> Callable[[str, Any], float]:
    def check(name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, Real):
            raise expected("generate", f"{name} as a number", repr(value))
        try:
            number = float(value)
        except OverflowError:  # an integer beyond every float
            number = math.inf
        if not least <= number <= most:  # NaN is never within
            raise expected("generate", f"{name} {wanted}", repr(value))
        return number

    return check


def check_integer(name: str, value: Any, least: int, most: int) -> int:
    """Return an integer argument, or raise what `name` may be."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise expected("generate", f"{name} as an integer", repr(value))
    number = int(value)
    if not least <= number <= most:
        raise expected(
            "generate", f"{name} from {least} to {most}", number if abs(number) < 10**20 else "one far beyond"
        )
    return number


def _temperature(name: str, value: Any) -> float:
    number = _real(0.0, 1e4, "from 0 (greedy) to 10000")(name, value)
    return number if number >= TINY else 0.0


def _seed(name: str, value: Any) -> int | None:
    return None if value is None else check_integer(name, value, -(2**63), 2**63 - 1)


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "temperature": _temperature,
    "top_p": _real(0.0, 1.0, "from 0 to 1"),
    "top_k": lambda name, value: check_integer(name, value, 0, 2**31 - 1),
    "min_p": _real(0.0, 1.0, "from 0 to 1"),
    "repetition_penalty": _real(1e-3, 1e3, "from 0.001 to 1000, 1 for none"),
    "seed": _seed,
}


class Sampler:
    """The settings of one answer as arrays, and, if a penalty needs them, the distinct ids of its context."""

    def __init__(self, settings: SamplingSettings, history: int):
        self.seed = secrets.randbits(63) if settings.seed is None else settings.seed
        self.count = 0  # distinct ids so far
        self.history = np.zeros(history, np.int32) if settings.repetition_penalty != 1 else None
        self._seen: set[int] = set()
        self._fixed = {
            "temperature": np.full(1, settings.temperature, np.float32),
            "top_k": np.full(1, settings.top_k, np.int32),
            "top_p": np.full(1, settings.top_p, np.float32),
            "min_p": np.full(1, settings.min_p, np.float32),
            "repetition": np.full(1, settings.repetition_penalty, np.float32),
            "seed": np.full(1, self.seed, np.int64),
        }

    def see(self, tokens: Iterable[int]) -> None:
        """Take tokens into the history, if there is a penalty."""
        if self.history is None:
            return
        for token in tokens:
            if token not in self._seen:
                self._seen.add(token)
                self.history[self.count] = token
                self.count += 1

    def arrays(self, position: int) -> Sampling:
        """Return the inputs of `sample` for the token at `position`."""
        seen = np.empty(0, np.int32) if self.history is None else self.history[: self.count]
        offsets = np.array([0, self.count], np.int32)
        place = np.full(1, position, np.int32)
        return Sampling(position=place, history_offsets=offsets, history=seen, **self._fixed)
