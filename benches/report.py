"""What every bench prints: where it ran, medians and spread; JSON lines on stdout, a table on stderr."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import lattice

PACKAGES = (
    "numpy",
    "tokenizers",
    "onnxruntime",
    "onnx",
    "torch",
    "transformers",
    "sentence-transformers",
    "llama-cpp-python",
)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _processor() -> str:
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return platform.processor()
    fields = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    named = {key.strip(): value.strip() for key, value in fields.items()}
    family = f"family {named.get('cpu family', '?')} model {named.get('model', '?')}"
    vector = [
        flag
        for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8")
        if flag in named.get("flags", "").split()
    ]
    return f"{named.get('model name', platform.machine())} ({family}; {' '.join(vector) or 'no wide vectors'})"


def _commit() -> str:
    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    return (git("rev-parse", "--short", "HEAD") or "no commit") + (
        " and changes" if git("status", "--porcelain") else ""
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def machine() -> dict:
    """The machine, how busy it is, the versions and the commit."""
    versions = {"lattice": lattice.__version__}
    versions |= {package: found for package in PACKAGES if (found := _version(package))}
    load = [round(value, 2) for value in os.getloadavg()] if sys.platform != "win32" else None
    return {
        "machine": _processor(),
        "cores": cores(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": _commit(),
        "load": load,
        "command": " ".join(sys.argv),
    }


def spread(values: list[float]) -> dict[str, float | int | None]:
    """Median, extremes and count; None where no round was kept."""
    if not values:
        return {"median": None, "low": None, "high": None, "rounds": 0}
    return {
        "median": statistics.median(values),
        "low": min(values),
        "high": max(values),
        "rounds": len(values),
    }


def emit(**record: object) -> None:
    """One JSON object on a line of stdout."""
    print(json.dumps(record), flush=True)


def say(text: str = "") -> None:
    """A line for people, on stderr."""
    print(text, file=sys.stderr, flush=True)


def heading() -> None:
    """Print where this runs, for people and as JSON."""
    about = machine()
    emit(kind="machine", **about)
    say(f"{about['machine']}, {about['cores']} cores, load {about['load']}, commit {about['commit']}")
    say(", ".join(f"{name} {number}" for name, number in about["versions"].items()))


def row(name: str, values: list[float], unit: str, note: str = "", digits: int = 1) -> None:
    """One line of the table and its JSON: the median, then the extremes."""
    found = spread(values)
    emit(kind="result", name=name, unit=unit, note=note, **found)
    if not values:
        say(f"{name:44}{'none':>10} {unit:9} no round was kept  {note}".rstrip())
        return
    low, middle, high = (f"{found[key]:,.{digits}f}" for key in ("low", "median", "high"))
    say(f"{name:44}{middle:>10} {unit:9} {low} to {high}, {found['rounds']} rounds  {note}".rstrip())
