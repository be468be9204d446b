"""The tokenizer inside a GGUF file, rebuilt as a tokenizer.json and cached under the file's hash.

Read, by `tokenizer.ggml.model`: "gpt2", byte-level BPE, with the pre-tokeniser named by `tokenizer.ggml.pre`
(`pretokenizers.py`); "llama", SentencePiece BPE, and "t5", SentencePiece unigram (`sentencepiece.py`); "bert",
WordPiece (`wordpiece.py`). Ids are those of the models' own tokenizers, where llama.cpp's differ from them.

The cache is an ordinary tokenizer directory (tokenizer.json, tokenizer_config.json), which any other program can
open; its config records the builder's version and the SHA-256 of tokenizer.json, so a cache that was damaged or
written by an older builder is built again.

Facts of the format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Mapping
from numbers import Integral
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import Tokenizer as Library

from lattice.errors import FormatError, LatticeError, LatticeWarning, expected
from lattice.tokenizers import wordpiece
from lattice.tokenizers._files import LIMIT as SETTINGS_LIMIT
from lattice.tokenizers._files import read_bytes, read_settings, write_bytes
from lattice.tokenizers.document import added_token, byte_level, template
from lattice.tokenizers.normalize import SPACE
from lattice.tokenizers.pretokenizers import BY_NAME, PreTokenizer
from lattice.tokenizers.sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, Pieces
from lattice.tokenizers.tokenizer import LIMIT, Tokenizer, assemble, open_library, parse_library

Built = tuple[dict[str, Any], dict[str, Any]]  # tokenizer.json and tokenizer_config.json
Number = TypeVar("Number", int, float)
WHERE = "tokenizer of the GGUF file"
VERSION = 3  # of what this file builds; a new one discards caches
_ROLES = {
    "bos": "bos",
    "eos": "eos",
    "unknown": "unk",
    "padding": "pad",
    "seperator": "sep",
    "separator": "sep",
    "cls": "cls",
    "mask": "mask",
}
_LATER = ("rwkv", "gemma4", "plamo2")


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
    settings.setdefault("lattice", {}).update(version=VERSION, sha256=hashlib.sha256(data).hexdigest())
    tokenizer = _assembled(parse_library(data, WHERE), data, settings)
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
    return _assembled(open_library(data, WHERE), data, settings)  # our own file, checked when it was written


def _keep(directory: Path, data: bytes, settings: dict[str, Any]) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_bytes(directory / "tokenizer.json", data)
        # Last, since it vouches for the other.
        write_bytes(directory / "tokenizer_config.json", json.dumps(settings, indent=1).encode())
    except (OSError, LatticeError) as error:  # a full or read-only disk costs speed, not the model
        warnings.warn(f"the tokenizer could not be cached: {error}", LatticeWarning, stacklevel=4)


def _assembled(library: Library, data: bytes, settings: Mapping[str, Any]) -> Tokenizer:
    template = settings.get("chat_template")
    templates = {"default": template} if isinstance(template, str) else {}
    pieces = isinstance(settings["lattice"].get("sentencepiece"), dict)
    return assemble(library, settings, templates, data if pieces else None)


def _build(metadata: Mapping[str, Any]) -> Built:
    """Return the tokenizer.json and tokenizer_config.json of GGUF metadata."""
    model = metadata.get("tokenizer.ggml.model")
    if not isinstance(model, str) or model not in _BUILDERS:  # an array cannot even be compared
        later = "a vocabulary that is not read yet" if isinstance(model, str) and model in _LATER else "an unknown one"
        raise expected(
            "tokenizer.ggml.model",
            "'gpt2' (byte-level BPE), 'llama' or 't5' (SentencePiece) or 'bert' (WordPiece)",
            f"{model!r:.80}, {later}" if model is not None else "no tokenizer in the file",
            hint="put the model's tokenizer.json beside the file, or use token ids",
            kind=FormatError,
        )
    tokens = _strings(metadata, "tokenizer.ggml.tokens")
    if len(set(tokens)) != len(tokens) or not tokens:
        raise expected(
            "tokenizer.ggml.tokens",
            "distinct tokens",
            f"{len(tokens) - len(set(tokens))} of {len(tokens)} repeated",
            kind=FormatError,
        )
    types = _types(metadata, len(tokens))
    document, settings = _BUILDERS[model](metadata, tokens, types)
    roles = _roles(metadata, len(tokens))
    # Written into the file too, so that other programs that open it add what ours adds.
    ends = [
        (settings[f"{role}_token"], roles[role]) if settings.get(f"add_{role}_token") else None
        for role in ("bos", "eos")
    ]
    document["post_processor"] = document["post_processor"] or template(ends[0], ends[1], joint=False)
    return document, settings


def _byte_level(metadata: Mapping[str, Any], tokens: list[str], types: list[int]) -> Built:
    pre = _pre_tokenizer(metadata.get("tokenizer.ggml.pre"))
    marked = [n for n, kind in enumerate(types) if kind in (CONTROL, USER_DEFINED)]
    added = [_added(n, tokens[n], types[n]) for n in marked]
    merges = [_merge(text) for text in _strings(metadata, "tokenizer.ggml.merges")]
    vocab = {token: number for number, token in enumerate(tokens)}
    return byte_level(vocab, merges, pre, added), _settings(metadata, tokens, bos=pre.bos)


def _sentencepiece(metadata: Mapping[str, Any], tokens: list[str], types: list[int]) -> Built:
    bpe = metadata["tokenizer.ggml.model"] == "llama"
    roles = _roles(metadata, len(tokens))
    if "unk" not in roles and types.count(UNKNOWN) == 1:
        roles["unk"] = types.index(UNKNOWN)
    # Converters write the spaces of user-defined tokens as they are in a text.
    texts = [token.replace(" ", SPACE) if types[n] == USER_DEFINED else token for n, token in enumerate(tokens)]
    charsmap = metadata.get("tokenizer.ggml.precompiled_charsmap")
    pieces = Pieces(
        kind="bpe" if bpe else "unigram",
        texts=texts,
        scores=_numbers(metadata, "tokenizer.ggml.scores", len(tokens), float),
        types=types,
        special=roles,
        charsmap=b"" if charsmap is None else _bytes("tokenizer.ggml.precompiled_charsmap", charsmap),
        dummy_prefix=_flag(metadata, "add_space_prefix", True),
        remove_extra=_flag(metadata, "remove_extra_whitespaces", False),
        byte_fallback=BYTE in types,
        where="tokenizer.ggml.tokens",
    )
    settings = _settings(metadata, texts, bos=bpe, eos=not bpe)
    settings["lattice"] = {"sentencepiece": pieces.settings}
    return pieces.document(), settings


def _word_piece(metadata: Mapping[str, Any], tokens: list[str], types: list[int]) -> Built:
    roles = _roles(metadata, len(tokens))
    control = [kind == CONTROL or n in roles.values() for n, kind in enumerate(types)]
    restored = wordpiece.restore(tokens, control)
    for role, text in (("cls", "[CLS]"), ("sep", "[SEP]"), ("unk", "[UNK]"), ("mask", "[MASK]"), ("pad", "[PAD]")):
        if role not in roles and text in restored:  # files name some roles, or none
            roles[role] = restored.index(text)
    lower = _flag(metadata, "normalizer.lowercase", wordpiece.is_lowered(restored, control))
    document = wordpiece.document(restored, roles, control, lower)
    settings = _settings(metadata, restored, bos=True, eos=True)
    settings |= {f"{role}_token": restored[number] for role, number in roles.items()}
    # [CLS] and [SEP] stand around a text where the flags ask for a beginning and an end.
    for role, flag in (("cls", "add_bos_token"), ("sep", "add_eos_token")):
        settings[flag] = _flag(metadata, flag, True) and role in roles
    document["post_processor"] = template(
        (restored[roles["cls"]], roles["cls"]) if settings.pop("add_bos_token") else None,
        (restored[roles["sep"]], roles["sep"]) if settings.pop("add_eos_token") else None,
        joint=True,
    )
    return document, settings


_BUILDERS = {"gpt2": _byte_level, "llama": _sentencepiece, "t5": _sentencepiece, "bert": _word_piece}


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
    if metadata.get("tokenizer.ggml.token_type") is None:
        return [NORMAL] * count
    return _numbers(metadata, "tokenizer.ggml.token_type", count, int)


def _numbers(metadata: Mapping[str, Any], key: str, count: int, kind: Callable[[Any], Number]) -> list[Number]:
    try:
        numbers = [kind(item) for item in metadata.get(key, ())]
    except (TypeError, ValueError, OverflowError):
        numbers = []
    if len(numbers) != count:
        raise expected(key, f"{count} numbers", f"{len(numbers)}", kind=FormatError)
    return numbers


def _bytes(key: str, value: Any) -> bytes:
    try:
        if not isinstance(value, (str, int)):
            return bytes(int(item) & 0xFF if -128 <= int(item) < 256 else 256 for item in value)  # int8 or uint8
    except (TypeError, ValueError):
        pass
    raise expected(key, "an array of bytes", type(value).__name__, kind=FormatError)


def _flag(metadata: Mapping[str, Any], name: str, default: bool) -> bool:
    key = f"tokenizer.ggml.{name}"
    value = metadata.get(key, default)
    if not isinstance(value, (bool, int)) or value not in (0, 1):  # an array cannot even be compared
        raise expected(key, "true or false", repr(value)[:40], kind=FormatError)
    return bool(value)


def _added(number: int, text: str, kind: int) -> dict[str, Any]:
    if not text:
        raise expected(
            "tokenizer.ggml.tokens", "special tokens with a text", f"an empty one, {number}", kind=FormatError
        )
    return added_token(number, text, kind == CONTROL)


def _merge(text: str) -> list[str]:
    at = text.find(" ", 1)  # the first half may itself begin with a space
    if at < 0 or at + 1 == len(text):
        raise expected("tokenizer.ggml.merges", "two tokens with a space between", repr(text)[:80], kind=FormatError)
    return [text[:at], text[at + 1 :]]


def _roles(metadata: Mapping[str, Any], count: int) -> dict[str, int]:
    roles: dict[str, int] = {}
    for name, role in _ROLES.items():
        key = f"tokenizer.ggml.{name}_token_id"
        number = metadata.get(key)
        if number is None:
            continue
        if isinstance(number, bool) or not isinstance(number, Integral) or not 0 <= int(number) < count:
            raise expected(key, f"an id below {count}", repr(number)[:40], kind=FormatError)
        roles[role] = int(number)
    return roles


def _settings(metadata: Mapping[str, Any], tokens: list[str], bos: bool = False, eos: bool = False) -> dict[str, Any]:
    roles = _roles(metadata, len(tokens))
    settings: dict[str, Any] = {f"{role}_token": tokens[number] for role, number in roles.items()}
    for role, default in (("bos", bos), ("eos", eos)):
        settings[f"add_{role}_token"] = _flag(metadata, f"add_{role}_token", default) and role in roles
    source = metadata.get("tokenizer.chat_template")
    if source is not None and not isinstance(source, str):
        raise expected("tokenizer.chat_template", "a template as text", type(source).__name__, kind=FormatError)
    if source is not None:
        if len(source) > SETTINGS_LIMIT // 4:
            raise expected("tokenizer.chat_template", "a template of moderate size", f"{len(source)}", kind=FormatError)
        settings["chat_template"] = source
    return settings
