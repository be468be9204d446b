"""What a tokenizer.json may hold before the `tokenizers` library is given it.

The library trusts its files: a hostile one can make it panic, abort the process (an allocation of the file's own
choice, a trie as deep as a token is long), or take hours. So the document is read strictly and bounded here first:
sizes and counts, regular expressions (`_patterns.py`), how much a normaliser can make of a text, references between
its parts. Bounds are far above the files in use. Not here: whether a document is complete; the library says that.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from typing import Any

from lattice.errors import FormatError, LatticeError, expected
from lattice.strict_json import parse_object
from lattice.tokenizers._patterns import check_pattern

IDS = 1 << 22  # ids of a vocabulary
OBJECTS, LISTS, COMMAS = 1 << 19, 1 << 22, 1 << 24  # in the whole file: added tokens, merges, everything
ADDED, ADDED_TEXT = 1 << 18, 1 << 22  # added tokens, and their characters: the automaton takes 80 bytes for each
ADDED_LONGEST = 1 << 12
PIECE, PIECES_TEXT = 1 << 10, 1 << 24  # characters of a unigram piece, and of all: a node of the trie each
WORD = 256  # max_input_chars_per_word: WordPiece takes its third power of time for a word
STEPS = 256  # normalisers, pre-tokenisers, decoders and processors, those inside sequences included
TEXT = 1024  # characters of a text in a step
REPLACEMENT = 64  # bytes of a character map's replacement; the longest of Unicode's own compositions has 33
GROWTH = 256  # times that the steps of one side may lengthen a text
TEMPLATE = 64  # pieces of a post-processor's template, and ids of a special token
SIDES = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_WITHIN = ("normalizers", "pretokenizers", "processors", "decoders")


def check_document(data: bytes, where: str, *, patterns: bool = True) -> dict[str, Any]:
    """Return the tokenizer.json in `data`; raise FormatError for one that the library must not be given."""
    # Counted before parsing: each becomes a Python object much larger than its text.
    for mark, most in ((b"{", OBJECTS), (b"[", LISTS), (b",", COMMAS)):
        if data.count(mark) > most:
            raise _refused(where, f"a file with at most {most} {mark.decode()!r}", "more")
    document = parse_object(data, where)
    model = document.get("model")
    if not isinstance(model, dict):
        raise _refused(where, "a model", model)
    ids = _check_model(model, f"{where}: model")
    ids |= _check_added(document.get("added_tokens"), f"{where}: added_tokens")
    for side in SIDES:
        growth = 1.0
        for count, step in enumerate(_steps(document.get(side), f"{where}: {side}")):
            at = f"{where}: {side}: {step.get('type')!r:.40}"
            if count >= STEPS:
                raise _refused(f"{where}: {side}", f"at most {STEPS} steps", "more")
            growth *= _check_step(step, at, patterns)
            if side == "post_processor":
                _check_processor(step, ids, at)
        if growth > GROWTH:
            raise _refused(f"{where}: {side}", f"steps that lengthen a text {GROWTH} times at most", f"{growth:.3g}")
    return document


def _refused(where: str, wanted: str, got: object) -> LatticeError:
    return expected(where, wanted, got if isinstance(got, str) else f"{got!r:.80}", kind=FormatError)


def _number(value: object, where: str, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise _refused(where, f"a whole number from {low} to {high}", value)
    return value


def _check_model(model: dict[str, Any], where: str) -> set[int]:
    """Return the ids of the vocabulary."""
    if (longest := model.get("max_input_chars_per_word")) is not None:
        _number(longest, f"{where}: max_input_chars_per_word", 1, WORD)
    if model.get("dropout"):
        raise _refused(where, "no dropout, which is for training", model["dropout"])
    for name in ("continuing_subword_prefix", "end_of_word_suffix", "unk_token"):
        _check_text(model.get(name), f"{where}: {name}")
    vocab = model.get("vocab")
    if isinstance(vocab, dict):
        if not all(type(number) is int and 0 <= number < IDS for number in vocab.values()):
            raise _refused(where, f"ids of at least 0 and below {IDS}", "others")
        ids = set(vocab.values())
        if len(ids) != len(vocab):
            raise _refused(where, "one token an id", f"{len(vocab) - len(ids)} that share one")
        return ids
    if not isinstance(vocab, list) or len(vocab) > IDS:
        raise _refused(where, f"a vocabulary of at most {IDS} tokens", type(vocab).__name__)
    return _check_pieces(vocab, model.get("unk_id"), where)


def _check_pieces(vocab: list[Any], unknown: object, where: str) -> set[int]:
    if not all(type(piece) is list and len(piece) == 2 and type(piece[0]) is str for piece in vocab):
        raise _refused(where, "pieces of a text and a score", "others")
    longest = max((len(piece[0]) for piece in vocab), default=0)
    if longest > PIECE or sum(len(piece[0]) for piece in vocab) > PIECES_TEXT:
        raise _refused(where, f"pieces of at most {PIECE} characters, {PIECES_TEXT} in all", "longer ones")
    if unknown is not None:
        _number(unknown, f"{where}: unk_id", 0, len(vocab) - 1)
    return set(range(len(vocab)))


def _check_added(added: object, where: str) -> set[int]:
    if added is None:
        return set()
    if not isinstance(added, list) or len(added) > ADDED or not all(isinstance(token, dict) for token in added):
        raise _refused(where, f"a list of at most {ADDED} tokens", type(added).__name__)
    texts = [token.get("content") for token in added]
    if not all(isinstance(text, str) and 0 < len(text) <= ADDED_LONGEST for text in texts):
        raise _refused(where, f"texts of 1 to {ADDED_LONGEST} characters", "others")
    if sum(map(len, texts)) > ADDED_TEXT:
        raise _refused(where, f"at most {ADDED_TEXT} characters in all", "more")
    return {_number(token.get("id"), f"{where}: id", 0, IDS - 1) for token in added}


def _steps(value: object, where: str) -> Iterator[dict[str, Any]]:
    """Yield every step below a sequence, in order."""
    if value is None:
        return
    if not isinstance(value, dict):
        raise _refused(where, "an object with a type", value)
    nested = [value[name] for name in _WITHIN if name in value]
    if not nested:
        yield value
    for inner in nested:
        if not isinstance(inner, list):
            raise _refused(where, "a list of steps", inner)
        if not inner:
            yield value  # counts, so that nothing is free
        for step in inner:
            yield from _steps(step, where)


def _check_text(value: object, where: str) -> None:
    if value is not None and (not isinstance(value, str) or len(value) > TEXT):
        raise _refused(where, f"a text of at most {TEXT} characters", type(value).__name__)


def _check_step(step: dict[str, Any], where: str, patterns: bool) -> float:
    """Check what all kinds of steps may hold; return how many times longer the step can make a text."""
    for name, value in step.items():
        if isinstance(value, str) and name != "precompiled_charsmap":
            _check_text(value, f"{where}: {name}")
        elif type(value) in (int, float) and not 0 <= value < 2**31:
            raise _refused(f"{where}: {name}", "a number from 0 to 2**31", value)
    if step.get("type") == "FixedLength":
        _number(step.get("length", 5), f"{where}: length", 1, 1 << 20)
    if step.get("type") == "ByteLevel":
        return 2.0  # a byte becomes a letter of up to two bytes; chained, these are bytes again
    if "precompiled_charsmap" in step:
        return _check_charsmap(step["precompiled_charsmap"], where)
    growth = 1.0 + len(step["prepend"]) if isinstance(step.get("prepend"), str) else 1.0
    pattern = step.get("pattern")
    if isinstance(pattern, dict):
        regex, plain = pattern.get("Regex"), pattern.get("String")
        for text in (regex, plain):
            _check_text(text, f"{where}: pattern")
        if isinstance(regex, str) and patterns:
            check_pattern(regex, where)
        content = step.get("content")
        if isinstance(content, str):
            shortest = len(plain) if isinstance(plain, str) else 1
            growth = max(1.0, len(content) / shortest if shortest else 1.0 + len(content))
    return growth


def _check_charsmap(value: object, where: str) -> float:
    """Check a character map: u32 bytes of the trie, the trie, then the replacements with a NUL after each."""
    try:
        raw = base64.b64decode(value, validate=True) if isinstance(value, str) else b""
    except (binascii.Error, ValueError):
        raw = b""
    size = int.from_bytes(raw[:4], "little")
    if len(raw) < 8 or size % 4 or not 4 <= size <= len(raw) - 4:  # the library allocates `size` without looking
        raise _refused(where, "a character map whose trie is within it", f"{len(raw)} bytes, a trie of {size}")
    longest = max(map(len, raw[4 + size :].split(b"\0")))
    if longest > REPLACEMENT:
        raise _refused(where, f"replacements of at most {REPLACEMENT} bytes", longest)
    return max(1.0, float(longest))


def _check_processor(step: dict[str, Any], ids: set[int], where: str) -> None:
    for role in ("sep", "cls"):
        pair = step.get(role)
        if pair is not None and not (type(pair) is list and len(pair) == 2 and type(pair[1]) is int and pair[1] in ids):
            raise _refused(f"{where}: {role}", "a token and an id of the vocabulary", pair)
    if step.get("type") != "TemplateProcessing":
        return
    special = step.get("special_tokens")
    if not isinstance(special, dict):
        raise _refused(where, "special_tokens by name", special)
    for name, token in special.items():
        numbers, texts = (token.get("ids"), token.get("tokens")) if isinstance(token, dict) else (None, None)
        if not isinstance(numbers, list) or not isinstance(texts, list) or len(numbers) != len(texts):
            raise _refused(f"{where}: {name:.40}", "as many ids as tokens", token)
        if len(numbers) > TEMPLATE or not all(type(number) is int and number in ids for number in numbers):
            raise _refused(f"{where}: {name:.40}", f"at most {TEMPLATE} ids of the vocabulary", numbers)
    for form, sequences in (("single", ("A",)), ("pair", ("A", "B"))):
        _check_template(step.get(form), sequences, set(special), f"{where}: {form}")


def _check_template(template: object, sequences: tuple[str, ...], special: set[str], where: str) -> None:
    if not isinstance(template, list) or len(template) > TEMPLATE:
        raise _refused(where, f"a list of at most {TEMPLATE} pieces", type(template).__name__)
    met = []
    for piece in template:
        kind, body = next(iter(piece.items())) if isinstance(piece, dict) and len(piece) == 1 else ("", None)
        name = body.get("id") if isinstance(body, dict) else None
        if kind == "Sequence" and name in sequences and name not in met:
            met.append(name)
        elif kind != "SpecialToken" or not isinstance(name, str) or name not in special:
            raise _refused(where, f"each sequence of {', '.join(sequences)} once and special tokens it names", piece)
    if "A" not in met:
        raise _refused(where, "the sequence A", "none")
