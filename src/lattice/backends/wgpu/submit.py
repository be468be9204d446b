"""Steps on their way: recorded before they are needed, and read by the index of their own submission.

To record a step's commands takes the host about as long as the card takes to run them, and they are the same for every
step of the same counts: those of the next step are recorded while the card works on this one. What a step gives is
copied to memory that the host can map, so that a further step may be under way when it is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lattice.backends.wgpu.device import Device, Range, guarded
from lattice.backends.wgpu.native import Command, read_mapped, replay, staging, submit

if TYPE_CHECKING:
    from lattice.backends.wgpu.plan import WgpuPlan

BATCH = 48  # commands that are submitted together where none were recorded: the card begins while the host goes on


class Unread:
    """What a submitted step gives, not read yet; who drops it reads it never."""

    def __init__(self, device: Device, held: Any, index: int | None, at: Range):
        self._device, self._held, self._index, self._at = device, held, index, at

    def read(self) -> np.ndarray:
        """Return the bytes, once the step has run; to be called once."""
        with guarded("a result of the card"):
            whole = read_mapped(self._device.handle, self._held, self._at.resource["size"], self._index)
        self._device.spare.append(self._held)
        return np.frombuffer(whole, np.uint8)[: self._at.size]


class Recorder:
    """Submits the steps of plans that run together, and records the next one ahead where steps resemble each other."""

    def __init__(self, device: Device):
        self._device = device
        self._last: tuple | None = None
        self._ready: tuple[tuple | None, Any] = (None, None)

    def run(self, plans: Sequence[WgpuPlan], gives: Range | None = None, feed: tuple[Range, Range] | None = None) -> Any:
        """Submit a step of each plan, one after another; return what they give behind it, unread.

        `feed`: what is copied on the card before, and where to.
        """
        for plan in plans:
            plan.upload()
        before = [self._copy(*feed)] if feed is not None else []
        key = tuple((plan.number, *plan.counts.tolist()) for plan in plans)
        ready, self._ready = self._ready, (None, None)
        if ready[0] == key:
            before.append(ready[1])
        else:
            commands = [command for plan in plans for command in plan.commands()]
            for begin in range(0, len(commands), BATCH):
                submit(self._device.queue, [*before, self._record(commands[begin : begin + BATCH])])
                before = []
        unread = self._fetch(before, gives)
        if key == self._last:
            self._ready = key, self._record([command for plan in plans for command in plan.commands()])
        self._last = key
        return unread

    def _fetch(self, buffers: list[Any], gives: Range | None) -> Unread | None:
        """Submit what is left of a step, and the copy of what it gives."""
        if gives is None:
            if buffers:
                submit(self._device.queue, buffers)
            return None
        size = gives.resource["size"]
        found = next((one for one in self._device.spare if one.size == size), None)
        if found is None:
            found = staging(self._device.handle, size)
        else:
            self._device.spare.remove(found)
        index = submit(self._device.queue, [*buffers, self._copy(gives, Range(found, 0, size))])
        return Unread(self._device, found, index, gives)

    def _record(self, commands: Sequence[Command]) -> Any:
        encoder = self._device.handle.create_command_encoder()
        rounds = encoder.begin_compute_pass()
        replay(rounds, commands)
        rounds.end()
        return encoder.finish()

    def _copy(self, what: Range, to: Range) -> Any:
        encoder = self._device.handle.create_command_encoder()
        size = min(what.resource["size"], to.resource["size"])
        encoder.copy_buffer_to_buffer(what.buffer, what.offset, to.buffer, to.offset, size)
        return encoder.finish()
