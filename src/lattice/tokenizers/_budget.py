"""What one render of a chat template may spend, and the trace function that watches its time.

No Jinja here: `_sandbox.py` says where the budget is asked, and why each place is needed.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

SOURCE = 64 << 10  # bytes of a template
OUTPUT = 1 << 20  # characters of a rendering, and of any one value
BUILT = 16 << 20  # characters of all values that one render builds
NODE = 8  # what one item of a container weighs, in characters: 131,072 items are a full value
INTEGER_BITS = 4096  # of a product or power
SECONDS, MESSAGE_SECONDS = 0.2, 0.01  # of one render, and more for every message: long talks are honest
COMPILE_SECONDS = 1.0
FILENAME = "<chat template>"
OURS = ("jinja2", "lattice")  # packages whose frames can let a Stop through; the template's own code is the third


class Stop(BaseException):
    """A limit was reached. Not an Exception: Jinja's own filters catch those and go on."""


class Budget(threading.local):
    """What the render of this thread may still spend; templates are shared between threads, budgets are
    not."""

    deadline = limit = seconds = float("inf")
    built = 0

    def start(self, seconds: float) -> None:
        """Begin a render that may take `seconds`."""
        self.deadline, self.limit = time.perf_counter() + seconds, time.thread_time() + seconds
        self.seconds, self.built = seconds, 0

    def check_time(self) -> None:
        """Raise `Stop` when the render has taken too long."""
        # A busy machine must not refuse honest templates, so past the deadline the thread's own time decides;
        # asking for it is a system call, asking for the time is not.
        if time.perf_counter() > self.deadline and time.thread_time() > self.limit:
            self.deadline = self.limit = float("-inf")  # should the exception be lost, the next check raises again
            raise Stop(f"a template that ends within {self.seconds * 1000:.0f} ms", "one that runs longer")

    def take(self, size: int) -> None:
        """Account for a value of `size` characters that is about to be built, or was."""
        if size > OUTPUT:
            raise Stop(f"values of at most {OUTPUT} characters", "a larger one")
        self.built += size
        if self.built > BUILT:
            raise Stop(f"at most {BUILT} characters built in one render", "more")


def weigh(value: object) -> int:
    """Return the size of a value in characters, shared parts counted each time they are met, at most a little
    over OUTPUT."""
    if isinstance(value, str):
        return len(value)
    if not isinstance(value, (list, tuple, dict)):
        return NODE
    total = 0
    stack: list[Any] = [value]
    while stack and total <= OUTPUT:
        item = stack.pop()
        if isinstance(item, str):
            total += len(item) + NODE
        elif isinstance(item, dict):
            total += NODE * (1 + len(item))
            if total <= OUTPUT:
                stack.extend(item)
                stack.extend(item.values())
        elif isinstance(item, (list, tuple)):
            total += NODE * (1 + len(item))
            if total <= OUTPUT:
                stack.extend(item)
        else:
            total += NODE
    return total


class Tracer:
    """Checks the deadline from the interpreter's trace hook while one render or compilation of this thread
    runs."""

    def __init__(self, budget: Budget):
        self.budget = budget

    def __enter__(self) -> None:
        self.previous = sys.gettrace()  # a debugger's or a coverage tool's, given back afterwards
        sys.settrace(self._call)

    def __exit__(self, *_: object) -> None:
        sys.settrace(self.previous)

    def _call(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        # A stranger's frame may be a callback of the collector or a finaliser, where an exception is printed and lost.
        template = frame.f_code.co_filename == FILENAME
        if template or frame.f_globals.get("__name__", "").partition(".")[0] in OURS:
            self.budget.check_time()
        # Lines are followed in the template only: a library's loops call something for every item.
        return self._line if template else None

    def _line(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any]:
        self.budget.check_time()
        return self._line
