"""Mixed Unicode strings, the same ones everywhere: what tokenizers are compared with foreign ones on.

Only `random.Random(seed).random()` and `getrandbits` are used, whose streams Python promises to keep.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Sequence

# Blocks that have been full for long: an assigned character here is assigned in every Unicode version in use.
SCRIPTS = [
    (0x20, 0x7E), (0x20, 0x7E), (0x20, 0x7E), (0xA0, 0x17F), (0x180, 0x24F), (0x250, 0x2FF), (0x370, 0x3FF),
    (0x400, 0x4FF), (0x531, 0x556), (0x5D0, 0x5EA), (0x621, 0x64A), (0x660, 0x669), (0x905, 0x939), (0x93E, 0x94D),
    (0x985, 0x9A8), (0xE01, 0xE3A), (0xE40, 0xE5B), (0x10D0, 0x10F0), (0x1100, 0x1112), (0x1161, 0x1175),
    (0x1E00, 0x1EFF), (0x1F00, 0x1F15), (0x2010, 0x2027), (0x2030, 0x205E), (0x2070, 0x209C), (0x20A0, 0x20B0),
    (0x2100, 0x214F), (0x2150, 0x218B), (0x2190, 0x23FF), (0x2460, 0x24FF), (0x2500, 0x259F), (0x3041, 0x3096),
    (0x30A1, 0x30FF), (0x3131, 0x318E), (0x3200, 0x32FE), (0x3300, 0x33FF), (0x4E00, 0x9FA5), (0x4E00, 0x4E40),
    (0xAC00, 0xD7A3), (0xF900, 0xFA2D), (0xFB00, 0xFB06), (0xFE50, 0xFE6B), (0xFF01, 0xFF5E), (0xFF61, 0xFFDC),
    (0x10330, 0x1034A), (0x1D400, 0x1D454), (0x1F300, 0x1F64F), (0x1F680, 0x1F6C5), (0x20000, 0x2A6D6),
]  # fmt: skip
MARKS = (
    "\u0300\u0301\u0302\u0303\u0308\u030a\u0323\u0327\u0328\u0338\u0345\u05b4\u064b\u093c\u0e34\u20d0\u3099\u309a\ufe0f"
)
CONTROLS = (
    "".join(map(chr, [*range(0x20), *range(0x7F, 0xA0)])) + "\u00ad\u061c\u200b\u200c\u200d\u200e\u202e\u2060\ufeff"
)
CONTROLS += "\ufffd\ufff9\ue000\uf8ff\U000e0061\U0010ffff\ufffe\ufdd0"
SPACES = " \t\n\r\u00a0\u1680\u2000\u2003\u2009\u2028\u2029\u202f\u205f\u3000\u2581\x0b\x0c\x85"
EMOJI = [
    "😀", "👍🏽", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇯🇵", "❤️", "1️⃣", "👨🏿‍🚀", "🧑‍⚕️", "☺", "🤷🏻‍♀️",
]  # fmt: skip
LOOKALIKES = [
    "<|im_end|", "<|im_end |>", "< s>", "<S>", "</ s>", "[ CLS]", "[SEP", "<unk", "<0x0A>", "<0xZZ>", "##ing", "▁the",
    "▁▁", "<tool", "＜s＞", "<pad >", "Ġthe", "ĊĊ", "<think", "@@", "</w>", " ⁇ ", "<bos", "<tool>", "ﬁx",
]  # fmt: skip
_TEXT = (
    "the of and to in return self def import value number tokens text list None True lambda yield class Hello world "
    "don't we'll I'VE it's naïve café Grüße Straße ΑΒΓ Привет мир שלום مرحبا नमस्ते สวัสดี こんにちは 世界 안녕 "
    "1234567 3.14 2024-01-02 x==y a->b /path/to/file.txt https://example.org/?q=1&r=2 user@example.org CamelCaseWord "
    "snake_case_word ---- ==== ... !!! ??? aaaa"
)
WORDS = _TEXT.split(" ")


def mixed(count: int, seed: int = 1) -> list[str]:
    """Return `count` strings; the first of a longer list are those of a shorter one."""
    rng = random.Random(seed)
    return [_string(rng) for _ in range(count)]


def digest(rows: Iterable[Sequence[int]]) -> str:
    """Return the SHA-256 over all ids, each row with its length before it."""
    total = hashlib.sha256()
    for row in rows:
        total.update(b"%d:" % len(row) + b",".join(b"%d" % token for token in row) + b";")
    return total.hexdigest()


def digests(rows: Sequence[Sequence[int]], size: int = 100) -> list[str]:
    """Return a short digest for each `size` rows, which says where a difference is."""
    return [digest(rows[at : at + size])[:8] for at in range(0, len(rows), size)]


def _below(rng: random.Random, count: int) -> int:
    return int(rng.random() * count)


def _one(rng: random.Random, items: Sequence[str]) -> str:
    return items[_below(rng, len(items))]


def _string(rng: random.Random) -> str:
    parts = [_PARTS[_below(rng, len(_PARTS))](rng) for _ in range(1 + _below(rng, 8))]
    joint = _one(rng, ["", "", " ", " ", "\n"])
    return joint.join(parts)


def _script(rng: random.Random) -> str:
    low, high = SCRIPTS[_below(rng, len(SCRIPTS))]
    return "".join(chr(low + _below(rng, high - low + 1)) for _ in range(1 + _below(rng, 12)))


def _words(rng: random.Random) -> str:
    return " ".join(_one(rng, WORDS) for _ in range(1 + _below(rng, 8)))


def _marked(rng: random.Random) -> str:
    return "".join(
        _one(rng, "aeiouAEOUncsgえかはऀकب") + "".join(_one(rng, MARKS) for _ in range(_below(rng, 4)))
        for _ in range(1 + _below(rng, 8))
    )


def _controls(rng: random.Random) -> str:
    return "".join(_one(rng, CONTROLS) for _ in range(1 + _below(rng, 4)))


def _spaces(rng: random.Random) -> str:
    if rng.random() < 0.5:
        return _one(rng, SPACES) * (1 + _below(rng, 20))
    return "".join(_one(rng, SPACES) for _ in range(1 + _below(rng, 6)))


def _garbage(rng: random.Random) -> str:
    data = bytes(rng.getrandbits(8) for _ in range(1 + _below(rng, 16)))
    return data.decode("utf-8", "replace") if rng.random() < 0.5 else data.decode("latin-1")


def _anything(rng: random.Random) -> str:
    points = (_below(rng, 0x110000) for _ in range(1 + _below(rng, 4)))
    return "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)


def _long(rng: random.Random) -> str:
    unit = _words(rng).replace(" ", "") if rng.random() < 0.3 else _script(rng)[: 1 + _below(rng, 3)]
    return unit * (1 + _below(rng, 240 // len(unit) if len(unit) < 120 else 2))


def _letters(rng: random.Random) -> str:
    return "".join(_one(rng, "etaoinshrdlu") for _ in range(1 + _below(rng, 150)))


_PARTS = [
    _words, _words, _words, _script, _script, _script, _marked, _controls, _spaces, _spaces, _garbage, _anything, _long,
    _letters, lambda rng: _one(rng, EMOJI), lambda rng: _one(rng, LOOKALIKES),
]  # fmt: skip
