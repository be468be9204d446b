"""A tokenizer as GGUF metadata: tokens, their types, merges or scores, the pre-tokeniser's name, special ids, template.

The inverse of `tokenizers/gguf.py`, for byte-level BPE and for SentencePiece BPE. A GGUF source's own is copied; of a
model without any the file says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from lattice.errors import FormatError, expected
from lattice.generate.prompt import Texts
from lattice.tokenizers.normalize import SPACE
from lattice.tokenizers.pretokenizers import BY_NAME
from lattice.tokenizers.sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from lattice.weights.load import OpenModel

HINT = "GGUF names tokenizers, and only names that llama.cpp knows work there"
ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def vocabulary(opened: OpenModel) -> dict[str, Any]:
    """Return the `tokenizer.` keys for a model; FormatError where its tokenizer has no form there."""
    checkpoint = opened.checkpoint
    if checkpoint.kind == "gguf":
        return {key: value for key, value in checkpoint.metadata.items() if key.startswith("tokenizer.")}
    if not any(path.suffix in (".json", ".model") for path in checkpoint.directory.glob("*token*")):
        return {"tokenizer.ggml.model": "none"}  # token ids only, as here
    texts = Texts(checkpoint)
    tokenizer = texts.need_tokenizer()
    document = json.loads(tokenizer.library.to_str())
    model, added = document["model"], {token["id"]: token for token in document["added_tokens"]}
    if model["type"] != "BPE":
        raise expected("export", "a BPE vocabulary", model["type"], kind=FormatError)
    tokens, types = _tokens(model, added, opened.config.vocab_size)
    said: dict[str, Any] = {"tokens": tokens, "token_type": np.array(types, np.int32)}
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    if model["byte_fallback"]:
        steps = json.dumps([document["normalizer"], document["pre_tokenizer"]], ensure_ascii=False)
        if SPACE not in steps:
            raise expected("export", f"spaces written as {SPACE}, or bytes", steps[:120], hint=HINT, kind=FormatError)
        prefix = '"Prepend"' in steps or '"prepend_scheme": "always"' in steps or '"prepend_scheme": "first"' in steps
        said |= {"model": "llama", "pre": "default", "scores": _scores(tokens, pairs), "add_space_prefix": prefix}
    else:
        said |= {"model": "gpt2", "pre": _pre_tokenizer(document), "merges": [" ".join(pair) for pair in pairs]}
    for role, name in ROLES.items():
        number = tokenizer.token_to_id(tokenizer.special.get(f"{role}_token", ""))
        said |= {} if number is None else {f"{name}_token_id": number}
    ends = checkpoint.config.get("eos_token_id")
    said |= {"eos_token_id": ends} if isinstance(ends, int) and "eos_token_id" not in said else {}
    said["add_bos_token"] = texts.adds_bos
    found = {f"tokenizer.ggml.{key}": value for key, value in said.items()}
    template = tokenizer.templates.get("default")
    return found if template is None else {**found, "tokenizer.chat_template": template}


def _tokens(model: Mapping[str, Any], added: Mapping[int, Any], count: int) -> tuple[list[str], list[int]]:
    """Return the text and type of every id; rows of the embedding that no token has are unused."""
    texts = {number: text for text, number in model["vocab"].items()}
    texts |= {number: token["content"] for number, token in added.items()}
    if max(texts) >= count:
        raise expected("export", f"a vocabulary of at most {count} tokens", max(texts) + 1, kind=FormatError)
    tokens, types = [], []
    for number in range(count):
        text = texts.get(number)
        padding = f"[PAD{number}]"
        tokens.append(padding if text is None else text)
        if text is None or text == padding:
            types.append(UNUSED)
        elif text == model.get("unk_token"):
            types.append(UNKNOWN)
        elif number in added:
            types.append(CONTROL if added[number]["special"] else USER_DEFINED)
        elif model["byte_fallback"] and len(text) == 6 and text.startswith("<0x"):
            types.append(BYTE)
        else:
            types.append(NORMAL)
    return tokens, types


def _scores(tokens: list[str], pairs: list[list[str]]) -> np.ndarray:
    """Return scores by which SentencePiece merges in the order of the merges."""
    rank: dict[str, int] = {}
    for index, pair in enumerate(pairs):
        rank.setdefault("".join(pair), index)
    return np.array([-float(rank.get(token, len(pairs))) for token in tokens], np.float32)


def _pre_tokenizer(document: Mapping[str, Any]) -> str:
    """Return the name of the pre-tokeniser that cuts as this tokenizer.json does."""
    cut = _splits(document["pre_tokenizer"])
    composed = "NFC" in json.dumps(document["normalizer"])
    names = [name for name, pre in BY_NAME.items() if _splits(pre.as_json()) == cut]
    exact = [name for name in names if BY_NAME[name].normal_form == composed]
    if not names:
        got = f"one of its own: {str(cut)[:120]}"
        raise expected("export", "a pre-tokeniser that has a name", got, hint=HINT, kind=FormatError)
    return (exact or names)[0]


def _splits(step: Any) -> list[Any]:
    """Return what a pre-tokeniser does, as a list that can be compared."""
    if step is None:
        return []
    if step["type"] == "Sequence":
        return [part for inner in step["pretokenizers"] for part in _splits(inner)]
    if step["type"] == "Split":
        return [next(iter(step["pattern"].values()))] if step["behavior"] == "Isolated" else [step]
    if step["type"] == "Digits":
        return [r"\p{N}"] if step["individual_digits"] else [step]
    if step["type"] == "ByteLevel":
        return [("bytes", step["use_regex"], step["add_prefix_space"])]
    return [step]
