"""A few thousand inputs of each fuzz target; `make fuzz` runs as many as wanted (INPUTS)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).with_name("run.py")
# Together a few seconds: these are for whoever breaks a parser, the large numbers are for CI.
INPUTS = {"safetensors": 2000, "gguf": 1000, "tokenizer": 600, "config": 400, "index": 1500, "template": 250}
INPUTS |= {"sentencepiece": 600, "tiktoken": 300}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(RUN), *arguments], capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("target", INPUTS)
def test_every_input_ends_in_a_result_or_our_error(target: str, tmp_path: Path) -> None:
    done = run("--workers", "1", "--inputs", str(INPUTS[target]), "--keep", str(tmp_path), target)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("broken", "fault"),
    [
        ("raise KeyError(1)", "KeyError"),
        ("import os; os.abort()", "the process ended with -6"),
        ("import time; time.sleep(1000)", "no progress for 4 s"),
        ("bytearray(300 << 20)", "the process grew by"),
        ("import time; t = time.process_time()\n            while time.process_time() < t + 2: pass", "inputs 0 to"),
    ],
)
def test_the_harness_finds_what_breaks(tmp_path: Path, broken: str, fault: str) -> None:
    """A target that breaks on every fifth input is found, and its input saved."""
    (tmp_path / "targets.py").write_text(
        "class Target:\n"
        "    def run(self, data, directory):\n"
        "        if data == b'4':\n"
        f"            {broken}\n"
        "TARGETS = {'x': Target()}\n"
        "def made(name, number):\n"
        "    return str(number % 5).encode()\n"
    )
    arguments = [
        "--workers",
        "1",
        "--inputs",
        "5",
        "--keep",
        str(tmp_path / "kept"),
        "--hang",
        "4" if "sleep" in broken else "60",
        "x",
    ]
    done = run("--targets", str(tmp_path), "--mean", "0.0", *arguments)
    assert done.returncode == 1
    assert fault in done.stdout, done.stdout + done.stderr
    assert (tmp_path / "kept" / "x-4").read_bytes() == b"4"
