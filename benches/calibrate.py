"""How fast memory is right now: on a shared machine it moves, and a round in which it moved proves nothing."""

from __future__ import annotations

ALLOWED = 0.10  # of the larger of two calibrations


def bandwidth() -> float:
    """GB/s that all cores read together."""
    from lattice.backends import cpu

    return float(cpu.bandwidth())


def steady(*readings: float) -> bool:
    """Whether calibrations around a round agree within ALLOWED."""
    return max(readings) - min(readings) <= ALLOWED * max(readings)


class Meter:
    """A worker that measures the machine, in a process whose memory is nobody's."""

    def bandwidth(self) -> float:
        return bandwidth()

    def peak(self) -> float:
        """10^9 integer products a second of all cores together."""
        from lattice.backends import cpu

        return float(cpu.integer_peak())
