"""Parts of a tokenizer.json that several vocabularies share."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from lattice.errors import FormatError, expected
from lattice.tokenizers.pretokenizers import PreTokenizer


def added_token(number: int, text: str, special: bool) -> dict[str, Any]:
    """Return an entry of `added_tokens`, matched in a text as it is written; decoding skips special ones."""
    return {
        "id": number,
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }


def whole(added: list[dict[str, Any]], model: dict[str, Any], **parts: Any) -> dict[str, Any]:
    """Return a tokenizer.json; `parts` are normalizer, pre_tokenizer, post_processor and decoder."""
    empty = dict.fromkeys(("normalizer", "pre_tokenizer", "post_processor", "decoder"))
    head = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added}
    return {**head, **empty, **parts, "model": model}


def bpe(vocab: dict[str, int], merges: list[list[str]], **more: Any) -> dict[str, Any]:
    """Return a BPE model."""
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": vocab,
        "merges": merges,
        **more,
    }


MERGES = 1 << 21  # those in use have half a million


def bounded(merges: Iterator[list[str]], where: str) -> list[list[str]]:
    """Return merges derived from a vocabulary, of which a hostile one has far more than pieces."""
    found = list(islice(merges, MERGES + 1))
    if len(found) > MERGES:
        raise expected(where, f"a vocabulary of at most {MERGES} merges", "more", kind=FormatError)
    return found


def byte_level(
    vocab: dict[str, int], merges: list[list[str]], pre: PreTokenizer, added: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return the tokenizer.json of a byte-level BPE vocabulary."""
    return whole(
        added,
        bpe(vocab, merges, ignore_merges=pre.whole_words),
        normalizer={"type": "NFC"} if pre.normal_form else None,
        pre_tokenizer=pre.as_json(),
        decoder={"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    )


def template(begin: tuple[str, int] | None, end: tuple[str, int] | None, joint: bool) -> dict[str, Any] | None:
    """Return the post-processor that adds tokens (text, id) around each text; None where there are none.

    Of two texts the second has `begin` too, unless they are `joint`, as BERT has it.
    """
    if begin is None and end is None:
        return None

    def around(names: str) -> list[dict[str, Any]]:
        steps: list[dict[str, Any]] = []
        for kind, name in enumerate(names):
            if begin is not None and not (kind and joint):
                steps.append({"SpecialToken": {"id": begin[0], "type_id": kind}})
            steps.append({"Sequence": {"id": name, "type_id": kind}})
            if end is not None:
                steps.append({"SpecialToken": {"id": end[0], "type_id": kind}})
        return steps

    special = {text: {"id": text, "ids": [number], "tokens": [text]} for text, number in filter(None, (begin, end))}
    return {"type": "TemplateProcessing", "single": around("A"), "pair": around("AB"), "special_tokens": special}
