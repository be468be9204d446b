"""Deterministic mutations of valid inputs: of bytes, and of JSON as values before it is text."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

EXTREMES = [0, 1, 2, 7, 8, 31, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**48, 2**61]
EXTREMES += [2**63 - 1, 2**63, 2**64 - 1]
SCALARS: list[Any] = [None, True, False, -1, -0.0, 0.5, 1e308, -1e308, 1e-320, "", "a", "\0", "\ud800", "\u202e", "é"]
SCALARS += [[], {}, [[]], [None], {"": None}, "../x", "a" * 2000, *EXTREMES, -(2**31), -(2**63), 2**70]


def damage(data: bytes, other: bytes, random: Random, most: int = 3) -> bytes:
    """Return `data` after 1 to `most` flips, overwrites, cuts, repeats or splices with `other`."""
    raw = bytearray(data)
    for _ in range(random.randint(1, most)):
        at = random.randrange(len(raw) + 1)
        kind = random.randrange(8)
        if kind == 0 and at < len(raw):
            raw[at] ^= 1 << random.randrange(8)
        elif kind == 1 and at < len(raw):
            raw[at] = random.choice((0, 1, 9, 10, 32, 34, 44, 91, 93, 123, 125, 127, 128, 255, random.randrange(256)))
        elif kind == 2:
            size = random.choice((1, 2, 4, 8))
            raw[at : at + size] = (random.choice(EXTREMES) % 256**size).to_bytes(size, "little")
        elif kind == 3:
            del raw[at:]
        elif kind == 4:
            del raw[at : at + random.randint(1, 16)]
        elif kind == 5:
            raw[at:at] = raw[at : at + random.randint(1, 32)] * random.randint(1, 4)
        elif kind == 6:
            cut = random.randrange(len(other) + 1)
            raw[at:] = other[cut:]
        else:
            raw[at:at] = random.randbytes(random.randint(1, 8))
    return bytes(raw)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return (container, key) of everything below a value."""
    found: list[tuple[Any, Any]] = []
    stack = [value]
    while stack:
        item = stack.pop()
        keys = list(item) if isinstance(item, dict) else range(len(item)) if isinstance(item, list) else ()
        for key in keys:
            found.append((item, key))
            stack.append(item[key])
    return found


def _nested(random: Random) -> Any:
    value: Any = 1
    for _ in range(random.choice((3, 20, 70, 200))):
        value = [value] if random.random() < 0.5 else {"a": value}
    return value


def damaged_json(value: Any, other: Any, random: Random, scalars: list[Any]) -> bytes:
    """Return the text of a JSON value after structural damage, and sometimes damage to the text as well."""
    value = {"": copy.deepcopy(value)}
    for _ in range(random.choice((0, 1, 1, 1, 2, 3))):
        holder, key = random.choice(_places(value))
        kind = random.randrange(9)
        if kind < 3:
            holder[key] = copy.deepcopy(random.choice(scalars))
        elif kind == 3:
            del holder[key]
        elif kind == 4:
            source, at = random.choice(_places({"": other}))
            holder[key] = copy.deepcopy(source[at])
        elif kind == 5 and isinstance(holder, list):
            holder[key:key] = copy.deepcopy([holder[key]] * random.choice((1, 2, 40)))
        elif kind == 6 and isinstance(holder, dict):
            holder[random.choice(("a", "type", "x" * 300, "\0", "vocab"))] = holder.pop(key)
        elif kind == 7:
            holder[key] = _nested(random)
        elif isinstance(holder[key], str):
            text = holder[key]
            at = random.randrange(len(text) + 1)
            holder[key] = (
                text[:at] + random.choice(("", "(", ")*", "+", "{9}", "\\", "[", "|", "\0", "aa", "é")) + text[at:]
            )
        elif type(holder[key]) is int:
            holder[key] += random.choice((-1, 1, 2**31))
        if not value:
            break
    text = json.dumps(value.get(""), ensure_ascii=random.random() < 0.9)
    if random.random() < 0.05 and '":' in text:  # a key twice, or NaN
        at = text.index('":') + 2
        text = text[:at] + random.choice(("NaN", "1e999", "-Infinity", text[1 : at - 2] + '":1,')) + text[at:]
    if random.random() < 0.15 and text.startswith("{") and len(text) > 2:
        at = text.find(",", random.randrange(len(text)))
        if at > 0:
            text = text[:at] + "," + text[1:at] + text[at:]  # keys once more, wherever that lands
    raw = text.encode("utf-8", "surrogatepass")
    return damage(raw, raw, random, 2) if random.random() < 0.15 else raw
