"""Verification: a token and drafts of those behind it in one step, and as many kept as plain decoding would draw.

Each row draws with the arrays of its own position: its seed and position, and penalties that count the drafts before
it. A row's logits do not depend on the rows beside it, so the token of a row is the one that plain decoding draws
there, as long as all drafts before it were right. Drafts are kept while they equal what was drawn; the first that does
not is replaced by it. Keys and values of the others lie behind the sequence's last token, where nobody reads.
"""

from __future__ import annotations

from collections.abc import Callable, MutableSequence, Sequence
from time import perf_counter
from typing import NamedTuple

import numpy as np

from lattice.backends._backend import Backend, Capacity, Plan, run_plans
from lattice.generate import cache
from lattice.generate.logprobs import RowLogprobs, row_of
from lattice.generate.sampling import Sampler
from lattice.ops import Symbol, sample
from lattice.program import Program, trace

MOST = 15  # drafts of a step: with the token before them a block of 16 rows
MOST_RECURRENT = 7  # where each takes a slot


class Verified(NamedTuple):
    """What a step gave: the drafts that it kept and one token more, the native call's seconds, and their logprobs.

    `slots` have the recurrent state behind each of the tokens that were run and kept, where there is such state.
    """

    tokens: list[int]
    seconds: float
    logprobs: list[RowLogprobs] | None
    slots: list[cache.Held]


class Verifier:
    """The plans of such steps, of as many rows as `forward` serves; used under the engine's lock."""

    def __init__(self, backend: Backend, forward: Plan, measure: Callable[[Program], dict[str, Symbol]]):
        self._forward, self._backend, self._measure = forward, backend, measure
        logits = forward.outputs["logits"]
        rows, vocab = logits.shape

        def choose(program: Program) -> dict[str, Symbol]:
            sampling = program.sampling(edits=rows * vocab)
            return {"tokens": sample(program.input("logits", "R", vocab), sampling)}

        self._sample = backend.compile(trace(choose), None, Capacity(rows=rows), None, {"logits": logits})
        self._logprobs: Plan | None = None  # made when somebody asks
        self._written: Sampler | None = None  # whose settings the buffers hold
        forward.inputs["rows"][:] = np.arange(rows)
        forward.inputs["saves"][:] = -1

    def run(
        self,
        sequence: cache.Sequence,
        token: int,
        drafts: Sequence[int],
        sampler: Sampler,
        spare: MutableSequence[cache.Held],
    ) -> Verified:
        """Run `token` and `drafts` behind a sequence's; it has `token` and the drafts that were right afterwards.

        Where the sequence has a slot, `spare` has one for the state behind each draft: that of the last token kept
        becomes the sequence's own, which takes its place.
        """
        count, start, own = len(drafts) + 1, len(sequence), sequence.own
        slots = [] if own is None else [own, *spare[: len(drafts)]]
        self._write(sequence, token, drafts, slots)
        self._sample.counts[1] = count
        sampler.write_rows(self._sample.inputs, start + 1, drafts, new=self._written is not sampler)
        self._written = sampler
        plans = [self._forward, self._sample]
        if sampler.logprobs is not None:
            plans.append(self._logprobs_plan(count))
        started = perf_counter()
        sequence.slot = None  # as long as tokens and state may differ
        run_plans(plans)
        seconds = perf_counter() - started
        drawn = self._sample.outputs["tokens"][:count].tolist()
        kept = next((place for place, draft in enumerate(drafts) if draft != drawn[place]), len(drafts))
        if sequence.trail is not None:
            sequence.trail.add(start, self._forward.outputs["hidden"][: kept + 1])
        sequence.tokens += [token, *drafts[:kept]]
        if own is not None:
            sequence.slot = sequence.own = slots[kept]
            if kept:
                spare[kept - 1] = own
        rows = None
        if sampler.logprobs is not None:
            rows = [row_of(plans[2].outputs, row) for row in range(kept + 1)]
        return Verified(drawn[: kept + 1], seconds, rows, slots[: kept + 1])

    def _write(self, sequence: cache.Sequence, token: int, drafts: Sequence[int], slots: Sequence[cache.Held]) -> None:
        """Write the step straight into the buffers: the engine's own values need no check, so it is quick."""
        count, start, inputs = len(drafts) + 1, len(sequence), self._forward.inputs
        inputs["tokens"][0] = token
        inputs["tokens"][1:count] = drafts
        inputs["positions"][:count] = range(start, start + count)
        inputs["offsets"][1] = count
        inputs["page_table"][:] = sequence.table
        if slots:
            inputs["slots"][0] = (sequence.slot or slots[0]).index
            inputs["saves"][:count] = [slot.index for slot in slots]
        self._forward.counts[:] = count, count, 1

    def _logprobs_plan(self, count: int) -> Plan:
        if self._logprobs is None:
            bound = {"logits": self._forward.outputs["logits"], "tokens": self._sample.outputs["tokens"]}
            capacity = Capacity(rows=len(bound["tokens"]))
            self._logprobs = self._backend.compile(trace(self._measure), None, capacity, None, bound)
        self._logprobs.counts[1] = count
        return self._logprobs
