"""SentencePiece vocabularies: a tokenizer.json of one, and the encoder that gives the `sentencepiece` library's ids.

`Pieces` is the vocabulary, whichever file it came from (`gguf.py`, or `read_model` for a `.model` file, a protobuf of
which the few fields in use are read here). `document` writes it for the `tokenizers` library, which merges (BPE) and
decodes; `Encoder` adds what the library cannot say: the normaliser (`normalize.py`) and unigram sums (`unigram.py`).
Control pieces in a text are matched as they are by any other tokenizer here, and the text behind one begins anew.

BPE merges are derived from scores: SentencePiece joins the neighbours whose joined piece has the highest score, the
leftmost first. Every way to cut a piece in two is a merge of its rank; that these have an order among themselves, the
longer left half first, never shows: two ways to make one piece that overlap in a text would need a single piece left
of where the same piece was merged before.

Field numbers: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenizers import Tokenizer as Library

from lattice.errors import FormatError, expected
from lattice.tokenizers.document import added_token, bounded, bpe, whole
from lattice.tokenizers.normalize import SPACE, Charsmap, Normalizer, Words
from lattice.tokenizers.unigram import Unigram

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
LONGEST = 1024  # characters of a piece that is not control or user-defined
COUNT = 1 << 22  # pieces
_FLAGS = ("dummy_prefix", "remove_extra", "escape", "byte_fallback")


@dataclass(frozen=True)
class Pieces:
    """A vocabulary: `kind` is "bpe" or "unigram"; `special` ids by role ("bos", "eos", "unk", "pad", ...)."""

    kind: str
    texts: list[str]
    scores: list[float]
    types: list[int]
    special: dict[str, int] = field(default_factory=dict)
    charsmap: bytes = b""
    dummy_prefix: bool = True
    remove_extra: bool = True
    escape: bool = True
    byte_fallback: bool = False
    where: str = "tokenizer.model"

    def __post_init__(self) -> None:
        count = len(self.texts)
        if not 0 < count <= COUNT or len(self.scores) != count or len(self.types) != count:
            raise self._error("pieces with a score and a type each", f"{count} pieces")
        if len(set(self.texts)) != count:
            raise self._error("distinct pieces", f"{count - len(set(self.texts))} repeated")
        for number, (text, score, kind) in enumerate(zip(self.texts, self.scores, self.types, strict=True)):
            if not text or (kind in (NORMAL, UNUSED) and len(text) > LONGEST):
                raise self._error(f"pieces of 1 to {LONGEST} characters", f"{len(text)} in piece {number}")
            if not math.isfinite(score):
                raise self._error("finite scores", f"{score} of piece {number}")
            if not NORMAL <= kind <= BYTE:
                raise self._error("piece types 1 to 6", f"{kind} of piece {number}")
        missing = {_byte(value) for value in range(256)}.difference(self.texts)
        if self.byte_fallback and missing:
            raise self._error("a piece for every byte", f"none for {min(missing)}")
        if self.special.get("unk") is None:
            raise self._error("an unknown piece", "none")
        if self.kind == "bpe" and UNUSED in self.types:
            raise self._error("BPE without unused pieces, which are not read", f"{self.types.count(UNUSED)} of them")

    def _error(self, wanted: str, got: str) -> Exception:
        return expected(self.where, wanted, got, kind=FormatError)

    @property
    def settings(self) -> dict[str, Any]:
        """What `Encoder` needs beyond the tokenizer.json, as JSON."""
        flags = {name: getattr(self, name) for name in _FLAGS}
        types = "".join(map(str, self.types))
        return {"kind": self.kind, "types": types, "charsmap": base64.b64encode(self.charsmap).decode(), **flags}

    def document(self) -> dict[str, Any]:
        """Return the tokenizer.json, whose normaliser is for programs other than this."""
        unknown = self.special["unk"]
        if self.kind == "unigram":
            vocab = [[text, score] for text, score in zip(self.texts, self.scores, strict=True)]
            model: dict[str, Any] = {"type": "Unigram", "unk_id": unknown, "vocab": vocab}
            model["byte_fallback"] = self.byte_fallback
        else:
            model = bpe(
                {text: number for number, text in enumerate(self.texts)},
                self.merges(),
                unk_token=self.texts[unknown],
                fuse_unk=True,
                byte_fallback=self.byte_fallback,
            )
        marked = [n for n, kind in enumerate(self.types) if kind in (CONTROL, USER_DEFINED) or n == unknown]
        return whole(
            [added_token(n, self.texts[n], self.types[n] != USER_DEFINED) for n in marked],
            model,
            normalizer=self._normalizer(),
            pre_tokenizer=self._pre_tokenizer(),
            decoder=self._decoder(),
        )

    def merges(self) -> list[list[str]]:
        """Return the merges that the scores of a BPE vocabulary stand for, best first."""
        score = {text: (-self.scores[n], n) for n, text in enumerate(self.texts) if self.types[n] == NORMAL}
        merges = (
            [text[:at], text[at:]]
            for text in sorted(score, key=score.__getitem__)
            for at in range(len(text) - 1, 0, -1)
            if text[:at] in score and text[at:] in score
        )
        return bounded(merges, self.where)

    def _normalizer(self) -> dict[str, Any] | None:
        steps: list[dict[str, Any]] = []
        if self.charsmap:
            steps.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(self.charsmap).decode()})
        if self.remove_extra:
            steps.append({"type": "Strip", "strip_left": True, "strip_right": True})
            steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
        if self.dummy_prefix:
            steps.append({"type": "Prepend", "prepend": SPACE if self.escape else " "})
        if self.escape:
            steps.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
        return {"type": "Sequence", "normalizers": steps} if steps else None

    def _pre_tokenizer(self) -> dict[str, Any] | None:
        # Where no piece goes on behind the end of a word, words are merged one by one: the same ids, and the
        # library remembers words.
        inside = any(SPACE in t.lstrip(SPACE) for t, kind in zip(self.texts, self.types, strict=True) if kind == NORMAL)
        known = self.byte_fallback or SPACE in self.texts
        if self.kind != "bpe" or inside or not known:
            return None
        pattern = {"Regex": f"{SPACE}+[^{SPACE}]*|[^{SPACE}]+"}
        return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}

    def _decoder(self) -> dict[str, Any]:
        steps: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}]
        if self.byte_fallback:
            steps.append({"type": "ByteFallback"})
        steps.append({"type": "Fuse"})
        if self.dummy_prefix:
            steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
        return {"type": "Sequence", "decoders": steps}


def _byte(value: int) -> str:
    return f"<0x{value:02X}>"


class Encoder:
    """Gives the ids of texts without the special tokens around them; made of a library object, its tokenizer.json
    and `settings`."""

    def __init__(self, library: Library, data: bytes, settings: Mapping[str, Any]):
        types, charsmap = _checked(settings)
        added = library.get_added_tokens_decoder()
        apart = {t.content: n for n, t in added.items() if t.special or n >= len(types)}
        self.apart, self.apart_words = apart, Words(apart)
        own = Words(t.content for t in added.values() if t.content not in apart)
        self.normalize = Normalizer(
            Charsmap(charsmap) if charsmap else None,
            settings["dummy_prefix"],
            settings["remove_extra"],
            settings["escape"],
            own if charsmap else Words(()),
        )
        self.library = library
        self.unigram: Unigram | None = None
        if settings["kind"] == "unigram":
            self._read(json.loads(data), types, settings["byte_fallback"])
        library.normalizer = None  # texts arrive normalised
        library.encode_special_tokens = True  # ... and without special tokens: whatever looks like one is text

    def _read(self, document: Mapping[str, Any], types: str, byte_fallback: bool) -> None:
        model = document["model"]
        vocab, unknown = model["vocab"], model["unk_id"]
        if len(vocab) != len(types):
            raise expected("tokenizer.json", f"{len(types)} pieces", len(vocab), kind=FormatError)
        user = frozenset(n for n, kind in enumerate(types) if int(kind) == USER_DEFINED)
        pieces = [(n, *vocab[n]) for n, kind in enumerate(types) if int(kind) in (NORMAL, USER_DEFINED)]
        places = {text: n for n, (text, _) in enumerate(vocab)} if byte_fallback else {}
        fallback = [places[_byte(value)] for value in range(256)] if byte_fallback else []
        self.unigram = Unigram([(n, text, _float32(score)) for n, text, score in pieces], user, unknown, fallback)

    def encode(self, texts: Sequence[str], parse_special: bool = True) -> list[list[int]]:
        """Return the ids of each text; special tokens written in it are text unless `parse_special`."""
        rows: list[list[int]] = [[] for _ in texts]
        parts: list[tuple[list[int], int | str]] = []
        for row, text in zip(rows, texts, strict=True):
            found = self._parts(text) if parse_special else iter([self.normalize(text)] if text else [])
            parts += ((row, part) for part in found)
        plain = [part for _, part in parts if isinstance(part, str)]
        if self.unigram is not None:
            encoded = (self.unigram.encode(text) for text in plain)
        else:
            encoded = (e.ids for e in self.library.encode_batch_fast(plain, add_special_tokens=False))
        for row, part in parts:
            row.extend(next(encoded) if isinstance(part, str) else [part])
        return rows

    def _parts(self, text: str) -> Iterator[int | str]:
        begin = 0
        for start, end in self.apart_words.find(text):
            if begin < start:
                yield self.normalize(text[begin:start])
            yield self.apart[text[start:end]]
            begin = end
        if begin < len(text):
            yield self.normalize(text[begin:])


def _checked(settings: Mapping[str, Any]) -> tuple[str, bytes]:
    types, charsmap = settings.get("types"), settings.get("charsmap")
    sound = settings.get("kind") in ("bpe", "unigram") and all(isinstance(settings.get(name), bool) for name in _FLAGS)
    try:
        if sound and isinstance(types, str) and isinstance(charsmap, str) and set(types) <= set("123456"):
            return types, base64.b64decode(charsmap, validate=True)
    except (ValueError, binascii.Error):
        pass
    raise expected("tokenizer_config.json", "the settings of a SentencePiece vocabulary", "others", kind=FormatError)


def _float32(value: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", value))[0])
