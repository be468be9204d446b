"""What a chat template may call: filters by name, our own of those that Jinja leaves unbounded, and methods of data.

Everything else is refused. `_sandbox.py` checks what goes into each filter and what comes out; the functions here
bound what happens in between. Not here: the environment that calls them.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Iterable
from typing import Any

from lattice.tokenizers._budget import NODE, OUTPUT, Stop, weigh

# Filters of Jinja's that public templates need and that do not build more than a small multiple of their input.
_PLAIN = (
    "abs attr capitalize count d default dictsort e escape first float forceescape groupby int items last "
    "length list lower map max min random reject rejectattr reverse safe select selectattr sort string title "
    "trim unique upper wordcount"
)
PLAIN_FILTERS = _PLAIN.split()
_METHODS: dict[type, str] = {
    str: "capitalize casefold count endswith find index isalnum isalpha isascii isdecimal isdigit islower "
    "isnumeric isspace istitle isupper join lower lstrip partition removeprefix removesuffix replace rfind "
    "rindex rpartition rsplit rstrip split splitlines startswith strip swapcase title upper",
    dict: "copy get items keys values",
    list: "copy count index",
    tuple: "count index",
}
ALLOWED = {kind: frozenset(names.split()) for kind, names in _METHODS.items()}


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """Return a value as JSON, as transformers defines the filter: Jinja's own would escape < > & ' for HTML."""
    indentation = indent if isinstance(indent, int) else len(indent or "")
    depth, level = 0, [value]
    while level and indentation:  # bound the indentation: items x depth x width
        level = [c for v in level if isinstance(v, (dict, list, tuple)) for c in _children(v)]
        depth += 1
    if weigh(value) // NODE * depth * abs(indentation) > 8 * OUTPUT:
        raise Stop(f"values of at most {OUTPUT} characters", "a larger JSON text")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _children(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def replaced_length(text: Any, old: Any, new: Any, count: Any = None) -> int:
    """Return the length of `text` with `old` replaced by `new`."""
    text, old, new = str(text), str(old), str(new)
    found = text.count(old)
    if count is not None and int(count) >= 0:
        found = min(found, int(count))
    return len(text) + found * max(0, len(new) - len(old))


def sum_of_numbers(values: Iterable[Any], attribute: Any = None, start: Any = 0) -> Any:
    """Return the sum of numbers; lists, which Jinja's own would join again and again, are refused."""
    total = start
    for value in values:
        item = value[attribute] if attribute is not None else value
        if not isinstance(item, (int, float)) or not isinstance(total, (int, float)):
            raise Stop("sum of numbers", type(item).__name__)
        total = total + item
    return total


def strftime_now(pattern: str) -> str:
    """Return the time as the pattern says; widths (`%1000000d`) would let the C library fill memory."""
    if len(pattern) > 200 or not re.fullmatch(r"(?:[^%]|%-?[A-Za-z%])*", pattern):
        raise Stop("a strftime pattern of at most 200 characters without widths", repr(pattern)[:60])
    return datetime.datetime.now().strftime(pattern)


def make_dict(*arguments: Any, **items: Any) -> dict[Any, Any]:
    """Return a dict: the type itself has attributes that a template must not reach."""
    return dict(*arguments, **items)


def python_test(function: Callable[..., bool]) -> Callable[..., bool]:
    """Return a test that the tracer sees: `operator.eq` and the like are C functions."""

    def test(*args: Any) -> bool:
        return function(*args)

    return test


def no_format(*_: Any, **__: Any) -> str:
    """Refuse the filter `format`, which pads to any width."""
    raise Stop("no filter `format`", "a use of it")
