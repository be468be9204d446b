"""Check the wheel in a folder: one file for every Python of this platform, with all that users need in it.

The scalar library is opened, and the one that it calls the best for this processor; the others would run
initialisers that this processor may not know.
"""

from __future__ import annotations

import ctypes
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NATIVE = "lattice/backends/cpu/"
LIBRARIES = (".so", ".dylib", ".dll")
SOURCES = (".cpp", ".h", ".a")


def problems(wheel: Path) -> list[str]:
    """Return what is wrong with the wheel, one sentence each."""
    found = []
    tags = wheel.stem.split("-", 2)[2]
    if not tags.startswith("py3-none-") or tags.endswith("-any"):
        found.append(f"its tags are {tags}, expected py3-none-<platform>")
    package = ROOT / "src" / "lattice"
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as folder:
        names = set(archive.namelist())
        for path in package.rglob("*"):
            name = "lattice/" + path.relative_to(package).as_posix()
            if path.suffix in (".py", ".wgsl", ".typed", ".txt") and name not in names:
                found.append(f"{name} is missing")
        found += [f"{name} is not for users" for name in sorted(names) if name.endswith(SOURCES)]
        if any(package.glob("backends/cpu/**/*.cpp")):
            found += libraries(archive, Path(folder))
    return found


def libraries(archive: zipfile.ZipFile, folder: Path) -> list[str]:
    """Return what is wrong with the libraries in the wheel."""
    files = {
        name.removeprefix(NATIVE + "liblattice_").split(".")[0]: name
        for name in archive.namelist()
        if name.startswith(NATIVE) and name.endswith(LIBRARIES)
    }
    opened: list[str] = []
    best = "scalar"
    while best not in opened:
        if best not in files:
            return [f"there is no library for {best}, only for {sorted(files)}"]
        library = ctypes.CDLL(archive.extract(files[best], folder))
        library.lattice_target.restype = library.lattice_runnable_targets.restype = ctypes.c_char_p
        if library.lattice_target().decode() != best:
            return [f"{files[best]} says that it is for {library.lattice_target().decode()}"]
        opened.append(best)
        if best == "scalar":
            best = library.lattice_runnable_targets().decode().split()[-1]
    return []


def main(folder: Path) -> int:
    """Check the only wheel in `folder`; the exit code is 1 when something is wrong."""
    wheels = sorted(folder.glob("*.whl"))
    found = problems(wheels[0]) if len(wheels) == 1 else [f"expected one wheel, got {len(wheels)}"]
    for problem in found:
        print(f"error: {problem}", file=sys.stderr)
    if not found:
        print(f"{wheels[0].name}: {wheels[0].stat().st_size / 1e6:.2f} MB")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
