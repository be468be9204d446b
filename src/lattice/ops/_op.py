"""How an op is declared, and what happens when one is called.

An op is one block in one file: the NumPy body *is* the reference; below it stand its shape rule, its gradient, its
samples for the tests and its cost. Called with arrays an op runs at once; called with symbols it is recorded into the
program the symbols belong to. Positional parameters are inputs, keyword-only parameters are attributes.

    @op
    def scale(x, *, factor): return x * factor

    @scale.shape                       # of shapes, one tuple in, one tuple (or a list of tuples) out
    def _(x, *, factor): return x

    @scale.vjp                         # written in ops; yields only what `needs` names
    def _(needs, dy, x, *, factor): yield "x", scale(dy, factor=factor)

    @scale.samples
    def _(draw): yield draw.sample(draw.rows(3, 8), factor=2.0)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from lattice.dtypes import Array
from lattice.errors import LatticeError, expected
from lattice.step import Sampling, Step

Shape = tuple[Any, ...]  # of ints, led by an int or the name of a count ("T", "R", "S", "S+1")
REGISTRY: dict[str, Op] = {}


@dataclass(eq=False)
class Symbol:
    """A value of a program under construction: shape and dtype, no data."""

    shape: Shape
    dtype: str  # "f32", "i32", ...; "weight": whatever its checkpoint holds
    name: str
    kind: str  # "value" (made by a node) or an input: "step" "sampling" "weight" "state" "input" "constant"
    program: Any
    replaced: str | None = field(default=None, repr=False)  # the op that wrote a newer version of this state

    def __bool__(self) -> bool:
        raise LatticeError(
            "[trace] expected no branch on data, got one\nhint: make the condition an attribute or an input"
        )


@dataclass(eq=False)
class Parameter:
    """A weight of a model: its shape, and, for eager use, its value. `name` is set by the module tree."""

    shape: tuple[int, ...]
    name: str = ""
    value: Array | np.ndarray | None = None


class Mismatch(Exception):
    """Raised by shape rules through `expect`; becomes an error that names the op."""


def expect(condition: bool, wanted: object, got: object) -> None:
    """State what a shape rule demands of its inputs."""
    if not condition:
        raise Mismatch(wanted, got)


class Op:
    """A declared operation; see the module's docstring."""

    def __init__(self, body: Callable, writes: tuple[str, ...] = (), dtype: str | tuple[str, ...] = "f32"):
        self.body, self.name, self.writes, self.dtype = body, body.__name__, writes, dtype
        self.__doc__ = body.__doc__
        self.__name__, self.__module__ = body.__name__, body.__module__
        self.__wrapped__ = body  # so that doctest and inspect find the source
        parameters = inspect.signature(body).parameters.values()
        self.inputs = tuple(p.name for p in parameters if p.kind == p.POSITIONAL_OR_KEYWORD)
        self.optional = {p.name for p in parameters if p.default is None}
        self.attributes = {p.name: p.default for p in parameters if p.kind == p.KEYWORD_ONLY}
        self.rules: dict[str, Callable] = {}
        if self.name in REGISTRY:
            raise ValueError(f"op {self.name} is declared twice")
        REGISTRY[self.name] = self

    def shape(self, rule: Callable) -> None:
        """Declare the shape rule: shapes of the inputs in, shape of the output (or a list of them) out."""
        self.rules["shape"] = rule

    def vjp(self, rule: Callable) -> None:
        """Declare the gradient: (needs, dy, *inputs, **attributes) -> pairs (input name, its gradient)."""
        self.rules["vjp"] = rule

    def samples(self, rule: Callable) -> None:
        """Declare inputs for the tests: (draw) -> Samples."""
        self.rules["samples"] = rule

    def flops(self, rule: Callable) -> None:
        """Declare the floating-point operations from concrete shapes, for costs and % of roofline."""
        self.rules["flops"] = rule

    def __call__(self, *args: Any, **attributes: Any) -> Any:
        args, attributes = self.bind(args, attributes)
        program = next((p for p in map(_program_of, args) if p is not None), None)
        if program is not None:
            return program.record(self, args, attributes)
        args = tuple(_value(a, self.name) for a in args)
        self.infer([_shape(a) for a in args], attributes)
        return self.body(*args, **attributes)

    def bind(self, args: tuple, attributes: dict) -> tuple[tuple, dict]:
        """Return all inputs and attributes, defaults filled in, in declaration order."""
        if len(args) < len(self.inputs):
            missing = [name for name in self.inputs[len(args) :] if name not in self.optional]
            if missing:
                raise TypeError(f"{self.name}() lacks {', '.join(missing)}")
            args = args + (None,) * (len(self.inputs) - len(args))
        unknown = set(attributes) - set(self.attributes)
        if len(args) > len(self.inputs) or unknown:
            raise TypeError(f"{self.name}() takes inputs {self.inputs} and attributes {tuple(self.attributes)}")
        bound = {name: attributes.get(name, default) for name, default in self.attributes.items()}
        lacking = [name for name, value in bound.items() if value is inspect.Parameter.empty]
        if lacking:
            raise TypeError(f"{self.name}() lacks attribute {', '.join(lacking)}")
        return args, bound

    def infer(self, shapes: list, attributes: dict) -> list[Shape]:
        """Return the shapes of the outputs, or raise what the shape rule demands."""
        try:
            shape = self.rules["shape"](*shapes, **attributes)
        except Mismatch as mismatch:
            raise expected(self.name, *mismatch.args) from None
        return shape if isinstance(shape, list) else [shape]


def op(body: Callable | None = None, *, writes: tuple[str, ...] = (), dtype: str | tuple[str, ...] = "f32") -> Any:
    """Declare an op. `writes` names the inputs whose storage the outputs share, in order; `dtype` is that of all
    outputs, or one for each."""
    if body is None:
        return lambda function: Op(function, writes, dtype)
    return Op(body, writes, dtype)


def _program_of(argument: Any) -> Any:
    if isinstance(argument, Symbol):
        return argument.program
    if isinstance(argument, Step | Sampling):
        return _program_of(getattr(argument, fields(argument)[0].name))
    return None


def _value(argument: Any, where: str) -> Any:
    if isinstance(argument, Parameter):
        if argument.value is None:
            raise expected(where, f"a loaded weight {argument.name or 'parameter'}", "one without a value")
        return argument.value
    return argument


def _shape(argument: Any) -> Any:
    """Shape of an argument as shape rules see it: None stays None, a Step becomes a Step of shapes."""
    if argument is None:
        return None
    if isinstance(argument, Step | Sampling):
        return replace(argument, **{f.name: _shape(getattr(argument, f.name)) for f in fields(argument)})
    return tuple(argument.shape)


shape_of = _shape


@dataclass(frozen=True)
class Drawn:
    """One input of a sample: how it enters a program, its value, and the count that leads its shape."""

    kind: str  # "input", "weight", "state" or "step"
    value: Any
    count: str | None = None


@dataclass(frozen=True)
class Sample:
    """Inputs and attributes of one test case of an op."""

    args: tuple[Drawn | None, ...]
    attributes: dict[str, Any]


class Draw:
    """Draws the random inputs of samples, and says how each of them enters a program."""

    def __init__(self, seed: int = 0):
        self.random = np.random.default_rng(seed)

    def sample(self, *args: Any, **attributes: Any) -> Sample:
        """Return a test case; a Step or None may stand among the inputs as it is."""
        wrapped = tuple(Drawn("step", a) if isinstance(a, Step | Sampling) else a for a in args)
        return Sample(wrapped, attributes)

    def rows(self, rows: int, *shape: int, count: str = "T") -> Drawn:
        """Return normal float32 values with `rows` rows that follow `count`."""
        return Drawn("input", self.random.normal(size=(rows, *shape)).astype(np.float32), count)

    def ids(self, rows: int, limit: int, count: str = "T") -> Drawn:
        """Return int32 values below `limit`."""
        return Drawn("input", self.random.integers(0, limit, rows).astype(np.int32), count)

    def weight(self, *shape: int, offset: float = 0.0) -> Drawn:
        """Return a float32 weight."""
        return Drawn("weight", (self.random.normal(size=shape) + offset).astype(np.float32))

    def state(self, *shape: int, dtype: type = np.float32) -> Drawn:
        """Return a state buffer of normal values."""
        return Drawn("state", self.random.normal(size=shape).astype(dtype))

    def lengths(self) -> Iterator[tuple[int, ...]]:
        """Yield sequence lengths of steps: one token, ragged, across a page."""
        yield from ((1,), (3, 1, 5), (70,), (64, 66))
