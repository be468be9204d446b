"""The engine: a model's programs, its pages and state, and the one step that they run at a time.

A step is two programs, `forward` (tokens to logits of the wanted rows) and `sample` (logits to tokens),
replayed in one native call, with a third, `logprobs`, where an answer asks for them. A prompt is run in
chunks; how it is cut changes no bit of the result. The lock is held for a step, not for an answer: answers
interleave, and one that nobody consumes holds its pages only.

Per token only what moved is written into the plans' buffers (`_write_next`): Python outside the native call
is a few microseconds, where checking and copying a whole step takes a quarter of a millisecond.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from threading import Lock
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from lattice.backends._backend import Backend, Capacity, Plan, run_plans, submit_plans
from lattice.backends.cpu import STORAGE
from lattice.errors import LatticeError, expected
from lattice.generate import cache, saved
from lattice.generate.ahead import Ahead
from lattice.generate.logprobs import MOST, RowLogprobs, row_of
from lattice.generate.prefix import Entry, Prefixes
from lattice.generate.sampling import Sampler, SamplingSettings
from lattice.generate.verify import MOST as MOST_DRAFTS
from lattice.generate.verify import MOST_RECURRENT, Verified, Verifier
from lattice.nn.attention import KV
from lattice.ops import Symbol, logprobs, sample, take_rows
from lattice.program import Program, trace
from lattice.step import PAGE_TOKENS, Step
from lattice.weights.load import OpenModel

CHUNK = 512  # tokens of a prefill step
CONTEXT = 8192  # positions of a sequence, where the model offers more and nobody asked
SEQUENCES = 2  # full-length sequences that the pools hold; memory that no token reached is never touched
SNAPSHOTS = 16  # kept recurrent states that they hold besides
TAILS = (32, 256)  # tokens before its end is a prompt's state kept where nobody says where messages end
OF_MEMORY = 0.25  # of the machine's is the most that pools take unasked, but for one full-length sequence
KV_DTYPES = {"auto": None, "f32": "f32", "f16": "f16", "q8": "i8"}  # q8: with a factor for each key and value
SCORED_BYTES = 64 << 20  # logits of a step that wants many rows


class Advance(NamedTuple):
    """What a step gave: the token drawn, the native call's seconds, and logprobs if the sampler asks for them."""

    token: int
    seconds: float
    logprobs: RowLogprobs | None


class Kept(NamedTuple):
    """A prefix that a step makes: its length, and the slot that the step saves its recurrent state to."""

    length: int
    slot: cache.Held | None


class Engine:
    """Runs one model. `context` is the most tokens of a sequence, `vocab` the number of logits.

    `recurrent` says whether the model has state besides keys and values. `paged` and `slotted` are the state buffers
    by name, led by page and by slot. `draft_head`: whether its draft head is loaded, which is what was asked for where
    it has one; `drafts` is the most that `verify` takes.
    """

    def __init__(
        self,
        opened: OpenModel,
        backend: Backend,
        *,
        dtype: str = "auto",
        kv: str = "auto",
        context: int | None = None,
        chunk: int = CHUNK,
        cache_bytes: int | None = None,
        draft_head: bool = False,
    ):
        self.vocab: int = opened.config.vocab_size
        self.context = _context(context, opened.config.max_position_embeddings)
        self.chunk = min(chunk, self.context)
        self.lock = Lock()
        self._width = cache.pages_for(self.context)
        self.opened, self.dtype, self.target = opened, dtype, backend.target
        self._model, self._backend = opened.model, backend
        self._hidden: int = opened.config.hidden_size
        self.draft_head = draft_head and getattr(opened.model, "mtp", None) is not None
        self._kv = _kv_dtype(kv, dtype, opened)
        self.pool = self._make_pool(cache_bytes)
        self.recurrent = self.pool.slots.nbytes > 0
        self.drafts = MOST_RECURRENT if self.recurrent else MOST_DRAFTS
        self.prefixes = Prefixes(self.pool)
        self._program = trace(self._forward)
        self.weights = backend.load(trace(self._everything), opened.weights.cast(dtype))
        self.paged: dict[str, np.ndarray] = {}
        self.slotted: dict[str, np.ndarray] = {}
        for layer, shapes in self._layers(self.pool.pages.count, self.pool.slots.count).items():
            kind = self.paged if isinstance(shapes, KV) else self.slotted
            kind.update({f"{layer}.{n}": backend.state(s, self._dtype(shapes)) for n, s in shapes._asdict().items()})
        self._state = {**self.paged, **self.slotted}
        self._plan = self._compile(rows=1)
        logits = {"logits": self._plan.outputs["logits"]}
        self._sample = backend.compile(trace(self._choose), None, Capacity(), None, logits)
        self._logprobs: Plan | None = None  # made when somebody asks
        # The most tokens of a prompt in a step; a draft head reads the hidden states of `_plan`, a chunk's.
        self._most = min(self.context, self.chunk * (1 if self.draft_head else backend.prompt_chunks))
        self._long: Plan | None = None  # takes so many, made when a prompt is that long
        self._scores: Plan | None = None  # made when somebody wants more than one row
        self._verifier: Verifier | None = None  # made when somebody drafts
        self._written: Sampler | None = None  # whose one-token step the plans' buffers hold
        self._inputs = {**self._plan.inputs, **self._sample.inputs}

    @cached_property
    def digest(self) -> str:
        """Names the model and everything else that its state follows from."""
        return saved.model_digest(self)

    # ---- state ---------------------------------------------------------------------------------------------
    def state_shapes(self, pages: int, slots: int) -> dict[str, Any]:
        """Return the model's shapes of state by the layer's name, those of a draft head last, as `mtp`."""
        found = {f"layers.{i}": shapes for i, shapes in enumerate(self._model.state_shapes(pages, slots))}
        return {**found, "mtp": self._model.mtp.state_shapes(pages, slots)} if self.draft_head else found

    def _layers(self, pages: int, slots: int) -> dict[str, Any]:
        """Return those shapes as this engine keeps them."""
        found = self.state_shapes(pages, slots)
        if self._kv == "i8":
            found = {name: each.with_factors() if isinstance(each, KV) else each for name, each in found.items()}
        return found

    def _dtype(self, shapes: Any) -> str:
        return self._kv if isinstance(shapes, KV) else "f32"  # recurrent state is always exact

    def _make_pool(self, budget: int | None) -> cache.StatePool:
        page = slot = 0
        for shapes in self._layers(1, 1).values():
            nbytes = sum(math.prod(shape) for shape in shapes) * np.dtype(STORAGE[self._dtype(shapes)]).itemsize
            page, slot = (page + nbytes, slot) if isinstance(shapes, KV) else (page, slot + nbytes)
        least = self._width * page + 2 * slot  # a slot to read, one to save
        most = SEQUENCES * (least + MOST_RECURRENT * slot) + SNAPSHOTS * slot
        if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int) or budget < least):
            raise expected("load", f"cache_bytes of at least {least}, one sequence of {self.context} tokens", budget)
        default = max(least, int(min(most, OF_MEMORY * _memory())))
        return cache.StatePool(default if budget is None else budget, page, slot)

    # ---- programs ------------------------------------------------------------------------------------------
    def _forward(self, program: Program, step: Step | None = None) -> dict[str, Symbol]:
        step = step or program.step(self._width)
        hidden, _ = self._model(step, self._states(program))
        found = {"logits": self._model.head(take_rows(hidden, step.rows))}
        return {**found, "hidden": hidden} if self.draft_head else found

    def _everything(self, program: Program) -> dict[str, Symbol]:
        """Return what uses every weight."""
        step = program.step(self._width)
        found = self._forward(program, step)
        return {**found, **self._drafted(program, step)} if self.draft_head else found

    def _drafted(self, program: Program, step: Step | None = None) -> dict[str, Symbol]:
        """Return what the draft head makes of hidden states: such states of its own, and logits."""
        hidden = program.input("hidden", "T", self._hidden)
        step = step or program.step(self._width)
        rows, _ = self._model.mtp(step, hidden, *self._states(program, draft=True))
        return {"rows": rows, "logits": self._model.head(take_rows(rows, step.rows))}

    def _states(self, program: Program, *, draft: bool = False) -> list[Any]:
        """Return the state of every layer, or of the draft head, as inputs of a program."""
        states = []
        for layer, shapes in self._layers(self.pool.pages.count, self.pool.slots.count).items():
            if (layer == "mtp") == draft:
                dtype = self._dtype(shapes)
                names = ((f"{layer}.{name}", shape) for name, shape in shapes._asdict().items())
                states.append(type(shapes)(*(program.input(n, *s, kind="state", dtype=dtype) for n, s in names)))
        return states

    def _choose(self, program: Program) -> dict[str, Symbol]:
        return {"tokens": sample(program.input("logits", "R", self.vocab), program.sampling(edits=self.vocab))}

    def _measure(self, program: Program) -> dict[str, Symbol]:
        logits, tokens = program.input("logits", "R", self.vocab), program.input("tokens", "R", dtype="i32")
        return dict(zip(("chosen", "top_ids", "top"), logprobs(logits, tokens, top=min(MOST, self.vocab)), strict=True))

    def _compile(self, rows: int, tokens: int | None = None) -> Plan:
        capacity = Capacity(tokens=tokens or self.chunk, rows=rows, sequences=1)
        return self._backend.compile(self._program, self.weights, capacity, self._state)

    def head_plans(self, tokens: int) -> tuple[Plan, Plan]:
        """Return plans of the draft head, for steps of so many tokens, and of the draw of one token behind it."""
        capacity = Capacity(tokens=tokens, rows=1, sequences=1)
        plan = self._backend.compile(trace(self._drafted), self.weights, capacity, self._state)
        bound = {"logits": plan.outputs["logits"]}
        return plan, self._backend.compile(trace(self._choose), None, Capacity(), None, bound)

    # ---- sequences -----------------------------------------------------------------------------------------
    def sequence(self) -> cache.Sequence:
        """Return an empty sequence without pages."""
        return cache.Sequence(self._width)

    def begin(self, prompt: Sequence[int], positions: int, marks: Iterable[int] = ()) -> cache.Sequence:
        """Return a sequence with pages for `positions` tokens, which holds as much of the prompt as is known.

        What it leaves of the prompt, at least one token, is to be run. At `marks`, lengths of the prompt such as the
        ends of its messages, later prompts are likely to part from it. LatticeError if the positions do not fit.
        """
        tokens = np.asarray(prompt, np.int32)
        self._check_positions(positions)
        with self.pool.lock:
            entry, shared, known = self.prefixes.find(tokens)
            sequence = None if entry is None else self._resume(entry, shared, positions)
            del entry  # it may have to go
            if sequence is None:
                sequence = self.sequence()
                self._reserve(sequence, positions)
        sequence.prompt, sequence.reused, sequence.kept = tokens, len(sequence), len(sequence)
        sequence.marks = self._marks(len(tokens), len(sequence), known, set(marks))
        return sequence

    def _resume(self, entry: Entry, shared: int, positions: int) -> cache.Sequence | None:
        """Return a sequence that goes on behind `shared` tokens of an entry; None if there is no room beside it."""
        sequence = self.sequence()
        sequence.add(entry.pages[: shared // PAGE_TOKENS])
        try:
            self._reserve(sequence, positions)
        except LatticeError:
            return None
        if shared % PAGE_TOKENS:  # positions that are shared are never written: a running step changes none of them
            begun = shared // PAGE_TOKENS
            for buffer in self.paged.values():
                buffer[sequence.pages[begun].index] = buffer[entry.pages[begun].index]
        sequence.tokens, sequence.slot = entry.tokens[:shared].tolist(), entry.slot
        return sequence

    def _marks(self, length: int, reused: int, known: int, asked: set[int]) -> list[int]:
        """Return the lengths of a prompt at which to keep a prefix, ascending."""
        if not self.recurrent:
            return [length]  # serves whatever is shorter
        # One token before the end: that serves the same prompt, of which one token must run, and every longer one.
        marks = {length - 1, *asked}
        if not asked:  # few: a state can take what 1,700 tokens of keys and values take
            marks.update(length - tail for tail in TAILS if 2 * tail <= length)
        if known >= reused + PAGE_TOKENS:
            marks.add(known)  # here another prompt parted from this one: a third may, too
        return sorted(mark for mark in marks if reused < mark < length)

    def finish(self, sequence: cache.Sequence) -> None:
        """Keep what a sequence has run as a prefix for others, and give back the rest of what it holds."""
        tokens = np.asarray(sequence.tokens, np.int32)
        with self.pool.lock:
            if len(tokens) and self._whole(sequence):
                sequence.entries.add(self.prefixes.insert(tokens, sequence.pages, sequence.slot))
            sequence.clear()

    def forget(self, entries: Iterable[Entry] | None = None) -> None:
        """Drop prefixes, by default all; sequences that took them up go on."""
        with self.pool.lock:
            self.prefixes.forget(self.prefixes.entries if entries is None else entries)

    def reserve(self, sequence: cache.Sequence, positions: int) -> None:
        """Give a sequence room for `positions` tokens in all; LatticeError if they do not fit or memory ran out."""
        self._check_positions(positions)
        with self.pool.lock:
            self._reserve(sequence, positions)

    def take_slots(self, count: int) -> list[cache.Held]:
        """Return slots for states that tokens of a step save, such as drafts; LatticeError if memory ran out."""
        with self.pool.lock:
            return self.prefixes.take(0, count)[1]

    def _reserve(self, sequence: cache.Sequence, positions: int) -> None:
        missing = max(0, cache.pages_for(positions) - len(sequence.pages))
        pages, slots = self.prefixes.take(missing, int(self.recurrent and sequence.own is None))
        sequence.add(pages)
        sequence.own = slots[0] if slots else sequence.own

    def _check_positions(self, positions: int) -> None:
        if positions > self.context:
            raise expected("engine", f"at most {self.context} tokens of context", positions)

    def sampler(self, settings: SamplingSettings, logprobs: int | None = None) -> Sampler:
        """Return a sampler for one answer, which wants so many alternatives beside each token (None: no logprobs)."""
        return Sampler(settings, self.vocab, logprobs)

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
        plan, most = self._prompt_plan(len(tokens))
        for start in range(0, len(tokens), most):
            part = tokens[start : start + most]
            with self.lock:
                self._written = None
                kept = self._write(plan, sequence, part, rows=0)
                self._run((plan,), sequence)
                self._ran(sequence, part, kept)

    def advance(
        self, sequence: cache.Sequence, tokens: Sequence[int], sampler: Sampler, *, more: bool = False
    ) -> Advance:
        """Run `tokens` behind a sequence's and draw the next one; `more`: that one will likely be run next."""
        last = (len(tokens) - 1) // self.chunk * self.chunk
        if last:
            if self._most > self.chunk:
                last = len(tokens) - 1  # a step of one token is cheaper there than one that is not full
            self.append(sequence, tokens[:last])
            tokens = tokens[last:]
        with self.lock:
            started = perf_counter()
            kept, wait = self._begin(sequence, tokens, sampler)
            ahead = self._go_ahead(sequence, len(sequence) + len(tokens), sampler) if more and not kept else None
            token = int(wait()[0])
            seconds = perf_counter() - started
            self._ran(sequence, tokens, kept)
            if ahead is not None:
                ahead.token, sequence.ahead = token, ahead
            row = row_of(self._logprobs_plan().outputs) if sampler.logprobs is not None else None
            return Advance(token, seconds, row)

    def _begin(self, sequence: cache.Sequence, tokens: Sequence[int], sampler: Sampler) -> tuple[list[Kept], Any]:
        """Submit a step, unless it is under way; return the prefixes that it makes, and what gives its token."""
        ahead, sequence.ahead = sequence.ahead, None
        if ahead is not None and ahead.serves(len(sequence), tokens, sampler):
            sequence.slot, sequence.own = None, ahead.slot
            return [], ahead.wait
        kept: list[Kept] = []
        position = len(sequence) + len(tokens)
        if self._written is sampler and len(tokens) == 1 and sequence.slot is sequence.own:
            self._write_next(tokens[0], position, sampler, sequence)
        else:
            self._written = None
            lasting = len(tokens) == 1 and sequence.slot is sequence.own and not sequence.marks
            kept = self._write(self._plan, sequence, tokens, rows=1)
            self._sample.write(sampling=sampler.arrays(position))
            self._written = sampler if lasting else None
        plans = [self._plan, self._sample]
        if sampler.logprobs is not None:
            plans.append(self._logprobs_plan())
        sequence.slot = None
        return kept, submit_plans(plans, (self._sample, "tokens"))

    def _go_ahead(self, sequence: cache.Sequence, length: int, sampler: Sampler) -> Ahead | None:
        """Submit the step behind the one under way, which makes the sequence so long, where nobody would miss what it
        cannot know: the token before it in penalties, logprobs and hidden states of its own, prefixes to keep."""
        alone = self._backend.ahead and self._written is sampler and not sequence.marks and sequence.trail is None
        if not alone or sampler.remembers or sampler.logprobs is not None:
            return None
        if cache.pages_for(length + 1) > len(sequence.pages):
            return None
        slot = None
        if sequence.own is not None:
            try:
                slot = self.take_slots(1)[0]
            except LatticeError:  # other answers have the memory
                return None
        self._write_next(0, length + 1, sampler, sequence)
        if slot is not None:
            self._inputs["saves"][0] = slot.index
        wait = submit_plans([self._plan, self._sample], (self._sample, "tokens"), feed="tokens")
        return Ahead(length, 0, sampler, slot, wait)

    def verify(
        self,
        sequence: cache.Sequence,
        token: int,
        drafts: Sequence[int],
        sampler: Sampler,
        spare: list[cache.Held] | None = None,
    ) -> Verified:
        """Run `token` and drafts behind a sequence's; keep what plain decoding would draw (verify.py).

        `spare` has a slot for each draft where the model is recurrent.
        """
        spare = spare or []
        if len(drafts) > (min(self.drafts, len(spare)) if self.recurrent else self.drafts):
            raise expected("engine", f"at most {self.drafts} drafts, a spare slot for each", len(drafts))
        verifier = self.verifier()
        if self.recurrent:
            self._own_slot(sequence)
        with self.lock:
            sequence.ahead = None
            return verifier.run(sequence, token, drafts, sampler, spare)

    def verifier(self) -> Verifier:
        """Return the plans of `verify`, compiled when somebody drafts."""
        with self.lock:
            if self._verifier is None:
                plan = self._compile(self.drafts + 1, self.drafts + 1)
                self._verifier = Verifier(self._backend, plan, self._measure)
            return self._verifier

    def score(self, sequence: cache.Sequence, tokens: Sequence[int]) -> Iterator[np.ndarray]:
        """Run `tokens` behind a sequence's; yield their logits in blocks, (n, vocab) float32 each."""
        rows = self._scored_rows()
        for start in range(0, len(tokens), rows):
            part = tokens[start : start + rows]
            with self.lock:
                if self._scores is None:
                    self._scores = self._compile(rows)
                kept = self._write(self._scores, sequence, part, rows=len(part))
                self._run((self._scores,), sequence)
                self._ran(sequence, part, kept)
                logits = self._scores.output("logits").copy()
            yield logits

    def _whole(self, sequence: cache.Sequence) -> bool:
        """Return whether the recurrent state is that behind the sequence's tokens: no step was interrupted."""
        return not (self.recurrent and sequence.tokens) or sequence.slot is not None

    def _own_slot(self, sequence: cache.Sequence) -> cache.Held:
        """Return the slot that a sequence saves to; LatticeError where its state does not fit its tokens."""
        if sequence.own is None or not self._whole(sequence):
            raise expected("engine", "a sequence whose last step came to its end", "one that was interrupted")
        return sequence.own

    def _write(self, plan: Plan, sequence: cache.Sequence, tokens: Sequence[int], rows: int) -> list[Kept]:
        """Write a step into a plan's buffers; return the prefixes that are whole once it has run."""
        start, count = len(sequence), len(tokens)
        marks = [mark for mark in sequence.marks if mark <= start + count]
        kept: list[Kept] = [Kept(mark, None) for mark in marks]
        slots = saves = None
        if self.recurrent:
            own = self._own_slot(sequence)
            kept = self._slots_for(sequence, marks)
            slots = [(sequence.slot or own).index]
            saves = np.full(count, -1, np.int32)
            saves[-1] = own.index
            saves[[mark - start - 1 for mark, _ in kept]] = [slot.index for _, slot in kept if slot is not None]
        wanted = range(count - rows, count)
        table = sequence.table
        plan.write(Step.of([tokens], starts=[start], rows=wanted, page_table=table, slots=slots, saves=saves))
        return kept

    def _slots_for(self, sequence: cache.Sequence, marks: list[int]) -> list[Kept]:
        """Return those marks that are worth a slot, each with its slot."""
        kept, before = [], sequence.kept
        with self.pool.lock:
            for mark in marks:
                slot = self.prefixes.slot_for(mark - before)
                if slot is not None:
                    kept.append(Kept(mark, slot))
                    before = mark
        return kept

    def _run(self, plans: Sequence[Plan], sequence: cache.Sequence) -> None:
        sequence.slot = sequence.ahead = None  # until `_ran`: whoever interrupts leaves state that fits no tokens
        run_plans(plans)

    def _ran(self, sequence: cache.Sequence, tokens: Sequence[int], kept: list[Kept]) -> None:
        """Note that a step has run: its tokens, where the state behind them lies, and the prefixes to keep."""
        if sequence.trail is not None:
            sequence.trail.add(len(sequence), self._plan.outputs["hidden"][: len(tokens)])
        length = len(sequence) + len(tokens)
        slot = next((slot for mark, slot in kept if mark == length), None)  # read by the next step, never written
        sequence.tokens += tokens
        sequence.slot = slot or sequence.own
        if not sequence.marks:
            return
        sequence.marks = [mark for mark in sequence.marks if mark > length]
        with self.pool.lock:
            for mark, slot in kept:
                sequence.entries.add(self.prefixes.insert(sequence.prompt[:mark], sequence.pages, slot))
                sequence.kept = mark

    def _logprobs_plan(self) -> Plan:
        if self._logprobs is None:
            bound = {"logits": self._plan.outputs["logits"], "tokens": self._sample.outputs["tokens"]}
            self._logprobs = self._backend.compile(trace(self._measure), None, Capacity(), None, bound)
            self._logprobs.counts[:] = self._sample.counts  # one row, always: its inputs are never written
        return self._logprobs

    def _prompt_plan(self, tokens: int) -> tuple[Plan, int]:
        """Return the plan for so many tokens of a prompt, and the most that it takes in a step.

        A plan of its own has steps of several chunks: one for all would copy more to the card with every token.
        """
        if tokens <= self.chunk or self._most == self.chunk:
            return self._plan, self.chunk
        with self.lock:
            if self._long is None:
                try:
                    self._long = self._compile(rows=1, tokens=self._most)
                except LatticeError:  # the card's memory has no room for it
                    self._most = self.chunk
            return self._long or self._plan, self._most

    def _scored_rows(self) -> int:
        return min(self.chunk, max(16, min(256, SCORED_BYTES // (4 * self.vocab))))

    def _write_next(self, token: int, position: int, sampler: Sampler, sequence: cache.Sequence) -> None:
        """Write the step after this sampler's last: everything else in the buffers is still right."""
        inputs = self._inputs
        inputs["tokens"][0] = token
        inputs["positions"][0] = position - 1
        if sequence.own is not None:
            inputs["slots"][0] = inputs["saves"][0] = sequence.own.index  # drafts change it
        sampler.write_next(inputs, position)


def _context(asked: int | None, most: int) -> int:
    if asked is None:
        return min(most, CONTEXT)
    if isinstance(asked, bool) or not isinstance(asked, int) or not 1 <= asked <= most:
        raise expected("load", f"a context from 1 to the model's {most}", repr(asked))
    return asked


def _memory() -> float:
    """Return the machine's memory in bytes, infinity where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        return math.inf


def _kv_dtype(kv: str, dtype: str, opened: OpenModel) -> str:
    """Return the dtype of keys and values, where `kv` is what was asked for and `dtype` that of the weights."""
    if kv not in KV_DTYPES:
        raise expected("load", f"keys and values as one of {', '.join(KV_DTYPES)}", repr(kv))
    exact = dtype == "f32" or (dtype == "auto" and _stored_f32(opened))
    return KV_DTYPES[kv] or ("f32" if exact else "f16")


def _stored_f32(opened: OpenModel) -> bool:
    """Return whether every matrix of the checkpoint is f32: then keys and values are, too."""
    names = (name for name, shape in opened.weights.shapes.items() if len(shape) > 1)
    tensors = (opened.checkpoint.tensor(opened.weights.sources[name].tensor) for name in names)
    return all(tensor.dtype.name == "f32" for tensor in tensors)
