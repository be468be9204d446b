"""Messages to the tokens of a prompt: through the model's chat template, with tools and with or without thinking.

What a template can do is found by asking it: one whose text changes with `enable_thinking` has that switch, one whose
text does not change with `tools` knows none, and what would be dropped in silence is an error. A GGUF file without a
template whose vocabulary has ChatML's control tokens is laid out as ChatML (roles and contents, no tools, no switch),
and a warning says so; other files without one are not guessed at.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from lattice.errors import LatticeError, LatticeWarning, expected
from lattice.generate.sampling import check_integer
from lattice.tokenizers import ChatTemplate, Tokenizer, ToolCall
from lattice.tokenizers.reasoning import CLOSE, OPEN
from lattice.tokenizers.tool_values import parse

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CLOSING = f"\n{CLOSE}\n\n"  # what a budget that is spent makes the model write
_SAMPLE = [{"role": "user", "content": "x"}]
_TOOL = {"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object"}}}


@dataclass(frozen=True)
class ChatPrompt:
    """A prompt made of messages: its text and tokens, and what must be known to read the answer.

    `marks` are the numbers of tokens at which messages end: a prompt that begins with the same messages has the same
    tokens up to there.
    """

    text: str
    tokens: list[int] = field(repr=False)
    marks: tuple[int, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    reasons: bool = False  # whether the answer may begin with reasoning
    opened: bool = False  # whether the prompt ends inside the reasoning
    budget: int | None = None  # most tokens of reasoning
    closing: tuple[int, ...] = ()  # the tokens that end it where the budget is spent


class Chat:
    """The chat side of a model: its templates and what they can do. `ends` are the tokens that end a turn."""

    def __init__(self, tokenizer: Tokenizer, ends: frozenset[int] = frozenset(), *, chatml: bool = False):
        self._tokenizer = tokenizer
        self._ends = ends & tokenizer.special_ids
        self._default = _default_template(tokenizer, chatml)
        named = "tool_use" in tokenizer.templates  # older models have a template of its own for tools
        self._for_tools = tokenizer.chat_template("tool_use") if named else self._default

    @cached_property
    def switch(self) -> bool:
        """Whether the template turns thinking on and off."""
        on, off = (self._default.render(_SAMPLE, enable_thinking=value) for value in (True, False))
        return on != off

    @cached_property
    def knows_tools(self) -> bool:
        """Whether the template shows tools to the model."""
        return self._for_tools.render(_SAMPLE, tools=[_TOOL]) != self._for_tools.render(_SAMPLE)

    @cached_property
    def reasons(self) -> bool:
        """Whether answers may begin with reasoning: the template or the vocabulary has the markers."""
        known = [self._tokenizer.token_to_id(marker) is not None for marker in (OPEN, CLOSE)]
        return all(known) or CLOSE in self._default.source

    def prompt(
        self,
        messages: Sequence[Any],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: bool | None = None,
        thinking_budget: int | None = None,
    ) -> ChatPrompt:
        """Return the prompt for messages; LatticeError where the model or its template cannot do what is asked."""
        given = [_message(message) for message in messages]
        tools = check_tools(tools)
        if tools and not self.knows_tools:
            raise _cannot("a chat template that knows tools", "one whose text is the same without")
        budget = None if thinking_budget is None else check_integer("thinking_budget", thinking_budget, 0, 2**31 - 1)
        variables = self._thinking(thinking, budget)
        template = self._for_tools if tools else self._default
        text = template.render(given, tools=tools or None, **variables)
        self._check_calls(given, text)
        opened = self.reasons and text.rstrip().endswith(OPEN)
        if opened and thinking is False:
            raise _cannot("a model that can answer without thinking", "one whose prompt always begins it", _BUDGET_HINT)
        if opened and budget == 0:
            text, opened = text.rstrip("\n") + "\n" + CLOSING, False
        tokens = self._tokenizer.encode(text, add_special=False)  # the template writes its own
        closing = () if budget is None or not self.reasons else self._closing
        return ChatPrompt(text, tokens, self._marks(tokens), tuple(tools), self.reasons, opened, budget, closing)

    def _thinking(self, thinking: bool | None, budget: int | None) -> dict[str, bool]:
        if thinking not in (None, True, False):
            raise expected("generate", "thinking as True, False or None", repr(thinking))
        if thinking and budget == 0:
            raise expected("generate", "a thinking_budget of at least 1 with thinking=True", 0)
        if (thinking or budget) and not self.reasons:
            raise _cannot("a model that thinks", f"one without {OPEN} in chat template and vocabulary")
        if budget == 0 and self.switch:
            thinking = False
        if thinking is None or (not thinking and not self.reasons):
            return {}
        always = thinking and CLOSE in self._default.source  # those that think without being asked
        if not self.switch and not always:
            raise _cannot("a chat template that turns thinking on and off", "one without enable_thinking", _BUDGET_HINT)
        return {"enable_thinking": thinking}

    def _check_calls(self, messages: list[dict[str, Any]], text: str) -> None:
        calls = [call for message in messages for call in message.get("tool_calls") or ()]
        if not all(call["function"]["name"] in text for call in calls):
            raise _cannot("a chat template that knows tool calls", "one that leaves them out")

    @cached_property
    def _closing(self) -> tuple[int, ...]:
        tokens = self._tokenizer.encode(CLOSING, add_special=False)
        if CLOSE not in self._tokenizer.decode(tokens):
            raise _cannot(f"a tokenizer that can write {CLOSE}", "one that cannot")
        return tuple(tokens)

    def _marks(self, tokens: list[int]) -> tuple[int, ...]:
        """Return the places behind the tokens that end a turn, and behind the newline that templates put there: a
        control token is always a token of its own, so what stands before it is tokenised alike whatever follows."""
        control = self._tokenizer.special_ids
        marks = []
        for place, token in enumerate(tokens):
            if token in self._ends:
                end = place + 1
                marks.append(end + (tokens[end + 1 : end + 2] != [] and tokens[end + 1] in control))
        return tuple(mark for mark in marks if mark < len(tokens))


_BUDGET_HINT = "thinking_budget=0 ends its reasoning as soon as it begins"


def _default_template(tokenizer: Tokenizer, chatml: bool) -> ChatTemplate:
    control = {tokenizer.token_to_id(text) for text in ("<|im_start|>", "<|im_end|>")}
    if "default" in tokenizer.templates or not chatml or not control <= tokenizer.special_ids:
        return tokenizer.chat_template()
    warnings.warn("the GGUF file has no chat template; ChatML is assumed", LatticeWarning, stacklevel=2)
    return ChatTemplate(CHATML)


def _cannot(wanted: str, got: str, hint: str | None = None) -> LatticeError:
    return expected("generate", wanted, got, hint=hint)


def check_tools(tools: Any) -> list[Mapping[str, Any]]:
    """Return the schemas of tools a caller offers, each {"type": "function", "function": {"name", ...}}."""
    if tools is None:
        return []
    if isinstance(tools, str | bytes | Mapping) or not isinstance(tools, Sequence):
        raise expected("generate", "tools as a list of schemas", type(tools).__name__)
    for tool in tools:
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
            wanted = 'a tool as {"type": "function", "function": {"name": ..., "parameters": ...}}'
            raise expected("generate", wanted, repr(tool)[:80])
    return list(tools)


def _message(message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise expected("generate", "messages with a role and content", repr(message)[:80])
    calls = message.get("tool_calls")
    if calls is None:
        return dict(message)
    if not isinstance(calls, list | tuple):
        raise expected("generate", "tool_calls as a list", type(calls).__name__)
    return {**message, "tool_calls": [_call(call) for call in calls]}


def _call(call: Any) -> dict[str, Any]:
    """Return a call of an earlier answer with its arguments as a dict: what templates iterate over."""
    given = call.as_dict() if isinstance(call, ToolCall) else call
    function = given.get("function", given) if isinstance(given, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        wanted = 'a tool call as {"function": {"name": ..., "arguments": ...}}'
        raise expected("generate", wanted, repr(call)[:80])
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = parse(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            arguments = function["arguments"]
    if not isinstance(arguments, Mapping | None):
        wanted = f"the arguments of {function['name']!r:.80} as a dict or the JSON text of one"
        raise expected("generate", wanted, repr(arguments)[:80])
    return {**given, "function": {**function, "arguments": dict(arguments or {})}}
