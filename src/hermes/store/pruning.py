"""Old rows out of the journal: what can go, and its removal in small steps, each a transaction of the journal's one writer.

A connection goes as a whole, with its session if it had one: its events, its row in `sessions`, its commands. What is not over
never goes. Whoever removes something states it in the same transaction, with the ids, so ids never begin anew and no gap is
without a reason. What tells of removals goes by its age alone; then whoever removes it says again what it said. (That the chain
of manifests was cut, which is rare, stays.)
"""

import enum
import sqlite3
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from hermes.store.ranges import Ranges

PAGE = 4096
"""Bytes of a page, SQLite's default."""

_SESSION = "SELECT id, session_id, started, commands, bytes_in, bytes_out, ended IS NULL OR cause IS 'lost' FROM sessions"
_REMOVAL = "evidence.removed"
_SWEPT = "(event != 'evidence.removed' OR (? AND body ->> '$.what' != 'manifests'))"
_CLOSED = ("connection.closed", "connection.refused")


class Extent(NamedTuple):
    """How large the journal is, in bytes: what its rows take, and what its file could give back."""

    used: int
    free: int


class Swept(NamedTuple):
    """One step of a sweep: how far it came, what it removed, and whether it saw anything old enough to go."""

    cursor: int
    """Id of the last event looked at."""
    more: bool
    """There are events after it."""
    ripe: bool
    """Some of the events looked at were old enough."""
    open: int | None
    """Id of the first event that stays only because its connection is not over."""
    removed: "Removed"


class Removed(NamedTuple):
    """What was removed: connections, events, their bytes, and the ids they had or told of."""

    connections: int = 0
    events: int = 0
    bytes: int = 0
    ids: Ranges = Ranges()

    def __add__(self, other: "Removed") -> "Removed":  # type: ignore[override]
        return Removed(
            self.connections + other.connections, self.events + other.events, self.bytes + other.bytes, self.ids | other.ids
        )


class SessionRow(NamedTuple):
    """What an ended session's value is told by; `started` in µs since the epoch."""

    id: int
    session_id: str
    started: int
    commands: int
    bytes_in: int
    bytes_out: int
    unknown: bool
    """It goes on, or its sensor was killed: the bytes are not known."""


def extent(db: sqlite3.Connection) -> Extent:
    """Return how large the journal is."""
    page, pages, free = (db.execute(f"PRAGMA {what}").fetchone()[0] for what in ("page_size", "page_count", "freelist_count"))
    return Extent(page * (pages - free), page * free)


def oldest(db: sqlite3.Connection, cursor: int, limit: int) -> int | None:
    """Return the earliest time (µs since the epoch) among so many events after `cursor`; None if there are none."""
    window = "SELECT time FROM events WHERE id > ? ORDER BY id LIMIT ?"
    (time,) = db.execute(f"SELECT min(time) FROM ({window})", (cursor, limit)).fetchone()
    return None if time is None else int(time)


def ended_sessions(db: sqlite3.Connection, cursor: int, limit: int) -> list[SessionRow]:
    """Return the ended sessions whose `id` comes after `cursor`, oldest first."""
    found = db.execute(
        f"{_SESSION} WHERE id > ? AND ended IS NOT NULL ORDER BY id LIMIT ?",
        (cursor, limit),
    )
    return [SessionRow(*row) for row in found]


def sessions_named(db: sqlite3.Connection, session_ids: Sequence[str]) -> dict[str, SessionRow]:
    """Return those of the named sessions that the journal knows."""
    found = db.execute(
        f"{_SESSION} WHERE session_id IN ({','.join('?' * len(session_ids))})",
        session_ids,
    )
    return {row[1]: SessionRow(*row) for row in found}


def is_stated(db: sqlite3.Connection, session_id: str, event: str, field: str, value: str) -> bool:
    """Tell whether an event of that session was stated whose `field` (a plain name) has that value."""
    query = "SELECT 1 FROM events WHERE session_id = ? AND event = ? AND body ->> ? = ?"
    return db.execute(query, (session_id, event, f"$.{field}", value)).fetchone() is not None


def sweep(
    db: sqlite3.Connection, cursor: int, limit: int, *, run: int, before: int | None = None, sessions: bool = False
) -> Swept:
    """Look at `limit` events after `cursor`; remove the connections among them that are over, with those of `sessions`.

    `run`: the first id of this run; what an earlier one left open is over. `before`: only what began before it (µs); without,
    what tells of removals stays.
    """
    rows = db.execute(
        f"SELECT id, time, connection_id, session_id, event FROM events WHERE id > ? AND {_SWEPT} ORDER BY id LIMIT ?",
        (cursor, before is not None, limit),
    ).fetchall()
    seen: set[str | None] = set()
    ripe, unfinished, removed = False, None, Removed()
    for identity, time, connection, session, event in rows:
        if before is not None and time >= before:
            continue
        ripe = True
        if event == _REMOVAL or (connection is None and session is None):
            removed += _delete(db, "id = ?", (identity,))
        elif (connection or session) not in seen:
            seen.add(connection or session)
            over = _is_over(db, connection, session, earlier=identity < run)
            if over is _Over.SESSION and not sessions:
                continue
            if over is _Over.NO:
                unfinished = unfinished or identity
                continue
            removed += _remove(db, connection, session)
    reached = rows[-1][0] if rows else cursor
    return Swept(reached, len(rows) == limit, ripe, unfinished, removed)


def remove_sessions(db: sqlite3.Connection, session_ids: Iterable[str]) -> Removed:
    """Remove sessions that are over, with their connections."""
    removed = Removed()
    for session_id in session_ids:
        row = db.execute("SELECT connection_id, ended FROM sessions WHERE session_id = ?", (session_id,)).fetchone()
        if row is not None and row[1] is not None:
            removed += _remove(db, row[0], session_id)
    return removed


def shrink(db: sqlite3.Connection, pages: int) -> None:
    """Let the file give back up to so many pages that nothing uses. Where it cannot (see `database`), it does nothing."""
    for _ in range(min(pages, extent(db).free // PAGE)):
        db.execute("PRAGMA incremental_vacuum(1)")  # Python takes one step of a statement that yields nothing: one page


class _Over(enum.Enum):
    NO = enum.auto()
    CONNECTION = enum.auto()
    """A connection that was over before anybody was let in."""
    SESSION = enum.auto()


def _is_over(db: sqlite3.Connection, connection: str | None, session: str | None, *, earlier: bool) -> _Over:
    for column, value in (("session_id", session), ("connection_id", connection)):
        if value is not None:
            row = db.execute(f"SELECT ended FROM sessions WHERE {column} = ?", (value,)).fetchone()
            if row is not None:
                return _Over.NO if row[0] is None else _Over.SESSION
    if earlier or connection is None:
        return _Over.CONNECTION
    said = db.execute("SELECT 1 FROM events WHERE connection_id = ? AND event IN (?, ?)", (connection, *_CLOSED)).fetchone()
    return _Over.NO if said is None else _Over.CONNECTION


def _remove(db: sqlite3.Connection, connection: str | None, session: str | None) -> Removed:
    removed = Removed(connections=1)
    if session is None and connection is not None:
        row = db.execute("SELECT session_id FROM sessions WHERE connection_id = ?", (connection,)).fetchone()
        session = row and row[0]
    elif connection is None and session is not None:
        row = db.execute("SELECT connection_id FROM sessions WHERE session_id = ?", (session,)).fetchone()
        connection = row and row[0]
    if session is not None:
        db.execute("DELETE FROM commands WHERE session_id = ?", (session,))
        db.execute("DELETE FROM sessions WHERE session_id = ?", (session,))
        removed += _delete(db, "session_id = ? AND event != ?", (session, _REMOVAL))
    if connection is not None:
        removed += _delete(db, "connection_id = ? AND event != ?", (connection, _REMOVAL))
    return removed


def _delete(db: sqlite3.Connection, where: str, values: tuple[object, ...]) -> Removed:
    told = f"CASE event WHEN '{_REMOVAL}' THEN body ->> '$.ids' END"
    rows = db.execute(f"DELETE FROM events WHERE {where} RETURNING id, length(body), {told}", values).fetchall()
    ids = Ranges.of(identity for identity, _, _ in rows)
    for _, _, again in rows:
        if again:
            ids |= Ranges.parse(again)
    return Removed(0, len(rows), sum(size for _, size, _ in rows), ids)
