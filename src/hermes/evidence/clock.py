"""The time by which evidence is aged: a clock that was set must not cost a year of it."""

import time
from collections.abc import Callable

TOLERANCE = 5.0
"""Seconds by which a clock may be corrected without having been set."""
PATIENCE = 86400.0
"""Seconds that a clock which was set forward must run evenly before evidence is aged by it."""


def boot_time() -> float:
    """Return seconds since the machine was started, sleep included: nobody sets this clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class AgeClock:
    """The wall clock as far as it can be believed: it may be behind the true time, and so evidence is kept longer, never less.

    A clock set back is believed at once; one set forward, or ahead of the `newest` evidence at start, after PATIENCE.
    """

    def __init__(
        self, newest: float | None, *, wall: Callable[[], float] = time.time, steady: Callable[[], float] = boot_time
    ) -> None:
        self._wall = wall
        self._steady = steady
        self._at = self._even_since = steady()
        self._ahead = wall() - self._at
        self._believed = wall() if newest is None else min(newest, wall())

    def look(self) -> tuple[float, float]:
        """Return the time to age by, and by how many seconds the clock was set since the last look: 0 if it was not."""
        wall, steady = self._wall(), self._steady()
        jump = wall - steady - self._ahead
        self._ahead = wall - steady
        if abs(jump) <= TOLERANCE:
            jump = 0.0
        else:
            self._even_since = steady
        expected = self._believed + steady - self._at
        proven = steady - self._even_since >= PATIENCE
        self._believed = wall if proven or wall <= expected + TOLERANCE else expected
        self._at = steady
        return self._believed, jump
