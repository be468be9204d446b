"""What an answer's tokens say: text, reasoning, tool calls; and what ends it or must follow.

A token's bytes become text (`Decoder`), reasoning is split off (`ReasoningSplitter`), stop strings are looked for in
the rest, and what comes before them is content and tool calls (`ToolCallParser`). So a stop string is not found within
the reasoning, and may be a marker such as `</tool_call>`. Whether there is reasoning or a call to find, the prompt
says (`ChatPrompt`): the answer to a plain text is text.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from lattice.generate.chat import ChatPrompt
from lattice.generate.stop import StopStrings
from lattice.tokenizers import Decoder, ReasoningSplitter, Tokenizer, ToolCall, ToolCallDelta, ToolCallParser


class Piece(NamedTuple):
    """What became final at once; false if it is nothing at all."""

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()


class Reply:
    """Reads one answer, token by token.

    `forced` are tokens that must come next instead of drawn ones: those that end the reasoning once its budget is
    spent. `room` is how many tokens may be drawn before that, None if nothing will be forced.
    """

    def __init__(self, tokenizer: Tokenizer | None, stop: tuple[str, ...], chat: ChatPrompt | None = None):
        self.forced: deque[int] = deque()
        self._decoder: Decoder | None = None if tokenizer is None else tokenizer.stream()
        self._stops = StopStrings(stop)
        self._splitter = ReasoningSplitter(chat.opened) if chat is not None and chat.reasons else None
        self._parser = ToolCallParser(chat.tools) if chat is not None and chat.tools else None
        self._left = None if chat is None or self._splitter is None else chat.budget
        self._closing = () if chat is None else chat.closing
        self._texts: list[str] = []
        self._reasonings: list[str] = []

    @property
    def stopped(self) -> bool:
        """Whether a stop string has been found."""
        return self._stops.matched is not None

    @property
    def text(self) -> str | None:
        """The content so far; None without a tokenizer."""
        return None if self._decoder is None else "".join(self._texts)

    @property
    def reasoning(self) -> str | None:
        """The reasoning so far; None if the answer could have none."""
        return None if self._splitter is None else "".join(self._reasonings)

    @property
    def calls(self) -> list[ToolCall]:
        """The tool calls so far, those that are whole."""
        return [] if self._parser is None else self._parser.calls

    @property
    def room(self) -> int | None:
        """How many tokens may be drawn before others are forced."""
        if self._splitter is None or self._left is None or not (self._splitter.inside or self._splitter.undecided):
            return None
        return max(1, self._left + self._splitter.undecided)  # the marker that begins it is a token of its own

    def push(self, token: int, last: bool = False) -> Piece:
        """Return what a token makes final; with `last`, or where a stop string is found, also what was held back."""
        if self._decoder is None:
            return Piece()
        inside = self._splitter is not None and self._splitter.inside
        reasoning, text = self._split(self._decoder.push(token))
        self._spend(inside)
        if last or self.stopped:
            return self._finish(reasoning, text)
        content, calls = (text, []) if self._parser is None else self._parser.push(text)
        return self._keep(content, reasoning, calls)

    def finish(self) -> Piece:
        """Return what was held back: the answer is over."""
        return Piece() if self._decoder is None else self._finish("", "")

    def _split(self, text: str) -> tuple[str, str]:
        """Return the reasoning in a text and the answer's text, up to a stop string."""
        reasoning, text = ("", text) if self._splitter is None else self._splitter.push(text)
        return reasoning, self._stops.push(text)

    def _finish(self, reasoning: str, text: str) -> Piece:
        if not self.stopped and self._decoder is not None:
            more, end = self._split(self._decoder.finish())
            held = ("", "") if self._splitter is None else self._splitter.finish()
            reasoning += more + held[0]
            text += end + self._stops.push(held[1]) + self._stops.finish()
        calls: list[ToolCallDelta] = []
        if self._parser is not None:
            (text, calls), (rest, more_calls) = self._parser.push(text), self._parser.finish()
            text, calls = text + rest, calls + more_calls
        return self._keep(text, reasoning, calls)

    def _keep(self, text: str, reasoning: str, calls: list[ToolCallDelta]) -> Piece:
        self._texts += [text] if text else []
        self._reasonings += [reasoning] if reasoning else []
        return Piece(text, reasoning, tuple(calls))

    def _spend(self, inside: bool) -> None:
        """Count a token of reasoning; where that was the last one, force the end, unless the model is writing it."""
        if self._left is None or self._splitter is None:
            return
        self._left -= inside
        if self._left <= 0 and self._splitter.inside and not self._splitter.ending:
            self.forced.extend(self._closing)
            self._left = None
