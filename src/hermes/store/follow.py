"""Reading the journal as it grows, from a position that its reader keeps: what is derived or sent on never misses an event."""

import asyncio
import contextlib
import sqlite3
import threading
from pathlib import Path

import msgspec
import structlog

from hermes.errors import JournalError
from hermes.store import database, schema
from hermes.store.queries import EVENT_COLUMNS, StoredEvent
from hermes.store.reading import BUSY_SECONDS

log = structlog.get_logger(__name__)

POLL_SECONDS = 0.2
"""Seconds between two looks for new events."""
RETRY_SECONDS = 2.0
"""Seconds between two tries to read a journal that cannot be read."""


class Position(msgspec.Struct, frozen=True):
    """A place in a journal: everything up to and with `id` is read. `journal` is the journal's identity, for ids begin anew when
    a damaged journal is replaced."""

    journal: str = ""
    id: int = 0

    def event_id(self, event: StoredEvent) -> str:
        """A name of the event, of this journal, that no other event anywhere has."""
        return f"{self.journal}:{event.id}"


class Follower:
    """Reads events in their order, each once, after the position `after`. One caller at a time.

    Where the journal was replaced it goes on with the first event of the new one. Its file is opened when it is first needed.
    """

    def __init__(self, path: Path, *, after: Position | None = None) -> None:
        self.position = Position() if after is None else after
        """Up to where events were returned."""
        self.missed = 0
        """Events that were gone before they were read: removed by the limits of evidence, or kept aside with a damaged journal
        (of those it is known only that there may be some: they count as none)."""
        self._path = path
        self._db: sqlite3.Connection | None = None
        self._file = (0, 0)
        self._trouble = ""
        self._busy = threading.RLock()  # who gave up waiting for `next` may close while its thread still reads

    async def next(self, limit: int = 500) -> list[StoredEvent]:
        """Return the next events, at least one and at most `limit`; wait for them, as long as it takes."""
        while True:
            try:
                if found := await asyncio.to_thread(self.read, limit):
                    return found
                pause = POLL_SECONDS
            except JournalError as error:
                self._complain(str(error))
                pause = RETRY_SECONDS
            await asyncio.sleep(pause)

    def read(self, limit: int = 500) -> list[StoredEvent]:
        """Return the next events that are there, without waiting for more. JournalError if the journal cannot be read."""
        with self._busy:
            try:
                db = self._opened()
                rows = db.execute(
                    f"SELECT {EVENT_COLUMNS} FROM events WHERE id > ? ORDER BY id LIMIT ?", (self.position.id, limit)
                ).fetchall()
            except (sqlite3.Error, OSError) as error:
                self.close()
                raise JournalError(f"cannot read {self._path}: {error}") from error
        self._trouble = ""
        if not rows:
            return []
        found = [StoredEvent.of(*row) for row in rows]
        before = self.position.id or found[0].id - 1  # who begins did not miss what went before
        self.missed += found[-1].id - before - len(found)
        self.position = Position(self.position.journal, found[-1].id)
        return found

    def last(self) -> Position:
        """The journal's end as it is now. JournalError if the journal cannot be read."""
        with self._busy:
            try:
                db = self._opened()
                (last,) = db.execute("SELECT max(id) FROM events").fetchone()
                return Position(_identity(db), last or 0)
            except (sqlite3.Error, OSError) as error:
                self.close()
                raise JournalError(f"cannot read {self._path}: {error}") from error

    @property
    def lag(self) -> int:
        """Events that are there and not read yet. JournalError if the journal cannot be read."""
        last = self.last()
        return last.id - self.position.id if last.journal == self.position.journal else last.id

    def close(self) -> None:
        """Close the journal; the next call opens it again."""
        with self._busy:
            if self._db is not None:
                with contextlib.suppress(sqlite3.Error):
                    self._db.close()
                self._db = None

    def _opened(self) -> sqlite3.Connection:
        """The journal that is at its place now."""
        there = self._path.stat()
        if self._db is None or self._file != (there.st_dev, there.st_ino):
            self.close()
            db = database.connect(self._path, mode="ro", busy_timeout=BUSY_SECONDS)
            try:
                if schema.version(db) < len(schema.MIGRATIONS):
                    raise JournalError(f"{self._path} was written by an older Hermes")
                identity = _identity(db)
            except BaseException:
                db.close()
                raise
            if identity != self.position.journal:
                if self.position.journal:
                    log.warning("the journal was replaced; going on with the new one", path=str(self._path))
                self.position = Position(identity, 0)
            self._db, self._file = db, (there.st_dev, there.st_ino)
        return self._db

    def _complain(self, reason: str) -> None:
        if reason != self._trouble:
            self._trouble = reason
            log.warning("the journal cannot be read; waiting", reason=reason)


def _identity(db: sqlite3.Connection) -> str:
    return str(db.execute("SELECT identity FROM journal").fetchone()[0])
