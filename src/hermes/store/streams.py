"""Events of a journal as streams: of a session, of a range of ids. Nothing is held in memory, whatever there is of them.

Every function reads one row at a time; sqlite3.Error is its caller's to translate. Keep one transaction open around it.
"""

import heapq
import sqlite3
from collections.abc import Collection, Iterator
from operator import itemgetter
from typing import NamedTuple

from hermes.store.lines import Row, line
from hermes.store.queries import EVENT_COLUMNS

MAX_ID = 2**63 - 1


class Record(NamedTuple):
    """One event as the journal's table holds it; `time` in µs since the epoch, `body` the event as JSON."""

    id: int
    time: int
    sensor: str
    event: str
    connection_id: str | None
    session_id: str | None
    body: str

    @property
    def line(self) -> bytes:
        """Its line of JSON, as in the journal's JSON lines."""
        return line(Row(self.id, self.time, self.sensor, self.body.encode()))


class Step(NamedTuple):
    """The clock was set by `micros` µs (negative: back) between the events before and after the one with this id."""

    id: int
    micros: int


def identity(db: sqlite3.Connection) -> str:
    """Return the journal's identity, which no other journal has."""
    return str(db.execute("SELECT identity FROM journal").fetchone()[0])


def last_id(db: sqlite3.Connection) -> int:
    """Return the id of the newest event; 0 where there is none."""
    return int(db.execute("SELECT max(id) FROM events").fetchone()[0] or 0)


def connection_of(db: sqlite3.Connection, session_id: str) -> str | None:
    """Return the session's connection; None if the journal does not know it."""
    row = db.execute("SELECT connection_id FROM sessions WHERE session_id = ?", (session_id,)).fetchone()
    return None if row is None else row[0]


def of_session(db: sqlite3.Connection, session_id: str, connection_id: str | None, *, through: int = MAX_ID) -> Iterator[Record]:
    """Yield the events of a session and of its connection up to the id `through`, in the order of their ids."""
    own = db.execute(f"SELECT {EVENT_COLUMNS} FROM events WHERE session_id = ? AND id <= ? ORDER BY id", (session_id, through))
    around = db.execute(
        f"SELECT {EVENT_COLUMNS} FROM events WHERE connection_id = ? AND session_id IS NOT ? AND id <= ? ORDER BY id",
        (connection_id, session_id, through),
    )
    return map(Record._make, heapq.merge(own, around, key=itemgetter(0)))


def by_time(db: sqlite3.Connection, session_id: str, connection_id: str | None) -> Iterator[Record]:
    """Yield the same in the order of their times, and of their ids where those are the same."""
    rows = db.execute(
        f"SELECT {EVENT_COLUMNS} FROM (SELECT {EVENT_COLUMNS} FROM events WHERE session_id = ?1 UNION ALL SELECT {EVENT_COLUMNS}"
        " FROM events WHERE connection_id = ?2 AND session_id IS NOT ?1) ORDER BY time, id",
        (session_id, connection_id),
    )
    return map(Record._make, rows)


def named(db: sqlite3.Connection, ids: Collection[int]) -> dict[int, Record]:
    """Return the events with these ids; of a few hundred at most."""
    marks = ",".join("?" * len(ids))
    rows = db.execute(f"SELECT {EVENT_COLUMNS} FROM events WHERE id IN ({marks})", tuple(ids))
    return {row[0]: Record._make(row) for row in rows}


def between(db: sqlite3.Connection, after: int, through: int = MAX_ID) -> Iterator[Record]:
    """Yield all events with ids from `after` (without it) to `through` (with it), in the order of their ids."""
    rows = db.execute(f"SELECT {EVENT_COLUMNS} FROM events WHERE id > ? AND id <= ? ORDER BY id", (after, through))
    return map(Record._make, rows)


def clock_steps(db: sqlite3.Connection, first: int, last: int) -> list[Step]:
    """Return how the clock was set between two ids, in order."""
    rows = db.execute(
        "SELECT id, body ->> '$.seconds' FROM events WHERE connection_id IS NULL AND session_id IS NULL"
        " AND event = 'clock.set' AND id BETWEEN ? AND ? ORDER BY id",
        (first, last),
    )
    return [Step(identity, round(seconds * 1e6)) for identity, seconds in rows]
