"""Steps on their way: recorded before they are needed, and read by the index of their own submission.

To record a step's commands takes the host about as long as the card takes to run them, and they are the same for every
step of the same counts: two threads record those of the next two steps while the card works on this one, so that a step
may take the host twice as long to record as the card to run. What a step gives is copied to memory that the host can
map, so that a further step may be under way when it is read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lattice.backends.wgpu.device import ALIGNMENT, Device, Range, guarded
from lattice.backends.wgpu.native import Command, packed, read_mapped, replay, staging, submit

if TYPE_CHECKING:
    from lattice.backends.wgpu.plan import WgpuPlan

BATCH = 48  # commands that are submitted together where none were recorded: the card begins while the host goes on
LISTS = 64  # of commands that a plan keeps
AHEAD = 2  # steps that are recorded, or being recorded, at once
_RECORDING = ThreadPoolExecutor(AHEAD, "lattice-record")


class Unread:
    """What a submitted step gives, not read yet; who drops it reads it never."""

    def __init__(self, device: Device, held: Any, index: int | None, at: Range):
        self._device, self._held, self._index, self._at = device, held, index, at

    def read(self) -> np.ndarray:
        """Return the bytes, once the step has run; to be called once."""
        with guarded("a result of the card"):
            whole = read_mapped(self._device.handle, self._held, self._at.resource["size"], self._index)
        self._device.spare[self._held.size].append(self._held)
        return whole[: self._at.size]


class _Commands(NamedTuple):
    """The kernels of a step, and what is copied: before them from one range to another, behind them to the host."""

    kernels: Sequence[Command]
    rows: np.ndarray  # the same, packed
    feed: tuple[Range, Range] | None
    gives: Range | None


class _Recorded(NamedTuple):
    buffer: Any
    held: Any  # takes what the step gives


class Recorder:
    """Submits the steps of plans that run together, and records the next one ahead where steps resemble each other."""

    def __init__(self, device: Device):
        self._device = device
        self._listed: dict[tuple, _Commands] = {}
        self._last: tuple | None = None
        self._ready: deque[Future[_Recorded]] = deque()  # of the last key

    def run(self, plans: Sequence[WgpuPlan]) -> None:
        """Submit a step of each plan, one after another."""
        self._submit(plans, None, None)

    def ask(self, plans: Sequence[WgpuPlan], gives: Range, feed: tuple[Range, Range] | None = None) -> Unread:
        """Submit steps likewise, and return what they leave in a range.

        `feed`: what is copied on the card before, and where to.
        """
        held, index = self._submit(plans, gives, feed)
        return Unread(self._device, held, index, gives)

    def _submit(self, plans: Sequence[WgpuPlan], gives: Range | None, feed: tuple[Range, Range] | None) -> Any:
        for plan in plans:
            plan.upload()
        key = (gives, feed, *((plan.number, *plan.counts.tolist()) for plan in plans))
        commands = self._commands(key, plans)
        again, self._last = key == self._last, key
        if not again:
            self._ready.clear()
        recorded = self._ready.popleft().result() if self._ready else self._begin(commands)
        index = submit(self._device.queue, [recorded.buffer])
        while again and len(self._ready) < AHEAD:
            self._ready.append(_RECORDING.submit(self._record, commands))
        return recorded.held, index

    def _commands(self, key: tuple, plans: Sequence[WgpuPlan]) -> _Commands:
        if key not in self._listed:
            if len(self._listed) >= LISTS:
                self._listed.clear()
            kernels = [command for plan in plans for command in plan.commands()]
            self._listed[key] = _Commands(kernels, packed(kernels), key[1], key[0])
        return self._listed[key]

    def _begin(self, commands: _Commands) -> _Recorded:
        """Submit commands a batch at a time, but for the last, which is returned."""
        last = max(0, len(commands.kernels) - 1) // BATCH * BATCH
        feed = commands.feed
        for begin in range(0, last, BATCH):
            span = slice(begin, begin + BATCH)
            part = _Commands(commands.kernels[span], commands.rows[span], feed, None)
            submit(self._device.queue, [self._record(part).buffer])
            feed = None
        return self._record(_Commands(commands.kernels[last:], commands.rows[last:], feed, commands.gives))

    def _record(self, commands: _Commands) -> _Recorded:
        encoder = self._device.handle.create_command_encoder()
        if commands.feed is not None:
            _copy(encoder, *commands.feed)
        rounds = encoder.begin_compute_pass()
        replay(rounds, commands.kernels, commands.rows)
        rounds.end()
        held = None
        if commands.gives is not None:
            held = self._staging(commands.gives.resource["size"])
            _copy(encoder, commands.gives, Range(held, 0, held.size))
        return _Recorded(encoder.finish(), held)

    def _staging(self, size: int) -> Any:
        """Return a buffer for so many bytes, of a power of two: few sizes serve all."""
        size = max(ALIGNMENT, 1 << (size - 1).bit_length())
        try:
            return self._device.spare.setdefault(size, []).pop()
        except IndexError:  # asked for, not looked at before: several threads take from one list
            return staging(self._device.handle, size)


def _copy(encoder: Any, what: Range, to: Range) -> None:
    size = min(what.resource["size"], to.resource["size"])
    encoder.copy_buffer_to_buffer(what.buffer, what.offset, to.buffer, to.offset, size)
