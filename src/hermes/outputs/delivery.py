"""The way of events to one sink: at least once, in order, from a position that moves only when they are there."""

import asyncio
import contextlib
import fnmatch
import re
import time
from collections.abc import AsyncIterator, Callable
from functools import lru_cache
from pathlib import Path

import msgspec
import stamina
import stamina.instrumentation
import structlog

from hermes.config.outputs import OutputConfig
from hermes.errors import HermesError, JournalError
from hermes.outputs.alerts import Alerts
from hermes.outputs.sink import Record, Sink, SinkError
from hermes.store import StoredEvent, cursors
from hermes.store.cursors import Cursor
from hermes.store.follow import Follower, Position

log = structlog.get_logger(__name__)
stamina.instrumentation.set_on_retry_hooks(())  # deliveries say themselves what is worth saying

READ = 200
"""Events read at once: what is held in memory for a sink that does not take them."""
RETRY_SECONDS = (0.5, 60.0)
"""Seconds between tries: the first pause, doubled each time; and the longest."""
LONGEST_WISH = 3600.0
"""Seconds that a receiver may ask to be left alone (`Retry-After`)."""
REMIND_SECONDS = 3600.0
"""A sink that goes on failing is logged again so often."""


def matcher(patterns: tuple[str, ...]) -> Callable[[str], bool]:
    """Tell by its name whether an event is one of those meant."""
    if "*" in patterns:
        return lambda name: True
    any_of = re.compile("|".join(map(fnmatch.translate, patterns)) or r"(?!)")
    return lru_cache(512)(lambda name: any_of.fullmatch(name) is not None)


class Delivery:
    """Sends what one output is to have, one batch after the other, for as long as `run` runs."""

    def __init__(self, config: OutputConfig, sink: Sink, *, journal: Path, cursors_dir: Path, alerts: Alerts) -> None:
        self.name = config.name
        self._config = config
        self._sink = sink
        self._journal = journal
        self._directory = cursors_dir
        self._alerts = alerts
        self._wants = matcher(config.events)
        self._cursor = Cursor()
        self._is_known = False
        """The cursor was read; else it must not be written."""
        self._reminded = 0.0
        self._pause = RETRY_SECONDS[0]

    async def run(self) -> None:
        """Deliver until cancelled. What goes wrong is logged and tried again, from what was confirmed last."""
        try:
            while True:
                try:
                    await self._follow()
                except Exception as error:
                    bug = None if isinstance(error, HermesError | OSError) else error
                    log.error("an output stopped, and begins again", output=self.name, reason=str(error), exc_info=bug)
                    if not isinstance(error, JournalError):
                        self._note(f"{type(error).__name__}: {error}")
                await asyncio.sleep(self._pause)
                self._pause = min(2 * self._pause, RETRY_SECONDS[1])
        finally:
            await self._sink.close()

    async def _follow(self) -> None:
        self._is_known = False
        self._cursor = await asyncio.to_thread(self._begin)
        self._is_known = True
        self._alerts.remember(self._cursor.memory)
        follower = Follower(self._journal, after=self._cursor.position)
        missed = 0
        try:
            while True:
                stored = await follower.next(READ)
                if self._cursor.journal not in ("", follower.position.journal):
                    reason = f"another journal is in the place of {self._cursor.journal}"
                    log.error("what an output had not sent of the journal before is lost to it", output=self.name, reason=reason)
                    self._cursor = msgspec.structs.replace(self._cursor, began=0)
                gone, missed = follower.missed - missed, follower.missed
                if stored[0].id <= self._cursor.began:
                    gone = 0
                if gone:
                    reason = f"{gone} events were removed from the journal before they were sent"
                    log.error("an output lost events: it fell behind what is kept", output=self.name, reason=reason)
                await self._take(follower.position.journal, stored, gone)
        finally:
            follower.close()

    def _begin(self) -> Cursor:
        """Where to go on."""
        found = cursors.load(self._directory, self.name)
        if found is not None:
            return found
        last = Position()
        if self._journal.exists():
            with contextlib.closing(Follower(self._journal)) as follower:
                last = follower.last()
        begins = last if self._config.start == "now" else Position(last.journal)
        fresh = Cursor(journal=begins.journal, id=begins.id, began=last.id)
        cursors.save(self._directory, self.name, fresh)
        return fresh

    async def _take(self, journal: str, stored: list[StoredEvent], gone: int) -> None:
        """Send what is wanted of these events, no more at once than the sink takes."""
        batch: list[Record] = []
        for event in stored:
            if batch and len(batch) + 1 + self._alerts.most > self._sink.limit:
                await self._send(batch, Position(journal, event.id - 1), gone)
                batch, gone = [], 0
            record = Record.of(journal, event)
            if self._wants(event.event):
                batch.append(record)
            batch += self._alerts.take(record)
        await self._send(batch, Position(journal, stored[-1].id), gone)

    async def _send(self, batch: list[Record], upto: Position, gone: int) -> None:
        if batch:
            async for attempt in self._tries():
                with attempt:
                    await self._sink.send(batch)
        moved = msgspec.structs.replace(
            self._cursor, journal=upto.journal, id=upto.id, delivered=self._cursor.delivered + len(batch),
            missed=self._cursor.missed + gone, failing_since=None, memory=self._alerts.memory(),
        )  # fmt: skip
        if self._cursor.failing_since is not None:
            log.info("an output delivers again", output=self.name)
        async for attempt in self._tries():
            with attempt:
                await asyncio.to_thread(cursors.save, self._directory, self.name, moved)
        self._cursor = moved
        self._pause = RETRY_SECONDS[0]

    def _tries(self) -> AsyncIterator[stamina.Attempt]:
        first, longest = RETRY_SECONDS
        return aiter(
            stamina.retry_context(
                on=self._failed, attempts=None, timeout=None, wait_initial=first, wait_max=longest, wait_jitter=first
            )
        )

    def _failed(self, error: Exception) -> bool | float:
        """Whether to try again, or after how many seconds."""
        if not isinstance(error, SinkError | OSError):
            return False
        if self._cursor.failing_since is None or time.time() - self._reminded > REMIND_SECONDS:
            log.warning("an output does not deliver; what it should is kept", output=self.name, reason=str(error)[:500])
            self._reminded = time.time()
        self._note(str(error))
        if isinstance(error, SinkError) and error.after is not None:
            return min(max(error.after, RETRY_SECONDS[0]), LONGEST_WISH)
        return True

    def _note(self, reason: str) -> None:
        """Let others know that it fails, and how."""
        since, reason = self._cursor.failing_since or time.time(), reason[:500]
        if (since, reason) != (self._cursor.failing_since, self._cursor.error) and self._is_known:
            self._cursor = msgspec.structs.replace(self._cursor, failing_since=since, error=reason)
            with contextlib.suppress(OSError):
                cursors.save(self._directory, self.name, self._cursor)
