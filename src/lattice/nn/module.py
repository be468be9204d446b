"""Modules: parameters and the functions over them. A module is a plain object; its attribute paths are the names of its
parameters, which equal the checkpoint's tensor names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lattice.errors import expected
from lattice.ops import Parameter


class Module:
    """Base of all blocks and models: something with parameters that can be called with arrays or symbols."""

    def parameters(self) -> dict[str, Parameter]:
        """Return the parameters by name; one that is shared (a tied head) appears once, under its first name."""
        found: dict[str, Parameter] = {}
        seen: set[int] = set()
        for name, parameter in _walk(self, ""):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                parameter.name = name
                found[name] = parameter
        return found

    def bind(self, weights: Mapping[str, Any]) -> None:
        """Give every parameter its value, for eager calls with arrays."""
        for name, parameter in self.parameters().items():
            if name not in weights:
                raise expected("bind", f"a weight {name}", "none")
            parameter.value = weights[name]


class Block(Module):
    """A named group without a function of its own, for checkpoints that nest deeper than the computation."""

    def __init__(self, /, **parts: Module | Parameter | list):
        vars(self).update(parts)

    def __getitem__(self, name: str) -> Any:
        return vars(self)[name]


def _walk(value: object, prefix: str) -> Iterator[tuple[str, Parameter]]:
    if isinstance(value, Parameter):
        yield prefix, value
    elif isinstance(value, Module):
        for name, child in vars(value).items():
            yield from _walk(child, f"{prefix}.{name}" if prefix else name)
    elif isinstance(value, list | tuple):
        for index, child in enumerate(value):
            yield from _walk(child, f"{prefix}.{index}")
