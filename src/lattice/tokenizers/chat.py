"""Chat templates: from messages to the text of a prompt, as the model's own Jinja template lays it out.

This is the safe entrance: `ChatTemplate` compiles and renders a template that came from a model file, within
limits on its source (64 KiB), time (200 ms a render and 10 ms a message), and size (1 MiB of output). How they are
kept is told in `_sandbox.py`. Not here: which template a model has (`Tokenizer.chat_template`), and reading tool
calls out of an answer (`tool_calls.py`).

The variables and functions that a template sees are those of transformers' `apply_chat_template`, whose
results are the goldens of the tests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from lattice.errors import LatticeError, expected
from lattice.tokenizers._budget import SOURCE, Stop

WHERE = "chat template"
_DEPTH = 32  # levels of a message or a tool schema


class TemplateError(LatticeError):
    """A chat template is malformed, hostile, or refuses the messages it was given."""


class ChatTemplate:
    """A compiled chat template; `render` may be called from several threads.

    `source` is Jinja text of at most 64 KiB; `bos` and `eos` are the tokens' texts, `special` further ones by
    the names that templates use (`pad_token`, ...). Raises TemplateError for a source that does not compile.

    >>> source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
    >>> template = ChatTemplate(source, eos="</s>")
    >>> template.render([{"role": "user", "content": "hi"}], add_generation_prompt=False)
    '<user>hi</s>'
    """

    def __init__(
        self,
        source: str,
        *,
        bos: str | None = None,
        eos: str | None = None,
        special: Mapping[str, str] | None = None,
    ):
        from lattice.tokenizers import _sandbox  # Jinja costs 60 ms, which only a chat should pay

        if not isinstance(source, str):
            raise _refused("a template as text", type(source).__name__)
        size = len(source.encode("utf-8", "surrogatepass"))
        if size > SOURCE:
            raise _refused(f"a template of at most {SOURCE} bytes", f"{size} bytes")
        named = {"bos_token": bos, "eos_token": eos}
        self.source = source
        self._special = {
            **(special or {}),
            **{name: text for name, text in named.items() if text is not None},
        }
        self._sandbox = _sandbox
        self._environment = _sandbox.Sandbox(_raise_exception)
        self._template = self._compile(source)

    def _compile(self, source: str) -> Any:
        try:
            return self._sandbox.compiled(self._environment, source)
        except Stop as stop:
            raise _refused(*stop.args) from None
        except (RecursionError, MemoryError):
            raise _refused("a template of moderate nesting", "one too deep to compile") from None
        except Exception as error:  # jinja's syntax errors, and CPython's own limits on the generated code
            line = getattr(error, "lineno", None)
            raise _refused(
                "a Jinja template that compiles",
                f"{type(error).__name__}: {_short(error)}" + (f" (line {line})" if line else ""),
            ) from None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """Return the prompt for `messages` ({"role", "content", ...}); `variables` are passed on to the
        template.

        Values are JSON-like: text, numbers, booleans, None, and lists and dicts of them. Raises TemplateError
        where the template refuses the messages (`raise_exception`), fails, or goes past a limit.
        """
        given = {
            **self._special,
            "documents": None,
            **variables,
            "messages": messages,
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
        }
        plain = {name: _plain(value, name) for name, value in given.items()}
        try:
            return self._sandbox.render(self._environment, self._template, plain)
        except LatticeError:
            raise
        except Stop as stop:
            raise _refused(*stop.args) from None
        except (RecursionError, MemoryError):
            raise _refused("a template of moderate depth", "one that nests too deep") from None
        except Exception as error:
            raise _refused(
                "a template that renders these messages", f"{type(error).__name__}: {_short(error)}"
            ) from None


def _refused(wanted: str, got: object) -> LatticeError:
    return expected(WHERE, wanted, got, kind=TemplateError)


def _short(error: Exception) -> str:
    return str(error).split("\n")[0][:200]


def _raise_exception(message: object) -> NoReturn:
    raise _refused("messages that the template accepts", _short(TemplateError(message)))


def _plain(value: Any, name: str, depth: int = 0) -> Any:
    """Return a copy of JSON-like data, so that no object of the caller's can be reached or changed by a
    template."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        return value if type(value) is str else str(value)
    if isinstance(value, float) and math.isfinite(value):
        return value
    if depth >= _DEPTH:
        raise _refused(f"{name} of at most {_DEPTH} levels", "deeper nesting")
    if isinstance(value, Mapping):
        return {str(key): _plain(item, name, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, name, depth + 1) for item in value]
    raise _refused(f"{name} of text, numbers, lists and dicts", type(value).__name__)
