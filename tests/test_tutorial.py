"""docs/tutorial.md is a program: its blocks run in order in one namespace and print what the page says."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> list[tuple[str, str, int]]:
    """Return (kind, text, line) of every fenced block."""
    return [(m[1], m[2], page.count("\n", 0, m.start()) + 2) for m in BLOCK.finditer(page)]


def run(source: str, line: int, namespace: dict) -> str:
    """Run one block and return what it printed; tracebacks show the page's own lines."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile("\n" * (line - 1) + source, str(PAGE), "exec"), namespace)
    return printed.getvalue()


@pytest.mark.real
def test_the_tutorial_prints_what_it_says():
    found = blocks(PAGE.read_text("utf-8"))
    assert [kind for kind, _, _ in found] == ["python", "text"] * (len(found) // 2)
    namespace: dict = {}
    for (_, source, line), (_, wanted, _) in zip(found[::2], found[1::2], strict=True):
        assert run(source, line, namespace) == wanted, f"block at line {line}"
