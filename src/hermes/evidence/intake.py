"""Takes what was seen in boxes from their spools into the journal: each fact once, with the time at which it happened.

How far a spool is taken is written in the transaction that writes its facts (table `spools`), so whoever is killed at whatever
moment, the next front goes on exactly there. What a box's facts lack, the session, a record of the spool says; the connection
is the journal's knowledge.
"""

import asyncio
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec
import structlog

from hermes import events
from hermes.container import spool
from hermes.container.spool import Decided, End, Fact, Given, Record
from hermes.errors import JournalError
from hermes.store import Journal
from hermes.store.waiting import Stated, Work, stated
from hermes.tasks import TaskOwner

log = structlog.get_logger(__name__)

GATHER_SECONDS = 0.02
"""Facts gather for so long before they are taken: in a burst, one turn takes many."""
BATCH_BYTES = 128 * 1024
"""Bytes of a spool taken at once."""
RETRY_SECONDS = (0.2, 5.0)
UNDECIDED = "unknown"
"""Outcome of what was never decided: the watcher was killed, or the box ended first."""


class Taken(NamedTuple):
    """What came of some records: facts, up to `position`; `over` with the last."""

    facts: list[tuple[events.Event, int]]
    position: int
    over: bool


class Reading:
    """Makes facts of a spool's records; the same records make the same facts, whoever reads them. No I/O."""

    def __init__(self) -> None:
        self.session_id: str | None = None
        self.over = False
        self._undecided: dict[int, Fact] = {}
        self._running: set[int] = set()

    def feed(self, record: Record) -> Iterator[tuple[events.Event, int]]:
        """Yield the facts that are complete with this record, each with its time."""
        match record:
            case Given(session_id=session_id):
                self.session_id = self.session_id or session_id
            case Fact() if self.session_id is None:
                pass  # it was the box's own, before any session had it
            case Fact(ref=0):
                yield from self._fact(record, None)
            case Fact(ref=ref):
                self._undecided[ref] = record
            case Decided(outcomes=outcomes):
                for ref, outcome in outcomes.items():
                    if (fact := self._undecided.pop(ref, None)) is not None:
                        yield from self._fact(fact, outcome)
            case End():
                self.over = True
                for fact in self._undecided.values():
                    yield from self._fact(fact, UNDECIDED)
                self._undecided.clear()

    def _fact(self, fact: Fact, outcome: str | None) -> Iterator[tuple[events.Event, int]]:
        event = spool.event_of(fact)
        if isinstance(event, events.ProcessStarted):
            if outcome is None:
                self._running.add(event.pid)
        elif isinstance(event, events.ProcessExited):
            if event.pid not in self._running:  # the box's own had begun it
                return
            self._running.discard(event.pid)
        changes: dict[str, Any] = {"session_id": self.session_id}
        if outcome is not None and isinstance(event, events.ProcessStarted):
            changes["error"] = outcome
        yield msgspec.structs.replace(event, **changes), fact.time


class _Spool:
    """One spool that is being taken. Owns its fds."""

    def __init__(self, container_id: str, session_id: str, fd: int, news: int) -> None:
        self.container_id = container_id
        self.session_id = session_id
        self.fd = fd
        self.news = news
        self.changed = asyncio.Event()
        self.done = asyncio.Event()
        """Nothing of it is left to be taken, or it cannot be."""
        self.reading = Reading()
        self.read_to = 0
        self.size = 0
        """Of the file when it was read last: what is cut short at its end makes nobody read again."""
        self.over = False
        self.unreadable = False

    def watch(self) -> None:
        asyncio.get_running_loop().add_reader(self.news, self._told)

    def _told(self) -> None:
        """There is more: do not hear it again before that is taken."""
        asyncio.get_running_loop().remove_reader(self.news)
        self.changed.set()

    async def wait(self) -> None:
        """Return when there is more, and had a moment to gather."""
        with suppress(BlockingIOError):
            os.eventfd_read(self.news)
        self.changed.clear()
        self.watch()
        if os.fstat(self.fd).st_size != self.size:
            return
        await self.changed.wait()
        await asyncio.sleep(GATHER_SECONDS)

    @property
    def waiting(self) -> int:
        """Bytes that are not taken yet."""
        return max(0, os.fstat(self.fd).st_size - self.read_to)

    def replace(self, fd: int, news: int) -> None:
        """Another broker has the spool, and tells of news by another eventfd."""
        self.close()
        self.fd, self.news = fd, news
        self.changed.set()

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.news)
        os.close(self.fd)
        os.close(self.news)


class Intake:
    """Takes spools, from `start()` to `close()`. `on_taken` is called with a container's id when its spool may be removed,
    `on_settled` with a session's id when nothing of it can come any more: it is closed, and all its spools are in the journal.

    Call `saw` with each event that is stated, on the event loop's thread: `session.closed` is one of them.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        on_taken: Callable[[str], None] = lambda container_id: None,
        on_settled: Callable[[str], None] = lambda session_id: None,
    ) -> None:
        self.on_taken = on_taken
        self.on_settled = on_settled
        self._journal = journal
        self._spools: dict[str, _Spool] = {}
        self._open: set[str] = set()
        """Sessions of this front's that are not closed."""
        self._tasks = TaskOwner("intake")

    @property
    def waiting(self) -> int:
        """Bytes in spools that are not in the journal yet."""
        return sum(one.waiting for one in self._spools.values())

    @property
    def unsettled(self) -> set[str]:
        """Ids of the sessions of which a spool is being taken: more of them will come."""
        return {one.session_id for one in self._spools.values() if not (one.over or one.unreadable)}

    def saw(self, event: events.Event) -> None:
        """Take note of a session's begin or end."""
        session_id = event.session_id
        if session_id is None:
            return
        if isinstance(event, events.SessionOpened):
            self._open.add(session_id)
        elif isinstance(event, events.SessionClosed) and session_id in self._open:
            self._open.discard(session_id)
            self._settle(session_id)

    def add(self, container_id: str, session_id: str, spool: int, news: int) -> None:
        """Take that spool, whose fds are this object's from now on. One that is being taken already goes on with these."""
        if (known := self._spools.get(container_id)) is not None:
            if known.over:
                # The broker was not told, or has died since: it hears it again.
                self.on_taken(container_id)
            known.replace(spool, news)
            return
        one = self._spools[container_id] = _Spool(container_id, session_id, spool, news)
        self._tasks.spawn(self._take_all(one), name=container_id).add_done_callback(lambda _: one.done.set())

    def dropped(self, container_id: str) -> None:
        """The broker has removed the spool, and will not offer it again."""
        if (one := self._spools.pop(container_id, None)) is not None:
            one.close()
        self._tasks.spawn(self._forget(container_id), name=f"forget {container_id}")

    async def drain(self, seconds: float) -> None:
        """Return when every spool is taken, or after that many seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.gather(*(one.done.wait() for one in self._spools.values()))

    async def close(self) -> None:
        """Stop; what is not taken is offered to the next front."""
        await self._tasks.close()
        for one in self._spools.values():
            one.close()
        self._spools.clear()

    # ---- one spool

    async def _take_all(self, one: _Spool) -> None:
        try:
            position = await self._surely(_position_of(one.container_id))
            self._catch_up(one, position)
            one.over = one.reading.over
            while not one.over:
                await self._take_some(one)
                if not one.over:
                    await one.wait()
        except (OSError, spool.SpoolDamagedError) as error:
            # It stays with the broker: nobody says that it was taken.
            log.error("a spool cannot be read", container_id=one.container_id, session_id=one.session_id, reason=str(error))
            one.unreadable = True
            self._settle(one.session_id)
            return
        self.on_taken(one.container_id)
        self._settle(one.session_id)

    def _catch_up(self, one: _Spool, position: int) -> None:
        """Read again what a front before had taken, for what follows from it."""
        while one.read_to < position:
            before = one.read_to
            for record, end in spool.read(one.fd, before):
                if end > position:
                    return
                for _ in one.reading.feed(record):
                    pass
                one.read_to = end
            if one.read_to == before:
                raise spool.SpoolDamagedError(f"it ends at {before}, and was taken up to {position}")

    async def _take_some(self, one: _Spool) -> None:
        """Take what is there."""
        while True:
            facts: list[tuple[events.Event, int]] = []
            position = one.read_to
            one.size = os.fstat(one.fd).st_size
            for record, end in spool.read(one.fd, one.read_to, BATCH_BYTES):
                facts += one.reading.feed(record)
                position = end
                if one.reading.over:
                    break
            if position == one.read_to:
                return
            work = _taking(one, [stated(event, time) for event, time in facts], position)
            await self._surely(work)
            one.read_to = position
            if one.reading.over:
                one.over = True
                return

    async def _surely(self, work: Work) -> Any:
        """Have the journal do it, however often it must be tried."""
        pause, longest = RETRY_SECONDS
        while True:
            try:
                return await self._journal.work(work)
            except JournalError as error:
                log.error("what was seen in a container cannot be written yet", reason=str(error))
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)

    async def _forget(self, container_id: str) -> None:
        with suppress(JournalError):  # a row too much harms nobody
            await self._journal.work(_forgetting(container_id))

    # ---- sessions

    def _settle(self, session_id: str) -> None:
        if session_id in self._open or session_id in self.unsettled:
            return
        self._tasks.spawn(self._say_settled(session_id), name=f"settled {session_id}")

    async def _say_settled(self, session_id: str) -> None:
        with suppress(JournalError):  # it will be for the next front to say
            await self._journal.wait_written()
            self.on_settled(session_id)


def _forgetting(container_id: str) -> Callable[[sqlite3.Connection], tuple[None, Sequence[Stated]]]:
    def work(db: sqlite3.Connection) -> tuple[None, Sequence[Stated]]:
        db.execute("DELETE FROM spools WHERE container_id = ?", (container_id,))
        return None, ()

    return work


def _position_of(container_id: str) -> Callable[[sqlite3.Connection], tuple[int, Sequence[Stated]]]:
    def work(db: sqlite3.Connection) -> tuple[int, Sequence[Stated]]:
        row = db.execute("SELECT position FROM spools WHERE container_id = ?", (container_id,)).fetchone()
        return (0 if row is None else int(row[0])), ()

    return work


def _taking(one: _Spool, facts: list[Stated], position: int) -> Callable[[sqlite3.Connection], tuple[None, Sequence[Stated]]]:
    """Write the facts, and that they are taken."""

    def work(db: sqlite3.Connection) -> tuple[None, Sequence[Stated]]:
        row = db.execute("SELECT connection_id FROM sessions WHERE session_id = ?", (one.session_id,)).fetchone()
        connection = None if row is None else row[0]
        db.execute("INSERT OR REPLACE INTO spools VALUES (?, ?)", (one.container_id, position))
        if connection is None:
            return None, facts
        return None, [stated(msgspec.structs.replace(fact.event, connection_id=connection), fact.time) for fact in facts]

    return work
