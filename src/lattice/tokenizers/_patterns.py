"""Regular expressions of a tokenizer.json: which may be given to the library's backtracking engine.

Oniguruma tries every way to match. A pattern from a hostile file can make that exponential (`(a+)+c`) or a high
power (`a*a*a*c`) of the text's length, in one C call that nothing interrupts. A pattern passes if it is one of
those we ship, or if

* nothing repeats a group that itself has a choice or a repeat of variable length,
* no two unbounded repeats of one branch can match the same characters with something behind them that can fail,
* nothing is used whose cost is not plain to see (back references, subexpression calls, conditions, callouts),
* it cuts runs of 8192 equal characters in linear time: measured, since whether a failure is tried again at each
  character depends on the pattern as a whole. The measure is the thread's own time, so a busy machine does not count.

Not here: whether the library can compile the pattern.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from functools import cache

from tokenizers import Regex
from tokenizers.normalizers import Replace

from lattice.errors import FormatError, LatticeError, expected
from lattice.tokenizers._guard import guarded
from lattice.tokenizers.pretokenizers import BY_NAME

LONGEST = 4096  # characters of a pattern; the longest in use has fewer than 1000
DEPTH = 32  # groups within groups
COUNT = 1000  # largest number in {n,m}, and their product where they nest
PROBE, SECONDS = 8192, 0.06  # a pattern of linear time takes 1 to 10 ms of these
SAMPLES = "aAéÉ中ⅷ1٣ \t\n\r\u3000!'_-$+\u0301\u200d\x00あ한ʰǅ"  # a character or two of each class that patterns name
HINT = (
    "write the pattern without a repeat inside a repeat (tokenizer.json is text), or, if you trust the file, "
    "open it with load_tokenizer(path, check_patterns=False)"
)
_QUANTIFIER = re.compile(r"[*+?][?+]?|\{(\d*)(,?)(\d*)\}\??")
_GROUP = re.compile(r"\(\?(?::|[imsx-]+:|=|!|<=|<!|>|<[A-Za-z_]\w*>)|\((?!\?|\*)")
_FLAGS = re.compile(r"\(\?[ims-]+\)|\(\?#[^)]*\)")
_ESCAPE = re.compile(
    r"\\(?:[pP]\{\^?[\w -]+\}|x\{[0-9A-Fa-f]+\}|x[0-9A-Fa-f]{1,2}|u[0-9A-Fa-f]{4}|[^1-9kgKXRQ])", re.DOTALL
)
_ZERO_WIDTH = frozenset(["^", "$", r"\b", r"\B", r"\A", r"\z", r"\Z", r"\G"])


@dataclass(frozen=True)
class _Item:
    """A part of a branch: what it matches, whether it repeats without bound, whether it can fail."""

    text: str
    unbounded: bool
    can_fail: bool


class _Scanner:
    """Reads a pattern once from left to right; `refuse` where it is not plainly cheap."""

    def __init__(self, pattern: str, where: str):
        self.pattern, self.where, self.at = pattern, where, 0

    def refuse(self, wanted: str) -> LatticeError:
        got = f"{self.pattern[max(0, self.at - 40) : self.at + 20]!r} at character {self.at}"
        return expected(self.where, wanted, got, hint=HINT, kind=FormatError)

    def branches(self, depth: int) -> tuple[list[_Item], bool, int]:
        """Read up to the group's end; return its parts, branches one after another, whether its length varies, and
        the largest count in it."""
        if depth > DEPTH:
            raise self.refuse(f"groups nested at most {DEPTH} deep")
        items: list[_Item] = []
        branch: list[_Item] = []
        varies, largest = False, 1
        while self.at < len(self.pattern) and self.pattern[self.at] != ")":
            if self.pattern[self.at] == "|":
                self.at += 1
                self.check_branch(branch)
                items, branch, varies = items + branch, [], True
                continue
            more, variable, count = self.piece(depth)
            branch += more
            varies, largest = varies or variable, max(largest, count)
        self.check_branch(branch)
        return items + branch, varies, largest

    def piece(self, depth: int) -> tuple[list[_Item], bool, int]:
        """Read one atom or group with its quantifier."""
        begin = self.at
        if skipped := _FLAGS.match(self.pattern, self.at):
            self.at = skipped.end()
            return [], False, 1
        inner: list[_Item] = []
        varies, grouped, count = False, False, 1
        if self.pattern[self.at] == "(":
            inner, varies, count = self.group(depth)
            grouped = True
        elif self.pattern[self.at] == "[":
            self.character_class()
        elif self.pattern[self.at] == "\\":
            escape = _ESCAPE.match(self.pattern, self.at)
            if not escape:
                raise self.refuse("patterns without back references and calls")
            self.at = escape.end()
        else:
            self.at += 1
        text = self.pattern[begin : self.at]
        low, high = self.quantifier()
        if (high is None or high > 1) and (varies or text in _ZERO_WIDTH):
            raise self.refuse("no repeat of what itself varies in length")
        count *= max(low, high or 0, 1)
        if count > COUNT:
            raise self.refuse(f"counts of at most {COUNT}")
        unbounded = high is None or high - low > 16
        if not grouped:
            inner = [_Item(text, unbounded, low > 0)]
        elif unbounded:
            inner = [_Item(text, True, low > 0)]
        elif low == 0:
            inner = [_Item(item.text, item.unbounded, False) for item in inner]
        return inner, varies or low != high, count

    def group(self, depth: int) -> tuple[list[_Item], bool, int]:
        opening = _GROUP.match(self.pattern, self.at)
        if not opening or "x" in opening[0].partition("<")[0]:
            raise self.refuse("plain groups and looks ahead and behind")
        self.at = opening.end()
        found = self.branches(depth + 1)
        if self.at >= len(self.pattern):
            raise self.refuse("a closing bracket")
        self.at += 1
        return found

    def character_class(self) -> None:
        depth = 0
        while self.at < len(self.pattern):
            character = self.pattern[self.at]
            self.at += 2 if character == "\\" else 1
            depth += (character == "[") - (character == "]")
            if depth == 0:
                return
            if character == "[" and self.pattern[self.at : self.at + 2] in ("]]", "^]"):
                self.at += 1 + (self.pattern[self.at] == "^")  # a literal bracket, first in its class
        raise self.refuse("a closing bracket of a class")

    def quantifier(self) -> tuple[int, int | None]:
        """Read a quantifier; return its least and most, None where there is no most."""
        found = _QUANTIFIER.match(self.pattern, self.at)
        if not found or found[0] == "{}" or found[0] == "{,}":
            return 1, 1
        self.at = found.end()
        if _QUANTIFIER.match(self.pattern, self.at):
            raise self.refuse("no repeat of a repeat")
        if found[0][0] != "{":
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[found[0][0]]
        if len(found[1]) > 6 or len(found[3]) > 6:
            raise self.refuse(f"counts of at most {COUNT}")
        low = int(found[1] or 0)
        if not found[2]:
            return low, low
        return low, int(found[3]) if found[3] else None

    def check_branch(self, branch: list[_Item]) -> None:
        """Refuse two unbounded repeats of the same characters before something that can fail."""
        last = max((number for number, item in enumerate(branch) if item.can_fail), default=-1)
        repeats = [item.text for item in branch[: last + (0 if last >= 0 and branch[last].unbounded else 1)]
                   if item.unbounded]  # fmt: skip
        seen: set[str] = set()
        for text in repeats:
            matched = _matched(text, self.where)
            if seen & matched:
                raise self.refuse("one unbounded repeat of a kind of character before what can fail")
            seen |= matched


@cache
def _matched(text: str, where: str) -> frozenset[str]:
    """Return which of the samples, and of the pattern's own characters, an atom matches."""
    samples = dict.fromkeys(SAMPLES + "".join(c for c in text if c.isprintable()))
    replace = _replace(text, where)

    def left(sample: str) -> str:
        return guarded(where, "a regular expression", lambda: replace.normalize_str(sample), FormatError)

    return frozenset(sample for sample in samples if not left(sample))


def _check_time(pattern: str, where: str) -> None:
    replace = _replace(pattern, where)
    own = "".join(dict.fromkeys(c for c in pattern if c.isprintable()))[:24]
    for sample in dict.fromkeys(SAMPLES + own):
        # Short ones first: what is worse than quadratic never gets to the long ones. What the pattern asks for by
        # name follows, since the engine looks for that first and gives up early without.
        for length in (PROBE // 16, PROBE // 4, PROBE):
            text = sample * length + "\x01" + own
            most = max(0.01, SECONDS * length / PROBE)
            if _seconds(replace, text, where) > most and _seconds(replace, text, where) > most:
                got = f"{pattern!r:.120}, slow on many {sample!r}"
                raise expected(where, "patterns of linear time", got, hint=HINT, kind=FormatError)


def _seconds(replace: Replace, text: str, where: str) -> float:
    began = time.thread_time()
    guarded(where, "patterns of linear time", lambda: replace.normalize_str(text), FormatError)
    return time.thread_time() - began


def _replace(pattern: str, where: str) -> Replace:
    return guarded(
        where, f"a regular expression, not {pattern!r:.80}", lambda: Replace(Regex(pattern), ""), FormatError
    )


@cache
def _known() -> frozenset[str]:
    return frozenset(pattern for pre in BY_NAME.values() for pattern in pre.splits)


@cache
def check_pattern(pattern: str, where: str) -> None:
    """Raise FormatError for a regular expression whose matching might take more than linear time."""
    if pattern in _known():
        return
    if len(pattern) > LONGEST:
        raise expected(where, f"a pattern of at most {LONGEST} characters", len(pattern), kind=FormatError)
    scanner = _Scanner(pattern, where)
    scanner.branches(0)
    if scanner.at < len(pattern):
        raise scanner.refuse("brackets in pairs")
    _check_time(pattern, where)
