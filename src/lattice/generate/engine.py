"""The engine: a model's programs, its pages and state, and the one step that they run at a time.

A step is two programs, `forward` (tokens to logits of the wanted rows) and `sample` (logits to tokens),
replayed in one native call, with a third, `logprobs`, where an answer asks for them. A prompt is run in
chunks; how it is cut changes no bit of the result. The lock is held for a step, not for an answer: answers
interleave, and one that nobody consumes holds its pages only.

Per token only what moved is written into the plans' buffers (`_write_next`): Python outside the native call
is a few microseconds, where checking and copying a whole step takes a quarter of a millisecond.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from threading import Lock
from time import perf_counter
from typing import NamedTuple

import numpy as np

from lattice.backends._backend import Capacity
from lattice.backends.cpu import CpuBackend, CpuPlan, run_plans
from lattice.errors import expected
from lattice.generate import cache
from lattice.generate.logprobs import MOST, RowLogprobs, row_of
from lattice.generate.sampling import Sampler, SamplingSettings
from lattice.generate.verify import MOST as DRAFTS
from lattice.generate.verify import Verified, Verifier
from lattice.nn.attention import KV
from lattice.ops import Symbol, logprobs, sample, take_rows
from lattice.program import Program, trace
from lattice.step import Step
from lattice.weights.load import OpenModel

CHUNK = 512  # tokens of a prefill step
CONTEXT = 8192  # positions of a sequence, where the model offers more and nobody asked
SEQUENCES = 2  # full-length sequences that the pool holds; memory that no token reached is never touched
SCORED_BYTES = 64 << 20  # logits of a step that wants many rows


class Advance(NamedTuple):
    """What a step gave: the token drawn, the native call's seconds, and logprobs if the sampler asks for them."""

    token: int
    seconds: float
    logprobs: RowLogprobs | None


class Engine:
    """Runs one model. `context` is the most tokens of a sequence, `vocab` the number of logits."""

    def __init__(
        self,
        opened: OpenModel,
        backend: CpuBackend,
        *,
        dtype: str = "auto",
        context: int | None = None,
        chunk: int = CHUNK,
    ):
        self.vocab: int = opened.config.vocab_size
        self.context = _context(context, opened.config.max_position_embeddings)
        self.chunk = min(chunk, self.context)
        self.lock = Lock()
        self._width = cache.pages_for(self.context)
        self.pool = cache.PagePool(SEQUENCES * self._width)
        self._model, self._backend = opened.model, backend
        self._kv = "f32" if dtype == "f32" or (dtype == "auto" and _stored_f32(opened)) else "f16"
        self._program = trace(self._forward)
        self.weights = backend.load(self._program, opened.weights.cast(dtype))
        self._state = {s.name: backend.state(s.shape, s.dtype) for s in self._program.of_kind("state")}
        self._plan = self._compile(rows=1)
        logits = {"logits": self._plan.outputs["logits"]}
        self._sample = backend.compile(trace(self._choose), None, Capacity(), None, logits)
        self._logprobs: CpuPlan | None = None  # made when somebody asks
        self._scores: CpuPlan | None = None  # made when somebody wants more than one row
        self._verifier: Verifier | None = None  # made when somebody drafts
        self._written: Sampler | None = None  # whose one-token step the plans' buffers hold
        self._inputs = {**self._plan.inputs, **self._sample.inputs}

    # ---- programs ------------------------------------------------------------------------------------------
    def _forward(self, program: Program) -> dict[str, Symbol]:
        step = program.step(self._width)
        state = []
        for index, shapes in enumerate(self._model.state_shapes(self.pool.pages, SEQUENCES)):
            dtype = self._kv if isinstance(shapes, KV) else "f32"  # recurrent state is always exact
            names = ((f"layers.{index}.{name}", shape) for name, shape in shapes._asdict().items())
            state.append(type(shapes)(*(program.input(n, *shape, kind="state", dtype=dtype) for n, shape in names)))
        hidden, _ = self._model(step, state)
        return {"logits": self._model.head(take_rows(hidden, step.rows))}

    def _choose(self, program: Program) -> dict[str, Symbol]:
        return {"tokens": sample(program.input("logits", "R", self.vocab), program.sampling(edits=self.vocab))}

    def _measure(self, program: Program) -> dict[str, Symbol]:
        logits, tokens = program.input("logits", "R", self.vocab), program.input("tokens", "R", dtype="i32")
        return dict(zip(("chosen", "top_ids", "top"), logprobs(logits, tokens, top=min(MOST, self.vocab)), strict=True))

    def _compile(self, rows: int, tokens: int | None = None) -> CpuPlan:
        capacity = Capacity(tokens=tokens or self.chunk, rows=rows, sequences=1)
        return self._backend.compile(self._program, self.weights, capacity, self._state)

    # ---- sequences -----------------------------------------------------------------------------------------
    def sequence(self) -> cache.Sequence:
        """Return an empty sequence without pages."""
        return cache.Sequence(self.pool, self._width)

    def sampler(self, settings: SamplingSettings, logprobs: int | None = None) -> Sampler:
        """Return a sampler for one answer, which wants so many alternatives beside each token (None: no logprobs)."""
        return Sampler(settings, self.vocab, logprobs)

    def reserve(self, sequence: cache.Sequence, positions: int) -> None:
        """Give a sequence pages for `positions` tokens in all; LatticeError if they do not fit or ran out."""
        if positions > self.context:
            raise expected("engine", f"at most {self.context} tokens of context", positions)
        with self.lock:
            sequence.reserve(positions)

    def check(self, tokens: Sequence[int] | np.ndarray, where: str) -> list[int]:
        """Return token ids as a list, or raise what is wrong with them."""
        ids = np.asarray(tokens)
        if ids.ndim != 1 or not ids.size or not np.issubdtype(ids.dtype, np.integer):
            raise expected(where, "a list of at least one token id", f"{ids.dtype} of shape {ids.shape}")
        if ids.min() < 0 or ids.max() >= self.vocab:
            raise expected(where, f"token ids from 0 to {self.vocab - 1}", f"{ids.min()} to {ids.max()}")
        return ids.tolist()

    # ---- steps ---------------------------------------------------------------------------------------------
    def append(self, sequence: cache.Sequence, tokens: Sequence[int]) -> None:
        """Run `tokens` behind those of a sequence that has pages for them; only its state is computed."""
        for start in range(0, len(tokens), self.chunk):
            part = tokens[start : start + self.chunk]
            with self.lock:
                self._written = None
                self._plan.write(self._step(sequence, part, rows=0))
                run_plans((self._plan,))
                sequence.tokens += part

    def advance(self, sequence: cache.Sequence, tokens: Sequence[int], sampler: Sampler) -> Advance:
        """Run `tokens` behind a sequence's and draw the next one."""
        last = (len(tokens) - 1) // self.chunk * self.chunk
        if last:
            self.append(sequence, tokens[:last])
            tokens = tokens[last:]
        with self.lock:
            position = len(sequence.tokens) + len(tokens)
            if self._written is sampler and len(tokens) == 1:
                self._write_next(tokens[0], position, sampler)
            else:
                self._written = None
                self._plan.write(self._step(sequence, tokens, rows=1))
                self._sample.write(sampling=sampler.arrays(position))
                self._written = sampler if len(tokens) == 1 else None
            plans = [self._plan, self._sample]
            if sampler.logprobs is not None:
                plans.append(self._logprobs_plan())
            started = perf_counter()
            run_plans(plans)
            seconds = perf_counter() - started
            sequence.tokens += tokens
            row = row_of(plans[2].outputs) if sampler.logprobs is not None else None
            return Advance(int(self._sample.outputs["tokens"][0]), seconds, row)

    def verify(self, sequence: cache.Sequence, token: int, drafts: Sequence[int], sampler: Sampler) -> Verified:
        """Run `token` and at most DRAFTS drafts behind a sequence's; keep what plain decoding would draw."""
        verifier = self.verifier()
        with self.lock:
            return verifier.run(sequence, token, drafts, sampler)

    def verifier(self) -> Verifier:
        """Return the plans of `verify`, compiled when somebody drafts."""
        with self.lock:
            if self._verifier is None:
                self._verifier = Verifier(self._backend, self._compile(DRAFTS + 1, DRAFTS + 1), self._measure)
            return self._verifier

    def score(self, sequence: cache.Sequence, tokens: Sequence[int]) -> Iterator[np.ndarray]:
        """Run `tokens` behind a sequence's; yield their logits in blocks, (n, vocab) float32 each."""
        rows = self._scored_rows()
        for start in range(0, len(tokens), rows):
            part = tokens[start : start + rows]
            with self.lock:
                if self._scores is None:
                    self._scores = self._compile(rows)
                self._scores.write(self._step(sequence, part, rows=len(part)))
                run_plans((self._scores,))
                sequence.tokens += part
                logits = self._scores.output("logits").copy()
            yield logits

    def _logprobs_plan(self) -> CpuPlan:
        if self._logprobs is None:
            bound = {"logits": self._plan.outputs["logits"], "tokens": self._sample.outputs["tokens"]}
            self._logprobs = self._backend.compile(trace(self._measure), None, Capacity(), None, bound)
            self._logprobs.counts[:] = self._sample.counts  # one row, always: its inputs are never written
        return self._logprobs

    def _scored_rows(self) -> int:
        return min(self.chunk, max(16, min(256, SCORED_BYTES // (4 * self.vocab))))

    def _step(self, sequence: cache.Sequence, tokens: Sequence[int], rows: int) -> Step:
        count = len(tokens)
        wanted = range(count - rows, count)
        return Step.of([tokens], starts=[len(sequence)], rows=wanted, page_table=sequence.table)

    def _write_next(self, token: int, position: int, sampler: Sampler) -> None:
        """Write the step after this sampler's last: everything else in the buffers is still right."""
        inputs = self._inputs
        inputs["tokens"][0] = token
        inputs["positions"][0] = position - 1
        sampler.write_next(inputs, position)


def _context(asked: int | None, most: int) -> int:
    if asked is None:
        return min(most, CONTEXT)
    if isinstance(asked, bool) or not isinstance(asked, int) or not 1 <= asked <= most:
        raise expected("load", f"a context from 1 to the model's {most}", repr(asked))
    return asked


def _stored_f32(opened: OpenModel) -> bool:
    """Return whether every matrix of the checkpoint is f32: then keys and values are, too."""
    names = (name for name, shape in opened.weights.shapes.items() if len(shape) > 1)
    tensors = (opened.checkpoint.tensor(opened.weights.sources[name].tensor) for name in names)
    return all(tensor.dtype.name == "f32" for tensor in tensors)
