"""What a checkpoint says about text: its tokenizer, its chat template, and the tokens that end an answer.

A model directory without tokenizer.json has none of this; prompts are token ids then, and what needs more
raises.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from lattice.errors import FormatError, LatticeError, expected
from lattice.generate.chat import Chat, ChatPrompt
from lattice.tokenizers import Tokenizer, load_gguf_tokenizer, load_tokenizer
from lattice.weights.checkpoint import Checkpoint, read_config
from lattice.weights.sources import home

# Control tokens that end a turn or a text, whatever else a file names as its end.
ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>")
GGUF_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")

Messages = Sequence[Mapping[str, Any]]
Prompt = str | Messages | ChatPrompt | Sequence[int] | np.ndarray


class Texts:
    """The texts side of a checkpoint; files are read when first needed."""

    def __init__(self, checkpoint: Checkpoint):
        self._checkpoint = checkpoint

    @cached_property
    def settings(self) -> dict[str, Any]:
        """generation_config.json of a directory, empty where there is none."""
        path = self._checkpoint.directory / "generation_config.json"
        return read_config(path) if self._checkpoint.kind == "safetensors" and path.is_file() else {}

    @cached_property
    def _found(self) -> Tokenizer | LatticeError:
        """The tokenizer, or why there is none: token ids need no text."""
        try:
            return open_tokenizer(self._checkpoint)
        except LatticeError as error:
            return _anew(error)
        finally:
            _trim()

    def prepare(self) -> None:
        """Read the tokenizer; before the weights, so that what building it takes for a while is no peak on top."""
        self._found  # noqa: B018

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer, or None where the model's files have none that can be read."""
        return self._found if isinstance(self._found, Tokenizer) else None

    def need_tokenizer(self) -> Tokenizer:
        """Return the tokenizer, or raise which file is missing or what is wrong with it."""
        if isinstance(self._found, LatticeError):
            raise _anew(self._found)
        return self._found

    @cached_property
    def chat(self) -> Chat:
        """The chat template and what it can do; LatticeError where there is none."""
        return Chat(self.need_tokenizer(), self.stop_tokens, chatml=self._checkpoint.kind == "gguf")

    @cached_property
    def adds_bos(self) -> bool:
        """Whether the tokenizer puts its BOS before a text."""
        tokenizer = self.need_tokenizer()
        return tokenizer.bos is not None and tokenizer.encode("a")[:1] == [tokenizer.bos]

    @cached_property
    def stop_tokens(self) -> frozenset[int]:
        """Tokens that end an answer: those that the files name, and known ones that are control tokens."""
        if self._checkpoint.kind == "gguf":
            given = [self._checkpoint.metadata.get(f"tokenizer.ggml.{name}") for name in GGUF_ENDS]
        else:
            given = [self.settings.get("eos_token_id"), self._checkpoint.config.get("eos_token_id")]
        found = {token for value in given for token in _ids(value)}
        tokenizer = self.tokenizer
        if tokenizer is not None:
            known = {tokenizer.token_to_id(text) for text in ENDS}
            found |= {token for token in known if token in tokenizer.special_ids}
        return frozenset(found)

    def tokens(self, prompt: Any) -> Any:
        """Return the tokens of a text; ids pass unchecked."""
        return self.need_tokenizer().encode(prompt) if isinstance(prompt, str) else prompt

    def chat_prompt(self, prompt: Any, **asked: Any) -> ChatPrompt | None:
        """Return messages laid out as a prompt with what is `asked` of it (`Chat.prompt`), None for a text or ids."""
        given = sorted(name for name, value in asked.items() if value is not None)
        if isinstance(prompt, ChatPrompt):
            if given:
                raise expected("generate", f"{given[0]} where the prompt is made of messages", "a finished prompt")
            return prompt
        if isinstance(prompt, bytes | Mapping) or not isinstance(prompt, str | Sequence | np.ndarray):
            wanted = "a text, a list of messages or a list of token ids"
            raise expected("generate", wanted, type(prompt).__name__)
        if not isinstance(prompt, str) and any(isinstance(item, Mapping) for item in prompt[:1]):
            return self.chat.prompt(list(prompt), **asked)
        if given:
            raise expected("generate", f"messages with {given[0]}", "a text or token ids")
        return None


def _trim() -> None:
    """Give back what building freed, a third of what a large vocabulary takes: glibc would keep it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _anew(error: LatticeError) -> LatticeError:
    """Return an error without the frames that it has been raised through: they would keep pages alive."""
    return type(error)(*error.args)


def open_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """Return a checkpoint's tokenizer; if a GGUF file's own is not read, the tokenizer.json beside it."""
    if checkpoint.kind == "safetensors":
        return load_tokenizer(checkpoint.directory)
    return load_gguf_tokenizer(checkpoint.path, checkpoint.metadata, home() / "tokenizers")


def _ids(value: Any) -> list[int]:
    """Return token ids that a file gives as one, several or none."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    for token in values:
        if isinstance(token, bool) or not isinstance(token, int):
            raise expected(
                "generation_config.json",
                "eos_token_id as an integer or a list of them",
                repr(token)[:80],
                kind=FormatError,
            )
    return values
