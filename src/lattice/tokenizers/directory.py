"""The tokenizer of a model's directory, whichever of the usual files it has, or of its GGUF file.

tokenizer.json; else a SentencePiece `.model` (tokenizer.model, spiece.model, or the only one); else a tiktoken rank
file (`.tiktoken`, or one named tokenizer.model). tokenizer_config.json, special_tokens_map.json, added_tokens.json and
chat_template.jinja are read where they exist.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from lattice.errors import FormatError, expected
from lattice.tokenizers import tiktoken
from lattice.tokenizers._files import read_bytes, read_settings
from lattice.tokenizers.document import added_token
from lattice.tokenizers.gguf import tokenizer_from_gguf
from lattice.tokenizers.sentencepiece_model import read_model
from lattice.tokenizers.tokenizer import LIMIT, Tokenizer, assemble, parse_library

_MODELS = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
# Their ids are not the file's: another vocabulary stands before it.
_SHIFTED = ("XLMRoberta", "Camembert", "MBart", "Nllb", "Barthez", "XGLM", "Pegasus", "M2M100", "Marian", "Speech2Text")
_ADD_BOS = ("Llama", "Gemma", "CodeLlama")  # classes that add one unless they are told not to


def load_gguf_tokenizer(path: Path, metadata: Mapping[str, Any], cache: Path | None = None) -> Tokenizer:
    """Return the tokenizer of a GGUF file; if its own cannot be read, that of a tokenizer.json beside it.

    What is built from `metadata` is kept in the directory `cache` under the file's place, size and time.
    """
    status = path.stat()
    key = sha256(f"{path.resolve()} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()[:32]
    try:
        return tokenizer_from_gguf(metadata, cache, key)
    except FormatError:
        if not (path.parent / "tokenizer.json").is_file():
            raise
        return load_tokenizer(path.parent)


def load_tokenizer(path: str | Path, *, check_patterns: bool = True) -> Tokenizer:
    """Return the tokenizer of a directory; raises FormatError for malformed files, or where there is none.

    `check_patterns=False` accepts a tokenizer.json's regular expressions that might take more than linear time.
    """
    directory = Path(path)
    settings = read_settings(directory / "tokenizer_config.json")
    settings = {**read_settings(directory / "special_tokens_map.json"), **settings}
    source = directory / "tokenizer.json"
    if source.is_file():
        data = read_bytes(source, LIMIT)
        mark = settings.get("lattice")
        pieces = isinstance(mark, dict) and isinstance(mark.get("sentencepiece"), dict)
        library = parse_library(data, check_patterns=check_patterns)
        return assemble(library, settings, _templates(directory, settings), data if pieces else None)
    source = _find(directory)
    data = read_bytes(source, LIMIT)
    if tiktoken.is_ranks(data):
        tokens = tiktoken.read_ranks(data, source.name)
        document = tiktoken.document(tokens, tiktoken.find_pattern(settings, source.stem))
        return _assembled(directory, source.name, document, len(tokens), settings)
    model = str(settings.get("tokenizer_class") or "")
    if model.startswith(_SHIFTED):
        raise expected(
            source.name,
            "ids as they stand in the file",
            f"a {model}, whose ids differ from it",
            hint="save the tokenizer with transformers, which writes tokenizer.json",
            kind=FormatError,
        )
    pieces_ = read_model(data, source.name)
    found = {f"{role}_token": pieces_.texts[number] for role, number in pieces_.special.items()}
    settings = {**found, **settings, "lattice": {"sentencepiece": pieces_.settings}}
    if model.startswith(_ADD_BOS):
        settings.setdefault("add_bos_token", True)
    if model.startswith("T5"):
        settings.setdefault("add_eos_token", True)
    return _assembled(directory, source.name, pieces_.document(), len(pieces_.texts), settings)


def _find(directory: Path) -> Path:
    for name in _MODELS:
        if (directory / name).is_file():
            return directory / name
    for pattern in ("*.model", "*.tiktoken"):
        found = sorted(directory.glob(pattern)) if directory.is_dir() else []
        if len(found) == 1:
            return found[0]
        if found:
            raise expected("tokenizer", f"one {pattern} file", ", ".join(f.name for f in found[:8]), kind=FormatError)
    raise expected(
        "tokenizer",
        f"tokenizer.json, a SentencePiece .model or a .tiktoken file in {directory.name or directory}",
        "none",
        hint="vocab.txt, vocab.json and merges.txt are not read; convert them to tokenizer.json",
        kind=FormatError,
    )


def _assembled(
    directory: Path, name: str, document: dict[str, Any], count: int, settings: Mapping[str, Any]
) -> Tokenizer:
    _add_tokens(document, count, settings, read_settings(directory / "added_tokens.json"))
    data = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    pieces = data if "lattice" in settings else None
    return assemble(parse_library(data, name), settings, _templates(directory, settings), pieces)


def _add_tokens(document: dict[str, Any], count: int, settings: Mapping[str, Any], more: Mapping[str, Any]) -> None:
    """Add the settings' tokens to a tokenizer.json of `count` tokens; those of the vocabulary keep their ids."""
    where = "tokenizer_config.json"
    added = {token["id"]: token for token in document["added_tokens"]}
    listed: dict[Any, Any] = {number: {"content": text, "special": False} for text, number in more.items()}
    decoder = settings.get("added_tokens_decoder", {})
    if not isinstance(decoder, dict):
        raise expected(where, "added_tokens_decoder as an object", type(decoder).__name__, kind=FormatError)
    listed |= {int(key) if key.isdecimal() and len(key) < 10 else key: token for key, token in decoder.items()}
    vocab = document["model"]["vocab"]
    texts = list(vocab) if isinstance(vocab, dict) else [text for text, _ in vocab]
    for number, token in listed.items():
        text = token.get("content") if isinstance(token, dict) else None
        special = token.get("special", False) if isinstance(token, dict) else None
        whole = isinstance(number, int) and not isinstance(number, bool) and number >= 0
        if not whole or not isinstance(text, str) or not text or not isinstance(special, bool):
            raise expected(where, "added tokens with an id and a content", repr({number: token})[:80], kind=FormatError)
        if number < count and texts[number] != text:
            raise expected(where, f"token {number} as {texts[number]!r}", repr(text)[:80], kind=FormatError)
        added[number] = added_token(number, text, special)
    ordered = [added[number] for number in sorted(added)]
    ids = [token["id"] for token in ordered if token["id"] >= count]
    if ids != list(range(count, count + len(ids))) or len({t["content"] for t in ordered}) != len(ordered):
        raise expected(where, f"distinct added tokens from id {count} on without holes", ids[:8], kind=FormatError)
    document["added_tokens"] = ordered


def _templates(directory: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    given = settings.get("chat_template")
    templates: dict[str, str] = {}
    if isinstance(given, str):
        templates["default"] = given
    elif isinstance(given, list):
        for item in given:
            named = isinstance(item, dict) and isinstance(item.get("name"), str)
            if not named or not isinstance(item.get("template"), str):
                raise expected("tokenizer_config.json", "chat templates with name and template", item, kind=FormatError)
            templates[item["name"]] = item["template"]
    elif given is not None:
        raise expected("tokenizer_config.json", "chat_template as text", type(given).__name__, kind=FormatError)
    file = directory / "chat_template.jinja"
    if file.exists():
        data = read_bytes(file, 1 << 20)
        templates["default"] = _decoded(data, file.name)
    return templates


def _decoded(data: bytes, name: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise expected(name, "UTF-8 text", str(error)[:80], kind=FormatError) from None
