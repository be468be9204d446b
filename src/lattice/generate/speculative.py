"""How many tokens are drafted before a step verifies them: as many as pay, by what was measured so far, or none.

A step of n tokens takes t(n) seconds, drafting d tokens c d, and draft i of a kind is kept with probability p_i if
those before it were. With d drafts a step gives E(d) = 1 + p_1 + p_1 p_2 + ... + p_1...p_d tokens in t(1 + d) + c d
seconds; the d of the highest rate is taken, or 0 where none beats 1 / t(1) by MARGIN.

All of it is measured while answers are generated. What was measured fades while it is not used, towards the hopeful
values it began with; so what has failed is tried again, rarely. And accounts are kept, one of the model and one of each
answer: a step with drafts is charged what it lost, or credited what it won, against plain steps, and a hundredth of the
time of plain steps is paid in. No more is drafted than an answer's account can lose, and nothing while the model's is
overdrawn. So whatever the estimates say, drafting can lose a hundredth of the time and, once an answer, a step: what
one answer has won is not for the next to lose.

The depth never changes a token of the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from time import perf_counter
from typing import NamedTuple

from lattice.errors import LatticeError, expected
from lattice.generate.cache import Held
from lattice.generate.cache import Sequence as Pages
from lattice.generate.draft_head import DraftHead
from lattice.generate.drafts import Drafter, Ngrams, Source
from lattice.generate.engine import Advance, Engine
from lattice.generate.logprobs import RowLogprobs
from lattice.generate.sampling import Sampler
from lattice.generate.verify import MOST, Verified

DRAFTS = ("auto", "ngram", "mtp", "off")  # what may be asked for, besides the source of a smaller model
MARGIN = 1.02  # what a rate must beat plain decoding's by
SHARE = 0.01  # of the time of plain steps may be lost to drafts
CREDIT = 4.0  # plain steps in the model's account at first
ANSWER = 1.0  # and in an answer's
SAVED = 32.0  # plain steps that are the most an account holds
RATE = 0.15  # weight of a new measurement
OUTLIER = 3.0  # a measurement counts as at most so many times the mean
GROWTH = 0.04  # hoped-for cost of a further token of a step, in plain steps
HOPE = 0.7  # probability of a first draft before anything is known
WEIGHT = 1.0  # events that the hope stands for
KEEP = 0.97  # of what is known, with each event of the same kind
FADE = 0.9  # of what is known, with IDLE decisions against drafting
IDLE = 64
REFRESH = 16  # plain steps until decisions are made anew
PLAIN = 64  # steps with drafts until a plain one is measured again


class Seconds:
    """Seconds of a step of 1 to MOST + 1 tokens: moving means, and straight lines between those that were measured."""

    def __init__(self) -> None:
        self.mean = [0.0] * (MOST + 2)  # by tokens; 0 where nothing was measured
        self._count = [0] * (MOST + 2)

    def add(self, tokens: int, seconds: float) -> None:
        """Take in a measurement."""
        self._count[tokens] += 1
        mean = self.mean[tokens]
        if not mean:
            self.mean[tokens] = min(seconds, 2 * self._hoped(tokens) or seconds)  # the first finds its memory cold
        else:
            rate = max(RATE, 1 / self._count[tokens])
            self.mean[tokens] = mean + rate * (min(seconds, OUTLIER * mean) - mean)

    def _hoped(self, tokens: int) -> float:
        return self.mean[1] * (1 + GROWTH * (tokens - 1))

    def fade(self) -> None:
        """Go back a little towards what is hoped for."""
        for tokens in range(2, MOST + 2):
            if self.mean[tokens]:
                hoped = self._hoped(tokens)
                self.mean[tokens] = hoped + FADE * (self.mean[tokens] - hoped)

    def table(self) -> list[float]:
        """Return the seconds for every number of tokens (index 0 is nothing)."""
        known = [tokens for tokens in range(1, MOST + 2) if self.mean[tokens]]
        first, table = self.mean[1], [0.0] * (MOST + 2)
        slope, last = GROWTH * first, known[0]
        for tokens in range(1, MOST + 2):
            if self.mean[tokens]:
                table[tokens], last = self.mean[tokens], tokens
                after = next((n for n in known if n > tokens), None)
                if after is not None:
                    slope = (self.mean[after] - self.mean[tokens]) / (after - tokens)
                elif tokens > 1:
                    slope = max(0.0, self.mean[tokens] - first) / (tokens - 1)
            else:
                table[tokens] = table[last] + slope * (tokens - last)
        return table


class Hits:
    """How often drafts of one kind are kept, by their place, and what drafting one of them takes."""

    def __init__(self) -> None:
        self.tried, self.kept = [0.0] * MOST, [0.0] * MOST
        self.seconds = 0.0  # a draft

    def add(self, drafted: int, kept: int, seconds: float) -> None:
        """Take in a verified proposal."""
        for place in range(MOST):
            self.tried[place] *= KEEP
            self.kept[place] *= KEEP
        for place in range(min(kept + 1, drafted)):
            self.tried[place] += 1
            self.kept[place] += place < kept
        each = seconds / drafted
        self.seconds += RATE * (min(each, OUTLIER * self.seconds) - self.seconds) if self.seconds else each

    def fade(self) -> None:
        """Forget a little."""
        self.tried = [value * FADE for value in self.tried]
        self.kept = [value * FADE for value in self.kept]
        self.seconds *= FADE

    def chances(self) -> list[float]:
        """Return the probability of each draft, if those before it were kept; unknown, it is that of the one before."""
        chance, chances = HOPE, []
        for tried, kept in zip(self.tried, self.kept, strict=True):
            chance = (kept + WEIGHT * chance) / (tried + WEIGHT)
            chances.append(chance)
        return chances


class Choice(NamedTuple):
    """A depth, the tokens a second that it promises, and the plain steps that it loses if no draft is kept."""

    depth: int
    rate: float
    risk: float = 0.0


class Account:
    """What drafts may lose before they stop, in plain steps."""

    def __init__(self, credit: float):
        self.balance = credit

    def add(self, steps: float) -> None:
        """Pay in, or charge."""
        self.balance = min(self.balance + steps, SAVED)


class Costs:
    """What steps and drafts of one model take and give, measured as it runs."""

    def __init__(self) -> None:
        self.steps = Seconds()
        self.hits: dict[Hashable, Hits] = {}
        self.account = Account(CREDIT)
        self._choices: dict[tuple[Hashable, int], Choice] = {}
        self._plain = self._declined = self._since = 0

    def choose(self, kind: Hashable, most: int, answer: Account) -> Choice:
        """Return how many tokens, up to `most`, to draft of a kind now, for an answer with that account."""
        if self.account.balance < 0 or self._since >= PLAIN or not self.steps.mean[1]:
            return Choice(0, 0.0)
        choice = self._known(kind, most)
        while choice.depth and choice.risk > answer.balance:
            choice = self._known(kind, choice.depth - 1)
        if not choice.depth:
            self._decline()
        return choice

    def _known(self, kind: Hashable, most: int) -> Choice:
        if (kind, most) not in self._choices:
            self._choices[kind, most] = self._best(kind, most)
        return self._choices[kind, most]

    def _best(self, kind: Hashable, most: int) -> Choice:
        hits, seconds = self.hits.get(kind) or Hits(), self.steps.table()
        best = Choice(0, MARGIN / seconds[1])
        reached, tokens = 1.0, 1.0
        for depth, chance in enumerate(hits.chances()[:most], 1):
            reached *= chance
            tokens += reached
            spent = seconds[depth + 1] + hits.seconds * depth
            if tokens / spent > best.rate:
                best = Choice(depth, tokens / spent, spent / seconds[1] - 1)
        return best

    def _decline(self) -> None:
        self._declined += 1
        if self._declined % IDLE == 0:
            self.steps.fade()
            for hits in list(self.hits.values()):
                hits.fade()
            self._choices = {}

    def plain(self, seconds: float) -> None:
        """Take in a step of one token, which pays a SHARE of a step in."""
        self.steps.add(1, seconds)
        self.account.add(SHARE)
        self._since = 0
        self._plain += 1
        if self._plain % REFRESH == 0:
            self._choices = {}

    def prepared(self, seconds: float) -> None:
        """Take in what had to be done before the first drafts of an answer, of which a plain step at most counts."""
        self.account.add(-min(1.0, seconds / self.steps.mean[1]) if self.steps.mean[1] else 0.0)

    def verified(self, kind: Hashable, drafted: int, kept: int, seconds: float, drafting: float) -> float:
        """Take in a step with drafts: how many of a kind, how many were right, its seconds, and those of drafting.

        Returns the plain steps that it won, below 0 if it lost."""
        self.steps.add(drafted + 1, seconds)
        self.hits.setdefault(kind, Hits()).add(drafted, kept, drafting)
        plain = self.steps.mean[1] or seconds
        spent = min(seconds + drafting, OUTLIER * (self.steps.mean[drafted + 1] + drafting))
        won = kept + 1 - spent / plain
        self.account.add(won)
        self._since += 1
        self._choices = {}
        return won


class Speculation:
    """The drafters of one answer and its steps. `drafted` and `accepted` count tokens."""

    def __init__(
        self,
        engine: Engine,
        sequence: Pages,
        sampler: Sampler,
        drafters: Sequence[Drafter],
        costs: Costs,
        *,
        clock: Callable[[], float] = perf_counter,
    ):
        self.drafted = self.accepted = 0
        self._engine, self._sequence, self._sampler = engine, sequence, sampler
        self._drafters, self._costs, self._clock = drafters, costs, clock
        self._account = Account(ANSWER)
        self._last: Verified | None = None  # the last step, if it verified drafts and not all of it was handed on

    def step(self, tokens: list[int], room: int) -> list[Advance]:
        """Run the last of `tokens`, which is all that has not been run, and return at most `room` tokens behind it."""
        best, drafter, kind = self._choose(tokens, min(room - 1, self._engine.drafts))
        more = drafter is None and room > 1
        if self._sequence.ahead is not None:
            drafter = None  # the step is under way: drafts come behind it
        started, self._last = self._clock(), None
        drafts: list[int] = []
        spare: list[Held] = []
        if drafter is not None:
            drafter.prepare(tokens)
            self._engine.verifier()
            ready = self._clock()
            self._costs.prepared(ready - started)
            drafts = self._usable(drafter.propose(tokens, best.depth), best.depth)
            drafts, spare = self._with_slots(drafts)
            started = ready
        drafted = self._clock()
        if drafter is None or not drafts:
            advance = self._engine.advance(self._sequence, tokens[-1:], self._sampler, more=more)
            self._costs.plain(self._clock() - started)
            self._account.add(SHARE)
            return [advance]
        verified = self._engine.verify(self._sequence, tokens[-1], drafts, self._sampler, spare)
        kept = len(verified.tokens) - 1
        drafter.accepted(kept)
        won = self._costs.verified(kind, len(drafts), kept, self._clock() - drafted, drafted - started)
        self._account.add(won)
        self.drafted += len(drafts)
        self.accepted += kept
        self._last = verified
        rows: Sequence[RowLogprobs | None] = verified.logprobs or [None] * (kept + 1)
        share = verified.seconds / (kept + 1)
        return [Advance(token, share, row) for token, row in zip(verified.tokens, rows, strict=True)]

    def _choose(self, tokens: list[int], most: int) -> tuple[Choice, Drafter | None, Hashable]:
        """Return the drafter that promises most, with how many drafts of which kind."""
        best, drafter, kind = Choice(0, 0.0), None, None
        for each in self._drafters if most > 0 else ():
            offered = each.kind(tokens)
            if offered is not None:
                choice = self._costs.choose(offered, most, self._account)
                if choice.depth and choice.rate > best.rate:
                    best, drafter, kind = choice, each, offered
        return best, drafter, kind

    def _usable(self, drafts: list[int], most: int) -> list[int]:
        """Return drafts up to `most` and the first that the model has no row for: vocabularies are padded."""
        vocab = self._engine.vocab
        return drafts[: next((place for place, draft in enumerate(drafts[:most]) if draft >= vocab), most)]

    def _with_slots(self, drafts: list[int]) -> tuple[list[int], list[Held]]:
        """Return drafts with a slot for each where the model is recurrent; none if other answers have the memory."""
        if not self._engine.recurrent:
            return drafts, []
        try:
            return drafts, self._engine.take_slots(len(drafts))
        except LatticeError:
            return [], []

    def settle(self) -> None:
        """Hear that all tokens of the last step were handed on: it will not be cut back any more."""
        self._last = None

    def close(self, count: int) -> None:
        """Cut the sequence back to `count` tokens, which are within the last step, and give back what is held."""
        for drafter in self._drafters:
            drafter.close()
        extra = len(self._sequence) - count
        if extra > 0 and self._last is not None:
            self._sequence.cut(count, self._last.slots[-1 - extra] if self._last.slots else None)
        self._last = None


class Drafting:
    """The sources of drafts of a loaded model, by name, and what their drafts have cost so far.

    `default` is what `load` was asked for, and holds for answers that ask for nothing else.
    """

    def __init__(self, engine: Engine, default: str | None):
        self.sources: dict[str, Source] = {"ngram": Ngrams()}
        if engine.draft_head:
            self.sources["mtp"] = DraftHead(engine)
        self.costs = Costs()
        self._engine = engine
        self._default = "off" if default is None else default
        if self._default in DRAFTS:
            self.names(None)  # raises now

    def names(self, asked: str | None) -> tuple[str, ...]:
        """Return the names of the sources that an answer uses; LatticeError for one that there is not."""
        asked = self._default if asked is None else asked
        if asked == "off":
            return ()
        if asked == "auto" or (asked == self._default and asked not in DRAFTS):
            return tuple(self.sources)
        if asked not in self.sources:
            wanted = f"a draft among {', '.join(('auto', *self.sources, 'off'))}"
            hint = "this model has no draft head" if asked == "mtp" else "a smaller model is named when loading"
            raise expected("draft", wanted, repr(asked), hint=hint)
        return (asked,)

    def start(
        self, asked: str | None, sequence: Pages, sampler: Sampler, prompt: list[int], max_tokens: int
    ) -> Speculation | None:
        """Return the speculation of an answer, None for plain decoding."""
        sources = [self.sources[name] for name in self.names(asked)]
        if not sources or max_tokens < 2:
            return None
        drafters = [source.start(sequence, sampler, prompt, max_tokens) for source in sources]
        return Speculation(self._engine, sequence, sampler, drafters, self.costs)
