"""What this process may use of the machine: processors, memory, and graphics adapters.

A container's limits count, not what the machine has: control groups (both versions, the smallest limit on the way
from the process's own group to the root) and the processors that the process may run on.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

UNLIMITED = 1 << 60  # what version 1 calls no limit is a little less than 2^63
ADAPTERS = """
import json, wgpu
kinds = ("device", "vendor", "adapter_type", "backend_type")
found = [{kind: str(adapter.info.get(kind, "")) for kind in kinds} for adapter in wgpu.gpu.enumerate_adapters_sync()]
print(json.dumps({"version": wgpu.__version__, "adapters": found}))
"""
PATIENCE = 30  # seconds for the drivers of all adapters


def processor() -> str:
    """Return the name of the processor."""
    for line in _lines(Path("/proc/cpuinfo")):
        if line.startswith("model name"):
            return re.sub(r"\s+", " ", line.partition(":")[2]).strip()
    return platform.processor() or platform.machine()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8", "replace").splitlines()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].strip().lstrip("-").isdigit() else None


def cores(root: Path = Path("/")) -> dict[str, Any]:
    """Return the logical and physical cores that the process may run on, and the cores' worth of time it is granted."""
    usable = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else list(range(os.cpu_count() or 1))
    places = []
    for cpu in usable:
        topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        places.append((_number(topology / "physical_package_id"), _number(topology / "core_id")))
    known = all(core is not None for _, core in places)
    return {
        "logical": len(usable),
        "physical": len(set(places)) if known else None,
        "machine": os.cpu_count() or 1,
        "quota": _quota(root),
    }


def _groups(root: Path, controller: str) -> list[Path]:
    """Return the directories of the process's control group and those above it, version 2 or 1."""
    for line in _lines(root / "proc/self/cgroup"):
        _, names, own = line.split(":", 2)
        if names == "" and controller in " ".join(_lines(root / "sys/fs/cgroup/cgroup.controllers")).split():
            base = root / "sys/fs/cgroup"
        elif controller in names.split(","):
            base = root / "sys/fs/cgroup" / controller
        else:
            continue
        group = base / own.strip("/")
        return [group, *(parent for parent in group.parents if parent.is_relative_to(base))] if own != "/" else [base]
    return []


def _quota(root: Path) -> float | None:
    """Return how many cores' time the control groups grant, None where they set no limit."""
    quotas = []
    for group in _groups(root, "cpu"):
        given = " ".join(_lines(group / "cpu.max")).split()
        if not given:
            given = [str(_number(group / f"cpu.cfs_{name}_us")) for name in ("quota", "period")]
        if len(given) == 2 and given[0].isdigit() and given[1].isdigit() and int(given[1]):
            quotas.append(int(given[0]) / int(given[1]))
    return min(quotas, default=None)


class Others:
    """How much of the cores other processes use, from the time it is made. Linux says; elsewhere it is unknown."""

    def __init__(self, root: Path = Path("/")):
        self.root = root
        self.start, self.own, self.busy = perf_counter(), process_time(), _busy(root)

    def cores(self) -> float | None:
        """Return how many cores' time others have used since, of those that this process may use; None is unknown.

        The system counts in hundredths of a second for each core, so as much is taken off: short times find nothing.
        """
        seconds, busy = perf_counter() - self.start, _busy(self.root)
        if busy is None or self.busy is None:
            return None
        theirs = busy[0] - self.busy[0] - (process_time() - self.own) - 0.01 * busy[1]
        return max(0.0, theirs / max(seconds, 1e-9))


def _busy(root: Path) -> tuple[float, int] | None:
    """Return the seconds that the usable cores have worked for anybody since the start, and how many those are."""
    usable = {f"cpu{core}" for core in os.sched_getaffinity(0)} if sys.platform == "linux" else set()
    rows = [line.split() for line in _lines(root / "proc/stat") if line.split(" ")[0] in usable]
    # user, nice, system, idle, iowait, irq, softirq; what a host takes (steal) is no process of this machine
    ticks = sum(int(row[place]) for row in rows for place in (1, 2, 3, 6, 7))
    return (ticks / os.sysconf("SC_CLK_TCK"), len(rows)) if rows else None


def memory(root: Path = Path("/")) -> dict[str, int | None]:
    """Return bytes of memory: total, available now, and the limit of the control groups; None is unknown or none."""
    sizes = {}
    for line in _lines(root / "proc/meminfo"):
        name, _, rest = line.partition(":")
        sizes[name] = int(rest.split()[0]) * 1024 if rest.split() else 0
    total, available = sizes.get("MemTotal") or _physical(), sizes.get("MemAvailable")
    limit = None
    for group in _groups(root, "memory"):
        allowed = _number(group / "memory.max") or _number(group / "memory.limit_in_bytes")
        if allowed is None or allowed >= UNLIMITED:
            continue
        limit = min(limit or allowed, allowed)
        used = _number(group / "memory.current") or _number(group / "memory.usage_in_bytes") or 0
        cached = [line.split()[1] for line in _lines(group / "memory.stat") if line.startswith("inactive_file ")]
        free = max(allowed - used + int(cached[0] if cached else 0), 0)
        available = free if available is None else min(available, free)
    return {"total": total, "available": available, "limit": limit}


def _physical() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def adapters() -> dict[str, Any]:
    """Return the version of wgpu, None where it is not installed, the adapters that it finds, and what went wrong.

    A process of its own asks: a driver that crashes or hangs takes nobody along.
    """
    report: dict[str, Any] = {"wgpu": None, "adapters": [], "error": None}
    if importlib.util.find_spec("wgpu") is None:
        return report
    try:
        command = [sys.executable, "-c", ADAPTERS]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, stdin=subprocess.DEVNULL)
        said = json.loads(done.stdout.splitlines()[-1])
        return report | {"wgpu": said["version"], "adapters": said["adapters"]}
    except subprocess.TimeoutExpired:
        reason = f"no answer of the drivers in {PATIENCE} s"
    except (OSError, ValueError, LookupError, TypeError):
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:300]
    return report | {"wgpu": "installed", "error": reason}
