"""Reasoning apart from the answer: what stands between `<think>` and `</think>` at an answer's beginning.

Text arrives in pieces cut anywhere; each piece of it goes out as reasoning or as content as soon as that is certain.
Reasoning begins at the first character that is no white space, or the prompt has begun it already (templates do).
The first `</think>` ends it, so a `<think>` within is text; later markers are content, since an answer may speak of
them. Newlines next to the markers belong to the markers. An end that never comes makes all of it reasoning.
"""

from __future__ import annotations

OPEN, CLOSE = "<think>", "</think>"
_BLANK = 64  # characters of white space before the marker


class ReasoningSplitter:
    """Splits one answer; `opened` says that the prompt ends within the reasoning.

    >>> splitter = ReasoningSplitter()
    >>> splitter.push("<thi"), splitter.push("nk>\\nHm.\\n</think>"), splitter.push("\\n\\nYes.")
    (('', ''), ('Hm.', ''), ('', 'Yes.'))
    """

    def __init__(self, opened: bool = False):
        self._state = self._inner if opened else self._start
        self._held = ""

    @property
    def inside(self) -> bool:
        """Whether what comes next is reasoning."""
        return self._state in (self._inner, self._reasoning)

    @property
    def undecided(self) -> bool:
        """Whether reasoning may still begin."""
        return self._state == self._start

    @property
    def ending(self) -> bool:
        """Whether the end of the reasoning seems to have begun."""
        return self.inside and tail(self._held, CLOSE) > 0

    def push(self, text: str) -> tuple[str, str]:
        """Return what is final now: (reasoning, content)."""
        if self._state == self._content:
            return "", text
        self._held += text
        reasoning = ""
        while True:
            before = self._state
            out = before()
            if before == self._content:
                return reasoning, out
            reasoning += out
            if self._state == before:
                return reasoning, ""

    def finish(self) -> tuple[str, str]:
        """Return what was held back: the text is over."""
        held, self._held = self._held, ""
        return (held, "") if self.inside else ("", held if self.undecided else "")

    # Each state takes what it can from the text held, and names the next state if it is at its end.
    def _start(self) -> str:
        text = self._held.lstrip()
        if text.startswith(OPEN):
            self._held, self._state = text[len(OPEN) :], self._inner
        elif not OPEN.startswith(text) or len(self._held) - len(text) > _BLANK:
            self._state = self._content
        return ""

    def _inner(self) -> str:
        self._held = self._held.lstrip("\n")
        if self._held:
            self._state = self._reasoning
        return ""

    def _reasoning(self) -> str:
        text, found, rest = self._held.partition(CLOSE)
        if found:
            self._held, self._state = rest, self._after
            return text.rstrip("\n")
        final = text[: len(text) - tail(text, CLOSE)].rstrip("\n")
        self._held = text[len(final) :]
        return final

    def _after(self) -> str:
        self._held = self._held.lstrip("\n")
        if self._held:
            self._state = self._content
        return ""

    def _content(self) -> str:
        text, self._held = self._held, ""
        return text


def tail(text: str, marker: str) -> int:
    """Return how many characters at the end of `text` may be the beginning of `marker`.

    >>> tail("so </thi", "</think>"), tail("so", "</think>")
    (5, 0)
    """
    most = min(len(text), len(marker) - 1)
    return next((size for size in range(most, 0, -1) if text.endswith(marker[:size])), 0)
