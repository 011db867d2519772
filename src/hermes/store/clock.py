"""Whether the machine's clock was set, to the place in the journal's order: between which two events it happened."""

import time
from collections.abc import Callable

from hermes.clocks import wall_ahead

TOLERANCE_NS = 2_000_000
"""Nanoseconds by which wall and steady clock may drift apart without a word."""


class ClockWatch:
    """Compares the wall clock with one that nobody sets, the recordings' own (it stands still while the machine sleeps)."""

    def __init__(self, wall: Callable[[], int] = time.time_ns, steady: Callable[[], int] = time.monotonic_ns) -> None:
        """Both in nanoseconds."""
        self._wall = wall
        self._steady = steady
        self._ahead = wall_ahead(self._wall, self._steady)

    def jump(self) -> float:
        """Return by how many seconds the wall clock was set since the last jump that was told; 0.0 if it was not."""
        if abs(self._wall() - self._steady() - self._ahead) <= TOLERANCE_NS:
            return 0.0
        ahead = wall_ahead(self._wall, self._steady)
        jump = ahead - self._ahead
        if abs(jump) <= TOLERANCE_NS:
            return 0.0
        self._ahead = ahead
        return jump / 1e9
