"""Stop strings, against a plain search of the whole text."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattice.errors import LatticeError
from lattice.generate.stop import StopStrings, check_stop

LETTERS = st.text("ab€", max_size=40)
STOPS = st.lists(st.text("ab€", min_size=1, max_size=5), max_size=3)


def naive(text: str, strings: list[str]) -> tuple[str, str | None]:
    """Read the text letter by letter; stop where some string is complete, the longest of those that are."""
    for end in range(1, len(text) + 1):
        found = [string for string in strings if text[:end].endswith(string)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


def pieces(text: str, cuts: list[int]) -> list[str]:
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    return [text[a:b] for a, b in pairwise(places)]


@given(LETTERS, STOPS, st.lists(st.integers(0, 40), max_size=10))
def test_any_cut_of_the_text_gives_what_a_plain_search_gives(text, strings, cuts):
    stops = StopStrings(strings)
    out = "".join(stops.push(piece) for piece in pieces(text, cuts))
    out += stops.finish()
    assert (out, stops.matched) == naive(text, strings)


@given(LETTERS, STOPS, st.lists(st.integers(0, 40), max_size=10))
def test_nothing_is_held_back_that_cannot_become_a_match(text, strings, cuts):
    stops, seen, out = StopStrings(strings), "", ""
    for piece in pieces(text, cuts):
        seen, out = seen + piece, out + stops.push(piece)
        if stops.matched is None:
            held = seen[len(out) :]
            assert not held or any(string.startswith(held) for string in strings)


def test_the_string_that_is_complete_first_wins_and_then_the_longest():
    stops = StopStrings(["abcd", "c", "bc"])
    assert stops.push("xabcd") == "xa"
    assert stops.matched == "bc"
    assert stops.push("more") == stops.finish() == ""


def test_a_false_start_is_released():
    stops = StopStrings(["aab"])
    assert [stops.push(letter) for letter in "aaab"] == ["", "", "a", ""]
    assert stops.matched == "aab"


def test_what_stop_may_be():
    assert check_stop(None) == check_stop([]) == ()
    assert check_stop("x") == ("x",)
    assert check_stop(["x", "yz"]) == ("x", "yz")


@pytest.mark.parametrize("stop", ["", [""], ["a", ""], [1], 5, b"x", {"a"}])
def test_a_bad_stop_is_refused(stop):
    with pytest.raises(LatticeError, match=r"\[generate\] expected stop"):
        check_stop(stop)
