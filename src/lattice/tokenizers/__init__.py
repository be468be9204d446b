"""Tokenizers and chat templates: one adapter over the `tokenizers` library, SentencePiece and tiktoken files read
for it, streams of text, Jinja in a sandbox."""

from lattice.tokenizers.chat import ChatTemplate, TemplateError
from lattice.tokenizers.directory import load_gguf_tokenizer, load_tokenizer
from lattice.tokenizers.gguf import tokenizer_from_gguf
from lattice.tokenizers.stream import Decoder
from lattice.tokenizers.tokenizer import Tokenizer

__all__ = [
    "ChatTemplate", "Decoder", "TemplateError", "Tokenizer", "load_gguf_tokenizer", "load_tokenizer",
    "tokenizer_from_gguf",
]  # fmt: skip
