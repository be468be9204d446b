"""Stop strings: the end of an answer, found across the pieces in which it arrives.

Every string has its own automaton (Knuth, Morris and Pratt, 1977): its state is how much of the string the
text so far ends with. The string that is complete first wins, and of several complete at once the longest; so
the result does not depend on how the text was cut into pieces. What may still become a match is held back.
Pieces are text, so no code point is split.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lattice.errors import expected


class StopStrings:
    """Looks for `strings` in a text that arrives in pieces.

    >>> stops = StopStrings(["END"])
    >>> stops.push("the E"), stops.push("N"), stops.push("D of it")
    ('the ', '', '')
    >>> stops.matched
    'END'
    """

    def __init__(self, strings: Sequence[str]):
        self.matched: str | None = None
        self._automata = [_Automaton(string) for string in strings]
        self._held = ""  # the longest end of the text that begins some string

    def push(self, text: str) -> str:
        """Return what is final now; after a match, what came before it, and then nothing any more."""
        if self.matched is not None:
            return ""
        if not self._automata:
            return text
        pending = self._held + text
        for place, character in enumerate(text, len(self._held) + 1):
            found = [a.string for a in self._automata if a.push(character)]
            if found:
                self.matched = max(found, key=len)
                self._held = ""
                return pending[: place - len(self.matched)]
        kept = len(pending) - max(automaton.state for automaton in self._automata)
        self._held = pending[kept:]
        return pending[:kept]

    def finish(self) -> str:
        """Return what was held back: the text is over."""
        held, self._held = self._held, ""
        return held


class _Automaton:
    def __init__(self, string: str):
        self.string, self.state = string, 0
        self.shorter = [0]  # for each state, the longest shorter one that also fits
        for character in string[1:]:
            self.shorter.append(self._next(self.shorter[-1], character))

    def _next(self, state: int, character: str) -> int:
        while state and self.string[state] != character:
            state = self.shorter[state - 1]
        return state + (self.string[state] == character)

    def push(self, character: str) -> bool:
        """Advance by a character; True where the string is complete."""
        self.state = self._next(self.state, character)
        return self.state == len(self.string)


def check_stop(stop: Any) -> tuple[str, ...]:
    """Return the stop strings a caller asked for: none, one, or several, each of at least one character."""
    if stop is None:
        return ()
    strings = (stop,) if isinstance(stop, str) else stop
    if isinstance(strings, bytes | bytearray) or not isinstance(strings, Sequence):
        raise expected("generate", "stop as a str or a list of str", type(stop).__name__)
    for string in strings:
        if not isinstance(string, str) or not string:
            raise expected("generate", "stop strings of at least one character", repr(string))
    return tuple(strings)
