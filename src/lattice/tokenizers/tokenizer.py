"""Text to token ids and back: one adapter over the `tokenizers` library.

It gives ids as lists of Python ints, and turns what the library throws at hostile files or texts into errors
of ours. Truncation and padding that a file has switched on are switched off: cutting is asked for, never done in
silence. Not here: finding and reading a directory's files (`directory.py`), vocabularies inside GGUF files
(`gguf.py`), and rendering chat templates (`chat.py`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from tokenizers import Tokenizer as Library

from lattice.errors import FormatError, LatticeWarning, expected
from lattice.tokenizers._bounds import check_document
from lattice.tokenizers._guard import guarded
from lattice.tokenizers.chat import ChatTemplate
from lattice.tokenizers.sentencepiece import Encoder
from lattice.tokenizers.stream import Decoder, StreamPlan

LIMIT = 128 << 20  # bytes of a tokenizer.json; the largest in use are near 40 MiB
_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer; every method may be called from several threads.

    `library` is the `tokenizers` object; `special` has the texts of special tokens by role ("bos_token",
    ...); `prefix` and `suffix` are ids added around a text beyond what the library's post-processor adds
    (with an `encoder`, which takes the library's place where it cannot be exact, all that are added);
    `max_tokens` is the file's own idea of a longest input, or None; `templates` are the chat templates by
    name, usually "default".
    """

    library: Library
    special: Mapping[str, str] = field(default_factory=dict)
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    max_tokens: int | None = None
    cut: str = "right"  # the side that truncation removes
    templates: Mapping[str, str] = field(default_factory=dict)
    encoder: Encoder | None = None

    def encode(self, text: str, add_special: bool = True, *, parse_special: bool = True) -> list[int]:
        """Return the ids of `text`, with the special tokens of a whole input unless `add_special` is
        false. Special tokens written in the text are their ids, or with `parse_special` false plain text."""
        return self.encode_batch([text], add_special, parse_special=parse_special)[0]

    def encode_batch(
        self, texts: Sequence[str], add_special: bool = True, *, parse_special: bool = True
    ) -> list[list[int]]:
        """Return `encode` of each text; the library works in parallel and without the interpreter's lock."""
        if self.encoder is not None:
            ids = self._encoded(self.encoder, texts, parse_special)
        else:
            library = self.library if parse_special else self._literal
            ids = [encoding.ids for encoding in self._encodings(texts, add_special, library)]
        if add_special and (self.prefix or self.suffix):
            return [[*self.prefix, *row, *self.suffix] for row in ids]
        return ids

    def encode_truncated(self, texts: Sequence[str], max_tokens: int) -> tuple[list[list[int]], int]:
        """Return the ids of each text cut to at most `max_tokens`, special tokens kept, and how many were
        cut."""
        room = max_tokens - self.count_special
        if room < 0:
            raise expected("tokenizer", f"max_tokens of at least {self.count_special}, the special tokens", max_tokens)
        if self.encoder is not None:
            plain = self._encoded(self.encoder, texts)
            kept = [row[:room] if self.cut == "right" else row[max(len(row) - room, 0) :] for row in plain]
            return [[*self.prefix, *row, *self.suffix] for row in kept], sum(len(row) > room for row in plain)
        rows, truncated = [], 0
        for encoding in self._encodings(texts, False, self.library):
            if len(encoding.ids) > room:
                encoding.truncate(room, direction=self.cut)
                truncated += 1
            whole = guarded("tokenizer", "a text that can be tokenised", partial(self.library.post_process, encoding))
            rows.append([*self.prefix, *whole.ids, *self.suffix])
        return rows, truncated

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Return the text of `ids`; ids past the vocabulary (a padded embedding has them) have no text."""
        listed = [int(token) for token in ids]
        if listed and (min(listed) < 0 or max(listed) >= 2**32):
            raise expected("tokenizer", "token ids of at least 0 and below 2**32", [min(listed), max(listed)])
        return guarded(
            "tokenizer",
            "ids that decode",
            lambda: self.library.decode(listed, skip_special_tokens=skip_special),
        )

    def stream(self, skip_special: bool = True) -> Decoder:
        """Return a decoder for ids that arrive one by one."""
        return self._stream_plan.start(skip_special)

    def token_text(self, token: int) -> str:
        """Return the text of one token as it stands behind others; U+FFFD for bytes that are no whole character."""
        return self._stream_plan.token_text(token)

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token's own text, or None."""
        return self.library.token_to_id(token)

    def id_to_token(self, token: int) -> str | None:
        """Return the vocabulary's text of an id (byte-level alphabets as they are stored), or None."""
        return self.library.id_to_token(token) if 0 <= token < 2**32 else None

    def chat_template(self, name: str = "default") -> ChatTemplate:
        """Return the model's chat template, compiled; raises LatticeError where it has none of that name."""
        if name not in self.templates:
            found = ", ".join(self.templates) or "no chat template"
            raise expected(
                "tokenizer",
                f"a chat template named {name!r}",
                found,
                hint="chat_template.jinja or tokenizer_config.json holds it; base models have none",
            )
        others = {role: text for role, text in self.special.items() if role not in ("bos_token", "eos_token")}
        return ChatTemplate(
            self.templates[name],
            bos=self.special.get("bos_token"),
            eos=self.special.get("eos_token"),
            special=others,
        )

    @cached_property
    def vocab_size(self) -> int:
        """Tokens, added ones included."""
        return self.library.get_vocab_size(with_added_tokens=True)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that decoding skips."""
        return frozenset(i for i, token in self.library.get_added_tokens_decoder().items() if token.special)

    @cached_property
    def count_special(self) -> int:
        """Special tokens that `encode` adds to a text."""
        own = 0 if self.encoder is not None else self.library.num_special_tokens_to_add(is_pair=False)
        return own + len(self.prefix) + len(self.suffix)

    @property
    def bos(self) -> int | None:
        """Id of the token that begins a sequence, or None."""
        return self._role("bos_token")

    @property
    def eos(self) -> int | None:
        """Id of the token that ends a sequence, or None."""
        return self._role("eos_token")

    @property
    def pad(self) -> int | None:
        """Id of the padding token, or None."""
        return self._role("pad_token")

    def _role(self, name: str) -> int | None:
        text = self.special.get(name)
        return None if text is None else self.library.token_to_id(text)

    @cached_property
    def _stream_plan(self) -> StreamPlan:
        return StreamPlan(self.library, self.special_ids)

    @cached_property
    def _literal(self) -> Library:
        """A copy of the library's object that takes special tokens in texts as text."""
        copy = Library.from_str(self.library.to_str())
        copy.encode_special_tokens = True
        return copy

    def _encoded(self, encoder: Encoder, texts: Sequence[str], parse_special: bool = True) -> list[list[int]]:
        _check(texts)
        return guarded("tokenizer", "a text that can be tokenised", lambda: encoder.encode(texts, parse_special))

    def _encodings(self, texts: Sequence[str], add_special: bool, library: Library) -> list[Any]:
        _check(texts)
        return guarded(
            "tokenizer",
            "a text that can be tokenised",
            lambda: library.encode_batch_fast(list(texts), add_special_tokens=add_special),
        )


def _check(texts: Sequence[str]) -> None:
    for text in texts:
        if not isinstance(text, str):
            raise expected("tokenizer", "texts", type(text).__name__)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise expected("tokenizer", "text without lone surrogates", f"one at character {error.start}") from None


def parse_library(data: bytes, where: str = "tokenizer.json", *, check_patterns: bool = True) -> Library:
    """Return the `tokenizers` object of a tokenizer.json, its truncation and padding off; FormatError if it
    is none, or one that could harm (`_bounds.py`)."""
    document = check_document(data, where, patterns=check_patterns)
    library = open_library(data, where)
    _check_numbering(library, document, where)
    return library


def open_library(data: bytes, where: str) -> Library:
    """Return the `tokenizers` object of a tokenizer.json that was checked before, its truncation and padding off."""
    library = guarded(where, "a tokenizer of the tokenizers library", lambda: Library.from_buffer(data), FormatError)
    library.no_truncation()
    library.no_padding()
    return library


def _check_numbering(library: Library, document: Mapping[str, Any], where: str) -> None:
    """Warn where the library, which numbers added tokens itself, gives one another id than the file does."""
    for token in document.get("added_tokens") or ():
        found = library.token_to_id(token["content"])
        if found != token["id"]:
            error = expected(where, f"a token {token['content']!r:.80} with the id {token['id']}", found)
            warnings.warn(str(error), LatticeWarning, stacklevel=4)


def assemble(
    library: Library, settings: Mapping[str, Any], templates: Mapping[str, str], pieces: bytes | None = None
) -> Tokenizer:
    """Return a Tokenizer of a library object and the settings of a tokenizer_config.json; `pieces` is the
    tokenizer.json of a SentencePiece vocabulary."""
    special = {name: text for name in _NAMES if (text := _token_text(settings.get(name), name)) is not None}
    ids = guarded("tokenizer", "a tokenizer that encodes", lambda: library.encode("a").ids, FormatError)
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    if settings.get("add_bos_token") is True:
        bos = _added(library, special, "bos_token")
        prefix = () if ids[:1] == [bos] else (bos,)
    if settings.get("add_eos_token") is True:
        eos = _added(library, special, "eos_token")
        suffix = () if ids[-1:] == [eos] else (eos,)
    encoder = None
    if pieces is not None:
        plain = library.encode("a", add_special_tokens=False).ids
        at = next((n for n in range(len(ids)) if ids[n : n + len(plain)] == plain), 0)
        prefix, suffix = (*prefix, *ids[:at]), (*ids[at + len(plain) :], *suffix)
        rules = settings["lattice"]["sentencepiece"]
        encoder = guarded(
            "tokenizer.json", "a SentencePiece vocabulary", lambda: Encoder(library, pieces, rules), FormatError
        )
    longest = settings.get("model_max_length")
    return Tokenizer(
        library,
        special,
        prefix,
        suffix,
        # transformers writes 10**30 for "no limit"
        int(longest) if isinstance(longest, (int, float)) and 0 < longest < 2**31 else None,
        "left" if settings.get("truncation_side") == "left" else "right",
        templates,
        encoder,
    )


def _token_text(value: Any, name: str) -> str | None:
    if isinstance(value, dict):  # an AddedToken
        value = value.get("content")
    if value is not None and not isinstance(value, str):
        raise expected("tokenizer_config.json", f"{name} as text", type(value).__name__, kind=FormatError)
    return value


def _added(library: Library, special: Mapping[str, str], name: str) -> int:
    found = library.token_to_id(special[name]) if name in special else None
    if found is None:
        raise expected(
            "tokenizer_config.json", f"a {name} of the vocabulary to add", special.get(name), kind=FormatError
        )
    return found
