"""The examples run as they stand, and say what they are meant to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SAYS = {
    "demo.py": ["sleep", "tokens/s", "384 numbers"],
    "embed.py": ["3 texts, 384 dimensions", "1.00"],
    "search.py": ["Bees tell each other"],
    "chat.py": ["Ada", "prompt tokens were new"],
}
pytestmark = pytest.mark.real


def test_every_example_is_listed():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SAYS)


@pytest.mark.parametrize("name", SAYS)
def test_an_example_runs(name):
    done = subprocess.run([sys.executable, EXAMPLES / name], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(text in done.stdout for text in SAYS[name]), done.stdout


def test_search_finds_the_line_first(tmp_path):
    (tmp_path / "lines").write_text("Paris is in France.\nIron rusts in water.\n", "utf-8")
    command = [sys.executable, EXAMPLES / "search.py", "Why does metal corrode?", tmp_path / "lines"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[0].endswith("Iron rusts in water.")
