"""Whether the machine's clock was set, to the place in the journal's order: between which two events it happened."""

import time
from collections.abc import Callable

TOLERANCE_NS = 2_000_000
"""Nanoseconds by which wall and steady clock may drift apart without a word."""
CLOSE_NS = 200_000
"""A reading of both clocks is exact when it took no longer."""
READINGS = 10


class ClockWatch:
    """Compares the wall clock with one that nobody sets, the recordings' own (it stands still while the machine sleeps)."""

    def __init__(self, wall: Callable[[], int] = time.time_ns, steady: Callable[[], int] = time.monotonic_ns) -> None:
        """Both in nanoseconds."""
        self._wall = wall
        self._steady = steady
        self._ahead = self._measure()

    def jump(self) -> float:
        """Return by how many seconds the wall clock was set since the last jump that was told; 0.0 if it was not."""
        if abs(self._wall() - self._steady() - self._ahead) <= TOLERANCE_NS:
            return 0.0
        ahead = self._measure()
        jump = ahead - self._ahead
        if abs(jump) <= TOLERANCE_NS:
            return 0.0
        self._ahead = ahead
        return jump / 1e9

    def _measure(self) -> int:
        """Return how far the wall clock is ahead, in ns, as of the closest of some readings: between two the process may wait."""
        best, closest = 0, -1
        for _ in range(READINGS):
            before = self._steady()
            wall = self._wall()
            took = self._steady() - before
            if closest < 0 or took < closest:
                best, closest = wall - before - took // 2, took
            if closest <= CLOSE_NS:
                break
        return best
