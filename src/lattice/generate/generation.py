"""One running answer: a prompt goes in, chunks come out, one a token, until a stop token, a stop string or
the limit.

The engine is asked for one step at a time, when the consumer wants the next chunk; a step that verified drafts
gives several tokens, handed on one by one. Between chunks the answer holds pages and slots, on a card also the
next step, under way already (ahead.py), and nothing else. When it ends or is closed they become a prefix that later
prompts may share; they go back when nobody refers to it any more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from lattice.errors import expected
from lattice.generate.cache import Sequence
from lattice.generate.chat import ChatPrompt
from lattice.generate.engine import Advance, Engine
from lattice.generate.logprobs import RowLogprobs, TokenLogprob, describe
from lattice.generate.reply import Reply
from lattice.generate.sampling import Sampler
from lattice.generate.speculative import Speculation
from lattice.tokenizers import Tokenizer, ToolCall, ToolCallDelta


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one step added: text that is final (often that of the token, possibly empty), and the token; of an answer to
    messages also what it reasoned, and pieces of tool calls.

    The last chunk has no token where only text that was held back remains. Without a tokenizer there is no
    text.
    """

    text: str
    token: int | None
    logprob: TokenLogprob | None = None  # of the token, where the answer was asked for logprobs
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()


@dataclass(frozen=True)
class Usage:
    """Tokens of an answer: of the prompt, how many of those were known and not run, and generated; how many were
    drafted on the way, and how many of the drafts were right."""

    prompt_tokens: int
    completion_tokens: int
    reused_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Timings:
    """Seconds of an answer: until the first token, then for `decode_steps` further ones, native calls apart. Where
    drafts were right, one run of the model gave several of them.

    Waiting for other users of the model counts, but not in `native_seconds`; waiting for the consumer does
    not count.
    """

    prefill_seconds: float
    decode_seconds: float
    native_seconds: float  # the part of decode_seconds inside native calls
    decode_steps: int


@dataclass(frozen=True)
class Completion:
    """A finished answer. `tokens` are without the stop token, but with those of a stop string; `logprobs` has one entry
    a token, or is None where nobody asked. `reasoning` is None where the model has none, or was given no messages;
    `tool_calls` are the whole ones, and where there are any and nothing cut the answer short, they are its reason."""

    tokens: list[int]
    finish_reason: str  # "stop" | "length" | "tool_calls"
    usage: Usage
    timings: Timings
    logprobs: list[TokenLogprob] | None = None
    decoded: str | None = field(default=None, repr=False)  # the text, or None without a tokenizer
    reasoning: str | None = None
    tool_calls: list[ToolCall] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The text; LatticeError where the model has no tokenizer."""
        if self.decoded is None:
            got = "no tokenizer.json that can be read"
            raise expected("generate", "a model with a tokenizer", got, hint=".tokens has the answer as token ids")
        return self.decoded

    @property
    def message(self) -> dict[str, Any]:
        """The answer as a message, for the next turn's prompt."""
        found: dict[str, Any] = {"role": "assistant", "content": self.text}
        if self.reasoning:
            found["reasoning_content"] = self.reasoning
        if self.tool_calls:
            found["tool_calls"] = [call.as_dict() for call in self.tool_calls]
        return found


@dataclass(frozen=True)
class Limits:
    """What ends an answer."""

    max_tokens: int
    stop_tokens: frozenset[int]
    stop: tuple[str, ...]


class Generation(Iterator[Chunk]):
    """An answer in the making: iterate for its chunks, then ask for `completion()`."""

    def __init__(
        self,
        engine: Engine,
        sequence: Sequence,
        prompt: list[int],
        sampler: Sampler,
        limits: Limits,
        tokenizer: Tokenizer | None,
        *,
        speculation: Speculation | None = None,
        chat: ChatPrompt | None = None,
    ):
        self.finish_reason: str | None = None
        self.tokens: list[int] = []
        self._engine, self._sampler, self._limits = engine, sampler, limits
        self._tokenizer, self._reply = tokenizer, Reply(tokenizer, limits.stop, chat)
        self.logprobs: list[TokenLogprob] | None = None if sampler.logprobs is None else []
        self._prompt_tokens = len(prompt)
        self._prefill = self._decode = self._native = 0.0
        self._steps = 0
        self._speculation = speculation
        self._known = list(prompt) if speculation else []  # prompt and what was drawn
        self._drawn: deque[Advance] = deque()  # by the last step, not handed on
        self._overtaken = False
        self._sequence: Sequence | None = sequence
        self._reused, self.kept = sequence.reused, sequence.entries
        self._pending = prompt[self._reused :]  # tokens that the next step runs
        sampler.read(prompt)

    def __iter__(self) -> Generation:
        return self

    def __next__(self) -> Chunk:
        sequence = self._sequence
        if self._overtaken:
            raise expected("stream", "the conversation's latest answer", "an earlier one, which a later turn has ended")
        if sequence is None:
            raise StopIteration
        started = perf_counter()
        token, native, row = self._next(sequence)
        chunk = self._take(token, row)
        seconds = perf_counter() - started
        if self._prefill:
            self._decode += seconds
            self._native += native
            self._steps += 1
        else:
            self._prefill = seconds
        if chunk is None:
            raise StopIteration
        return chunk

    def _next(self, sequence: Sequence) -> Advance:
        """Return the next token: one that must follow, or one that is drawn, unless the last step drew it already."""
        if self._reply.forced:
            return self._know(Advance(self._reply.forced.popleft(), 0.0, None))
        if not self._drawn:
            if self._speculation is not None and self._prefill and len(self._pending) == 1:
                room = self._limits.max_tokens - len(self.tokens)
                drawn = self._speculation.step(self._known, min(room, self._reply.room or room))
            else:
                more = len(self.tokens) + 1 < self._limits.max_tokens
                drawn = [self._engine.advance(sequence, self._pending, self._sampler, more=more)]
            self._drawn.extend(map(self._know, drawn))
        self._pending = []
        advance = self._drawn.popleft()
        if self._speculation is not None and not self._drawn:
            self._speculation.settle()
        return advance

    def _know(self, advance: Advance) -> Advance:
        if self._speculation is not None:
            self._known.append(advance.token)
        return advance

    def _take(self, token: int, row: RowLogprobs | None) -> Chunk | None:
        """Return the chunk of a new token, or, at the end, that of the text held back, if there is any."""
        limits = self._limits
        if token in limits.stop_tokens:
            rest = self._reply.finish()
            self._end("stop")
            return Chunk(rest.text, None, None, rest.reasoning, rest.tool_calls) if any(rest) else None
        self.tokens.append(token)
        self._pending.append(token)
        self._sampler.draw(token)
        logprob = None
        if self.logprobs is not None:
            logprob = describe(token, row, self._sampler.logprobs or 0, self._tokenizer)
            self.logprobs.append(logprob)
        piece = self._reply.push(token, last=len(self.tokens) == limits.max_tokens)
        if self._reply.stopped:
            self._end("stop")
        elif len(self.tokens) == limits.max_tokens:
            self._end("length")
        return Chunk(piece.text, token, logprob, piece.reasoning, piece.tool_calls)

    def _end(self, reason: str) -> None:
        self.finish_reason = "tool_calls" if reason == "stop" and self._reply.calls else reason
        self.close()

    def close(self) -> None:
        """End the answer here; what has been run is kept for prompts that go on from it, until others need the room."""
        sequence, self._sequence = self._sequence, None
        if self._speculation is not None:
            self._speculation.close(len(self._known) - 1 - len(self._drawn))
        if sequence is not None:
            self._engine.finish(sequence)

    def overtake(self) -> None:
        """End the answer because its conversation goes on without it; whoever asks it for more hears so."""
        self._overtaken = self._sequence is not None
        self.close()

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        drafts = (self._speculation.drafted, self._speculation.accepted) if self._speculation else (0, 0)
        return Usage(self._prompt_tokens, len(self.tokens), self._reused, *drafts)

    @property
    def timings(self) -> Timings:
        """Seconds so far."""
        return Timings(self._prefill, self._decode, self._native, self._steps)

    def completion(self) -> Completion:
        """Return the finished answer; LatticeError before its end."""
        if self.finish_reason is None:
            raise expected("stream", "an answer that has come to its end", f"one of {len(self.tokens)} tokens so far")
        reply, logprobs = self._reply, self.logprobs
        given = (self.usage, self.timings, logprobs, reply.text, reply.reasoning, reply.calls)
        return Completion(self.tokens, self.finish_reason, *given)


def run(generation: Generation) -> Completion:
    """Return the completion of an answer run to its end; whatever happens, its pages go back."""
    with generation:
        for _ in generation:
            pass
    return generation.completion()
