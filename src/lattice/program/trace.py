"""Tracing: run a plain function over symbols once, and keep what it did."""

from __future__ import annotations

from collections.abc import Callable

from lattice.ops import Symbol
from lattice.program.ir import Program


def trace(build: Callable[[Program], dict[str, Symbol]]) -> Program:
    """Return the program of `build`, which declares its inputs on the program and returns the named outputs.

    >>> from lattice.ops import add
    >>> def double(program):
    ...     x = program.input("x", "T", 4)
    ...     return {"y": add(x, x)}
    >>> print(trace(double))
    input   x   (T, 4)
    %0 (T, 4) = add(x, x)
    return y=%0
    """
    program = Program()
    program.outputs = dict(build(program))
    return program
