"""Tool calls read out of an answer while it is written.

Two forms, both between `<tool_call>` and `</tool_call>`: Qwen3.5's

    <function=NAME>
    <parameter=KEY>
    VALUE
    </parameter>
    </function>

whose values are text, typed by the tool's schema (`tool_values.py`), and the JSON object of Qwen3 and Hermes,
`{"name": ..., "arguments": {...}}`. A text goes in, in pieces cut anywhere; content comes out, and for each call its
name and then the JSON text of its arguments, as they come. Nothing raises: what turns out to be no call is content,
letter by letter. One newline on either side of a value belongs to the markers; a value ends at a `</parameter>` that
another parameter or the function's end follows, so it may speak of markers itself. White space around calls is dropped.

A call whose `</function>` (or last brace) never came is not in `calls`, and its text is content; its deltas, if there
were any, are arguments that do not close.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lattice.tokenizers.reasoning import tail
from lattice.tokenizers.tool_values import is_plain_text, parameter_schema, parse, typed

BEGIN, END = "<tool_call>", "</tool_call>"
FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"
NAME = 256  # characters of a function's or parameter's name
_BLANK = 64  # characters of white space between two markers inside a call
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\{)')
_HEAD_SIZE = 4 * NAME  # characters in which the beginning of a JSON call must lie for its arguments to stream
_NO_NAME = re.compile(r"[<\n]")
_STRUCTURE = re.compile(r'["\\{}\[\]]')


@dataclass(frozen=True)
class ToolCall:
    """A whole call: `arguments`, and their JSON text as it was streamed."""

    id: str
    name: str
    arguments: dict[str, Any]
    arguments_json: str

    def as_dict(self) -> dict[str, Any]:
        """Return it in OpenAI's form, as messages hold it."""
        function = {"name": self.name, "arguments": self.arguments_json}
        return {"id": self.id, "type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of the call number `index`: first its id and name, then the JSON text of its arguments in pieces."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class ToolCallParser:
    """Reads one answer; `tools` are the schemas that the model was given, in OpenAI's form.

    >>> parser = ToolCallParser()
    >>> parser.push('So: <tool_call>{"name": "f", "arguments": {}}</tool_call>')[0]
    'So:'
    >>> parser.calls[0].name, parser.finish()
    ('f', ('', []))
    """

    def __init__(self, tools: Sequence[Mapping[str, Any]] = ()):
        self.calls: list[ToolCall] = []
        functions = [tool.get("function", tool) for tool in tools]
        self._tools = {function.get("name"): function.get("parameters") for function in functions}
        self._state = self._text
        self._held = ""  # what no state has taken yet
        self._space = ""  # white space that is dropped if a call follows
        self._raw: list[str] = []  # the call so far, should it be none
        self._content: list[str] = []
        self._deltas: list[ToolCallDelta] = []
        self._started = 0  # calls whose name went out
        self._seen = False  # a call was the last thing
        self._sent: int | None = None  # characters of a JSON call that went out, None where its name is not known yet

    def push(self, text: str) -> tuple[str, list[ToolCallDelta]]:
        """Return the content and the pieces of calls that are final now."""
        self._held += text
        while self._state():
            pass
        return self._flush()

    def finish(self) -> tuple[str, list[ToolCallDelta]]:
        """Return what was held back: the text is over."""
        if self._state == self._after:
            self._held = ""
        elif self._state != self._text:
            self._give_up()
        self._content += [] if self._seen and not self._held else [self._space, self._held]
        self._held = self._space = ""
        return self._flush()

    def _flush(self) -> tuple[str, list[ToolCallDelta]]:
        content, deltas = "".join(self._content), self._deltas
        self._content, self._deltas = [], []
        return content, deltas

    # ---- states: each takes what it can from what is held, and returns whether another should go on -----------
    def _text(self) -> bool:
        text, found, rest = self._held.partition(BEGIN)
        if not found:
            text = text[: len(text) - tail(text, BEGIN)]
        kept = text.rstrip()
        if kept:
            self._content += [self._space, kept]
            self._space, self._seen = "", False
        self._space += text[len(kept) :]
        self._held = rest if found else self._held[len(text) :]
        if found:
            self._raw, self._state = [BEGIN], self._opened
        return bool(found)

    def _opened(self) -> bool:
        choice = self._next(FUNCTION, "{")
        if choice == FUNCTION:
            self._state = self._name
        elif choice == "{":
            self._object, self._sent = _Object(), None
            self._object.take("{")
            self._state = self._braces
        return choice is not None

    def _name(self) -> bool:
        name = self._until_bracket()
        if name:
            self._start(name)
            self._schema, self._keys = self._tools.get(name), set[str]()
            self._state = self._parameters
        return name is not None

    def _parameters(self) -> bool:
        choice = self._next(PARAMETER, FUNCTION_END)
        if choice == PARAMETER:
            self._state = self._key
        elif choice == FUNCTION_END:
            self._send("}" if self._keys else "{}")
            self._end()
        return choice is not None

    def _key(self) -> bool:
        key = self._until_bracket()
        if not key:
            return key is not None
        if key in self._keys:
            return self._give_up()
        self._send(("{" if not self._keys else ", ") + json.dumps(key, ensure_ascii=False) + ": ")
        self._keys.add(key)
        self._types = parameter_schema(self._schema, key)
        self._plain = is_plain_text(self._types)
        self._value: list[str] = []
        self._state = self._before
        return True

    def _before(self) -> bool:
        if self._held:
            self._take(self._held[0] == "\n")
            self._send('"' if self._plain else "")
            self._state, self._from = self._inside, 0
        return bool(self._held)

    def _inside(self) -> bool:
        while (place := self._held.find(PARAMETER_END, self._from)) >= 0:
            end = place + len(PARAMETER_END)
            behind = self._held[end : end + _BLANK + len(FUNCTION_END)]
            after = behind.lstrip()
            if after.startswith((PARAMETER, FUNCTION_END)):
                self._piece(self._held[: place - (self._held[place - 1 : place] == "\n")])
                self._close_value()
                self._take(end)
                self._state = self._parameters
                return True
            waits = any(marker.startswith(after) for marker in (PARAMETER, FUNCTION_END))
            if waits and len(behind) - len(after) <= _BLANK:
                break
            self._from = end
        # What no longer can be the value's end goes out.
        final = place if place >= 0 else len(self._held) - tail(self._held, PARAMETER_END)
        final -= self._held[final - 1 : final] == "\n"
        self._piece(self._held[:final])
        self._take(final)
        self._from = max(0, self._from - final)
        return False

    def _piece(self, text: str) -> None:
        if self._plain:
            self._send(json.dumps(text, ensure_ascii=False)[1:-1])
        else:
            self._value.append(text)

    def _close_value(self) -> None:
        text = "".join(self._value)
        self._send('"' if self._plain else json.dumps(typed(text, self._types), ensure_ascii=False))

    def _after(self) -> bool:
        """The call is whole; its end marker is all that is missing."""
        text = self._held.lstrip()
        if text.startswith(END):
            text = text[len(END) :]
        elif END.startswith(text):
            return False
        self._held, self._state = text, self._text
        return True

    def _braces(self) -> bool:
        self._take(self._object.take(self._held))
        call = self._object
        if self._sent is None and call.size <= _HEAD_SIZE and (head := _HEAD.match(call.text())):
            name = _parsed(head[1])
            if isinstance(name, str) and 0 < len(name) <= NAME:
                self._start(name)
                self._sent = head.end()
        if self._sent is not None:
            end = call.size if call.inner is None else call.inner
            self._send(call.tail(self._sent, end))
            self._sent = end
        if call.depth:
            return False
        return self._check_object(_parsed(call.text()))

    def _check_object(self, value: Any) -> bool:
        """Take a finished JSON object for a call, if it is one."""
        value = value if isinstance(value, dict) else {}
        name, arguments = value.get("name"), value.get("arguments", {})
        arguments = _parsed(arguments) if isinstance(arguments, str) else arguments
        if not (isinstance(name, str) and 0 < len(name) <= NAME and isinstance(arguments, dict)):
            return self._give_up()
        if self._sent is None:
            self._start(name)
            self._send(json.dumps(arguments, ensure_ascii=False))
        elif (name, arguments) != (self._called, _parsed("".join(self._json))):  # a key stands there twice
            return self._give_up()
        self._end()
        return True

    # ---- what the states share -----------------------------------------------------------------------------
    def _next(self, *choices: str) -> str | None:
        """Take white space and one of the markers, and return it; None to wait, "" where there is something else."""
        text = self._held.lstrip()
        blank = len(self._held) - len(text)
        for choice in choices:
            if text.startswith(choice):
                self._take(blank + len(choice))
                return choice
        if blank <= _BLANK and any(choice.startswith(text) for choice in choices):
            return None
        self._give_up()
        return ""

    def _until_bracket(self) -> str | None:
        """Take a name and the bracket that ends it; None to wait, "" where it is no name."""
        name, bracket, _ = self._held[: NAME + 1].partition(">")
        if bracket and name.strip() and not _NO_NAME.search(name):
            self._take(len(name) + 1)
            return name.strip()
        if not bracket and len(name) <= NAME and not _NO_NAME.search(name):
            return None
        self._give_up()
        return ""

    def _take(self, count: int) -> None:
        self._raw.append(self._held[:count])
        self._held = self._held[count:]

    def _start(self, name: str) -> None:
        self._index, self._id, self._called = self._started, f"call_{secrets.token_hex(12)}", name
        self._started += 1
        self._json: list[str] = []
        self._deltas.append(ToolCallDelta(self._index, self._id, name))

    def _send(self, text: str) -> None:
        if text:
            self._json.append(text)
            last = self._deltas[-1] if self._deltas else None
            if last is not None and last.index == self._index and last.name is None:
                text = self._deltas.pop().arguments + text
            self._deltas.append(ToolCallDelta(self._index, arguments=text))

    def _end(self) -> None:
        text = "".join(self._json)
        self.calls.append(ToolCall(self._id, self._called, parse(text), text))
        self._raw, self._space, self._seen, self._state = [], "", True, self._after

    def _give_up(self) -> bool:
        """What was taken for a call is none: it is content."""
        self._content += [self._space, *self._raw]
        self._raw, self._space, self._seen, self._state = [], "", False, self._text
        return True


class _Object:
    """A JSON object that arrives in pieces: how deep its end lies, and where the first value inside it closed."""

    def __init__(self) -> None:
        self.depth, self.size = 0, 0
        self.inner: int | None = None  # behind the bracket that closed the first object or array inside
        self._quoted = self._escaped = False
        self._parts: list[str] = []

    def take(self, text: str) -> int:
        """Take text up to the object's end; return how many characters that were."""
        end = 1 if self._escaped and text else 0  # behind a backslash anything is a letter
        self._escaped = self._escaped and not text
        for found in _STRUCTURE.finditer(text):
            if found.start() < end:
                continue
            end = found.end()
            if found[0] == "\\":
                self._escaped, end = end == len(text), end + 1
            elif found[0] == '"':
                self._quoted = not self._quoted
            elif not self._quoted:
                self.depth += 1 if found[0] in "{[" else -1
                if self.depth == 1 and self.inner is None and found[0] in "}]":
                    self.inner = self.size + end
                if not self.depth:
                    text = text[:end]
                    break
        self._parts.append(text)
        self.size += len(text)
        return len(text)

    def text(self) -> str:
        """Return all of it."""
        self._parts = ["".join(self._parts)]
        return self._parts[0]

    def tail(self, start: int, end: int) -> str:
        """Return the characters from `start` on, which lie in what came last."""
        return self._parts[-1][start - self.size + len(self._parts[-1]) : end - self.size + len(self._parts[-1])]


def _parsed(text: str) -> Any:
    try:
        return parse(text)
    except (ValueError, RecursionError):
        return None
