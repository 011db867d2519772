"""The spools of boxes (`hermes.container.spool`) as the broker keeps them: `<directory>/<container_id>`, one file a box.

The broker makes one for each box that is watched and keeps it until a front has it all in the journal: so what a front that died
had not taken goes to the next one, and what a broker that died had not handed over is found by the next broker.
"""

import errno
import fcntl
import os
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

import structlog

from hermes.broker.artifacts import Budgets
from hermes.container import spool
from hermes.container.spool import End, Given, Record
from hermes.events import Event

log = structlog.get_logger(__name__)

LOCK_PATIENCE = 5.0
"""Seconds that a watcher of an earlier broker, whose box is gone, may take to end."""


class Spool:
    """One box's spool. Owns its fds until `close()`."""

    def __init__(self, path: Path, *, fresh: bool) -> None:
        """`fresh`: of a new box; otherwise there must be one. Raises OSError."""
        self.path = path
        self.session_id: str | None = None
        """Who was given the box."""
        self.ended = False
        self.whole = True
        """Whoever else appended has ended in good order: no record is cut short."""
        flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT | os.O_EXCL if fresh else 0)
        self.fd = os.open(path, flags, 0o600)
        try:
            self._lock()
            self.news = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        except BaseException:
            os.close(self.fd)
            raise

    def _lock(self) -> None:
        """Be the only one who appends, with those who get this very fd: a watcher of a broker that died may still end."""
        deadline = time.monotonic() + LOCK_PATIENCE
        while True:
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return

    @property
    def container_id(self) -> str:
        """The box's id."""
        return self.path.name

    def give(self, session_id: str) -> list[int]:
        """The box is the session's from now on. Returns fds for the front: the spool to read, and an eventfd that tells of news.

        Raises OSError.
        """
        if self.session_id is None:
            self._append(Given(session_id))
            self.session_id = session_id
        return self.reading()

    def reading(self) -> list[int]:
        """What `give` returns."""
        reader = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            return [reader, os.dup(self.news)]
        except BaseException:
            os.close(reader)
            raise

    def emit(self, event: Event, time_us: int | None = None) -> None:
        """State a fact of the box that the broker knows, at the time (µs since the epoch) it happened. Raises OSError."""
        self._append(spool.fact(event, time.time_ns() // 1000 if time_us is None else time_us))

    def end(self) -> None:
        """Nothing more comes. Raises OSError; it can then be tried again."""
        if self.ended:
            return
        if not self.whole:
            self._cut_back()
        self._append(End())
        self.ended = True

    def close(self) -> None:
        """Let go of it; the file stays."""
        for fd in (self.fd, self.news):
            os.close(fd)

    def look_through(self) -> None:
        """Learn from what is there to whom the box was given, and whether it ended. Raises OSError, SpoolDamagedError."""
        position = 0
        while True:
            before = position
            for record, position in spool.read(self.fd, before):  # noqa: B007
                if isinstance(record, Given) and self.session_id is None:
                    self.session_id = record.session_id
                self.ended = isinstance(record, End)
            if position == before:
                return

    def _cut_back(self) -> None:
        """Remove a record that was cut short."""
        position = 0
        while True:
            before = position
            for _, position in spool.read(self.fd, before):  # noqa: B007
                pass
            if position == before:
                break
        os.ftruncate(self.fd, position)
        self.whole = True

    def _append(self, record: Record) -> None:
        data = spool.framed(record)
        written = os.write(self.fd, data)
        if written < len(data):
            self.whole = False
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        with suppress(BlockingIOError):
            os.eventfd_write(self.news, 1)


class Spools:
    """All spools of a broker."""

    def __init__(self, directory: Path, files: Budgets | None = None) -> None:
        """`files`: how much of what is written and executed in boxes their watchers keep; None: nothing."""
        self.directory = directory
        self.files = files
        self._spools: dict[str, Spool] = {}

    def start(self, *, spare: Collection[str] = ()) -> None:
        """Find what an earlier broker left: end each spool that a session has, remove the others. Raises OSError. Blocks.

        Those of boxes in `spare`, of which more is to be said, `end` ends.
        """
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in sorted(self.directory.iterdir(), key=lambda path: path.stat().st_mtime):
            if path.name in self._spools:
                continue
            try:
                found = Spool(path, fresh=False)
            except OSError as error:
                log.error("a spool cannot be read", path=str(path), reason=error.strerror)
                continue
            found.whole = False
            self._spools[path.name] = found
            try:
                found.look_through()
                if found.session_id is None:
                    self.remove(found)
                elif path.name not in spare:
                    found.end()
            except (OSError, spool.SpoolDamagedError) as error:
                log.error("a spool cannot be used; it is left where it is", path=str(path), reason=str(error))
                del self._spools[path.name]
                found.close()

    def make(self, container_id: str) -> Spool:
        """Return the spool of a new box. Raises OSError."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = self._spools[container_id] = Spool(self.directory / container_id, fresh=True)
        return made

    def of(self, container_id: str) -> Spool | None:
        """The box's spool, if it has one."""
        return self._spools.get(container_id)

    def writer(self, container_id: str) -> Callable[[Event, int], None] | None:
        """What states facts of a box that is gone; None if nothing more can be said of it."""
        found = self._spools.get(container_id)
        return found.emit if found is not None and not found.ended else None

    def waiting(self) -> list[Spool]:
        """Those that a session has, or had, and that no front has taken wholly; the oldest first."""
        return [one for one in self._spools.values() if one.session_id is not None]

    def end(self, container_id: str) -> None:
        """The box is gone. A spool that no session had goes with it."""
        if (found := self._spools.get(container_id)) is None:
            return
        if found.session_id is None:
            self.remove(found)
            return
        try:
            found.end()
        except (OSError, spool.SpoolDamagedError) as error:
            # The next broker ends it. Until then its session is not known to be complete, which is true.
            log.error("the end of a spool could not be written", path=str(found.path), reason=str(error))

    def taken(self, container_id: str) -> bool:
        """A front has it all in the journal: remove it. False if it has not ended."""
        found = self._spools.get(container_id)
        if found is not None:
            if not found.ended:
                return False
            self.remove(found)
        return True

    def remove(self, one: Spool) -> None:
        """Remove it, whatever is in it."""
        self._spools.pop(one.container_id, None)
        one.close()
        one.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of all; what no front has taken stays for the next broker."""
        for one in list(self._spools.values()):
            if one.session_id is None:
                self.remove(one)
            else:
                one.close()
        self._spools.clear()
