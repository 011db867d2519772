"""Holds the limits of all artifacts together: what was not seen for longest goes first, nothing that an active session may name.

Whoever keeps a content, or sees it again, sets its mtime (`hermes.broker.artifacts`). So what the session has seen that holds its
box for longest is not older than that session; only what is older can go.
"""

import asyncio
import heapq
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import structlog

from hermes import artifacts, events
from hermes.broker.artifacts import EMPTY, GONE, Budgets
from hermes.broker.facts import fact
from hermes.config.artifacts import ArtifactsConfig
from hermes.container.messages import BrokerEvent

log = structlog.get_logger(__name__)

INTERVAL = 60.0
"""Seconds between two looks at what is kept."""
MARGIN = 60.0
"""Seconds by which what goes must be older than the oldest active session: its facts may still be on their way."""
BATCH = 1000
"""Artifacts removed between two looks."""
SPARE = 0.95
"""Where `max_bytes` is exceeded, so much of it is left: it will be a while until it is again."""


def budgets(config: ArtifactsConfig, directory: Path, group: int) -> Budgets:
    """The settings, for those who keep files."""
    return Budgets(
        directory=str(directory), group=group, file_bytes=config.file_bytes, session_bytes=config.session_bytes,
        session_entries=config.session_entries, backlog=config.backlog, min_free=config.min_free, end_seconds=config.end_seconds,
    )  # fmt: skip


class Kept(NamedTuple):
    """An artifact: when it was seen last, the bytes it takes on disk, and its name."""

    seen: float
    bytes: int
    sha256: str


class _Shelf(NamedTuple):
    """What one directory holds, as of its `stamp`. Of `oldest`, only that nothing in it is older is known."""

    stamp: int
    bytes: int
    oldest: float


class ArtifactKeeper:
    """Removes what is too much or too old, and states each removal.

    `active_since` says when the oldest active session began; `room`, whether facts are taken now.
    """

    def __init__(
        self,
        directory: Path,
        config: ArtifactsConfig,
        *,
        emit: Callable[[BrokerEvent], None],
        active_since: Callable[[], float | None] = lambda: None,
        room: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.total = 0
        """Bytes kept, as of the last look."""
        self._directory = directory
        self._config = config
        self._emit = emit
        self._active_since = active_since
        self._room = room
        self._clock = clock
        self._shelves: dict[str, _Shelf] = {}

    async def run(self) -> None:
        """Hold the limits until cancelled."""
        while True:
            try:
                await self.hold()
            except OSError as error:
                log.error("the limits of artifacts cannot be held", reason=str(error))
            await asyncio.sleep(INTERVAL)

    async def hold(self) -> None:
        """Look once, and remove what there is to remove. Raises OSError."""
        await asyncio.to_thread(self._look)
        while going := await asyncio.to_thread(self._next, self._untouchable()):
            removed = 0
            for one, reason in going:
                while not self._room():  # noqa: ASYNC110 - nobody tells when there is
                    await asyncio.sleep(0.1)
                if (aside := await asyncio.to_thread(self._take, one)) is not None:
                    removed += 1
                    event = events.EvidenceRemoved(
                        what="artifact", path=one.sha256, reason=f"artifacts.{reason}", bytes=one.bytes
                    )
                    self._emit(fact(event))
                    await asyncio.to_thread(aside.unlink)
            await asyncio.to_thread(self._look)
            if not removed:
                return

    def _untouchable(self) -> float:
        """What was seen since then stays."""
        since = self._active_since()
        return (self._clock() if since is None else min(since, self._clock())) - MARGIN

    def _look(self) -> None:
        """Measure the directories that have changed."""
        found: dict[str, _Shelf] = {}
        for path, stamp in self._directories():
            known = self._shelves.get(path)
            found[path] = known if known is not None and known.stamp == stamp else self._measure(path, stamp)
        self._shelves = found
        self.total = sum(shelf.bytes for shelf in found.values())

    def _directories(self) -> Iterator[tuple[str, int]]:
        with os.scandir(self._directory) as tops:
            for top in tops:
                if len(top.name) != 2 or not top.is_dir(follow_symlinks=False):
                    continue
                with os.scandir(top.path) as entries:
                    for entry in entries:
                        yield entry.path, entry.stat(follow_symlinks=False).st_mtime_ns

    def _measure(self, path: str, stamp: int) -> _Shelf:
        kept = list(self._on(path))
        return _Shelf(stamp, sum(one.bytes for one in kept), min((one.seen for one in kept), default=float("inf")))

    @staticmethod
    def _on(path: str) -> Iterator[Kept]:
        with suppress(FileNotFoundError), os.scandir(path) as entries:
            for entry in entries:
                if not artifacts.is_sha256(entry.name):
                    continue
                with suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    torn = not status.st_size and entry.name != EMPTY  # by a crash of the machine
                    yield Kept(0.0 if torn else status.st_mtime, status.st_blocks * 512, entry.name)

    def _next(self, untouchable: float) -> list[tuple[Kept, str]]:
        """What is to go next, oldest first, and the setting that says so."""
        age = self._config.max_age
        expired = self._clock() - age if age else -1.0
        excess = self.total - self._config.max_bytes
        if excess > 0:
            candidates = (one for path in self._shelves for one in self._on(path))
            need = self.total - int(self._config.max_bytes * SPARE)
        else:
            old = [path for path, shelf in self._shelves.items() if shelf.oldest < expired]
            candidates = (one for path in old for one in self._on(path) if one.seen < expired)
            need = 0
        going = []
        for one in heapq.nsmallest(BATCH, (one for one in candidates if one.seen < untouchable)):
            if one.seen < expired:
                going.append((one, "max_age"))
            elif need > 0:
                going.append((one, "max_bytes"))
            need -= one.bytes
        if excess <= 0:  # what else is there was seen again since it was measured
            for path in old:
                shelf = self._shelves[path]
                seen = min((one.seen for one in self._on(path)), default=float("inf"))
                self._shelves[path] = shelf._replace(oldest=seen)
        return going

    def _take(self, one: Kept) -> Path | None:
        """Put an artifact aside, unless it was seen again since it was chosen; return where it is then.

        Should this process die before that is stated and removed, the next start puts it back.
        """
        place = artifacts.path(self._directory, one.sha256)
        aside = self._directory / artifacts.INCOMING / f"{GONE}{one.sha256}"
        try:
            place.rename(aside)
            if one.seen and aside.stat().st_mtime > one.seen:
                aside.rename(place)
                return None
        except OSError as error:
            log.error("an artifact cannot be removed", sha256=one.sha256, reason=error.strerror)
            return None
        return aside
