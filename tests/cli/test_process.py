"""The command line as a process of its own: exit codes, pipes, Ctrl-C, and a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest

LATTICE = [sys.executable, "-m", "lattice"]
PATIENCE = 120.0  # seconds; a model may have to be fetched


def run(*arguments, **options):
    return subprocess.run([*LATTICE, *map(str, arguments)], capture_output=True, text=True, timeout=PATIENCE, **options)


def test_help_imports_no_model_code():
    modules = (
        "numpy",
        "rich",
        "tokenizers",
        "huggingface_hub",
        "lattice.embed",
        "lattice.generate",
        "lattice.backends",
    )
    code = f"""
import sys
from lattice.cli import app
try:
    app(["--help"])
except SystemExit:
    pass
print([name for name in {modules!r} if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout.startswith("Usage: ")
    assert done.stderr.strip() == "[]"


def test_errors_go_to_standard_error_without_a_traceback():
    done = run("embed", "--model", "no-such-model", "text")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: [source] expected")
    assert run("embed").returncode == 2


def test_a_pipe_gets_plain_text(encoder):
    done = run("embed", "--model", encoder, "--file", "-", input="w1\nw2\n")
    assert done.returncode == 0 and done.stderr == ""
    assert "\x1b" not in done.stdout and "2 texts" in done.stdout


def test_a_reader_that_leaves_early_is_no_error(encoder):
    process = subprocess.Popen(
        [*LATTICE, "embed", "--model", encoder, "--json", *["w1"] * 2000],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.read(10)
    process.stdout.close()
    _, error = process.communicate(timeout=PATIENCE)
    assert b"Traceback" not in error


def test_ctrl_c_is_exit_code_130(chat_model):
    arguments = ["bench", "--model", chat_model, "--prompt", "100", "--gen", "100", "--runs", "100000", "--force"]
    process = subprocess.Popen([*LATTICE, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, error.strip()) == (130, "", "")


# ---- a terminal --------------------------------------------------------------------------------------------
class Terminal:
    """A command that runs in a terminal of its own."""

    def __init__(self, *arguments):
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = "xterm-256color"
            os.execv(sys.executable, [*LATTICE, *map(str, arguments)])
        self.seen = ""

    def until(self, pattern):
        """Read until the text since the last call has `pattern`; return that text."""
        end = time.monotonic() + PATIENCE
        while not (found := re.search(pattern, self.seen)):
            assert time.monotonic() < end, f"no {pattern!r} in {self.seen!r}"
            if select.select([self.descriptor], [], [], 1)[0]:
                try:
                    self.seen += os.read(self.descriptor, 4096).decode("utf-8", "replace")
                except OSError:
                    raise AssertionError(f"ended without {pattern!r}: {self.seen!r}") from None
        text, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return text

    def type(self, text):
        """Press keys."""
        os.write(self.descriptor, text.encode())

    def exit_code(self, key: str = ""):
        """Wait for the end, pressing `key` again after every three seconds without an answer, as a person would."""
        end, silent = time.monotonic() + PATIENCE, 0
        self.type(key)
        try:
            while True:
                if select.select([self.descriptor], [], [], 1)[0]:
                    self.seen += os.read(self.descriptor, 4096).decode("utf-8", "replace")
                    continue
                assert time.monotonic() < end, f"no end after {self.seen!r}"
                silent += 1
                if silent % 3 == 0:
                    self.type(key)
        except OSError:
            pass  # the other side is gone
        os.close(self.descriptor)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_chat_in_a_terminal(chat_model):
    terminal = Terminal("chat", "--model", chat_model, "-n", "4")
    assert "/help" in terminal.until(">> ")
    terminal.type("w1 w2\n")
    assert re.search(r"\x1b\[2m.*tokens/s", terminal.until(r"tokens/s[^\n]*\n"))
    terminal.until(">> ")
    terminal.type("\x04")
    assert terminal.exit_code() == 0


def test_ctrl_c_at_the_prompt_leaves(chat_model):
    terminal = Terminal("chat", "--model", chat_model)
    terminal.until(">> ")
    # Python may miss a signal that comes between the prompt and the wait for keys; the next one is heard.
    assert terminal.exit_code(key="\x03") == 130


@pytest.mark.real
def test_ctrl_c_ends_a_long_answer_and_the_conversation_goes_on(real_model):
    terminal = Terminal("chat", "--model", real_model("smollm2-135m"))
    terminal.until(">> ")
    terminal.type("Tell me a very long story about a dragon and a knight.\n")
    terminal.until(r"knight\.\r\n")  # the echo of what was typed
    terminal.until(r"\w+\W+\w+\W+\w+\W+\w+")
    terminal.type("\x03")
    terminal.until("stopped, ")
    terminal.until(">> ")
    terminal.type("/exit\n")
    assert terminal.exit_code() == 0


@pytest.mark.real
def test_a_real_answer(real_model):
    done = run("run", "--model", real_model("smollm2-135m"), "--raw", "-n", "12", "--json", "1, 2, 3, 4, 5,")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["text"].startswith(" 6, 7, 8,")
