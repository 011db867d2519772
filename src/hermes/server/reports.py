"""Facts that an attacker can cause for free, stated without end to them: which are said, and which only counted. No I/O."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import TypeAlias

import msgspec

from hermes.events import ConnectionRefused, LimitReached

Report: TypeAlias = LimitReached | ConnectionRefused


class _Quiet:
    """Until when one fact is only counted, how often it came meanwhile, and the last of them."""

    __slots__ = ("last", "suppressed", "until")

    def __init__(self, until: float) -> None:
        self.until = until
        self.suppressed = 0
        self.last: Report | None = None


class Reports:
    """Each fact is stated once, then once an interval with the number in between.

    Nothing is lost: the events stated and what they say is suppressed add up to the facts taken, after `flush()`. When more
    than `room` different facts come within an interval, those beyond are stated as if they were one of their kind.
    """

    def __init__(self, interval: float, room: int = 1000) -> None:
        """`interval`: seconds; 0 states every fact."""
        self._interval = interval
        self._room = room
        self._quiet: OrderedDict[Hashable, _Quiet] = OrderedDict()  # by when it ends

    def __len__(self) -> int:
        return len(self._quiet)

    @property
    def next_due(self) -> float | None:
        """When `due` will have something to do."""
        return next(iter(self._quiet.values())).until if self._quiet else None

    def take(self, now: float, kind: Hashable, source: Hashable, event: Report) -> list[Report]:
        """Take a fact of this kind and source; return the events to be stated now. `now`: seconds that only go on."""
        stated = self.due(now)
        key: Hashable = (kind, source)
        quiet = self._quiet.get(key)
        if quiet is None and len(self._quiet) >= self._room:
            key = kind
            quiet = self._quiet.get(key)
        if quiet is not None:
            quiet.suppressed += 1
            quiet.last = event
            return stated
        if self._interval:
            self._quiet[key] = _Quiet(now + self._interval)
        return [*stated, event]

    def due(self, now: float) -> list[Report]:
        """Return what is to be said of the intervals that are over."""
        stated = []
        while self._quiet:
            key, quiet = next(iter(self._quiet.items()))
            if quiet.until > now:
                break
            del self._quiet[key]
            if quiet.last is not None:
                stated.append(_summed_up(quiet.last, quiet.suppressed))
                self._quiet[key] = _Quiet(now + self._interval)
        return stated

    def flush(self) -> list[Report]:
        """Return all that is still to be said, and begin anew."""
        left = [_summed_up(quiet.last, quiet.suppressed) for quiet in self._quiet.values() if quiet.last is not None]
        self._quiet.clear()
        return left


def _summed_up(last: Report, count: int) -> Report:
    """The last of `count` facts, which stands for itself."""
    return msgspec.structs.replace(last, suppressed=count - 1)
