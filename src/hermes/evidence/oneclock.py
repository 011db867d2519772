"""Times of one session by one clock: pure.

The journal's times are those of the wall clock, which somebody may set. Recordings count from a start by a clock that nobody
sets. Here all of it is brought to the wall clock as it was at the session's first event, and went on evenly.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from hermes.store.streams import Step

OF_THE_BOX = ("process.", "network.", "file.", "artifact.")
"""Events that are stated a while after they happened, with the time at which they did."""


class Stated(NamedTuple):
    """An event's id, its time as it stands in the journal (µs), and its name."""

    id: int
    time: int
    event: str


class OneClock:
    """The clock of a session during which the wall clock was set: `steps` in the order of their ids."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps = steps
        ahead = 0
        self._ahead = [0] + [ahead := ahead + step.micros for step in steps]
        """µs that the wall clock was ahead of this one, before each step and after the last."""

    def order(self, events: Iterable[Stated]) -> list[tuple[int, int]]:
        """Take events in the order of their ids; return time (µs by this clock) and id of each, in the order of time."""
        times: list[tuple[int, int]] = []
        late: list[tuple[Stated, int]] = []
        passed, before = 0, None
        for one in events:
            while passed < len(self._steps) and self._steps[passed].id < one.id:
                passed += 1
            if one.event.startswith(OF_THE_BOX):
                late.append((one, passed))
                continue
            now = one.time - self._ahead[passed]
            times += self._settle(late, before, now)
            late, before = [], now
            times.append((now, one.id))
        times += self._settle(late, before, None)
        return sorted(times)

    def start(self, recorded: int, stated: int) -> int:
        """Return a recording's start (µs of the wall clock) by this clock, at which its `channel.started` is at `stated`."""
        return min((recorded - ahead for ahead in self._ahead), key=lambda time: abs(time - stated))

    def _settle(self, late: list[tuple[Stated, int]], before: int | None, after: int | None) -> list[tuple[int, int]]:
        """Events stated between two moments: what happened before the clock was set was stated soon, and never too early."""

        def off(time: int) -> int:
            if after is not None and time > after:
                return time - after
            return before - time if before is not None and time < before else 0

        return [(min((one.time - self._ahead[step] for step in range(passed, -1, -1)), key=off), one.id) for one, passed in late]
