"""Where drafts come from: the sequence's own text, or a smaller model. (The model's own draft head: draft_head.py.)

A source belongs to a loaded model; for each answer it makes a drafter, which is asked for the tokens that might come
next. Whatever it says costs time only: a draft is kept where plain decoding draws the same token (verify.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

from lattice.errors import LatticeError, expected
from lattice.generate.cache import Held
from lattice.generate.cache import Sequence as Pages
from lattice.generate.sampling import Sampler

if TYPE_CHECKING:
    from lattice.generate.engine import Engine
    from lattice.tokenizers import Tokenizer

LEVELS = (8, 4, 2)  # lengths of the n-grams that are looked up, the longest first
LONGEST = 32  # tokens of a match that are counted
GENERATION = 1 << 15  # positions after which the index forgets those before the last so many


class Drafter(ABC):
    """Drafts for one answer. `tokens` are its prompt and what was drawn so far: they only grow."""

    @abstractmethod
    def kind(self, tokens: Sequence[int]) -> Hashable | None:
        """Return what sort of drafts there would be now (those of a sort hit alike), None for none; this is cheap."""

    def prepare(self, tokens: Sequence[int]) -> None:  # noqa: B027
        """Do what has to be done once an answer, before the first drafts."""

    @abstractmethod
    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        """Return at most `most` tokens that may come behind `tokens`."""

    def accepted(self, count: int) -> None:  # noqa: B027
        """Hear how many of the last proposal's tokens were kept."""

    def close(self) -> None:  # noqa: B027
        """Give back what is held; may be called again."""


class Source(ABC):
    """A way to draft, for any number of answers."""

    @abstractmethod
    def start(self, sequence: Pages, sampler: Sampler, prompt: Sequence[int], max_tokens: int) -> Drafter:
        """Return a drafter for an answer to `prompt` on a sequence, drawn by `sampler`."""


class Ngrams(Source):
    """Drafts from the text itself: what is quoted, edited, listed or written as code often stands there already."""

    def start(self, sequence: Pages, sampler: Sampler, prompt: Sequence[int], max_tokens: int) -> Drafter:
        """Return a drafter; its index grows with the text."""
        return NgramDrafter()


class NgramDrafter(Drafter):
    """Goes on as the text did behind the last occurrence of its ending.

    The index holds, for n-grams of LEVELS tokens, the position behind the last one. A match is followed while the text
    goes the same way, so it may grow to any length; only then is nothing looked up.

    >>> NgramDrafter().propose([5, 6, 7, 8, 5, 6], 3)
    [7, 8, 5]
    """

    def __init__(self) -> None:
        self._index: list[dict[bytes, int]] = [{} for _ in LEVELS]
        self._old: list[dict[bytes, int]] = [{} for _ in LEVELS]  # the generation before
        self._text = bytearray()  # four bytes a token
        self._seen = 0  # tokens read
        self._next = 0  # where the match goes on
        self._length = 0  # tokens of the match, 0 for none

    def kind(self, tokens: Sequence[int]) -> Hashable | None:
        """Return the power of two of the match's length."""
        self._read(tokens)
        return ("ngram", self._length.bit_length()) if self._length else None

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        """Return what follows the match; a match that reaches the end goes on in itself."""
        self._read(tokens)
        if not self._length:
            return []
        found = list(tokens[self._next : self._next + most])
        period = len(tokens) - self._next
        while len(found) < most:
            found.append(found[len(found) - period])
        return found

    def _read(self, tokens: Sequence[int]) -> None:
        """Take in what was added, then find the longest match of the ending."""
        count = len(tokens)
        if count == self._seen:
            return
        text = self._text
        for end in range(self._seen, count):
            token = tokens[end]
            if self._length and tokens[self._next] == token:
                self._next += 1
                self._length = min(self._length + 1, LONGEST)
            else:
                self._length = 0
            # What ended before this token is known to go on with it.
            for level, index in zip(LEVELS, self._index, strict=True):
                if end >= level:
                    index[bytes(text[-4 * level :])] = end
            text += token.to_bytes(4, "little")
            if end % GENERATION == GENERATION - 1:
                self._old, self._index = self._index, [{} for _ in LEVELS]
        self._seen = count
        self._match(tokens)

    def _match(self, tokens: Sequence[int]) -> None:
        for level, new, old in zip(LEVELS, self._index, self._old, strict=True):
            if self._length >= level:
                return
            key = bytes(self._text[-4 * level :])
            place = new.get(key) or old.get(key)
            if place is not None:
                length, count = level, len(tokens)
                most = min(LONGEST, place)
                while length < most and tokens[place - 1 - length] == tokens[count - 1 - length]:
                    length += 1
                self._next, self._length = place, length
                return


class SmallerModel(Source):
    """Drafts from another model whose token ids mean the same.

    It draws with the numbers of the model it drafts for (the same seed at the same position), so the two agree more
    often than by chance, also when sampling.
    """

    def __init__(self, engine: Engine):
        self._engine = engine

    def start(self, sequence: Pages, sampler: Sampler, prompt: Sequence[int], max_tokens: int) -> Drafter:
        """Return a drafter with a sequence of its own; one that never drafts where the prompt does not fit."""
        return ModelDrafter(self._engine, sampler, len(prompt), len(prompt) + max_tokens)


class ModelDrafter(Drafter):
    """A sequence of a smaller model that runs ahead, and is cut back to what was kept."""

    def __init__(self, engine: Engine, sampler: Sampler, prompt: int, room: int):
        self._engine, self._sampler = engine, Draws(sampler, prompt)
        self._room = min(room, engine.context)
        self._sequence: Pages | None = None  # none before the first draft, and behind the last
        self._known = 0  # tokens of the last proposal's text, 0 once it is known what was kept
        self._base: Held | None = None  # recurrent state behind those
        self._spare: list[Held] = []

    def kind(self, tokens: Sequence[int]) -> Hashable | None:
        """Return one kind while tokens fit into the model's context."""
        return "model" if len(tokens) < self._room else None

    def prepare(self, tokens: Sequence[int]) -> None:
        """Run the text but for its last token, or what is not known of it from another answer."""
        if self._sequence is not None:
            return
        try:
            sequence = self._engine.begin(tokens, self._room)
            self._spare = self._engine.take_slots(int(self._engine.recurrent))
        except LatticeError:  # its memory is with other answers
            self._room = 0
            return
        self._engine.append(sequence, list(tokens[len(sequence) : -1]))
        self._sequence = sequence

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        """Return what the model draws, one token after another."""
        sequence, most = self._sequence, min(most, self._room - len(tokens))
        if sequence is None or most < 1:
            return []
        self.accepted(0)  # of a proposal that was never verified
        sampler = self._sampler.at(tokens)
        drafts = [self._engine.advance(sequence, list(tokens[len(sequence) :]), sampler).token]
        self._known, self._base = len(tokens), sequence.slot
        if sequence.own is not None and most > 1:  # the state so far stays: what is kept is run again from there
            self._spare.append(sequence.own)
            sequence.own = self._spare.pop(0)
        while len(drafts) < most:
            drafts.append(self._engine.advance(sequence, drafts[-1:], sampler).token)
        return drafts

    def accepted(self, count: int) -> None:
        """Cut the sequence back to what it shares with the text."""
        if self._sequence is not None and self._known:
            kept = self._known if self._engine.recurrent else min(len(self._sequence), self._known + count)
            self._sequence.cut(kept, self._base)
        self._known = 0

    def close(self) -> None:
        """Give back what is held; what was run is kept for the next answer's prompt."""
        self.accepted(0)
        if self._sequence is not None:
            self._engine.finish(self._sequence)
        self._sequence, self._room, self._spare = None, 0, []


class Draws:
    """A twin of an answer's sampler that has counted what is known of the text, but never a draft."""

    def __init__(self, sampler: Sampler, prompt: int):
        self._twin, self._prompt, self._counted = sampler.twin(), prompt, 0

    def at(self, tokens: Sequence[int]) -> Sampler:
        """Return the sampler as it is behind `tokens`."""
        if not self._counted:
            self._twin.read(tokens[: self._prompt])
            self._counted = self._prompt
        for token in tokens[self._counted :]:
            self._twin.draw(token)
        self._counted = len(tokens)
        return self._twin


def check_same_tokens(ours: Tokenizer, theirs: Tokenizer, name: str) -> None:
    """Raise LatticeError unless every id means the same token in both."""
    mine, other = (each.library.get_vocab(with_added_tokens=True) for each in (ours, theirs))
    if mine == other:
        return
    differ = sorted(token for token in mine.keys() | other.keys() if mine.get(token) != other.get(token))
    first = differ[0]
    got = f"{len(differ)} tokens that differ, such as {first!r}: {mine.get(first)} here, {other.get(first)} there"
    hint = "a draft model is a smaller one of the same family"
    raise expected("draft", f"a model {name} whose tokenizer has the same token ids", got, hint=hint)
