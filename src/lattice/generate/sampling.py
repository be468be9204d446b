"""How the next token is chosen: what a caller asks for, checked, and as the arrays that `sample` reads.

Where the caller is silent the model's generation_config.json speaks, and where that is silent nothing is
done: greedy, no limits, no penalty. A file without `do_sample: true` means greedy, as in transformers,
whatever else it holds.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

import numpy as np

from lattice.errors import expected
from lattice.step import Sampling

TINY = 1e-5  # temperatures below this would overflow; they are greedy anyhow


@dataclass(frozen=True)
class SamplingSettings:
    """Settings of one answer; 0, 1, no seed and no bias are neutral.

    The repetition penalty divides positive logits (multiplies negative ones) of every token that the context holds,
    prompt and answer alike, as in transformers. The presence penalty is taken once from the logit of every token that
    the answer holds, the frequency penalty as often as the answer holds it: as OpenAI defines them, without the prompt.
    `logit_bias` maps token ids to what is added to their logits first of all; -inf forbids a token.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

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


def _bias(name: str, value: Any) -> dict[int, float]:
    if not isinstance(value, Mapping):
        raise expected("generate", f"{name} as a dict of token ids to numbers", type(value).__name__)
    check = _real(-100.0, 100.0, "from -100 to 100, or -inf to forbid a token")
    found: dict[int, float] = {}
    for key, amount in value.items():
        token = check_integer(f"a token id of {name}", key, 0, 2**31 - 1)
        forbidden = isinstance(amount, Real) and amount == -math.inf
        found[token] = -math.inf if forbidden else check(f"{name} of token {token}", amount)
    return found


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "temperature": _temperature,
    "top_p": _real(0.0, 1.0, "from 0 to 1"),
    "top_k": lambda name, value: check_integer(name, value, 0, 2**31 - 1),
    "min_p": _real(0.0, 1.0, "from 0 to 1"),
    "repetition_penalty": _real(1e-3, 1e3, "from 0.001 to 1000, 1 for none"),
    "seed": _seed,
    "presence_penalty": _real(-2.0, 2.0, "from -2 to 2, 0 for none"),
    "frequency_penalty": _real(-2.0, 2.0, "from -2 to 2, 0 for none"),
    "logit_bias": _bias,
}


class Sampler:
    """The settings of one answer as arrays, and the edits of single logits: those with a bias, then, if a penalty needs
    them, the distinct ids of prompt and answer. `logprobs` is how many alternatives are wanted, None for no logprobs.

    Raises LatticeError where a bias names a token that the vocabulary lacks, or leaves none of it.
    """

    def __init__(self, settings: SamplingSettings, vocab: int, logprobs: int | None = None):
        self.seed = secrets.randbits(63) if settings.seed is None else settings.seed
        self.logprobs = logprobs
        self._settings, self._vocab = settings, vocab
        bias = settings.logit_bias
        _check_bias(bias, vocab)
        penalty = settings.presence_penalty != 0 or settings.frequency_penalty != 0
        self._reads_prompt = settings.repetition_penalty != 1
        self._reads_answer = self._reads_prompt or penalty
        self.size = len(bias)  # edits so far
        self.changed: list[int] = []  # those that tokens changed since `write_next`
        room = vocab if self._reads_answer else self.size
        self.ids, self.bias = np.zeros(room, np.int32), np.zeros(room, np.float32)
        self.counts = np.full(room, -1, np.int32)
        self.ids[: self.size], self.bias[: self.size] = list(bias), list(bias.values())
        self._places = {token: place for place, token in enumerate(bias)} if self._reads_answer else {}
        self._fixed = {
            "temperature": np.full(1, settings.temperature, np.float32),
            "top_k": np.full(1, settings.top_k, np.int32),
            "top_p": np.full(1, settings.top_p, np.float32),
            "min_p": np.full(1, settings.min_p, np.float32),
            "repetition": np.full(1, settings.repetition_penalty, np.float32),
            "presence": np.full(1, settings.presence_penalty, np.float32),
            "frequency": np.full(1, settings.frequency_penalty, np.float32),
            "seed": np.full(1, self.seed, np.int64),
        }

    @property
    def remembers(self) -> bool:
        """Whether what it draws depends on which tokens it drew."""
        return self._reads_answer

    def read(self, prompt: Iterable[int]) -> None:
        """Take the prompt's tokens into the edits, if the repetition penalty is on."""
        if self._reads_prompt:
            for token in prompt:
                place = self._place(token)
                self.counts[place] = max(0, self.counts[place])

    def draw(self, token: int) -> None:
        """Count a token of the answer, if there is a penalty."""
        if self._reads_answer:
            place = self._place(token)
            self.counts[place] = max(0, self.counts[place]) + 1
            self.changed.append(place)

    def _place(self, token: int) -> int:
        place = self._places.setdefault(token, self.size)
        if place == self.size:
            self.ids[place] = token
            self.size += 1
        return place

    def arrays(self, position: int) -> Sampling:
        """Return the inputs of `sample` for the token at `position`; what changes later, `write_next` writes."""
        self.changed.clear()
        return Sampling(
            position=np.full(1, position, np.int32),
            edit_offsets=np.array([0, self.size], np.int32),
            edit_ids=self.ids[: self.size],
            edit_bias=self.bias[: self.size],
            edit_counts=self.counts[: self.size],
            **self._fixed,
        )

    def write_next(self, inputs: Mapping[str, np.ndarray], position: int) -> None:
        """Bring buffers that hold the inputs of this sampler's last step up to date for the token at `position`."""
        inputs["position"][0] = position
        if self.changed:
            inputs["edit_offsets"][1] = self.size
            for place in self.changed:
                inputs["edit_ids"][place] = self.ids[place]
                inputs["edit_bias"][place] = self.bias[place]
                inputs["edit_counts"][place] = self.counts[place]
            self.changed.clear()

    def write_rows(
        self, inputs: Mapping[str, np.ndarray], position: int, drafts: Sequence[int], *, new: bool = True
    ) -> None:
        """Write a row for the token at `position`, and one behind each draft, as if those before it had been drawn.

        `new`: the buffers hold another sampler's rows.
        """
        rows, offsets = len(drafts) + 1, inputs["edit_offsets"]
        if new:
            for name, value in self._fixed.items():
                inputs[name][:] = value
            offsets[:] = 0
        inputs["position"][:rows] = range(position, position + rows)
        if not self.size and not self._reads_answer:
            return
        known, before = self.size, []
        for row in range(rows):
            start, end = int(offsets[row]), int(offsets[row]) + self.size
            inputs["edit_ids"][start:end] = self.ids[: self.size]
            inputs["edit_bias"][start:end] = self.bias[: self.size]
            inputs["edit_counts"][start:end] = self.counts[: self.size]
            offsets[row + 1] = end
            if self._reads_answer and row < len(drafts):
                place = self._place(drafts[row])
                before.append((place, self.counts[place]))
                self.counts[place] = max(0, self.counts[place]) + 1
        for place, count in reversed(before):
            self.counts[place] = count
        for token in self.ids[known : self.size].tolist():
            del self._places[token]
        self.size = known

    def twin(self) -> Sampler:
        """Return a sampler that draws as this one did at its beginning; drafts drawn by it hit more often."""
        return Sampler(self._settings.with_({"seed": self.seed}), self._vocab)


def _check_bias(bias: Mapping[int, float], vocab: int) -> None:
    unknown = [token for token in bias if token >= vocab]
    if unknown:
        raise expected("generate", f"logit_bias for token ids from 0 to {vocab - 1}", max(unknown))
    if sum(amount == -math.inf for amount in bias.values()) == vocab:
        raise expected("generate", "a token that logit_bias does not forbid", f"all {vocab} forbidden")
