"""Drafts from the model's own head for the token after next (multi-token prediction, nn/draft.py).

The head reads, for a position t, the model's hidden state there and the token at t + 1, and drafts the token at t + 2;
further ones it drafts from its own hidden state. It attends to what it has read itself, so before it drafts, whatever
was run since is caught up on with the model's true states (its guesses of those positions are overwritten).

It need not have read a text from its beginning: its positions count from an origin, at most ROWS tokens before the end
when it first drafts, and its keys and values lie in the sequence's own pages from that of the origin on, which nobody
else writes or reads.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lattice.backends._backend import Plan, run_plans
from lattice.generate import cache
from lattice.generate.drafts import Drafter, Draws, Source
from lattice.generate.sampling import Sampler
from lattice.step import PAGE_TOKENS

if TYPE_CHECKING:
    from lattice.generate.engine import Engine

ROWS = 128  # hidden states that wait to be read; 64 more or fewer change a hundredth of the hits


class DraftHead(Source):
    """The head of a model that has one."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.written: Sampler | None = None  # whose settings the buffers hold
        self._plans: tuple[Plan, Plan] | None = None

    def start(self, sequence: cache.Sequence, sampler: Sampler, prompt: Sequence[int], max_tokens: int) -> Drafter:
        """Return a drafter that follows a sequence's hidden states."""
        return HeadDrafter(self, sequence, sampler, len(prompt))

    def plans(self) -> tuple[Plan, Plan]:
        """Return the plans of the head and of its draws, compiled at the first call; under the engine's lock."""
        if self._plans is None:
            self._plans = self.engine.head_plans(ROWS)
            self._plans[0].inputs["saves"][:] = -1
        return self._plans


class HeadDrafter(Drafter):
    """The head's place in one answer."""

    def __init__(self, head: DraftHead, sequence: cache.Sequence, sampler: Sampler, prompt: int):
        self._head, self._sequence, self._draws = head, sequence, Draws(sampler, prompt)
        self._rows = np.empty((0, 0), np.float32)
        self._first = self._count = 0  # position of the first row that waits, and how many do
        self._origin = self._read = 0  # the position it counts from, and the one behind the last that it has read
        sequence.trail = self

    def add(self, start: int, rows: np.ndarray) -> None:
        """Take in hidden states; of too many that wait, the latest are kept."""
        if not self._rows.size:
            self._rows = np.empty((ROWS, rows.shape[1]), np.float32)
        if start != self._first + self._count:
            self._first, self._count = start, 0
        if self._count + len(rows) > ROWS:
            kept = max(0, ROWS // 2 - len(rows))  # so that rows are seldom moved
            self._rows[:kept] = self._rows[self._count - kept : self._count]
            self._first, self._count = self._first + self._count - kept, kept
        skipped = max(0, len(rows) - ROWS)
        self._first += skipped
        new = rows[skipped:]
        self._rows[self._count : self._count + len(new)] = new
        self._count += len(new)

    def kind(self, tokens: Sequence[int]) -> Hashable | None:
        """Return one kind, once there are hidden states of all but the last token."""
        return "mtp" if self._count and self._first + self._count == len(tokens) - 1 else None

    def prepare(self, tokens: Sequence[int]) -> None:
        """Read what waits, if it is much, but for the last of it."""
        if self._count > 32:
            with self._head.engine.lock:
                self._catch_up(tokens, self._count - 1)

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        """Return the head's draws: one from the model's last hidden state, the others from its own."""
        drafts: list[int] = []
        with self._head.engine.lock:
            plan, sample = self._head.plans()
            twin, position = self._draws.at(tokens), len(tokens)
            twin.write_rows(sample.inputs, position, (), new=self._head.written is not twin)
            self._head.written, sample.counts[1] = twin, 1
            last = self._catch_up(tokens, self._count, sample)
            drafts.append(int(sample.outputs["tokens"][0]))
            for index in range(1, most):
                plan.inputs["hidden"][0] = plan.outputs["rows"][last]
                self._write(plan, drafts[-1:], position - 2 + index)
                sample.inputs["position"][0] = position + index
                run_plans((plan, sample))
                drafts.append(int(sample.outputs["tokens"][0]))
                last = 0
        return drafts

    def _catch_up(self, tokens: Sequence[int], count: int, *then: Plan) -> int:
        """Read the first `count` rows that wait; return the index of the last of them."""
        plan, _ = self._head.plans()
        if self._first != self._read:
            self._origin = self._first
        plan.inputs["hidden"][:count] = self._rows[:count]
        self._write(plan, tokens[self._first + 1 : self._first + 1 + count], self._first)
        run_plans((plan, *then))
        self._rows[: self._count - count] = self._rows[count : self._count]
        self._first, self._count = self._first + count, self._count - count
        self._read = self._first
        return count - 1

    def _write(self, plan: Plan, tokens: Sequence[int], position: int) -> None:
        """Write a step of the head: the tokens behind the hidden states from `position` on."""
        inputs, count, start = plan.inputs, len(tokens), position - self._origin
        table = self._sequence.table[0, self._origin // PAGE_TOKENS :]
        inputs["tokens"][:count] = tokens
        inputs["positions"][:count] = range(start, start + count)
        inputs["offsets"][1] = count
        inputs["rows"][0] = count - 1
        inputs["page_table"][0, : len(table)] = table
        plan.counts[:] = count, 1, 1

    def close(self) -> None:
        """Follow no longer."""
        self._sequence.trail = None
        self._count = 0
