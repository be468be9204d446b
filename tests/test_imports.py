"""Imports inside the package point one way: the table below is the architecture, held against every file.

Every import counts: inside a function, under TYPE_CHECKING, relative, or import_module of a written-out name.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "lattice"
NATIVE = "lattice.backends.cpu.native"  # the native core, usable without the rest of the backend

# A name may import whatever it reaches along these arrows.
ARROWS = {
    "cli": ("studio",),
    "studio": ("serve",),
    "serve": ("tune",),
    "tune": ("quant", "models", "weights", "tokenizers"),
    "quant": ("embed", "generate", "fann", "models", "weights", "tokenizers"),
    "embed": ("lora", "models", "weights", "tokenizers", "vectors", "transport"),
    "generate": ("lora", "models", "weights", "tokenizers"),
    "fann": ("lora",),
    "lora": ("backends", "models", "weights", "tokenizers"),
    "backends": ("program", "files"),
    "program": ("ops",),
    "ops": ("step",),
    "step": ("dtypes",),
    "dtypes": ("errors",),
    "strict_json": ("errors",),
    "files": ("errors",),
    "models": ("nn",),
    "nn": ("ops",),
    "weights": ("dtypes", "strict_json", "files"),
    "tokenizers": ("strict_json", "files"),
    "vectors": ("errors",),
    "transport": ("errors",),
    "errors": (),
}
NEVER = {"models": {"backends", "dtypes"}, "nn": {"backends", "dtypes"}}  # whatever the arrows say
FACADE = {"cli", "studio", "serve"}  # may import the public names of `lattice` itself


def reach(name: str) -> set[str]:
    """Return every name that `name` may import, itself and the errors included."""
    found = {name, "errors"}.union(*(reach(arrow) for arrow in ARROWS[name]))
    return found - NEVER.get(name, set())


def imported(tree: ast.AST, package: list[str]) -> Iterator[str]:
    """Yield the dotted name of everything imported; `package` is what relative imports start from."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            yield from (".".join([*base, alias.name]) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
            if name in ("import_module", "__import__"):
                yield str(node.args[0].value)


def violations(path: Path, source: str) -> list[str]:
    """Return the imports in the source of `path` (relative to the package) that point the wrong way."""
    layer = path.parts[0].removesuffix(".py")
    if layer in ("__init__", "__main__"):
        return []
    if layer not in ARROWS:
        return [f"{path}: '{layer}' has no place in the table of arrows"]
    found = []
    for name in imported(ast.parse(source), ["lattice", *path.parts[:-1]]):
        parts = name.split(".")
        native = layer in ("vectors", "transport") and f"{name}.".startswith(f"{NATIVE}.")
        if parts[0] != "lattice" or native:
            continue
        target = parts[1] if len(parts) > 1 and parts[1] in ARROWS else "lattice"
        if target not in reach(layer) and not (target == "lattice" and layer in FACADE):
            found.append(f"{path}: {layer} must not import {name}")
    return found


def test_every_import_points_the_right_way():
    files = sorted(PACKAGE.rglob("*.py"))
    assert files
    found = [violations(path.relative_to(PACKAGE), path.read_text("utf-8")) for path in files]
    assert [line for lines in found for line in lines] == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("ops/linear.py", "from lattice.program import trace"),
        ("ops/linear.py", "import lattice.backends.cpu"),
        ("ops/linear.py", "from .. import program"),
        ("ops/linear.py", "def body():\n    from ..program.ir import Node"),
        ("models/bert.py", "from lattice.dtypes import F32"),
        ("nn/linear.py", "from lattice import backends"),
        ("embed/embedder.py", "from lattice.generate import engine"),
        ("weights/gguf.py", "import importlib\nimportlib.import_module('lattice.models')"),
        ("transport/sinkhorn.py", "from lattice.backends.cpu import plan"),
        ("transport/sinkhorn.py", "from lattice.vectors import distances"),
        ("errors.py", "import lattice.step"),
        ("tune/trainer.py", "from lattice import load"),
        ("extra/thing.py", "import numpy"),
    ],
)
def test_a_wrong_import_is_found(path, source):
    assert len(violations(Path(path), source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("ops/linear.py", "import numpy as np\nfrom ..dtypes import dense\nfrom ._op import op"),
        ("models/bert.py", "from lattice.nn import Linear\nfrom lattice.ops import linear"),
        ("embed/embedder.py", "from lattice import transport, weights\nfrom lattice.backends import cpu"),
        ("transport/sinkhorn.py", "from lattice.backends.cpu import native\nfrom ..errors import expected"),
        ("cli/chat.py", "import lattice\nfrom lattice import load"),
        ("__init__.py", "from lattice.generate import load"),
    ],
)
def test_a_right_import_passes(path, source):
    assert violations(Path(path), source) == []
