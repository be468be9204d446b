"""What `auto` is here: the graphics card where it was measured to be faster than the processor, else the processor.

The measurement (wgpu/worth.py, about a second) is made once and remembered in `home/device.json`, with all that its
result follows from: the card, its driver, through what it is reached, this library's version, the processor's target.
A machine without any sign of a card is not asked for one, since asking takes longer than loading a small model.
Whatever goes wrong, with the card, its driver or the file, means the processor, and `lattice doctor` says why. A driver
that ends the process does so once: before a card is tried it is noted as lost.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import platform
from typing import Any

from lattice.backends.cpu import CpuBackend, best_target
from lattice.files import replacing

FILE = "device.json"
NODES = ("dri/renderD*", "nvidia[0-9]*", "dxg")  # of cards, under /dev
DRIVERS = ("/usr/share/vulkan/icd.d", "/usr/local/share/vulkan/icd.d", "/etc/vulkan/icd.d")
LOSERS = 30 * 86400  # seconds after which a card that lost is tried again: drivers get better
UNFINISHED = 86400  # and one whose measurement did not end
FASTER = 1.25  # times the processor's speed is worth a copy of the weights and the shaders' compilation


@dataclass(frozen=True)
class Choice:
    """Whether `auto` is the card, why, and what that follows from. `seconds` are of the card and the processor."""

    gpu: bool
    reason: str
    asked: dict[str, Any] = field(default_factory=dict)
    adapter: dict[str, str] = field(default_factory=dict)
    seconds: tuple[float, ...] = ()
    until: float = 0.0  # the time at which it is asked again; a card that won is asked for with every start


def signs(root: Path = Path("/")) -> list[str]:
    """Return what tells that there may be a card, and changes with it and its driver; nothing where there is none."""
    if sys.platform != "linux":
        return [platform()]
    found = sorted(str(node) for pattern in NODES for node in (root / "dev").glob(pattern))
    if not found:
        return []
    drivers = [file for folder in DRIVERS for file in sorted((root / folder[1:]).glob("*.json"))]
    return [*found, *(f"{file} {int(file.stat().st_mtime)}" for file in drivers), *_nvidia(root)]


def _nvidia(root: Path) -> list[str]:
    try:
        return (root / "proc/driver/nvidia/version").read_text("utf-8", "replace").splitlines()[:1]
    except OSError:
        return []


def choose(home: Path | None) -> Choice:
    """Return what `auto` is, remembered in the directory `home`; the processor where nothing can be remembered."""
    try:
        here = signs()
        if not here:
            return Choice(False, "there is no graphics card")
        if home is None:
            return Choice(False, "there is no place to remember a measurement in")
        asked = {"signs": here, "version": _version(), "target": best_target()}
        known = _read(home / FILE)
        if known is not None and known.asked == asked and _holds(known):
            return known
        return _try(home / FILE, asked)
    except Exception as error:  # whatever it is: nobody asked for the card
        return Choice(False, _said(error))


def _holds(known: Choice) -> bool:
    """Return whether a remembered choice still holds: a card that won must be the one that is there."""
    if not known.gpu:
        return time.time() < known.until
    from lattice.backends.wgpu import identity, open_device

    return identity(open_device()) == known.adapter


def _try(file: Path, asked: dict[str, Any]) -> Choice:
    """Measure the card beside the processor, and remember the outcome."""
    now = time.time()
    _write(file, Choice(False, "the last measurement of the card did not end", asked, until=now + UNFINISHED))
    try:
        choice = _measured(asked)
    except Exception as error:
        choice = Choice(False, _said(error), asked)
    except BaseException:  # Ctrl-C says nothing about the card
        file.unlink(missing_ok=True)
        raise
    choice = Choice(**{**vars(choice), "until": now + LOSERS})
    _write(file, choice)
    return choice


def _measured(asked: dict[str, Any]) -> Choice:
    from lattice.backends.wgpu import WgpuBackend, identity, open_device
    from lattice.backends.wgpu.worth import MEGABYTES, step_seconds

    device = open_device()
    card, processor = (step_seconds(backend) for backend in (WgpuBackend(device), CpuBackend()))
    name = device.info["device"]
    times = f"{1e3 * card:.1f} ms a step of {MEGABYTES} MB, the processor {1e3 * processor:.1f} ms"
    return Choice(card * FASTER <= processor, f"{name}: {times}", asked, identity(device), (card, processor))


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _version() -> str:
    try:
        return version("lattice-engine")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"


def _read(file: Path) -> Choice | None:
    """Return the remembered choice; None where there is none, or what is there was not written by this version."""
    try:
        data = json.loads(file.read_text("utf-8"))
        return Choice(**data | {"seconds": tuple(data["seconds"]), "until": float(data["until"])})
    except (OSError, ValueError, TypeError, LookupError):
        return None


def _write(file: Path, choice: Choice) -> None:
    """Replace the file whole; what cannot be written is an error."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as beside:
        beside.write(json.dumps(asdict(choice)).encode())
