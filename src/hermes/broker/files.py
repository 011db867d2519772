"""What is written and executed in one box: each file caught with an open descriptor, kept by its content, and stated.

A part of the watcher that stands outside of a box (a single-threaded poll loop). The kernel queues a descriptor at each close, so
a file is kept although it is unlinked the next moment; what it holds is what it holds when it is copied, mostly moments later.

A file that is written over and over is kept at first, then after a pause that grows; its descriptor is held meanwhile, so that
the last content is always kept, and the times between are counted. Imported by the zygote, so it imports little.
"""

import heapq
import os
import stat
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from hermes import events
from hermes.broker import fanotify, linux
from hermes.broker.artifacts import NO_TIME, Budgets, Content, Copying, Store

Emit = Callable[[events.Event, int], None]
"""Takes a fact and its time, in microseconds since the epoch."""
Key = tuple[int, int]

STEP_SECONDS = 0.002
"""How long one `step` may take, about."""
BATCH = 64
HELD = 512
"""Descriptors held at once, at most; the rest waits in the kernel."""
PAUSES = (1.0, 60.0)
"""Seconds between two copies of a file that is being written: the first pause, doubled each time, and the longest."""
REMEMBERED = 8192
"""Files of which is remembered what they held and when they were copied."""
MAX_PATH = 4096
_DELETED = b" (deleted)"
_MEMFD = b"/memfd:"


@dataclass(slots=True)
class _Seen:
    """A file that is to be looked at. `fd` is ours."""

    fd: int
    key: Key
    pid: int | None
    """In the box's own pid namespace; None: it had ended."""
    time: int
    written: bool
    executed: bool
    repeated: int = 0


@dataclass(slots=True)
class _Version:
    """What a file held when it was copied last."""

    ctime: int
    size: int
    content: Content | None
    skipped: str | None
    executed: bool
    pause: float
    rests_until: float


class Files:
    """The files of the box whose init is `init` (in this pid namespace). OSError where the kernel cannot watch them.

    `emit` is told each fact; `box_pid` knows a process's number in the box by that on the host.
    """

    def __init__(
        self,
        init: int,
        *,
        container_id: str,
        budgets: Budgets,
        emit: Emit,
        box_pid: Callable[[int], int | None] | None = None,
    ) -> None:
        self._container = container_id
        self._budgets = budgets
        self._emit = emit
        self._box_pid = box_pid or fanotify.pid_inside
        self._began = time.time_ns()
        self._init = init
        self._queue: deque[Key] = deque()
        self._seen: dict[Key, _Seen] = {}
        self._resting: list[tuple[float, Key]] = []
        self._versions: OrderedDict[Key, _Version] = OrderedDict()
        self._stored: set[str] = set()
        self._current: tuple[_Seen, os.stat_result, Copying] | None = None
        self._entries = [0, 0]  # stated of files written, and of files executed
        self._uncounted = 0
        self._limits: set[str] = set()
        self._flooded = False
        self._closing = False
        self._store = Store(budgets, container_id, self._reached)
        self._timer = linux.timer()
        self._group = fanotify.start()
        self._places = fanotify.places(init)
        self._roots: dict[int, int] = {}
        """An fd of the root directory of each file system that is the box's own, by its device number."""
        for place in self._places:
            fanotify.mark(self._group, place, fanotify.WRITTEN | fanotify.EXECUTED)
            if place.whole:
                root = os.open(place.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                self._roots[os.fstat(root).st_dev] = root
        self._prefixes = {device: fanotify.path_of(root) for device, root in self._roots.items()}
        for device in fanotify.devices(init):
            with suppress(OSError):
                fanotify.ignore(self._group, device)

    # ---- what the watcher calls

    def fds(self) -> list[int]:
        """What to poll for POLLIN; to be asked again before each poll."""
        return [self._timer] if self._is_full() else [self._group, self._timer]

    def ready(self, fd: int) -> None:
        """One of them can be read."""
        if fd == self._timer:
            linux.timer_elapsed(self._timer)
            self._wake()
        else:
            self._read()

    def busy(self) -> bool:
        """Whether there is something for `step` to do."""
        return self._has_work() or (self._flooded and not fanotify.waiting(self._group))

    def step(self) -> None:
        """Do a little of it."""
        until = time.monotonic() + STEP_SECONDS
        while self._has_work():
            self._advance()
            if time.monotonic() >= until:
                return
        if self._flooded and not fanotify.waiting(self._group):
            self._resume()

    def executing(self, host_pid: int, fd: int) -> None:
        """A process, which waits for us, is about to execute what its descriptor `fd` refers to. Never fails.

        To be called for execveat with an empty path, and for paths such as /proc/self/fd/3: a memfd lies in no file system that
        could be watched, and may be gone with its process the moment after.
        """
        self._take(f"/proc/{host_pid}/fd/{fd}", host_pid)

    def executed(self, host_pid: int) -> None:
        """A process has executed something: keep that if it lies where nothing can be watched. Never fails."""
        self._take(f"/proc/{host_pid}/exe", host_pid)

    def close(self) -> None:
        """The box is dead: finish what waits, as far as `end_seconds` allow, and let go of everything."""
        deadline = time.monotonic() + self._budgets.end_seconds
        self._closing = True
        try:
            while True:
                self._wake(everything=True)
                while not self._is_full() and self._read():
                    pass
                if not self._has_work():
                    break
                while self._has_work():
                    if time.monotonic() < deadline:
                        self._advance()
                    else:
                        self._give_up()
            if self._uncounted:
                self._state_limit("session_entries", self._budgets.session_entries, self._uncounted - 1)
        finally:
            for fd in (self._group, self._timer, *self._roots.values()):
                os.close(fd)
            self._store.close()

    # ---- from the kernel

    def _has_work(self) -> bool:
        return self._current is not None or bool(self._queue)

    def _is_full(self) -> bool:
        return len(self._seen) >= HELD

    def _read(self) -> bool:
        """Take what the kernel has; False when it has nothing (more)."""
        self._check_backlog()
        try:
            found = fanotify.read(self._group, min(BATCH, max(1, HELD - len(self._seen))))
        except OSError:
            self._wake(everything=True)
            return False
        now = time.time_ns() // 1000
        pids: dict[int, int | None] = {}
        for event in found:
            if event.fd < 0:
                continue
            status = os.fstat(event.fd)
            if not stat.S_ISREG(status.st_mode) or not self._counts(event, status):
                os.close(event.fd)
                continue
            if event.pid not in pids:
                pids[event.pid] = self._box_pid(event.pid)
            written, executed = bool(event.mask & fanotify.WRITTEN), bool(event.mask & fanotify.EXECUTED)
            self._note(_Seen(event.fd, (status.st_dev, status.st_ino), pids[event.pid], now, written, executed))
        return bool(found)

    def _counts(self, event: fanotify.Event, status: os.stat_result) -> bool:
        """Whether an event is one that is to be stated, and may be."""
        if not event.mask & fanotify.WRITTEN:
            if status.st_ctime_ns <= self._began:
                return False  # the image's own
            version = self._versions.get((status.st_dev, status.st_ino))
            if version is not None and version.executed and (version.ctime, version.size) == (status.st_ctime_ns, status.st_size):
                return False  # stated already; each execution is a `process.started`
        # What is executed has a share of its own: a storm of writes must not hide it.
        executed = bool(event.mask & fanotify.EXECUTED)
        if self._entries[executed] + len(self._seen) >= self._budgets.session_entries:
            if not self._uncounted:
                self._state_limit("session_entries", self._budgets.session_entries)
            self._uncounted += 1
            return False
        return True

    def _note(self, seen: _Seen) -> None:
        waits = self._seen.get(seen.key)
        if waits is not None:  # the same file: its number cannot be another's while we hold it open
            waits.repeated += waits.written and seen.written
            waits.written |= seen.written
            waits.fd, old = seen.fd, waits.fd
            os.close(old)
            if seen.executed and not waits.executed:
                waits.executed = True
                waits.pid = seen.pid
                self._queue.append(seen.key)
            return
        self._seen[seen.key] = seen
        version = self._versions.get(seen.key)
        rests = version is not None and not seen.executed and not self._closing and version.rests_until > time.monotonic()
        if version is not None and rests:
            heapq.heappush(self._resting, (version.rests_until, seen.key))
            linux.set_timer(self._timer, max(0.0, self._resting[0][0] - time.monotonic()))
            if self._is_full():
                self._wake(everything=True)
        else:
            self._queue.append(seen.key)

    def _wake(self, *, everything: bool = False) -> None:
        """Have those looked at that have rested long enough."""
        now = time.monotonic()
        while self._resting and (everything or self._resting[0][0] <= now):
            self._queue.append(heapq.heappop(self._resting)[1])
        linux.set_timer(self._timer, max(0.0, self._resting[0][0] - now) if self._resting else None)

    def _check_backlog(self) -> None:
        """Writes that come faster than they are looked at would fill the kernel's memory: look away until the rest is done."""
        if not self._flooded and fanotify.waiting(self._group) > self._budgets.backlog:
            self._flooded = True
            for place in self._places:
                with suppress(OSError):
                    fanotify.mark(self._group, place, fanotify.WRITTEN, remove=True)
            self._reached("backlog", self._budgets.backlog)

    def _resume(self) -> None:
        self._flooded = False
        for place in self._places:
            with suppress(OSError):  # the box is gone
                fanotify.mark(self._group, place, fanotify.WRITTEN)

    def _take(self, path: str, host_pid: int) -> None:
        try:
            if not os.readlink(os.fsencode(path)).startswith(_MEMFD):  # noqa: PTH115
                return
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or not self._counts(fanotify.Event(fanotify.EXECUTED, fd, host_pid), status):
            os.close(fd)
            return
        key = (status.st_dev, status.st_ino)
        self._note(_Seen(fd, key, self._box_pid(host_pid), time.time_ns() // 1000, written=False, executed=True))

    # ---- copying and stating

    def _advance(self) -> None:
        if self._current is None:
            seen = self._seen.pop(self._queue.popleft(), None)
            if seen is None:
                return  # it was queued twice
            status = os.fstat(seen.fd)
            version = self._versions.get(seen.key)
            same = version is not None and (version.ctime, version.size) == (status.st_ctime_ns, status.st_size)
            if version is not None and same and (version.content is not None or not seen.executed):
                self._finish(seen, status, version.content or version.skipped or "")
                return
            self._current = (seen, status, self._store.copying(seen.fd, executed=seen.executed))
        seen, status, copying = self._current
        outcome = copying.step()
        if outcome is not None:
            self._current = None
            self._finish(seen, status, outcome)

    def _give_up(self) -> None:
        """State what is next without its content."""
        if self._current is not None:
            (seen, status, copying), self._current = self._current, None
            copying.abandon()
            self._finish(seen, status, NO_TIME)
        elif (waits := self._seen.pop(self._queue.popleft(), None)) is not None:
            self._finish(waits, os.fstat(waits.fd), NO_TIME)

    def _finish(self, seen: _Seen, before: os.stat_result, outcome: Content | str) -> None:
        """State what came of it; `before` is what the file was when copying began."""
        content, skipped = (outcome, None) if isinstance(outcome, Content) else (None, outcome)
        status = os.fstat(seen.fd)
        path, deleted = self._name(seen.fd, status)
        os.close(seen.fd)
        self._remember(seen, before, content, skipped)
        size = content.size if content is not None else status.st_size
        sha256 = content.sha256 if content is not None else None
        if seen.written:
            self._entries[False] += 1
            self._emit(
                events.FileWritten(
                    container_id=self._container, pid=seen.pid, path=path, size=size, mode=stat.S_IMODE(status.st_mode),
                    sha256=sha256, skipped=skipped, repeated=seen.repeated,
                ), seen.time,
            )  # fmt: skip
        if seen.executed:
            self._entries[True] += 1
            self._emit(
                events.FileExecuted(
                    container_id=self._container, pid=seen.pid, path=path, size=size, sha256=sha256, deleted=deleted,
                    skipped=skipped,
                ), seen.time,
            )  # fmt: skip
        if content is not None and content.sha256 not in self._stored:
            self._stored.add(content.sha256)
            self._emit(
                events.ArtifactStored(
                    container_id=self._container, sha256=content.sha256, sha1=content.sha1, md5=content.md5, size=content.size,
                    path=path, source="written" if seen.written else "executed", known=content.known,
                ), seen.time,
            )  # fmt: skip

    def _remember(self, seen: _Seen, status: os.stat_result, content: Content | None, skipped: str | None) -> None:
        before = self._versions.pop(seen.key, None)
        first, longest = PAUSES
        pause = min(longest, before.pause * 2) if before is not None else first
        same = before is not None and (before.ctime, before.size) == (status.st_ctime_ns, status.st_size)
        executed = seen.executed or (before is not None and same and before.executed)
        self._versions[seen.key] = _Version(
            status.st_ctime_ns, status.st_size, content, skipped, executed, pause, time.monotonic() + pause
        )  # fmt: skip
        if len(self._versions) > REMEMBERED:
            self._versions.popitem(last=False)

    def _name(self, fd: int, status: os.stat_result) -> tuple[str, bool]:
        """The path of an open file in its box, as text, and whether it has that name no more."""
        try:
            path = self._path(fd, status.st_dev)
        except OSError:  # longer than the kernel can say
            return "?", status.st_nlink == 0
        deleted = status.st_nlink == 0
        if path.endswith(_DELETED) and (deleted or not self._is(path, status)):
            path, deleted = path[: -len(_DELETED)], True
        return events.from_bytes(path[:MAX_PATH]), deleted

    def _path(self, fd: int, device: int) -> bytes:
        """The path of an open file; also once its mount went with the box, of which the kernel then tells only the rest."""
        root = self._roots.get(device)
        while root is not None:
            before, path, after = fanotify.path_of(root), fanotify.path_of(fd), fanotify.path_of(root)
            if before == after:
                return path if before == self._prefixes[device] else self._prefixes[device] + path
        return fanotify.path_of(fd)

    def _is(self, path: bytes, status: os.stat_result) -> bool:
        """Whether that path in the box is the file."""
        with suppress(OSError):
            found = os.lstat(b"/proc/%d/root%b" % (self._init, path))
            return (found.st_dev, found.st_ino) == (status.st_dev, status.st_ino)
        return False

    # ---- limits

    def _reached(self, setting: str, value: int) -> None:
        """State a limit, once."""
        if setting not in self._limits:
            self._limits.add(setting)
            self._state_limit(setting, value)

    def _state_limit(self, setting: str, value: float, suppressed: int = 0) -> None:
        self._emit(
            events.LimitReached(
                limit=f"artifacts.{setting}", value=value, container_id=self._container, detail=_MEANING[setting],
                suppressed=suppressed,
            ), time.time_ns() // 1000,
        )  # fmt: skip


_MEANING = {
    "session_bytes": "nothing more of the session is kept that is not kept already",
    "session_entries": "more files written or executed are only counted",
    "min_free": "nothing more is kept until there is room",
    "backlog": "files were written faster than looked at; for a while writes were not looked at",
}
