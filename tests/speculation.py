"""What tests of speculation share: options of answers, drafts by a script, a fixed depth."""

from __future__ import annotations

import math
import random

from lattice.generate.drafts import Drafter, Source
from lattice.generate.speculative import Choice, Costs

OPTIONS: dict[str, dict] = {
    "greedy": {},
    "seeded": {"temperature": 1.2, "seed": 5},
    "limits": {"temperature": 0.9, "top_k": 9, "top_p": 0.9, "min_p": 0.01, "seed": 6},
    "repetition": {"repetition_penalty": 1.7},
    "penalties": {"presence_penalty": 1.3, "frequency_penalty": 0.7, "temperature": 1.0, "seed": 7},
    "bias": {"logit_bias": dict.fromkeys(range(0, 70, 2), -math.inf)},
    "all": {
        "logit_bias": {7: 5.5, 9: -100}, "presence_penalty": 0.3, "repetition_penalty": 1.2, "temperature": 1.1,
        "top_p": 0.9, "seed": 8, "logprobs": 3,
    },
}  # fmt: skip


class Always(Costs):
    """A fixed depth, whatever it costs."""

    def __init__(self, depth: int):
        super().__init__()
        self.depth = depth

    def choose(self, kind, most, answer):
        return Choice(min(self.depth, most), 1.0)


class Scripted(Source, Drafter):
    """Drafts that are `right`, `wrong`, `half` right, `random`, of unknown `ids`, or `longer` than was asked for."""

    def __init__(self, how: str, truth: list[int]):
        self.how, self.truth, self.random = how, truth, random.Random(3)
        self.offered: list[int] = []

    def start(self, sequence, sampler, prompt, max_tokens):
        self.prompt = len(prompt)
        return self

    def kind(self, tokens):
        return "scripted"

    def propose(self, tokens, most):
        done = len(tokens) - self.prompt
        right = (self.truth + [1] * 99)[done : done + most]
        self.offered.append(most)
        match self.how:
            case "right":
                return right
            case "wrong":
                return [(token + 1) % 70 for token in right]
            case "half":
                return [token if self.random.random() < 0.7 else 3 for token in right]
            case "random":
                return [self.random.randrange(70) for _ in range(self.random.randint(0, most))]
            case "ids":
                return [*right[:1], 70, *right[2:]]
            case _:
                return (self.truth + [1] * 99)[done : done + 2 * most + 3]


def same(plain, drafted):
    assert drafted.tokens == plain.tokens
    assert (drafted.finish_reason, drafted.decoded) == (plain.finish_reason, plain.decoded)
    assert drafted.logprobs == plain.logprobs
    assert drafted.timings.decode_steps == plain.timings.decode_steps
    assert 0 <= drafted.usage.accepted_tokens <= drafted.usage.drafted_tokens
