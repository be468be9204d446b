"""Valid tiny inputs from which hostile ones are made."""

from __future__ import annotations

import base64
import json
import re
import struct
import sys
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from mutate import EXTREMES

TESTS = Path(__file__).parents[1]


# ---- safetensors ------------------------------------------------------------------------------------------------


def _tensor(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


SAFETENSORS: list[tuple[dict[str, Any], bytes]] = [
    ({"w": _tensor("F32", [2, 2], 0, 16)}, bytes(16)),
    ({"__metadata__": {"format": "pt"}, "v": _tensor("BF16", [3], 0, 6), "w": _tensor("I8", [2], 6, 8)}, bytes(8)),
    ({"a": _tensor("F64", [], 0, 8), "b": _tensor("BOOL", [0, 4], 8, 8), "c": _tensor("F8_E4M3", [1], 8, 9)}, bytes(9)),
    ({}, b""),
]

INDEX = {"metadata": {"total_size": 16}, "weight_map": {"v": "a.safetensors", "w": "b.safetensors"}}
PATHS = ["a.safetensors", "b.safetensors", "/etc/passwd", "../a.safetensors", "a.safetensors\0", ".", "..", "a.bin"]
PATHS += [
    "sub/a.safetensors",
    "C:\\a.safetensors",
    "\\\\host\\a.safetensors",
    "a" * 300 + ".safetensors",
    "～.safetensors",
]


def shards() -> dict[str, bytes]:
    """Return the files that the index names."""
    found = {}
    for file, name in (("a.safetensors", "v"), ("b.safetensors", "w")):
        header = json.dumps({name: _tensor("F32", [2], 0, 8)}).encode()
        found[file] = struct.pack("<Q", len(header)) + header + bytes(8)
    return found


# ---- GGUF -------------------------------------------------------------------------------------------------------

_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}


def _string(text: str | bytes) -> bytes:
    raw = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def _value(kind: int, value: Any, random: Random) -> bytes:
    if kind == 8:
        return _string(value)
    if kind == 9:
        inner, items = value
        count = len(items) if random.random() < 0.97 else random.choice(EXTREMES)
        return struct.pack("<IQ", inner, count) + b"".join(_value(inner, item, random) for item in items)
    code = "<" + _CODES.get(kind, "I")
    size = struct.calcsize(code)
    return struct.pack(code, value) if size < 8 or code[1] in "qd" else struct.pack("<Q", value)


_ENTRIES: list[tuple[str, int, Any]] = [
    ("general.architecture", 8, "llama"),
    ("general.alignment", 4, 32),
    ("llama.block_count", 4, 1),
    ("a.float", 6, 0.5),
    ("a.bool", 7, 1),
    ("a.wide", 10, 2**40),
    ("a.numbers", 9, (5, [1, 2, 3])),
    ("a.nested", 9, (9, [(5, [1]), (8, ["x"])])),
]
_VOCABULARY: list[tuple[str, int, Any]] = [
    ("tokenizer.ggml.model", 8, "gpt2"),
    ("tokenizer.ggml.pre", 8, "gpt-2"),
    ("tokenizer.ggml.tokens", 9, (8, ["a", "b", "ab", "<s>", "\udcff", "Ġ"])),
    ("tokenizer.ggml.token_type", 9, (5, [1, 1, 1, 3, 6, 1])),
    ("tokenizer.ggml.merges", 9, (8, ["a b"])),
    ("tokenizer.ggml.bos_token_id", 4, 3),
    ("tokenizer.ggml.add_bos_token", 7, 1),
    ("tokenizer.chat_template", 8, "{{ messages }}"),
]


def gguf(random: Random) -> bytes:
    """Return a GGUF file, valid but for the few fields that chance made extreme."""

    def odd(value: int, bits: int = 64) -> int:
        return value if random.random() < 0.97 else random.choice(EXTREMES) % 2**bits

    listed = [*_ENTRIES, *(_VOCABULARY if random.random() < 0.5 else [])]
    listed = [entry for entry in listed if random.random() < 0.95]
    if random.random() < 0.05 and listed:
        listed.append(random.choice(listed))
    entries = b""
    for key, kind, value in listed:
        entries += _string(key) + struct.pack("<I", odd(kind, 32)) + _value(kind, value, random)
    tensors, at = b"", 0
    shapes = [("w", [4], 0, 16), ("x", [32, 2], 8, 68), ("y", [2, 2], 1, 8), ("token_embd.weight", [1], 0, 4)]
    for name, sizes, kind, size in shapes[: random.randint(0, 4)]:
        tensors += _string(name) + struct.pack("<I", odd(len(sizes), 32))
        tensors += b"".join(struct.pack("<Q", odd(n)) for n in sizes)
        tensors += struct.pack("<IQ", odd(kind, 32), odd(at))
        at += -(-size // 32) * 32
    count = tensors.count(b"") and min(4, sum(name.encode() in tensors for name, *_ in shapes))
    head = b"GGUF" + struct.pack("<IQQ", odd(random.choice((2, 3)), 32), odd(count), odd(len(listed)))
    head += entries + tensors
    return head + bytes(-len(head) % 32 + at)


# ---- tokenizer.json ---------------------------------------------------------------------------------------------


def _added(number: int, text: str, **more: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": number, "content": text, **flags, **more}


def _charsmap() -> str:
    # A trie of empty units, and two replacements. Nothing is replaced, but every text is looked up in it.
    return base64.b64encode(struct.pack("<I", 1024) + bytes(1024) + b"ab\0c\0").decode()


_ALPHABET = {text: number for number, text in enumerate(["a", "b", "ab", "Ġ", "é", "1", "<s>", "</s>"])}
_BYTES = {f"<0x{byte:02X}>": 8 + byte for byte in range(256)}
_SINGLE = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
_PAIR = [*_SINGLE, {"Sequence": {"id": "B", "type_id": 1}}]
_GPT4 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)|\s+"
_BPE = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
    "vocab": _ALPHABET,
    "merges": [["a", "b"]],
}
TOKENIZERS: list[dict[str, Any]] = [
    {
        "version": "1.0",
        "truncation": {"max_length": 8, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": None,
        "added_tokens": [_added(6, "<s>"), _added(7, "</s>", lstrip=True)],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": _GPT4}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": _SINGLE,
            "pair": _PAIR,
            "special_tokens": {"<s>": {"id": "<s>", "ids": [6], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "model": _BPE,
    },
    {
        "added_tokens": [_added(0, "[UNK]"), _added(1, "[CLS]"), _added(2, "[SEP]")],
        "padding": {
            "strategy": {"Fixed": 4},
            "direction": "Right",
            "pad_to_multiple_of": 8,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "[UNK]",
        },
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3, "##b": 4, "##a": 5, "1": 6},
        },
    },
    {
        "added_tokens": [_added(0, "<unk>"), _added(1, "<s>")],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Precompiled", "precompiled_charsmap": _charsmap()},
                {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
                {"type": "Strip", "strip_left": True, "strip_right": True},
            ],
        },
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": ["<s>", 1],
            "cls": ["<s>", 1],
            "trim_offsets": True,
            "add_prefix_space": True,
        },
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "model": {
            "type": "Unigram",
            "unk_id": 0,
            "vocab": [["<unk>", 0.0], ["<s>", 0.0], ["▁", -2.0], ["a", -1.0], ["ab", -1.5], ["b", -3.0]],
            "byte_fallback": False,
        },
    },
    {
        "added_tokens": [_added(6, "<s>")],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {"type": "Punctuation", "behavior": "Isolated"},
            ],
        },
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {**_BPE, "byte_fallback": True, "fuse_unk": True, "unk_token": "a", "vocab": _ALPHABET | _BYTES},
    },
    {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "NFKD"}, {"type": "Lowercase"}, {"type": "StripAccents"}],
        },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "WhitespaceSplit"},
                {"type": "CharDelimiterSplit", "delimiter": "-"},
                {"type": "UnicodeScripts"},
            ],
        },
        "decoder": {"type": "CTC", "pad_token": "b", "word_delimiter_token": "|", "cleanup": True},
        "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "<unk>": 2}, "unk_token": "<unk>"},
    },
]


# ---- SentencePiece and tiktoken ---------------------------------------------------------------------------------


def _varint(value: int) -> bytes:
    raw = b""
    while value > 127:
        raw, value = raw + bytes([value & 127 | 128]), value >> 7
    return raw + bytes([value])


def _field(number: int, value: int | float | bytes, random: Random) -> bytes:
    if random.random() < 0.004:
        value = random.choice((*EXTREMES, b"", b"\xff", 1e38, float("nan")))
    if isinstance(value, bytes):
        size = len(value) if random.random() < 0.998 else random.choice(EXTREMES)
        return _varint(number << 3 | 2) + _varint(size) + value
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    return _varint(number << 3) + _varint(value)


_PIECES = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), ("▁", -2.0, 1), ("a", -3.0, 1), ("b", -4.0, 1)]
_PIECES += [("ab", -1.0, 1), ("▁a", -1.5, 1), ("<user>", 0.0, 4), ("é", -7.0, 1), ("aaa", -2.5, 1)]


def sentencepiece(random: Random) -> bytes:
    """Return a `.model` file, valid but for the few fields that chance made extreme."""
    pieces = [piece for piece in _PIECES if random.random() < 0.98]
    fallback = random.random() < 0.3
    if fallback:
        pieces += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    raw = b""
    for text, score, kind in pieces:
        inner = _field(1, text.encode(), random) + _field(2, score, random) + _field(3, kind, random)
        raw += _field(1, inner, random)
    trainer = _field(3, random.choice((1, 2)), random) + _field(35, int(fallback), random)
    trainer += _field(40, 0, random) + _field(41, 1, random) + _field(42, 2, random) + _field(43, 2**64 - 1, random)
    rules = b"" if random.random() < 0.5 else _field(2, base64.b64decode(_charsmap()), random)
    rules += b"".join(_field(n, random.randrange(2), random) for n in (3, 4, 5))
    return raw + _field(2, trainer, random) + _field(3, rules, random)


def ranks(random: Random) -> bytes:
    """Return a rank file of all bytes and a few longer tokens, sometimes with a line that is wrong."""
    tokens = [bytes([byte]) for byte in range(256)] + [b"ab", b"aa", b" a", b"aaa", b"aab"]
    lines = [base64.b64encode(token) + b" %d" % rank for rank, token in enumerate(tokens)]
    for _ in range(random.choice((0, 1, 1, 2))):
        at = random.randrange(len(lines))
        token, _, rank = lines[at].partition(b" ")
        odd = [b"", token, token + b" -1", b"AAA= " + rank, token + b" 4294967296", token + b"  " + rank, b"= " + rank]
        odd += [base64.b64encode(b"a" * 300) + b" " + rank, token + b" %d" % random.choice(EXTREMES), rank, b"\xff"]
        lines[at : at + random.choice((0, 1, 1, 1))] = [random.choice(odd)] * random.choice((1, 1, 1, 2))
    return random.choice((b"\n", b"\n", b"\r\n", b"\r", b"\x0b")).join(lines)


# ---- chat templates ---------------------------------------------------------------------------------------------

_WORDS = """
{{ }} {% %} {# #} ( ) [ ] { } . , | ~ + * ** // % == < for in if else set macro call filter block recursive not is
messages
messages[0] content 'a' "\\x5f" __class__ ['__class__'] attr( map( format join tojson self caller() varargs kwargs 0 -1
1e308 10**9 none true loop( loop.index namespace( range( 99999 slice(3) batch(2) groupby('role') sort unique sum
replace('a','aaaa') strftime_now( raise_exception( {%endfor%} {%endif%} {%endset%} {%endmacro%} {%endcall%}
"""
JINJA = [*_WORDS.split(), "\n", " ", "\ud800", "é", "{{ loop(", " in ", " if ", " else "]


@cache
def template_pieces() -> list[list[str]]:
    """Return public and hostile templates, cut into words."""
    sys.path.insert(0, str(TESTS / "tokenizers"))
    import attacks

    sources = [golden["template"] for golden in json.loads((TESTS / "golden/tokenizers/chats.json").read_text())]
    sources = [source for source in dict.fromkeys(sources) if len(source) < 4000]
    sources += [source for source in attacks.ATTACKS.values() if len(source) < 1000]
    return [re.findall(r"\{[{%#]-?|-?[%}#]\}|\w+|\s+|.", source, re.DOTALL) for source in sources]
