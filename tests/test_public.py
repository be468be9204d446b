"""The public names of `lattice`, pinned, and what no source does: run code from data, hide settings."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import lattice

PACKAGE = Path(__file__).parents[1] / "src" / "lattice"
PUBLIC = ("LatticeError", "LatticeWarning", "__version__", "load", "load_encoder", "quantize")

MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
CALLS = {"eval", "exec", "compile", "hasattr"}
ENVIRONMENT = {"environ", "environb", "getenv", "putenv"}
KEYWORDS = {"allow_pickle", "trust_remote_code"}
READS_ENVIRONMENT = {"weights/sources.py"}


def test_the_public_names_are_these():
    assert tuple(sorted(lattice.__all__)) == PUBLIC
    assert all(getattr(lattice, name) is not None for name in PUBLIC)


def forbidden(path: str, source: str) -> list[str]:
    """Return what the source of `path` (relative to the package) does that no file of the package may do."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
            if node.module == "os" and path not in READS_ENVIRONMENT:
                found += [f"{path}: os.{a.name}" for a in node.names if a.name in ENVIRONMENT]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS:
            found.append(f"{path}: {node.func.id}()")
        elif isinstance(node, ast.Attribute) and node.attr in ENVIRONMENT and path not in READS_ENVIRONMENT:
            found.append(f"{path}: os.{node.attr}")
        elif isinstance(node, ast.keyword) and node.arg in KEYWORDS and ast.unparse(node.value) != "False":
            found.append(f"{path}: {node.arg}")
        found += [f"{path}: import {name}" for name in names if name.split(".")[0] in MODULES]
    return found


def test_no_code_is_run_from_data_and_no_setting_is_hidden():
    files = sorted(PACKAGE.rglob("*.py"))
    assert files
    relative = [path.relative_to(PACKAGE).as_posix() for path in files]
    sources = [path.read_text("utf-8") for path in files]
    assert [line for pair in zip(relative, sources, strict=True) for line in forbidden(*pair)] == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import os, marshal as m",
        "def load():\n    from pickle import loads",
        "eval('1')",
        "exec(text)",
        "hasattr(model, 'bias')",
        "numpy.load(path, allow_pickle=True)",
        "import os\nos.environ['HOME']",
        "from os import getenv",
    ],
)
def test_a_breach_is_found(source):
    assert len(forbidden("ops/basic.py", source)) == 1


def test_what_only_looks_like_a_breach_passes():
    source = "re.compile('a')\nbackend.compile(program)\nnumpy.load(path, allow_pickle=False)\n"
    assert forbidden("ops/basic.py", source) == []
    assert forbidden("weights/sources.py", "import os\nos.environ.get('LATTICE_HOME')") == []
