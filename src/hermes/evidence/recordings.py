"""How much is recorded, by day and by value, and the removal of what goes first. All of it blocks: off the event loop with it."""

from collections.abc import Callable, Collection, Iterator
from datetime import UTC, date, datetime
from itertools import islice
from typing import NamedTuple

import structlog

from hermes.evidence.shelves import Item, Removal, Shelves
from hermes.evidence.value import Candidate, Value, first_to_go, value
from hermes.store.pruning import SessionRow

log = structlog.get_logger(__name__)

BATCH = 100
"""Items taken at once: so many events are stated of it."""
CHUNK = 500

Known = Callable[[list[str]], dict[str, SessionRow] | None]
"""What the journal knows of sessions; None when it cannot be read."""


class _Day(NamedTuple):
    stamp: int
    """As of `Shelves.days`; -1: to be looked at again."""
    worth: dict[Value, int]
    """Bytes of what could go, by value."""
    total: int


class Recordings:
    """What lies on the shelves. It keeps one line a day in memory, whatever there is."""

    def __init__(self, shelves: Shelves, known: Known) -> None:
        self.stopping = False
        """Set, from any thread, to have a look around end early; its result is then of no use."""
        self._shelves = shelves
        self._known = known
        self._days: dict[str, _Day] = {}
        self._stuck: set[str] = set()
        self._queue: tuple[Candidate | None, list[Item]] = (None, [])

    @property
    def total(self) -> int:
        """Bytes of all recordings, as of the last survey and what was taken since."""
        return sum(books.total for books in self._days.values())

    def survey(self, active: Collection[str]) -> None:
        """Look at the days that may have changed."""
        found = self._shelves.days()
        newest = max(found, default="")
        self._days = {day: books for day, books in self._days.items() if day in found}
        for day, stamp in found.items():
            if day == newest or self._days.get(day, _NEVER).stamp != stamp:
                self._days[day] = self._look(day, stamp, active)
        self._queue = (None, [])

    def take(
        self,
        need: int,
        reason: str,
        *,
        now: float,
        active: Collection[str],
        older_than: float | None = None,
        spare: float | None = None,
    ) -> list[Removal]:
        """Take what goes first, until it comes to `need` bytes or BATCH items; an empty list when there is nothing to take.

        Only what is of a day that was over `older_than` seconds ago. What somebody acted in stays if it is of a day that was
        not over `spare` seconds ago.
        """
        taken: list[Removal] = []
        freed = 0
        while freed < need and len(taken) < BATCH:
            bucket = first_to_go(self._buckets(now, older_than, spare))
            if bucket is None:
                break
            freed += self._take_from(bucket, need - freed, reason, active, taken)
        return taken

    def _buckets(self, now: float, older_than: float | None, spare: float | None) -> Iterator[Candidate]:
        for day, books in self._days.items():
            age = now - _end(day)
            if older_than is not None and age < older_than:
                continue
            for worth, size in books.worth.items():
                if size and not (worth is Value.ACTED and spare is not None and age < spare):
                    yield Candidate(worth, age + 86400, day)

    def _take_from(self, bucket: Candidate, need: int, reason: str, active: Collection[str], taken: list[Removal]) -> int:
        """Take from one day's items of one value, oldest first; return the bytes."""
        books, queue = self._days[bucket.place], self._queued(bucket, active)
        freed = 0
        while queue and freed < need and len(taken) < BATCH:
            item = queue.pop()
            try:
                taken.append(self._shelves.take(item, reason))
            except OSError as error:
                self._stuck.add(item.path)
                log.error("a recording cannot be removed", recording=item.path, reason=error.strerror)
                continue
            freed += item.bytes
        left = max(1, books.worth[bucket.value] - freed) if queue else 0
        self._days[bucket.place] = _Day(books.stamp, {**books.worth, bucket.value: left}, books.total - freed)
        return freed

    def _queued(self, bucket: Candidate, active: Collection[str]) -> list[Item]:
        """Return what is left of the items of one day and value, the oldest last."""
        last, items = self._queue
        if last is None or (last.place, last.value) != (bucket.place, bucket.value):
            there = (item for item, worth in self._valued(bucket.place, active) if worth is bucket.value)
            items = sorted(there, key=lambda item: item.session_id, reverse=True)
            self._queue = (bucket, items)
        return items

    def _look(self, day: str, stamp: int, active: Collection[str]) -> _Day:
        worth = dict.fromkeys(Value, 0)
        total, settled = 0, True
        for item, what in self._valued(day, active):
            total += item.bytes
            if what is None:
                settled = False
            else:
                worth[what] += item.bytes
        return _Day(stamp if settled else -1, worth, total)

    def _valued(self, day: str, active: Collection[str]) -> Iterator[tuple[Item, Value | None]]:
        """Yield a day's items with their values; None for what must stay."""
        items = self._shelves.items(day)
        while not self.stopping and (chunk := list(islice(items, CHUNK))):
            known = self._known([item.session_id for item in chunk])
            for item in chunk:
                if item.session_id in active or item.path in self._stuck:
                    yield item, None
                else:
                    yield item, Value.ACTED if known is None else value(known.get(item.session_id))


_NEVER = _Day(-1, {}, 0)


def _end(day: str) -> float:
    """Seconds since the epoch at which a day ends. A name that is no date is of long ago."""
    try:
        return datetime.combine(date.fromisoformat(day), datetime.min.time(), UTC).timestamp() + 86400
    except ValueError:
        return 0.0
