"""Two engines in turns on one thing: what each took in every round, and whether the round counts.

A round that other processes disturbed, or around which memory bandwidth moved by more than a tenth, proves nothing and
is dropped. A cell is one comparison: medians, their ratio, and the roofs that were measured in the same rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benches.calibrate import steady
from benches.report import emit, say, spread
from benches.workers import Worker

ALLOWED = 0.1  # of a core may others use
TRIES = 4  # rounds for each that is wanted, where some prove nothing


@dataclass
class Rounds:
    """What was kept: for each round what our call and the rival's gave, bandwidths (GB/s) and integer peaks around."""

    ours: list[Any] = field(default_factory=list)
    theirs: list[Any] = field(default_factory=list)
    bandwidth: list[float] = field(default_factory=list)
    peak: list[float] = field(default_factory=list)
    unsteady: int = 0
    disturbed: int = 0


@dataclass
class Pair:
    """Our worker and a rival's; `rounds` that count, of at most TRIES times as many; `keep_all`: every round counts."""

    ours: Worker
    theirs: Worker
    rounds: int
    keep_all: bool = False
    meter: Worker = field(default_factory=lambda: Worker("meter", "benches.calibrate:Meter"))

    def measure(
        self, *, alone: bool = True, method: str = "measure", ours: dict | None = None, **arguments: Any
    ) -> Rounds:
        """Call `method` of both in turns; `ours` are arguments for our side, `alone`: nobody else may compute."""
        found = Rounds()
        for index in range(-1, TRIES * self.rounds):
            if len(found.ours) == self.rounds:
                break
            order = (self.ours, self.theirs) if index % 2 == 0 else (self.theirs, self.ours)
            readings, results, busy = [self.meter.call("bandwidth")], {}, []
            for worker in order:
                extra = ours or {} if worker is self.ours else {}
                results[worker.name] = worker.call(method, **(arguments | extra))
                busy.append(worker.others or 0.0)
                readings.append(self.meter.call("bandwidth"))
            if index < 0:
                continue  # warms caches and pages up
            unsteady, disturbed = alone and not steady(*readings), alone and max(busy) > ALLOWED
            found.unsteady += unsteady
            found.disturbed += disturbed
            emit(kind="round", index=index, bandwidth=readings, others=busy, kept=not (unsteady or disturbed))
            if self.keep_all or not (unsteady or disturbed):
                found.ours.append(results[self.ours.name])
                found.theirs.append(results[self.theirs.name])
                found.bandwidth += readings
                found.peak.append(self.meter.call("peak"))
        return found

    def close(self) -> None:
        """End all processes."""
        for worker in (self.ours, self.theirs, self.meter):
            worker.close()


def cell(name: str, unit: str, pair: Pair, found: Rounds, speed: Callable[[Any], float], **more: Any) -> dict[str, Any]:
    """Return a comparison as one JSON object, and say it; `speed` reads a call's result, more is better."""
    ours, theirs = [speed(one) for one in found.ours], [speed(one) for one in found.theirs]
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    middle = statistics.median(ours) / statistics.median(theirs) if ratios else None
    record = {
        "kind": "cell", "name": name, "unit": unit, "rival": pair.theirs.name, "ratio": middle,
        "ratio_by_round": spread(ratios), "lattice": spread(ours), "theirs": spread(theirs),
        "bandwidth_gb_s": spread(found.bandwidth), "integer_peak": spread(found.peak),
        "unsteady": found.unsteady, "disturbed": found.disturbed, "dropped": not pair.keep_all,
        "time": time.strftime("%Y-%m-%d %H:%M", time.gmtime()), **more,
    }  # fmt: skip
    shown = "no round was kept" if middle is None else f"{middle:.2f}x {pair.theirs.name} ({len(ratios)} rounds)"
    say(f"{name:52} {shown}")
    return record
