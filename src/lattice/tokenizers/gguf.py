"""The tokenizer inside a GGUF file, rebuilt as a tokenizer.json and cached under the file's hash.

Read: `tokenizer.ggml.model` "gpt2", byte-level BPE, with the pre-tokeniser named by `tokenizer.ggml.pre`
(`pretokenizers.py`). Not read yet: "llama" (SentencePiece), "bert" (WordPiece), "t5" (unigram) and others,
each an error that says so. The cache is an ordinary tokenizer directory (tokenizer.json,
tokenizer_config.json), which any other program can open; its config records the builder's version and the
SHA-256 of tokenizer.json, so a cache that was damaged or written by an older builder is built again.

Facts of the format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

from lattice.errors import FormatError, LatticeWarning, expected
from lattice.tokenizers._files import LIMIT as SETTINGS_LIMIT
from lattice.tokenizers._files import read_bytes, read_settings, write_bytes
from lattice.tokenizers.pretokenizers import BY_NAME, PreTokenizer
from lattice.tokenizers.tokenizer import LIMIT, Tokenizer, assemble, parse_library

VERSION = 2  # of what this file builds; a new one discards caches
CONTROL, USER_DEFINED = 3, 4  # token types: special; matched in text but shown
_ROLES = {
    "bos": "bos",
    "eos": "eos",
    "unknown": "unk",
    "padding": "pad",
    "seperator": "sep",
    "separator": "sep",
}
_LATER = ("llama", "bert", "t5", "rwkv", "gemma4", "plamo2")


def tokenizer_from_gguf(metadata: Mapping[str, Any], cache: Path | None = None, key: str = "") -> Tokenizer:
    """Return the tokenizer that a GGUF file's metadata describes.

    With `cache`, a directory, it is kept in and opened from `cache/key`, where `key` is the file's hash.
    Raises FormatError for metadata that is malformed and for vocabularies that are not read.
    """
    directory = None if cache is None else _place(cache, key)
    if directory is not None:
        try:
            return _open(directory)
        except FormatError:
            pass  # absent, damaged or older: built again below
    document, settings = _build(metadata)
    _shorten(document["model"])
    data = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    settings["lattice"] = {"version": VERSION, "sha256": hashlib.sha256(data).hexdigest()}
    tokenizer = _assembled(data, settings)
    if directory is not None:
        _keep(directory, data, settings)
    return tokenizer


def _shorten(model: dict[str, Any]) -> None:
    """Write merges as "a b", not ["a", "b"]: the library reads both, and this in half the time.

    Not where a token holds a space, nor where "a b" would look like a comment of the files that this form comes from.
    """
    lines = [" ".join(pair) for pair in model.get("merges", [])]
    if lines and all(line.count(" ") == 1 and not line.startswith("#version") for line in lines):
        model["merges"] = lines


def _place(cache: Path, key: str) -> Path:
    if not re.fullmatch(r"[0-9A-Za-z_-][0-9A-Za-z._-]{0,127}", key):
        raise expected("tokenizer cache", "a key of letters, digits and . _ -", repr(key)[:80])
    return Path(cache) / key


def _open(directory: Path) -> Tokenizer:
    settings = read_settings(directory / "tokenizer_config.json")
    mark = settings.get("lattice")
    if not isinstance(mark, dict) or mark.get("version") != VERSION:
        raise expected("tokenizer cache", f"version {VERSION}", mark, kind=FormatError)
    data = read_bytes(directory / "tokenizer.json", LIMIT)
    if hashlib.sha256(data).hexdigest() != mark.get("sha256"):
        raise expected("tokenizer cache", "the file that was written", "another", kind=FormatError)
    return _assembled(data, settings)


def _keep(directory: Path, data: bytes, settings: dict[str, Any]) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_bytes(directory / "tokenizer.json", data)
        # Last, since it vouches for the other.
        write_bytes(directory / "tokenizer_config.json", json.dumps(settings, indent=1).encode())
    except OSError as error:  # a full or read-only disk costs speed, not the model
        warnings.warn(f"the tokenizer could not be cached: {error}", LatticeWarning, stacklevel=4)


def _assembled(data: bytes, settings: Mapping[str, Any]) -> Tokenizer:
    template = settings.get("chat_template")
    templates = {"default": template} if isinstance(template, str) else {}
    return assemble(parse_library(data, "tokenizer of the GGUF file"), settings, templates)


def _build(metadata: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the tokenizer.json and tokenizer_config.json of GGUF metadata."""
    model = metadata.get("tokenizer.ggml.model")
    if model != "gpt2":
        later = "a vocabulary that is not read yet" if model in _LATER else "an unknown one"
        raise expected(
            "tokenizer.ggml.model",
            "'gpt2' (byte-level BPE)",
            f"{model!r:.80}, {later}" if model is not None else "no tokenizer in the file",
            hint="put the model's tokenizer.json beside the file, or use token ids",
            kind=FormatError,
        )
    pre = _pre_tokenizer(metadata.get("tokenizer.ggml.pre"))
    tokens = _strings(metadata, "tokenizer.ggml.tokens")
    types = _types(metadata, len(tokens))
    vocab = {token: number for number, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise expected(
            "tokenizer.ggml.tokens",
            "distinct tokens",
            f"{len(tokens) - len(vocab)} repeated",
            kind=FormatError,
        )
    settings = _settings(metadata, tokens, pre)
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added(n, tokens[n], types[n]) for n in range(len(tokens)) if types[n] in (CONTROL, USER_DEFINED)
        ],
        "normalizer": {"type": "NFC"} if pre.normal_form else None,
        "pre_tokenizer": pre.as_json(),
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre.whole_words,
            "vocab": vocab,
            "merges": [_merge(text) for text in _strings(metadata, "tokenizer.ggml.merges")],
        },
    }
    return document, settings


def _pre_tokenizer(name: object) -> PreTokenizer:
    if name is None:
        warnings.warn(
            "[tokenizer.ggml.pre] no pre-tokeniser is named: 'default' is used, and ids may differ "
            "from those that the model was trained on",
            LatticeWarning,
            stacklevel=5,
        )
        name = "default"
    if not isinstance(name, str) or name not in BY_NAME:
        raise expected("tokenizer.ggml.pre", "one of " + ", ".join(sorted(BY_NAME)), repr(name)[:80], kind=FormatError)
    return BY_NAME[name]


def _strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    value = metadata.get(key)
    listed = (
        list(value) if value is not None and not isinstance(value, (str, bytes, Mapping)) and _sized(value) else None
    )
    if listed is None or not all(isinstance(item, str) for item in listed):
        raise expected(key, "an array of strings", type(value).__name__, kind=FormatError)
    return listed


def _sized(value: object) -> bool:
    try:
        iter(value)  # type: ignore[call-overload]  # that is the question
    except TypeError:
        return False
    return True


def _types(metadata: Mapping[str, Any], count: int) -> list[int]:
    value = metadata.get("tokenizer.ggml.token_type")
    if value is None:
        return [1] * count
    try:
        types = [int(item) for item in value]
    except (TypeError, ValueError):
        types = []
    if len(types) != count:
        raise expected("tokenizer.ggml.token_type", f"{count} integers", f"{len(types)}", kind=FormatError)
    return types


def _added(number: int, text: str, kind: int) -> dict[str, Any]:
    if not text:
        raise expected(
            "tokenizer.ggml.tokens", "special tokens with a text", f"an empty one, {number}", kind=FormatError
        )
    return {
        "id": number,
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": kind == CONTROL,
    }


def _merge(text: str) -> list[str]:
    at = text.find(" ", 1)  # the first half may itself begin with a space
    if at < 0 or at + 1 == len(text):
        raise expected("tokenizer.ggml.merges", "two tokens with a space between", repr(text)[:80], kind=FormatError)
    return [text[:at], text[at + 1 :]]


def _settings(metadata: Mapping[str, Any], tokens: list[str], pre: PreTokenizer) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name, role in _ROLES.items():
        key = f"tokenizer.ggml.{name}_token_id"
        number = metadata.get(key)
        if number is None:
            continue
        if isinstance(number, bool) or not isinstance(number, Integral) or not 0 <= int(number) < len(tokens):
            raise expected(key, f"an id below {len(tokens)}", repr(number)[:40], kind=FormatError)
        settings[f"{role}_token"] = tokens[int(number)]
    for role, default in (("bos", pre.bos and "bos_token" in settings), ("eos", False)):
        key = f"tokenizer.ggml.add_{role}_token"
        value = metadata.get(key, default)
        if value not in (True, False):
            raise expected(key, "true or false", repr(value)[:40], kind=FormatError)
        settings[f"add_{role}_token"] = bool(value) and f"{role}_token" in settings
    template = metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        if len(template) > SETTINGS_LIMIT // 4:
            raise expected(
                "tokenizer.chat_template", "a template of moderate size", f"{len(template)}", kind=FormatError
            )
        settings["chat_template"] = template
    return settings
