"""Hold the limits on evidence, and say when there is no room for more. One task of the front's; what blocks is done in a thread.

The oldest and least valuable goes first (`value`), never what is under way, and each removal is an `evidence.removed`.
"""

import asyncio
import concurrent.futures.thread  # noqa: F401  imported lazily by asyncio, when it may be out of our reach
import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import structlog

from hermes.config import Settings
from hermes.errors import JournalError
from hermes.events import EvidenceRemoved, EvidenceResumed, LimitReached
from hermes.evidence.clock import AgeClock
from hermes.evidence.recordings import Recordings
from hermes.evidence.rows import Rows, shrink
from hermes.evidence.shelves import Removal, Shelves
from hermes.store import Journal, pruning
from hermes.store.lines import put_aside
from hermes.store.waiting import Work

log = structlog.get_logger(__name__)

LOOK_SECONDS = 1.0
"""How often it looks whether there is room."""
TURN_SECONDS = 10.0
"""How often it looks at everything, at least while a look takes no longer than a tenth of that."""
STEPS = 50
"""Steps of one turn at what one limit removes; a turn that was cut short is followed by the next at once."""
SPARE_SECONDS = 86400.0
"""For want of free disk, nothing is removed in which somebody acted, of a day that was not over so long ago: what fills a disk in
a night, or a program that does, must not cost what happened in it."""
FREE_INODES = 1000
"""A file system with fewer free inodes than this has no room either."""
SLACK_BYTES = 16 * 2**20
"""The journal's file may hold so much more than its rows take: the next events use it."""
WRITTEN_SECONDS = 5.0
"""How long it waits for the journal to take the events of a batch, before it goes on without."""
MAX_UNSTATED = 1000
"""Removals whose events the journal has not taken; past it nothing more is removed until it has."""


class Room(NamedTuple):
    """The file system with the least room: where it is, its free bytes, and whether they (and its inodes) are enough."""

    place: Path
    free: int
    enough: bool


class Keeper:
    """Keeps evidence within the limits of the settings."""

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        *,
        active: Callable[[], Collection[str]],
        lines: Path | None = None,
    ) -> None:
        """`active`: ids of sessions that are being recorded; `lines`: the file of JSON lines, if there is one."""
        self._config = settings.evidence
        self._journal = journal
        self._active = active
        self._lines = lines
        self._rows = Rows(journal.path)
        self._shelves = Shelves(settings.recordings_dir)
        self._recordings = Recordings(self._shelves, self._known)
        self._recording = settings.recording.enabled
        self._places = [journal.path.parent, *([self._shelves.root] if self._recording else [])]
        self._clock = AgeClock(None)
        self._removals: list[Removal] = []
        """Emptied, but not known to be in the journal."""
        self._short_since: float | None = None
        self._full = False
        self._troubles: set[str] = set()

    @property
    def refusal(self) -> str | None:
        """Why no new connection can be taken; None when there is room."""
        return "evidence.min_free reached" if self._short_since is not None else None

    async def start(self) -> None:
        """Look for room, and finish what an earlier run was removing."""
        newest = await self._try(asyncio.to_thread(self._rows.read, _newest))
        self._clock = AgeClock(newest)
        if self._recording:
            for removal in await self._try(asyncio.to_thread(self._shelves.unfinished)) or ():
                if not await self._try(asyncio.to_thread(self._is_stated, removal)):
                    self._state(removal)
                await self._finish([removal])
        if not await self._has_room():
            await self._turn()
        await self._judge()

    async def run(self) -> None:
        """Hold the limits until cancelled."""
        due = 0.0
        try:
            while True:
                short = not await self._has_room()
                if time.monotonic() >= due or (short and self._short_since is None):
                    started = time.monotonic()
                    more = await self._turn()
                    due = time.monotonic() + (0.0 if more else max(TURN_SECONDS, 10 * (time.monotonic() - started)))
                await self._judge()
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            self._recordings.stopping = True

    # ---- a turn

    async def _turn(self) -> bool:
        """Remove what is too much; return True if there is more to do."""
        now, jump = self._clock.look()
        if jump:
            log.warning("the machine's clock was set", seconds=round(jump, 3))
        more = bool(await self._try(self._hold_lines(now)))
        if self._recording:
            more |= bool(await self._try(self._hold_recordings(now)))
        if self._journal.healthy:
            more |= bool(await self._try(self._hold_rows(now)))
        return more

    async def _hold_lines(self, now: float) -> bool:
        if self._lines is None or not self._config.max_lines_bytes:
            return False
        for path, size, reason in await asyncio.to_thread(self._excess_lines, self._lines, now):
            await asyncio.to_thread(path.unlink, missing_ok=True)
            self._emit(EvidenceRemoved(what="lines", path=path.name, reason=reason, bytes=size))
        return False

    def _excess_lines(self, lines: Path, now: float) -> list[tuple[Path, int, str]]:
        """Full files of JSON lines that are to go."""
        config = self._config
        there = [(path, path.stat()) for path in put_aside(lines)]
        total = sum(status.st_size for _, status in there) + config.max_lines_bytes // 4
        short = not self._room(lines.parent).enough
        gone = []
        for path, status in there:
            if short:
                reason = "evidence.min_free"
            elif total > config.max_lines_bytes:
                reason = "evidence.max_lines_bytes"
            elif config.max_age and now - status.st_mtime > config.max_age:
                reason = "evidence.max_age"
            else:
                break
            total -= status.st_size
            gone.append((path, status.st_size, reason))
        return gone

    async def _hold_recordings(self, now: float) -> bool:
        await self._finish([])
        await asyncio.to_thread(self._recordings.survey, self._active())
        for _ in range(STEPS):
            taken = await asyncio.to_thread(self._take, now, self._active())
            for removal in taken:
                self._state(removal)
            await self._finish(taken)
            if not taken or len(self._removals) > MAX_UNSTATED:
                self._say_full()
                return False
        return True

    def _take(self, now: float, active: Collection[str]) -> list[Removal]:
        """Take a batch of what goes first, by the first limit that says so."""
        config, recordings = self._config, self._recordings
        taken: list[Removal] = []
        if config.max_age:
            taken = recordings.take(1 << 60, "evidence.max_age", now=now, active=active, older_than=config.max_age)
        if not taken and (excess := recordings.total - config.max_bytes) > 0:
            taken = recordings.take(excess, "evidence.max_bytes", now=now, active=active)
        if not taken and not (room := self._room(self._shelves.root)).enough:
            need = config.min_free + config.min_free // 8 - room.free
            taken = recordings.take(max(need, 1), "evidence.min_free", now=now, active=active, spare=SPARE_SECONDS)
        return taken

    def _say_full(self) -> None:
        """State, once, that what is under way takes more than all recordings may."""
        full = self._recordings.total > self._config.max_bytes and not self._removals
        if full and not self._full:
            log.error("recordings take more than evidence.max_bytes, and none can go", bytes=self._recordings.total)
            self._emit(
                LimitReached(
                    limit="evidence.max_bytes", value=self._config.max_bytes, detail="what is left is under way, and stays"
                )
            )
        self._full = full

    async def _hold_rows(self, now: float) -> bool:
        config, journal = self._config, self._journal
        self._rows.begin_turn()

        def plan(db: sqlite3.Connection) -> Work | None:
            work: Work | None = None
            if config.max_age:
                before = int((now - config.max_age) * 1e6)
                work = self._rows.age(db, before, journal.first_id, "evidence.max_age")
            used, free = pruning.extent(db)
            if work is None and used > config.max_journal_bytes:
                work = self._rows.plan(db, now, journal.first_id, "evidence.max_journal_bytes")
            if work is None and free > (SLACK_BYTES if self._short_since is None else 0):
                work = shrink
            return work

        for _ in range(STEPS):
            if (work := await asyncio.to_thread(self._rows.read, plan)) is None:
                return False
            await journal.work(work)
        return True

    # ---- recordings that go

    def _state(self, removal: Removal) -> None:
        item = removal.item
        self._emit(
            EvidenceRemoved(session_id=item.session_id, what="recording", path=item.path, reason=removal.reason, bytes=item.bytes)
        )

    async def _finish(self, stated: list[Removal]) -> None:
        """Empty what was taken and stated; forget it once that is written."""
        for removal in stated:
            await self._try(asyncio.to_thread(self._empty, removal))
        self._removals += stated
        if not self._removals or not self._journal.healthy:
            return
        with contextlib.suppress(TimeoutError, JournalError):
            async with asyncio.timeout(WRITTEN_SECONDS):
                await self._journal.wait_written()
            removals, self._removals = self._removals, []
            await self._try(asyncio.to_thread(self._forget, removals))

    def _empty(self, removal: Removal) -> None:
        while not self._shelves.empty(removal):
            pass

    def _forget(self, removals: list[Removal]) -> None:
        for removal in removals:
            self._shelves.forget(removal)
        recent = max(self._shelves.days(), default="")
        for day in {removal.item.day for removal in removals} - {recent}:
            self._shelves.tidy(day)

    def _is_stated(self, removal: Removal) -> bool:
        item = removal.item
        return bool(self._rows.read(lambda db: pruning.is_stated(db, item.session_id, EvidenceRemoved.tag(), "path", item.path)))

    def _known(self, session_ids: list[str]) -> dict[str, pruning.SessionRow] | None:
        try:
            found: dict[str, pruning.SessionRow] = self._rows.read(lambda db: pruning.sessions_named(db, session_ids))
        except sqlite3.Error:
            return None
        return found

    # ---- room

    async def _has_room(self) -> bool:
        room = await self._try(asyncio.to_thread(self._room))
        return room is None or bool(room.enough)

    async def _judge(self) -> None:
        """Open or close the door."""
        room: Room | None = await self._try(asyncio.to_thread(self._room))
        if room is None:
            return
        if not room.enough and self._short_since is None:
            self._short_since = time.monotonic()
            detail = f"no new connection is taken: {room.free} bytes free in {room.place}"
            log.error("too little free disk: no new connection is taken", place=str(room.place), free=room.free)
            self._emit(LimitReached(limit="evidence.min_free", value=self._config.min_free, detail=detail))
        elif room.enough and self._short_since is not None:
            seconds = round(time.monotonic() - self._short_since, 3)
            self._short_since = None
            log.info("there is free disk again: new connections are taken", free=room.free, seconds=seconds)
            self._emit(EvidenceResumed(seconds=seconds, free=room.free))

    def _room(self, *places: Path) -> Room:
        """Return what there is of room in `places`, everywhere if none is given. To be enough again it must be an eighth more."""
        needed = self._config.min_free
        if self._short_since is not None:
            needed += needed // 8
        rooms = []
        for place in places or self._places:
            status = os.statvfs(place)
            free = status.f_bavail * status.f_frsize
            inodes = not status.f_files or status.f_favail >= FREE_INODES
            rooms.append(Room(place, free, not needed or (free >= needed and inodes)))
        return min(rooms, key=lambda room: (room.enough, room.free))

    # ---- what may fail

    def _emit(self, event: Any) -> None:
        try:
            self._journal.emit(event)
        except JournalError as error:
            log.error("an event of the evidence's keeper could not be written", event_name=event.tag(), reason=str(error))

    async def _try(self, doing: Any) -> Any:
        """Return what comes of it, None if it fails: each reason is logged when it is new."""
        try:
            result = await doing
        except (OSError, sqlite3.Error, JournalError, MemoryError, RuntimeError) as error:  # RuntimeError: no thread to be had
            reason = f"{type(error).__name__}: {error}"
            if reason not in self._troubles:
                log.error("evidence cannot be kept within its limits; it is tried again", reason=reason)
                self._troubles = {*list(self._troubles)[-20:], reason}
            return None
        return result


def _newest(db: sqlite3.Connection) -> float | None:
    """Time of the newest event, in seconds since the epoch."""
    row = db.execute("SELECT time FROM events ORDER BY id DESC LIMIT 1").fetchone()
    return None if row is None else row[0] / 1e6
