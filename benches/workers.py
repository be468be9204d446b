"""Engines in processes of their own, so that no thread of one runs, or spins, while another is measured.

A worker holds one engine, sleeps in a read of its stdin, and measures what it is asked to; the clock is read
inside the worker, so the pipe is not part of any result. It also says how many cores' time other processes used during
the call. After a call the parent waits until threads that spin for a while after work (OpenMP, ONNX Runtime) have gone
to sleep.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

from lattice.cli._machine import Others

SETTLE_SECONDS = 0.3


class Worker:
    """A process that holds `engine` ("module:Class", built with `settings`); methods are called by name."""

    def __init__(self, name: str, engine: str, **settings: object):
        self.name = name
        self.others: float | None = None  # cores that other processes used during the last call; None: unknown
        command = [sys.executable, "-m", "benches.workers", engine, json.dumps(settings)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
        )
        self._answer()

    def call(self, method: str, **arguments: object) -> object:
        """The result of engine.method(**arguments), which must be JSON."""
        self.process.stdin.write(json.dumps([method, arguments]) + "\n")
        self.process.stdin.flush()
        answer, self.others = self._answer()
        time.sleep(SETTLE_SECONDS)
        return answer

    def memory(self) -> int | None:
        """The most bytes that were resident so far, None where the system does not say."""
        path = Path(f"/proc/{self.process.pid}/status")
        lines = path.read_text().splitlines() if path.exists() else []
        return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)

    def _answer(self) -> object:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"[benches] the worker of {self.name} ended with status {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()


def serve(engine: str, settings: dict) -> None:
    """Answer calls until stdin ends. What libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    module, _, kind = engine.partition(":")
    held = getattr(import_module(module), kind)(**settings)
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        method, arguments = json.loads(line)
        watch = Others()
        found = getattr(held, method)(**arguments)
        print(json.dumps([found, watch.cores()]), file=answers, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], json.loads(sys.argv[2]))
