"""The Jinja environment in which chat templates run, and the budget that every render spends.

A chat template is code from a model file. Jinja's immutable sandbox keeps it from objects that it must not
reach, but bounds neither time nor memory, so this module adds:

* a deadline, checked by a trace function of the rendering thread: at every line of the template's own code
  and at every call of a Python function below it. Loops inside C cannot be interrupted that way, so nothing
  that C loops over may be large:
* every string, list, tuple and dict is bounded where it is built (`+ ~ * % **`, literals, filters, methods,
  captured blocks and macros), before the memory is taken where the size can be told beforehand. What is
  assigned is therefore always bounded, and one render may build `BUILT` characters in all, assigned or thrown
  away;
* lists of what may be called: filters, methods and attributes by name, everything else is refused.

This file imports Jinja (60 ms); `chat.py` imports it when a template is compiled.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes, pass_environment
from jinja2.compiler import CodeGenerator, Frame
from jinja2.parser import Parser
from jinja2.runtime import LoopContext, Macro, TemplateReference, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace

from lattice.tokenizers._budget import (
    COMPILE_SECONDS,
    FILENAME,
    INTEGER_BITS,
    MESSAGE_SECONDS,
    OUTPUT,
    SECONDS,
    Budget,
    Stop,
    Tracer,
    weigh,
)
from lattice.tokenizers._filters import (
    ALLOWED,
    PLAIN_FILTERS,
    make_dict,
    no_format,
    python_test,
    replaced_length,
    strftime_now,
    sum_of_numbers,
    tojson,
)


class _Code(CodeGenerator):
    """Generates calls of the environment around what the sandbox does not intercept itself."""

    def _wrapped(self, name: str, visit: Callable[..., None], node: nodes.Node, frame: Frame) -> None:
        self.write(f"environment.{name}(")
        visit(node, frame)
        self.write(")")

    def _output_child_to_const(self, node: nodes.Expr, frame: Frame, finalize: Any) -> str:
        # Jinja folds what is printed even without its optimiser, and would run filters while compiling.
        if not isinstance(node, nodes.TemplateData):
            raise nodes.Impossible
        return super()._output_child_to_const(node, frame, finalize)

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        self._wrapped("bounded", super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self._wrapped("bounded", super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        if node.ctx == "load":
            self._wrapped("bounded", super().visit_Tuple, node, frame)
        else:  # the target of an assignment
            super().visit_Tuple(node, frame)

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        # A comparison is one C call, so the deadline is checked before each; its operands are bounded.
        self._wrapped("checked", super().visit_Compare, node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.joined((")
        for argument in node.nodes:
            self.visit(argument, frame)
            self.write(", ")
        self.write("))")


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's tokens for training elsewhere; here its body is rendered as it
    is."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


_NO_ATTRIBUTES = (type, int, float)
_RUNTIME = (Cycler, Joiner, LoopContext, Macro, Namespace, TemplateReference, Undefined)


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of one template: Jinja's immutable sandbox with bounds (see the module's docstring)."""

    code_generator_class = _Code
    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, raise_exception: Callable[[str], Any]):
        self.budget = Budget()
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # folding constants would run a hostile expression while compiling
            finalize=_finalize,
            extensions=[jinja2.ext.loopcontrols, _Generation],
            cache_size=0,
        )
        self.globals.pop("lipsum")
        self.globals.update(raise_exception=raise_exception, strftime_now=strftime_now, dict=make_dict)
        own: dict[str, Callable[..., Any]] = {
            "tojson": tojson,
            "sum": sum_of_numbers,
            "batch": self.filters["batch"],
            "slice": self.filters["slice"],
            "join": self.filters["join"],
            "indent": self.filters["indent"],
            "center": self.filters["center"],
            "replace": self.filters["replace"],
            "round": self.filters["round"],
            "format": no_format,
        }
        plain = {name: self.filters[name] for name in PLAIN_FILTERS}
        self.filters = {name: self._guarded(name, function) for name, function in (plain | own).items()}
        # `operator.eq` and the like are C functions, which the tracer does not see.
        self.tests = {
            name: python_test(test) if getattr(operator, getattr(test, "__name__", ""), None) is test else test
            for name, test in self.tests.items()
        }

    # ---- what generated code calls
    # --------------------------------------------------------------------------

    def bounded(self, value: Any) -> Any:
        """Return a freshly built value unchanged, or stop where it is too large."""
        self.budget.take(weigh(value))
        return value

    def checked(self, value: Any) -> Any:
        """Return a value unchanged; calling this is what lets the tracer look at the clock."""
        return value

    def joined(self, values: Iterable[Any]) -> str:
        """Return `a ~ b ~ c`."""
        texts = [self._text(value) for value in values]
        self.budget.take(sum(map(len, texts)))
        return "".join(texts)

    def concat(self, parts: Iterable[str]) -> str:
        """Return the text of a captured block, a macro or a call; Jinja's runtime and generated code use
        it."""
        gathered, size = [], 0
        for part in parts:
            size += len(part)
            if size > OUTPUT:
                break
            gathered.append(part)
        self.budget.take(size)
        return "".join(gathered)

    def _text(self, value: Any) -> str:
        if not isinstance(value, str):
            self.budget.take(weigh(value))
        return str(value)

    # ---- what the sandbox asks
    # ------------------------------------------------------------------------------

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute `left operator right` for + * ** %, refusing what builds without bound."""
        if operator == "+":
            if not isinstance(left, (int, float)):
                self.budget.take(weigh(left) + weigh(right))
        elif not (isinstance(left, (int, float)) and isinstance(right, (int, float))):
            raise Stop(
                f"numbers on both sides of {operator}",
                f"{type(left).__name__} {operator} {type(right).__name__}",
            )
        elif isinstance(left, int) and isinstance(right, int) and operator != "%":
            factor = abs(right) if operator == "**" else 1
            bits = left.bit_length() * factor + (right.bit_length() if operator == "*" else 0)
            if bits > INTEGER_BITS:
                raise Stop(f"integers of at most {INTEGER_BITS} bits", "a larger product or power")
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Say whether a template may read `obj.attr`: listed methods of data, parts of Jinja's objects."""
        if attr.startswith("_") or isinstance(obj, _NO_ATTRIBUTES):
            return False
        for kind, names in ALLOWED.items():
            if isinstance(obj, kind):
                return attr in names or (attr in ("grouper", "list") and type(obj).__name__ == "_GroupTuple")
        if isinstance(obj, _RUNTIME):
            return super().is_safe_attribute(obj, attr, value)
        return False

    def wrap_str_format(self, value: Any) -> None:
        """Give up on `str.format`: Jinja's sandboxed one still pads to any width."""
        return None

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call what a template calls: its macros, our functions and the listed methods, within the budget."""
        # The double underscores keep these names apart from the keywords that a template passes on.
        self, context, function = __self, __context, __obj
        receiver = getattr(function, "__self__", None)
        name = getattr(function, "__name__", "")
        if isinstance(receiver, (str, list, tuple, dict)):
            if isinstance(receiver, str) and name == "replace":
                self.budget.take(replaced_length(receiver, *args[:3]))
            elif isinstance(receiver, str) and name == "join":
                args = (self._gather(args[0], len(receiver)), *args[1:])
            elif name in ("split", "rsplit", "splitlines", "partition", "copy"):
                self.budget.take(weigh(receiver))
            value = super(Sandbox, self).call(context, function, *args, **kwargs)
            return value if isinstance(value, (bool, int)) or name == "get" else self._result(value)
        return self._result(super(Sandbox, self).call(context, function, *args, **kwargs))

    def _result(self, value: Any) -> Any:
        if isinstance(value, (str, list, tuple, dict)):
            self.budget.take(weigh(value))
        return value

    def _gather(self, values: Iterable[Any], separator: int) -> list[Any]:
        """Return the items of an iterable that is about to be joined, stopping where they grow too large."""
        gathered, size = [], 0
        for value in values:
            gathered.append(value)
            size += weigh(value) + separator
            if size > OUTPUT:
                break
        self.budget.take(size)
        return gathered

    def _guarded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        before = _BEFORE.get(name)
        # Jinja passes the context or the environment first to functions that bear its mark.
        mark = getattr(function, "jinja_pass_arg", None)
        passed = 0 if mark is None else 1

        def guarded(*args: Any, **kwargs: Any) -> Any:
            first, rest = args[:passed], args[passed:]
            if before is not None:
                rest = before(self, rest, kwargs)
            for value in rest:
                if isinstance(value, (str, list, tuple, dict)) and weigh(value) > OUTPUT:
                    raise Stop(f"values of at most {OUTPUT} characters", f"a larger one for the filter {name}")
            return self._result(function(*first, *rest, **kwargs))

        if mark is not None:
            guarded.jinja_pass_arg = mark  # type: ignore[attr-defined]  # the mark
        return guarded


@pass_environment
def _finalize(environment: Sandbox, value: Any) -> Any:
    # Every `{{ ... }}` passes here; only containers cost a walk.
    return value if isinstance(value, str) else environment._text(value)


# ---- bounds of single filters, taken before they run -------------------------------------------------------

_Arguments = tuple[Any, ...]  # of a filter, the value first


def _before_join(sandbox: Sandbox, args: _Arguments, kwargs: dict[str, Any]) -> _Arguments:
    separator = args[1] if len(args) > 1 else kwargs.get("d", "")
    return (sandbox._gather(args[0], len(str(separator))), *args[1:])


def _before_replace(sandbox: Sandbox, args: _Arguments, kwargs: dict[str, Any]) -> _Arguments:
    given = dict(zip(("s", "old", "new", "count"), args, strict=False)) | kwargs
    text = sandbox._text(given["s"])
    sandbox.budget.take(replaced_length(text, given["old"], given["new"], given.get("count")))
    return args


def _before_text(sandbox: Sandbox, args: _Arguments, kwargs: dict[str, Any]) -> _Arguments:
    sandbox._text(args[0])
    return args


def _width(limit: int, position: int, keyword: str) -> Callable[[Sandbox, _Arguments, dict[str, Any]], _Arguments]:
    def before(sandbox: Sandbox, args: _Arguments, kwargs: dict[str, Any]) -> _Arguments:
        width = args[position] if len(args) > position else kwargs.get(keyword, 0)
        size = len(width) if isinstance(width, str) else abs(int(width or 0))
        if size > limit:
            raise Stop(f"{keyword} of at most {limit}", size)
        if keyword == "width" and isinstance(args[0], str):
            sandbox.budget.take(len(args[0]) + size * (1 + args[0].count("\n")))
        return args

    return before


_BEFORE: Mapping[str, Callable[[Sandbox, _Arguments, dict[str, Any]], _Arguments]] = {
    "join": _before_join,
    "replace": _before_replace,
    "indent": _width(1000, 1, "width"),
    "center": _width(10_000, 1, "width"),
    "batch": _width(100_000, 1, "linecount"),
    "slice": _width(100_000, 1, "slices"),
    "round": _width(100, 1, "precision"),
    "tojson": _width(16, 2, "indent"),
    "string": _before_text,
    "escape": _before_text,
    "e": _before_text,
}


def compiled(sandbox: Sandbox, source: str) -> jinja2.Template:
    """Return the template of a source, within `COMPILE_SECONDS`; raises `Stop` past a limit, and what Jinja
    raises."""
    sandbox.budget.start(COMPILE_SECONDS)
    with Tracer(sandbox.budget):
        code = sandbox.compile(source, name="chat template", filename=FILENAME)
    return sandbox.template_class.from_code(sandbox, code, dict(sandbox.globals))


def render(sandbox: Sandbox, template: jinja2.Template, variables: Mapping[str, Any]) -> str:
    """Return the text of a template, within `SECONDS`, `MESSAGE_SECONDS` more a message, and `OUTPUT`; raises `Stop`
    past a limit."""
    sandbox.budget.start(SECONDS + MESSAGE_SECONDS * len(variables.get("messages") or ()))
    with Tracer(sandbox.budget):
        return sandbox.concat(_parts(template, variables))


def _parts(template: jinja2.Template, variables: Mapping[str, Any]) -> Iterator[str]:
    # `Template.render` would catch and rewrite every exception, which reads source files.
    return template.root_render_func(template.new_context(dict(variables)))
