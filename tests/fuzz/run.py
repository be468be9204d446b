"""Fuzz the parsers of files from outside: `python tests/fuzz/run.py --inputs 100000 [TARGET ...]`.

Each input must end in a result or a LatticeError. Anything else is a failure: another exception, a crash of the
process, no progress for a minute, 1000 inputs whose mean time is over 20 ms (of the process, not of the
clock), or one input for which the process grew by `GROWTH`. Inputs run in child processes with little memory; a
failure is saved under build/fuzz with its number, and `--replay TARGET NUMBER` runs one again.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gc
import json
import mmap
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

BATCH = 1000
MEMORY = 2 << 30  # address space of a child
GROWTH = 96 << 20  # bytes that one input may add to the process's largest size
MOST_FAILURES = 20
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Limits:
    """What an input may take, and where the targets and the inputs that fail are."""

    hang: float = 60.0  # seconds without progress, by the clock
    mean: float = 0.02  # seconds an input, over a batch, of the process
    keep: Path = Path("build/fuzz")
    targets: Path = HERE


@dataclass
class Outcome:
    """What a run of one target found."""

    target: str
    inputs: int = 0
    accepted: int = 0
    seconds: float = 0.0
    failures: list[dict] = field(default_factory=list)


# ---- the child --------------------------------------------------------------------------------------------------


def _resident() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _child(name: str, first: int, last: int, mean: float, progress_file: Path, result_file: Path) -> None:
    from targets import TARGETS, made

    from lattice.errors import LatticeError

    warnings.simplefilter("ignore")
    progress = mmap.mmap(os.open(progress_file, os.O_RDWR), 8)
    target = TARGETS[name]
    accepted, failures = 0, []
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        directory = Path(folder)
        with contextlib.suppress(LatticeError):
            target.run(made(name, first), directory)  # imports what is imported late
        if sys.platform != "darwin":  # which refuses the limit
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        largest, began, batch = _resident(), time.process_time(), first
        for number in range(first, last):
            progress[:8] = number.to_bytes(8, "little")
            data = made(name, number)
            fault = ""
            try:
                target.run(data, directory)
                accepted += 1
            except LatticeError:
                pass
            except KeyboardInterrupt:
                raise
            except BaseException:
                fault = traceback.format_exc()
            grown = _resident()
            if grown > largest:
                if grown - largest > GROWTH:
                    fault = fault or f"the process grew by {(grown - largest) >> 20} MiB"
                largest = grown
            if number + 1 - batch == BATCH or number + 1 == last:
                spent = time.process_time() - began
                if spent > mean * (number + 1 - batch) + 1.0:
                    fault = fault or f"inputs {batch} to {number} took {spent:.1f} s"
                began, batch = time.process_time(), number + 1
                gc.collect()
            if fault:
                failures.append({"number": number, "fault": fault})
                if len(failures) >= MOST_FAILURES:
                    break
    result_file.write_text(json.dumps({"accepted": accepted, "failures": failures}))


# ---- the parent -------------------------------------------------------------------------------------------------


def _watch(name: str, first: int, last: int, limits: Limits) -> tuple[int, int, list[dict], bool]:
    """Run one child; return the number after the last input tried, the accepted, failures, and whether to stop."""
    with tempfile.TemporaryDirectory() as folder:
        progress_file, result_file, log = (Path(folder) / part for part in ("progress", "result", "log"))
        progress_file.write_bytes(first.to_bytes(8, "little"))
        arguments = [
            str(limits.targets),
            name,
            str(first),
            str(last),
            str(limits.mean),
            str(progress_file),
            str(result_file),
        ]
        with open(log, "wb") as stderr:  # panics of Rust are told there, and are many
            child = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", __file__, "--child", *arguments],
                stderr=stderr,
                env={**os.environ, "RUST_BACKTRACE": "0", "PYTHONHASHSEED": "0", "TOKENIZERS_PARALLELISM": "false"},
            )
            at, since, hung = first, time.monotonic(), False
            while child.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(0.2)
                now = int.from_bytes(progress_file.read_bytes(), "little")
                if now != at:
                    at, since = now, time.monotonic()
                elif time.monotonic() - since > limits.hang:
                    hung = True
                    child.kill()
                    child.wait()
        at = int.from_bytes(progress_file.read_bytes(), "little")
        if child.returncode == 0 and not hung:
            result = json.loads(result_file.read_text())
            full = len(result["failures"]) >= MOST_FAILURES
            return (at + 1 if full else last), result["accepted"], result["failures"], full
        tail = log.read_bytes()[-2000:].decode("utf-8", "replace")
        fault = f"no progress for {limits.hang:.0f} s" if hung else f"{tail}\nthe process ended with {child.returncode}"
        return at + 1, 0, [{"number": at, "fault": fault}], False


def fuzz(name: str, inputs: int, first: int = 0, limits: Limits = Limits()) -> Outcome:
    """Run `inputs` inputs of a target, from number `first` on, in children that are restarted after a crash."""
    outcome, at = Outcome(name), first
    began = time.monotonic()
    stop = False
    while at < first + inputs and not stop and len(outcome.failures) < MOST_FAILURES:
        # A child of its own for 20,000 inputs: what one leaks, or a crash costs, stays small.
        at, accepted, failures, stop = _watch(name, at, min(first + inputs, at + 20_000), limits)
        outcome.accepted += accepted
        outcome.failures += failures
    outcome.inputs, outcome.seconds = at - first, time.monotonic() - began
    if outcome.failures:
        from targets import made

        keep = limits.keep
        keep.mkdir(parents=True, exist_ok=True)
        for failure in outcome.failures:
            (keep / f"{name}-{failure['number']}").write_bytes(made(name, failure["number"]))
            (keep / f"{name}-{failure['number']}.txt").write_text(failure["fault"])
    return outcome


def _replay(name: str, number: int) -> None:
    from targets import TARGETS, made

    from lattice.errors import LatticeError

    data = made(name, number)
    print(repr(data[:3000]))
    folder = Path(tempfile.mkdtemp())
    try:
        print("accepted:", repr(TARGETS[name].run(data, folder))[:500])
    except LatticeError as error:
        print("refused:", error)
    finally:
        shutil.rmtree(folder)


def main(arguments: Sequence[str]) -> int:
    if arguments[:1] == ["--child"]:
        faulthandler.enable()
        folder, name, first, last, mean, progress, result = arguments[1:]
        sys.path.insert(0, folder)
        _child(name, int(first), int(last), float(mean), Path(progress), Path(result))
        return 0
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--keep", type=Path, default=Limits.keep, help="where inputs that fail are saved")
    parser.add_argument("--hang", type=float, default=Limits.hang)
    parser.add_argument("--mean", type=float, default=Limits.mean)
    parser.add_argument("--targets", type=Path, default=Limits.targets, dest="folder")
    parser.add_argument("--replay", nargs=2, metavar=("TARGET", "NUMBER"))
    given = parser.parse_args(arguments)
    limits = Limits(given.hang, given.mean, given.keep, given.folder)
    sys.path.insert(0, str(limits.targets))
    if given.replay:
        _replay(given.replay[0], int(given.replay[1]))
        return 0
    from targets import TARGETS

    names = given.targets or list(TARGETS)
    share = -(-given.inputs // given.workers)
    failed = 0
    with ThreadPoolExecutor(given.workers) as pool:
        for name in names:
            parts = [(given.first + i, min(share, given.inputs - i)) for i in range(0, given.inputs, share)]
            outcomes = list(pool.map(lambda part, name=name: fuzz(name, part[1], part[0], limits), parts))
            inputs, seconds = sum(o.inputs for o in outcomes), max(o.seconds for o in outcomes)
            failures = [failure for outcome in outcomes for failure in outcome.failures]
            accepted = sum(outcome.accepted for outcome in outcomes)
            print(
                f"{name:13} {inputs:9} inputs {inputs / max(seconds, 1e-9):8.0f}/s {accepted:9} accepted "
                f"{len(failures):3} failures",
                flush=True,
            )
            for failure in failures[:5]:
                print(f"  --replay {name} {failure['number']}: {failure['fault'].strip().splitlines()[-1][:200]}")
            failed += len(failures)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
