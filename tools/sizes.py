"""Print the lines of every source file and the sums against the budgets of the house.

A file of more than 600 lines is an error (400 is a full one). A sum over its budget is marked: the budgets
say when to look for what could be shared or dropped, not when to stop. Blank lines and comments count too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("src", "tests", "tools", "benches", "examples")
SUFFIXES = (".py", ".h", ".cpp", ".wgsl")
FULL, LIMIT = 400, 600
CORE = ("ops", "program", "backends", "nn", "models")
BUDGETS = {"core Python": 6000, "C++": 5000, "WGSL": 3000, "other Python": 14000}


def sources(root: Path) -> Iterator[tuple[str, int]]:
    """Yield the path, relative to `root`, and the number of lines of every source file."""
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in SUFFIXES and path.is_file():
                yield path.relative_to(root).as_posix(), len(path.read_text(encoding="utf-8").splitlines())


def group(path: str) -> str:
    """Return the budget that a file counts against, or the folder of one that has none."""
    if not path.startswith("src/lattice/"):
        return path.split("/")[0]
    if path.endswith((".h", ".cpp")):
        return "C++"
    if path.endswith(".wgsl"):
        return "WGSL"
    return "core Python" if path.split("/")[2] in CORE else "other Python"


def main(root: Path = ROOT) -> int:
    """Print the table; the exit code is 1 when a file is too long."""
    sums = dict.fromkeys(BUDGETS, 0)
    too_long = []
    for path, lines in sources(root):
        sums[group(path)] = sums.get(group(path), 0) + lines
        mark = ""
        if lines > LIMIT:
            mark = f"  more than {LIMIT}"
            too_long.append(path)
        elif lines > FULL:
            mark = "  full"
        print(f"{lines:6}  {path}{mark}")
    print()
    for name, lines in sums.items():
        budget = BUDGETS.get(name)
        over = "  OVER" if budget is not None and lines > budget else ""
        print(f"{lines:6}  {name}" + (f" of {budget}{over}" if budget is not None else ""))
    for path in too_long:
        print(f"error: {path} has more than {LIMIT} lines", file=sys.stderr)
    return 1 if too_long else 0


if __name__ == "__main__":
    sys.exit(main())
