"""The journal: every fact, in order, in one SQLite database with one writer.

`emit` puts a fact into a queue; a thread writes whatever waits there, each batch one transaction: a fact of a session after
`SESSION_SECONDS`, one of a mere connection after `GATHER_SECONDS`. So after a kill -9 at any moment the journal is whole up to
its last committed batch: a prefix of what was emitted, without gaps. A power cut may take the last `SYNC_SECONDS` with it,
and nothing before.
"""

import asyncio
import contextlib
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import structlog

from hermes.errors import JournalError
from hermes.events import ClockSet, Event, JournalDamaged, JournalRecovered
from hermes.store import database
from hermes.store.bookkeeping import book
from hermes.store.clock import ClockWatch
from hermes.store.lines import Lines, Row
from hermes.store.waiting import Mark, Stated, Work, stated

log = structlog.get_logger(__name__)

GATHER_SECONDS = 0.05
"""How long the writer lets events gather before it writes them: a batch costs as much as forty events, most are of bots that
try a password and leave, and this is about how long such a bot takes."""
SESSION_SECONDS = 0.005
"""The same once an event of a session waits: what an attacker does inside is worth the price."""
BATCH_ROWS = 512
STATEMENT_ROWS = 64
SYNC_SECONDS = 5.0
"""Committed events reach the disk itself at least this often."""
STALL_SECONDS = 5.0
"""A batch that takes longer to write counts as a failing disk."""
BUSY_SECONDS = 1.0
RETRY_SECONDS = (0.1, 5.0)
CLOSE_SECONDS = 10.0

_INSERT = {
    count: "INSERT INTO events (id, time, sensor, event, connection_id, session_id, body) VALUES "
    + ", ".join(["(?, ?, ?, ?, ?, ?, ?)"] * count)
    for count in range(1, STATEMENT_ROWS + 1)
}


class _ReplacedError(Exception):
    """The journal's file is not the one that is open any more."""


class Journal:
    """The one writer of a sensor's journal, once from `open()` to `close()`.

    All methods are called on one thread, the event loop's.

    `lines`: where events go as JSON lines besides; a file is put aside at `rotate_lines` bytes, if that is not 0. `on_event` sees
    each event taken, on any thread. At most `max_waiting` events of together `max_waiting_bytes` bytes wait to be written; beyond
    that `emit` refuses.
    """

    def __init__(
        self,
        path: Path,
        *,
        sensor: str,
        lines: Path | Literal["stdout"] | None = None,
        max_waiting: int = 100_000,
        max_waiting_bytes: int = 256 * 2**20,
        rotate_lines: int = 0,
        on_event: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self.path = path
        self.sensor = sensor
        self.refused = 0
        """Events that `emit` refused."""
        self.first_id = 1
        """Events before it were stated by an earlier run."""
        self._on_event = on_event
        self._max_waiting = max_waiting
        self._max_waiting_bytes = max_waiting_bytes
        self._lines = None if lines is None else Lines(lines, path, rotate_lines)
        self._clock = ClockWatch()
        self._waiting: deque[Stated | Mark] = deque()
        self._bytes_in = 0
        self._bytes_out = 0
        self._accepting = False
        self._asleep = False
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hermes-journal", daemon=True)
        self._lock = -1
        self._db: sqlite3.Connection | None = None
        self._file = (0, 0)
        self._next_id = 1
        self._batch: list[Stated] = []
        self._marks: list[Mark] = []
        self._writing_since: float | None = None
        self._damage: str | None = None
        self._trouble: str | None = None
        self._trouble_since = 0.0
        self._unwritten = 0

    # ---- the event loop's side

    def open(self) -> None:
        """Open the journal, or begin one, and start writing. JournalError where it cannot be used; its text says why.

        Sessions an earlier run left open are ended with cause `lost`. A damaged journal is kept aside, which is an event.
        """
        self._lock = database.lock(self.path.with_name(f"{self.path.stem}.lock"))
        try:
            damaged = self._open_database(end_lost=True)
        except BaseException:
            os.close(self._lock)
            self._lock = -1
            raise
        if self._lines is not None:
            self._lines.start()
        if damaged is not None:
            log.error("the journal was damaged; it is kept aside and a new one begun", kept=damaged.kept, reason=damaged.reason)
            self._state_first(damaged)
        self._accepting = True
        self._thread.start()

    def emit(self, event: Event, time: int | None = None) -> None:
        """State a fact of now, or of `time` (µs since the epoch), to be written within `GATHER_SECONDS`. Never blocks.

        JournalError if the fact cannot be kept: too many wait already, or the journal is closed. Whoever caused it must end.
        If the machine's clock was set since the fact before, a `clock.set` is stated in between.
        """
        if jump := self._clock.jump():
            self._take_in(stated(ClockSet(seconds=round(jump, 6))))
        self._take_in(stated(event, time))

    def _take_in(self, one: Stated) -> None:
        if self.waiting >= self._max_waiting or self._waiting_bytes + len(one.body) > self._max_waiting_bytes:
            self.refused += 1
            raise JournalError(f"{len(self._waiting)} events wait to be written already: {self._trouble or 'the disk is slow'}")
        if not self._accepting:
            self.refused += 1
            raise JournalError("the journal is not open")
        self._bytes_in += len(one.body)
        self._waiting.append(one)
        self._on_event(one.event)
        if self._asleep:
            self._asleep = False
            self._wake.set()
        if one.event.session_id is not None and not self._hurry.is_set():
            self._hurry.set()

    @property
    def healthy(self) -> bool:
        """False while events cannot be written, or not fast enough: take no new connections then."""
        since = self._writing_since
        return (
            self._trouble is None
            and self._accepting
            and len(self._waiting) < self._max_waiting
            and (since is None or time.monotonic() - since < STALL_SECONDS)
        )

    @property
    def waiting(self) -> int:
        """Events not committed yet."""
        return len(self._waiting) + len(self._batch)

    async def wait_written(self) -> None:
        """Return when every event emitted so far is committed: from then on it survives a kill -9 of this process.

        Waits as long as the journal cannot be written. JournalError if it is closed first, or was never open.
        """
        await self._ask(None)

    async def work(self, work: Work) -> Any:
        """Let the writer do `work` in a transaction of its own, after what was emitted so far, and return its result.

        It must be short: events wait meanwhile. JournalError where it fails; then it has changed nothing. Waits as long as the
        journal cannot be written; who gives up waiting does not keep it from being done.
        """
        return await self._ask(work)

    async def _ask(self, work: Work | None) -> Any:
        if not self._accepting:
            raise JournalError("the journal is not open")
        loop = asyncio.get_running_loop()
        mark = Mark(loop, loop.create_future(), work)
        self._waiting.append(mark)
        if not self._accepting:  # the writer has given up meanwhile, and may not have seen the mark
            raise JournalError("the journal is not open")
        self._hurry.set()
        self._wake.set()
        return await mark.done

    def close(self) -> None:
        """Write what waits, stop, and give the journal up. JournalError if events could not be written; it says how many."""
        if self._lock < 0:
            return
        self._accepting = False
        self._closing.set()
        self._hurry.set()
        self._wake.set()
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            raise JournalError(f"the journal's disk hangs; {len(self._waiting) + len(self._batch)} events are not written")
        if self._lines is not None and not self._lines.close(CLOSE_SECONDS / 5):
            log.warning("some JSON lines were not written; the journal has them")
        os.close(self._lock)
        self._lock = -1
        if self._unwritten:
            raise JournalError(f"{self._unwritten} events could not be written: {self._trouble}")

    @property
    def _waiting_bytes(self) -> int:
        return self._bytes_in - self._bytes_out

    # ---- the writer's side

    def _run(self) -> None:
        try:
            synced, dirty = time.monotonic(), False
            while True:
                if len(self._waiting) < BATCH_ROWS:
                    if not self._waiting:
                        if self._closing.is_set():
                            break
                        self._sleep(max(0.0, synced + SYNC_SECONDS - time.monotonic()) if dirty else None)
                    if self._hurry.wait(GATHER_SECONDS):
                        self._closing.wait(SESSION_SECONDS)
                self._take()
                if self._batch:
                    if not self._write_batch():
                        break
                    dirty = True
                for mark in self._marks:
                    dirty |= self._answer(mark)
                self._marks = []
                if dirty and time.monotonic() - synced >= SYNC_SECONDS:
                    self._sync()
                    synced, dirty = time.monotonic(), False
        finally:
            self._give_up()

    def _sleep(self, timeout: float | None) -> None:
        self._wake.clear()
        self._asleep = True
        # Looked at after `_asleep` is set: what was emitted before is seen here, what is emitted after sets `_wake`.
        if not self._waiting and not self._closing.is_set():
            self._wake.wait(timeout)
        self._asleep = False

    def _take(self) -> None:
        """Make a batch of what waits, up to the first mark."""
        self._hurry.clear()
        batch = self._batch
        while self._waiting and len(batch) < BATCH_ROWS:
            item = self._waiting.popleft()
            if isinstance(item, Mark):
                self._marks.append(item)
                break
            batch.append(item)

    def _write_batch(self) -> bool:
        """Commit the batch, however long it takes; return False if the journal is being closed and it cannot be done."""
        delay, last_chance = RETRY_SECONDS[0], False
        while True:
            self._writing_since = time.monotonic()
            try:
                rows = self._commit()
                break
            except (sqlite3.Error, OSError, JournalError, MemoryError, _ReplacedError) as error:
                self._in_trouble(error)
                self._reopen_if_broken(error)
            finally:
                self._writing_since = None
            if last_chance:
                return False
            last_chance = self._closing.wait(delay)
            delay = min(delay * 2, RETRY_SECONDS[1])
        if self._lines is not None:
            self._lines.offer(rows)
        self._bytes_out += sum(len(row.body) for row in rows)
        self._batch = []
        if self._trouble is not None:
            seconds = round(time.monotonic() - self._trouble_since, 3)
            log.info("the journal is written again", path=str(self.path), seconds=seconds, waiting=len(self._waiting))
            waited = len(rows) + sum(isinstance(item, Stated) for item in list(self._waiting))
            self._state_first(JournalRecovered(reason=self._trouble, seconds=seconds, waiting=waited))
            self._trouble = None
        return True

    def _commit(self) -> list[Row]:
        if self._db is None and (damaged := self._open_database(end_lost=False)) is not None:
            self._batch.insert(0, self._own(damaged))
        db = self._db
        assert db is not None
        if database.file_identity(self.path) != self._file:
            raise _ReplacedError("the journal's file was removed or replaced")
        with database.transaction(db):
            rows = self._insert(db, self._batch)
        self._next_id += len(rows)
        return rows

    def _insert(self, db: sqlite3.Connection, batch: Sequence[Stated]) -> list[Row]:
        first, sensor = self._next_id, self.sensor
        rows: list[Row] = []
        for start in range(0, len(batch), STATEMENT_ROWS):
            values: list[Any] = []
            part = batch[start : start + STATEMENT_ROWS]
            for identity, (moment, event, body) in enumerate(part, first + start):
                values += (identity, moment, sensor, event.tag(), event.connection_id, event.session_id, body.decode())
                rows.append(Row(identity, moment, sensor, body))
            # Many rows a statement: each statement gives the interpreter lock away, and a busy loop returns it late.
            db.execute(_INSERT[len(part)], values)
        for row, (moment, event, _) in zip(rows, batch, strict=True):
            book(db, row.id, moment, sensor, event)
        return rows

    def _answer(self, mark: Mark) -> bool:
        """Do what the mark asks for, and say so; return whether the journal was changed."""
        if mark.work is None:
            mark.resolve(None)
            return False
        db = self._db
        try:
            if db is None or database.file_identity(self.path) != self._file:
                raise JournalError("the journal is not open")
            with database.transaction(db):
                result, given = mark.work(db)
                facts = [fact if isinstance(fact, Stated) else stated(fact) for fact in given]
                rows = self._insert(db, facts)
        except (sqlite3.Error, OSError, JournalError, MemoryError) as error:
            mark.resolve(JournalError(str(error)))
            return False
        self._next_id += len(rows)
        for fact in facts:
            self._on_event(fact.event)
        if self._lines is not None and rows:
            self._lines.offer(rows)
        mark.resolve(result)
        return True

    def _open_database(self, *, end_lost: bool) -> JournalDamaged | None:
        db, damaged = database.open_for_writing(
            self.path, busy_timeout=BUSY_SECONDS, end_lost=end_lost, known_damage=self._damage
        )
        self._damage = None
        (last,) = db.execute("SELECT max(id) FROM events").fetchone()
        self._db, self._file, self._next_id = db, database.file_identity(self.path), (last or 0) + 1
        self.first_id = self._next_id if end_lost else 1
        if self._lines is not None:
            self._lines.restart(self._next_id)
        return damaged

    def _in_trouble(self, error: Exception) -> None:
        if self._trouble is None:
            self._trouble_since = time.monotonic()
            log.error(
                "the journal cannot be written; events wait", path=str(self.path), reason=str(error) or type(error).__name__
            )
        self._trouble = " ".join(str(error).split()) or type(error).__name__

    def _reopen_if_broken(self, error: Exception) -> None:
        """Close a database that will never take the batch, so that the next try keeps it aside and begins a new one."""
        if self._db is None:
            return
        if isinstance(error, _ReplacedError):
            with contextlib.suppress(OSError):
                database.abandon(self._db, self.path)
        elif isinstance(error, sqlite3.Error) and (database.is_damage(error) or isinstance(error, sqlite3.IntegrityError)):
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
            self._damage = str(error) if database.is_damage(error) else None
        else:
            return
        self._db = None

    def _state_first(self, event: Event) -> None:
        """State a fact of the journal's own, before whatever waits."""
        self._waiting.appendleft(self._own(event))

    def _own(self, event: Event) -> Stated:
        one = stated(event)
        self._on_event(event)
        self._bytes_out -= len(one.body)
        return one

    def _sync(self) -> None:
        assert self._db is not None
        try:
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except (sqlite3.Error, MemoryError) as error:
            log.warning("the journal's write-ahead log could not be moved into the database", reason=str(error))

    def _give_up(self) -> None:
        """End of the thread: whatever still waits will not be written."""
        self._accepting = False
        left = [*self._marks, *self._batch, *self._waiting]
        self._unwritten = sum(isinstance(item, Stated) for item in left)
        for item in left:
            if isinstance(item, Mark):
                item.resolve(JournalError("the journal was closed before the events were written"))
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
            self._db = None
