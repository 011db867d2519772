"""The wall clock against one that nobody sets."""

import time
from collections.abc import Callable

CLOSE_NS = 200_000
"""A reading of both clocks is exact when it took no longer."""
READINGS = 10


def wall_ahead(wall: Callable[[], int] = time.time_ns, steady: Callable[[], int] = time.monotonic_ns) -> int:
    """Return by how many ns the wall clock is ahead, as of the closest of some readings: between two, the process may wait."""
    best, closest = 0, -1
    for _ in range(READINGS):
        before = steady()
        now = wall()
        took = steady() - before
        if closest < 0 or took < closest:
            best, closest = now - before - took // 2, took
        if closest <= CLOSE_NS:
            break
    return best
