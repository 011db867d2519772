"""What leaves the index: connections that the journal no longer has, and the oldest when there is no room. In small steps."""

import sqlite3
import time
from pathlib import Path

import structlog

from hermes.analysis.index import Index
from hermes.analysis.stage import Gone
from hermes.store import database

log = structlog.get_logger(__name__)

STEP = 250
"""Connections looked at in one step: a few milliseconds."""
INTERVAL = 60.0
"""Seconds between two passes over all connections, at least."""
SHARE = 20
"""A pass begins no sooner than after so many times as long as the one before took: with ever so many connections it is a
twentieth of the analyst's time."""
PAGES = 500
SPARE = 16 * 2**20
"""Bytes that the file keeps of what it could give back, to be used again."""


class Sweep:
    """Passes over all connections of the index, as they are asked for."""

    def __init__(self, index: Index, journal: Path, max_bytes: int) -> None:
        self._index = index
        self._journal = journal
        self._max_bytes = max_bytes
        self._asked = True
        """The journal may have lost something since the last pass began."""
        self._cursor: int | None = None
        self._ready = 0.0
        self._spent = 0.0
        self._told = False

    def ask(self) -> None:
        """Something was removed from the journal."""
        self._asked = True

    def step(self) -> bool:
        """Do a little of what is to be done; return whether there is more to do now."""
        size = self._index.size
        if size.used > self._max_bytes:
            return self._make_room()
        if self._cursor is None and self._asked and time.monotonic() >= self._ready:
            self._cursor, self._asked, self._spent = 0, False, 0.0
        if self._cursor is not None:
            start = time.monotonic()
            self._look()
            self._spent += time.monotonic() - start
            self._ready = time.monotonic() + max(INTERVAL, SHARE * self._spent)
            return True
        if size.free > SPARE:
            self._index.shrink(PAGES)
            return True
        return False

    def _look(self) -> None:
        """Look for the next connections in the journal."""
        rows = self._index.rows(
            "SELECT id, connection_id, session_id FROM visits WHERE id > ? ORDER BY id LIMIT ?", self._cursor, STEP
        )
        strays = self._index.rows("SELECT id FROM visits_strays WHERE id > ? ORDER BY id LIMIT ?", self._cursor, STEP)
        ends = [found[-1][0] for found in (rows, strays) if len(found) == STEP]
        end = min(ends, default=None)
        rows = [it for it in rows if end is None or it[0] <= end]
        strays = [it for it in strays if end is None or it[0] <= end]
        try:
            db = database.connect(self._journal, mode="ro", busy_timeout=1)
            try:
                if db.execute("SELECT identity FROM journal").fetchone() != (self._index.journal,):
                    self._cursor = None  # all of it is about to go
                    return
                gone = Gone(
                    [it[1] for it in rows if it[1] is not None and not _has(db, "connection_id", it[1])],
                    [it[2] for it in rows if it[2] is not None and not _has(db, "session_id", it[2])],
                    [it[0] for it in strays if not _has(db, "id", it[0])],
                )
            finally:
                db.close()
        except sqlite3.Error:  # the journal cannot be read now: later
            self._cursor, self._asked = None, True
            return
        if any(gone):
            self._index.forget(gone)
        self._cursor = end

    def _make_room(self) -> bool:
        rows = self._index.rows("SELECT id, connection_id, session_id FROM visits ORDER BY id LIMIT ?", STEP)
        if not rows:
            return False
        if not self._told:
            self._told = True
            log.warning("the index is at its limit; the oldest connections leave it", setting="analysis.max_bytes")
        self._index.forget(Gone([it[1] for it in rows if it[1] is not None], [it[2] for it in rows if it[2] is not None], []))
        return True


def _has(db: sqlite3.Connection, column: str, value: object) -> bool:
    return db.execute(f"SELECT 1 FROM events WHERE {column} = ? LIMIT 1", (value,)).fetchone() is not None
