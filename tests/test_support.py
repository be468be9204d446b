"""docs/support.md says what the code says."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_page_is_up_to_date():
    made = runpy.run_path(str(ROOT / "tools" / "support.py"))["page"]()
    assert (ROOT / "docs" / "support.md").read_text("utf-8") == made, "run python tools/support.py"
