"""Streaming decode: token ids in, text out as soon as it is final.

The text of all pushes and of `finish` together is exactly `Tokenizer.decode` of all ids; no push splits a
code point, and U+FFFD appears only for bytes that no further token can complete. One push costs the work of
one token: decoders of the `tokenizers` library work token by token, apart from these cases, which is what the
classes here know:

* ByteLevel (gpt2-style BPE): a token is bytes; text is their UTF-8 with replacement of what is invalid;
* ByteFallback (SentencePiece-style): a run of `<0xXX>` tokens is decoded as a whole when it ends, because one
  invalid byte makes every byte of the run a U+FFFD;
* the first token differs from the others (WordPiece, Metaspace, Strip): later ones are decoded behind an
  anchor.

Any other decoder gives its whole text at `finish`: late, but exact.
"""

from __future__ import annotations

import codecs
import json
import re
from typing import Any, Protocol

from tokenizers import Tokenizer as Library

from lattice.tokenizers._guard import guarded

_BYTE = re.compile(r"<0x..>", re.DOTALL)
_LOCAL = {"WordPiece", "Metaspace", "Replace", "ByteFallback", "Fuse", "Strip"}


class Decoder(Protocol):
    """What `Tokenizer.stream` returns."""

    def push(self, token: int) -> str:
        """Return the text that `token` makes final, often its own, possibly empty."""
        ...

    def finish(self) -> str:
        """Return what was held back, an incomplete sequence as U+FFFD; the stream is over."""
        ...


def byte_table() -> dict[str, int]:
    """Return gpt2's alphabet: a printable character for every byte.

    >>> byte_table()["Ġ"], byte_table()["A"]
    (32, 65)
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(256 + index): byte for index, byte in enumerate(others)})
    return table


class StreamPlan:
    """How streams of one tokenizer decode; made once a tokenizer, with what it learns of tokens kept."""

    def __init__(self, library: Library, special: frozenset[int]):
        self.library = library
        self.special = special
        self.kind, self.byte_runs = _kind(library)
        self.bytes: dict[int, bytes] = {}
        self.texts: dict[int, str] = {}
        self.table = byte_table() if self.kind == "bytes" else {}
        self.anchor, self.anchor_length = _anchor(library, special) if self.kind == "local" else (0, 0)
        if self.kind == "local" and not self.anchor_length:
            self.kind = "whole"

    def start(self, skip_special: bool) -> Decoder:
        """Return a new stream."""
        kinds: dict[str, Any] = {"bytes": _ByteStream, "local": _LocalStream, "whole": _WholeStream}
        stream: Decoder = kinds[self.kind](self, skip_special)
        return stream

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of a token of a byte-level vocabulary; an id outside it is empty."""
        found = self.bytes.get(token)
        if found is None:
            text = self.library.id_to_token(token) or ""
            try:
                found = bytes([self.table[character] for character in text])
            except KeyError:  # an added token outside the alphabet stands for itself
                found = text.encode()
            self.bytes[token] = found
        return found

    def token_text(self, token: int) -> str:
        """Return the text of a token that is not the first, incomplete code points as U+FFFD."""
        if self.kind == "bytes":
            return self.token_bytes(token).decode("utf-8", "replace")
        if self.kind == "whole":
            return str(self.library.decode([token], skip_special_tokens=False))
        return self.later_text(token)

    def later_text(self, token: int) -> str:
        """Return the text of a token that is not the first."""
        found = self.texts.get(token)
        if found is None:
            found = self.texts[token] = self.behind_anchor([token])
        return found

    def behind_anchor(self, tokens: list[int]) -> str:
        """Return the text of tokens that follow others."""
        return decoded(self.library, [self.anchor, *tokens])[self.anchor_length :]


def decoded(library: Library, tokens: list[int], skip_special: bool = False) -> str:
    """Return the text of tokens; what a hostile file makes the library throw becomes a LatticeError."""
    return guarded("tokenizer", "ids that decode", lambda: library.decode(tokens, skip_special_tokens=skip_special))


def _kind(library: Library) -> tuple[str, bool]:
    if library.decoder is None:
        return "local", False
    state = json.loads(library.decoder.__getstate__())
    if state["type"] == "ByteLevel":
        return "bytes", False
    steps = state["decoders"] if state["type"] == "Sequence" else [state]
    names = [step["type"] for step in steps]
    plain = set(names) <= _LOCAL and not any(step.get("stop") for step in steps)
    # What follows Fuse sees the whole text; only taking off its beginning is the first token's affair.
    behind = names[names.index("Fuse") + 1 :] if "Fuse" in names else []
    once = all(name == "Strip" for name in behind) and sum(step.get("start", 0) for step in steps) <= 1
    return ("local" if plain and once else "whole"), "ByteFallback" in names


def _anchor(library: Library, special: frozenset[int]) -> tuple[int, int]:
    for token in range(min(library.get_vocab_size(), 4096)):
        text = library.id_to_token(token)
        if text and text.isascii() and text.isalnum() and token not in special:
            return token, len(decoded(library, [token]))
    return 0, 0


class _ByteStream:
    def __init__(self, plan: StreamPlan, skip_special: bool):
        self.plan = plan
        self.skipped = plan.special if skip_special else frozenset()
        self.utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return "" if token in self.skipped else self.utf8.decode(self.plan.token_bytes(token))

    def finish(self) -> str:
        return self.utf8.decode(b"", final=True)


class _LocalStream:
    def __init__(self, plan: StreamPlan, skip_special: bool):
        self.plan = plan
        self.skipped = plan.special if skip_special else frozenset()
        self.started = False
        self.held: list[int] = []  # a run of byte tokens

    def push(self, token: int) -> str:
        if token in self.skipped:
            return ""
        if self.plan.byte_runs or not self.started:
            text = self.plan.library.id_to_token(token)
            if text is None:
                return ""
            if self.plan.byte_runs and _BYTE.fullmatch(text):
                self.held.append(token)
                return ""
        if self.held or not self.started:
            return self._flush([token])
        return self.plan.later_text(token)

    def finish(self) -> str:
        return self._flush([]) if self.held else ""

    def _flush(self, tokens: list[int]) -> str:
        tokens, self.held = self.held + tokens, []
        if self.started:
            return self.plan.behind_anchor(tokens)
        self.started = True
        return decoded(self.plan.library, tokens)


class _WholeStream:
    def __init__(self, plan: StreamPlan, skip_special: bool):
        self.plan, self.skip_special = plan, skip_special
        self.tokens: list[int] = []

    def push(self, token: int) -> str:
        self.tokens.append(token)
        return ""

    def finish(self) -> str:
        tokens, self.tokens = self.tokens, []
        return decoded(self.plan.library, tokens, self.skip_special)
