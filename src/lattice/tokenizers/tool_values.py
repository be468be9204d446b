"""Arguments of a tool call that were written as text, typed by the tool's JSON schema.

The XML form of a call has no quotes: `5` may be a number or a word, and only the schema knows. A type that the schema
allows and the text spells is taken, the narrowest first (null, enum, then whatever JSON value it is); what spells none
of them stays the text it is, character by character. Python's `True`, `False` and `None` count too: templates render
the values of earlier calls so. Not here: validation. A call with a wrong value is the tool's to refuse.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, NoReturn

_DEPTH, _MOST = 16, 256  # schemas inside schemas, `$ref` included, that are followed
_LEVELS = 64
_WORDS = {"True": True, "False": False, "None": None}
_TYPES = {bool: "boolean", int: "integer", float: "number", list: "array", dict: "object", type(None): "null"}


def parameter_schema(tool: Mapping[str, Any] | None, name: str) -> list[Mapping[str, Any]]:
    """Return the schemas one of which a parameter of a tool (its `parameters`) has; empty where nothing is said."""
    if not isinstance(tool, Mapping):
        return []
    for found in islice(_alternatives(tool, tool), _MOST):
        properties = found.get("properties")
        schema = properties.get(name) if isinstance(properties, Mapping) else None
        schema = found.get("additionalProperties") if schema is None else schema
        if isinstance(schema, Mapping):
            return list(islice(_alternatives(schema, tool), _MOST))
    return []


def is_plain_text(schemas: list[Mapping[str, Any]]) -> bool:
    """Return whether a value can be nothing but its text, so that it may be passed on as it comes."""
    return bool(schemas) and all(_types(schema) == {"string"} and not _choices(schema) for schema in schemas)


def typed(text: str, schemas: list[Mapping[str, Any]]) -> Any:
    """Return the value that `text` spells under one of the schemas, else the text itself.

    >>> typed("5", [{"type": "integer"}]), typed("5", [{"type": "string"}]), typed("five", [{"type": "integer"}])
    (5, '5', 'five')
    """
    choices = [choice for schema in schemas for choice in _choices(schema)]
    types = {name for schema in schemas for name in _types(schema)}
    found = _value(text)
    if isinstance(found, float) and found.is_integer() and "number" not in types:
        found = int(found)
    for choice in choices:
        if text == choice or (not isinstance(choice, str) and type(choice) is type(found) and choice == found):
            return choice
    if found is None:
        return None if "null" in types and text.strip() in ("null", "None") else text
    if not types and not choices:  # nothing is said: only what cannot be meant as words
        return found if isinstance(found, (list, dict)) else text
    kinds = {_TYPES.get(type(found))} | ({"number"} if type(found) is int else set())
    return found if kinds & types else text  # a text in quotes has no kind: it stays as it is


def parse(text: str) -> Any:
    """Return the value of a JSON text of at most 64 levels; ValueError or RecursionError where it is none."""
    value = json.loads(text, parse_constant=_refuse, parse_float=_finite)
    level = [value]
    for _ in range(_LEVELS):
        level = [
            child
            for each in level
            if isinstance(each, (dict, list))
            for child in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return value
    raise ValueError("too deep")


def _value(text: str) -> Any:
    """Return the value that a text spells as JSON or as Python's constants; None also where it spells nothing."""
    word = text.strip()
    if word in _WORDS:
        return _WORDS[word]
    try:
        return parse(word)
    except (ValueError, RecursionError):  # no JSON, or an integer of thousands of digits
        return None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(text)
    return number


def _alternatives(schema: Mapping[str, Any], root: Mapping[str, Any], depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """Yield a schema without the ways it branches, then its branches: `$ref` into the root, anyOf, oneOf, allOf."""
    yield schema
    if depth == _DEPTH:
        return
    branches = [found for name in ("anyOf", "oneOf", "allOf") for found in _list(schema.get(name))]
    if isinstance(schema.get("$ref"), str):
        branches.append(_resolve(schema["$ref"], root))
    for branch in branches:
        if isinstance(branch, Mapping):
            yield from _alternatives(branch, root, depth + 1)


def _resolve(reference: str, root: Mapping[str, Any]) -> Any:
    found: Any = root
    for step in reference.removeprefix("#/").split("/"):
        found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
    return found


def _types(schema: Mapping[str, Any]) -> set[str]:
    given = schema.get("type")
    types = {name for name in ([given] if isinstance(given, str) else _list(given)) if isinstance(name, str)}
    if not types:
        types |= {"object"} if "properties" in schema else {"array"} if "items" in schema else set()
    return types | ({"null"} if schema.get("nullable") is True else set())


def _choices(schema: Mapping[str, Any]) -> list[Any]:
    return [*_list(schema.get("enum")), *([schema["const"]] if "const" in schema else [])]


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else []
