"""Tokenizers and chat templates: one adapter over the `tokenizers` library, SentencePiece and tiktoken files read
for it, streams of text, Jinja in a sandbox, reasoning and tool calls read out of answers."""

from lattice.tokenizers.chat import ChatTemplate, TemplateError
from lattice.tokenizers.directory import load_gguf_tokenizer, load_tokenizer
from lattice.tokenizers.gguf import tokenizer_from_gguf
from lattice.tokenizers.reasoning import ReasoningSplitter
from lattice.tokenizers.stream import Decoder
from lattice.tokenizers.tokenizer import Tokenizer
from lattice.tokenizers.tool_calls import ToolCall, ToolCallDelta, ToolCallParser

__all__ = [
    "ChatTemplate", "Decoder", "ReasoningSplitter", "TemplateError", "Tokenizer", "ToolCall", "ToolCallDelta",
    "ToolCallParser", "load_gguf_tokenizer", "load_tokenizer", "tokenizer_from_gguf",
]  # fmt: skip
