"""Check what libraries of the native core export: the functions of abi.h and nothing else.

    python tools/exports.py OBJDUMP LIBRARY...

`objdump` must know the libraries' format; ELF (.so) and Windows (.dll) are read.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ABI = Path(__file__).resolve().parents[1] / "src/lattice/backends/cpu/src/abi.h"


def declared() -> set[str]:
    """Return the functions that abi.h declares."""
    return set(re.findall(r"^LATTICE_API .*?\b(lattice_\w+)\(", ABI.read_text(encoding="utf-8"), re.MULTILINE))


def exported(objdump: str, library: Path) -> set[str]:
    """Return the names that a library offers to others."""
    windows = library.suffix == ".dll"
    command = [objdump, "-p" if windows else "-T", str(library)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if windows:
        _, _, table = text.partition("[Ordinal/Name Pointer] Table")
        return set(re.findall(r"^\s*\[\s*\d+\](?: \+base\[\s*\d+\]\s+[0-9a-f]+)? (\S+)$", table, re.MULTILINE))
    lines = [line.split() for line in text.splitlines() if re.match(r"[0-9a-f]{8,} ", line)]
    return {line[-1] for line in lines if "*UND*" not in line and not line[-1].startswith(".")}  # .init: a section


def main(objdump: str, libraries: list[Path]) -> int:
    """Compare; the exit code is 1 where a library offers more or less."""
    wanted, wrong = declared(), 0
    for library in libraries:
        found = exported(objdump, library)
        for problem, names in (("lacks", wanted - found), ("also exports", found - wanted)):
            if names:
                wrong = 1
                print(f"error: {library} {problem} {', '.join(sorted(names))}", file=sys.stderr)
    return wrong or not libraries


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], [Path(name) for name in sys.argv[2:]]))
