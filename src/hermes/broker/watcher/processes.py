"""The processes of one box that are known: those that executed a program or used an address, and their ancestors.

Each is held by a pidfd, so that a number which the kernel gives to another is never taken for it; it is forgotten when it has
ended. So there are never more than live in the box.
"""

import errno
import os
import resource
import select
import signal
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from hermes.broker.watcher import kernel

_DEPTH = 32
"""Ancestors looked at."""
_RECENT = 8192
"""Processes remembered by number when they have ended: what they wrote is looked at later."""
_TRIES = 10
SPARE_FDS = 1024
"""Descriptors left for everything else: what runs beyond is known without a pidfd."""
POLL_SECONDS = 0.25
"""How often a process without a pidfd is looked for."""


@dataclass(slots=True, eq=False)
class Process:
    """A process. `pid` is its number here, `number` that in the box."""

    pid: int
    pidfd: int
    number: int
    channel: int | None
    executed: bool = False
    """It has executed a program, and its end is to be stated."""
    began: int = 0
    """When it executed its last one, in µs since the epoch."""
    ref: int = 0
    """Of a program whose execution is not decided."""
    foretold: str | None = None
    """How that will end, as far as can be told."""
    image: bytes = b""
    """What it was before; empty: it had been forked and nothing more."""
    looks: int = 0
    """How often that was looked at."""
    born: str = ""
    """What tells it from another of its number, without a pidfd."""
    attempts: set[tuple[object, ...]] = field(default_factory=set)
    """Keys of what it repeats."""


class Processes:
    """`poll` is where pidfds are registered; `spawner` the pid of the spawner, whose children belong to `channel`."""

    def __init__(self, poll: select.epoll, init: int) -> None:
        self.spawner = 0
        self.channel: Callable[[], int | None] = lambda: None
        """Tells the channel of the process the spawner is starting."""
        self._poll = poll
        self._init = init
        self._numbers = kernel.Numbers(init)
        self._known: dict[int, Process] = {}
        self._by_fd: dict[int, Process] = {}
        self._unheld: dict[int, Process] = {}
        self._sessions: OrderedDict[int, int] = OrderedDict()
        """Channels by the session (setsid(2)) of the process they began with: by that orphans are known."""
        self._recent: OrderedDict[int, tuple[int, int | None]] = OrderedDict()
        self._channels: OrderedDict[int, int | None] = OrderedDict()
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = max(64, soft - SPARE_FDS)
        self._looked = 0.0
        self.lost: list[Process] = []
        """Whose number another has now; their end is to be stated."""

    def __len__(self) -> int:
        return len(self._known)

    def all(self) -> list[Process]:
        """Every one that is known."""
        return list(self._known.values())

    def find(self, tid: int) -> tuple[Process, kernel.Info] | None:
        """The process of a thread that waits for us; None if it is gone."""
        known = self._known.get(tid)
        if known is not None and known.pidfd >= 0:
            told = kernel.info(known.pidfd, tid)
            if told is not None and told.status is None:
                return known, told
            self._replaced(known)
        if len(self._by_fd) >= self._most:
            return self._without_pidfd(tid)
        try:
            pidfd = os.pidfd_open(tid)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                return self._without_pidfd(tid)
            leader = kernel.leader_of(tid)
            return self.find(leader) if leader is not None and leader != tid else None
        told = kernel.info(pidfd, tid)
        if told is None or told.tgid != tid:
            os.close(pidfd)
            return self.find(told.tgid) if told is not None and told.tgid and told.tgid != tid else None
        return self._add(tid, pidfd, told), told

    def by_fd(self, fd: int) -> Process | None:
        """The process whose pidfd that is."""
        return self._by_fd.get(fd)

    def by_pid(self, pid: int) -> Process | None:
        """The process with this number here, if it is known."""
        return self._known.get(pid)

    def number_in_box(self, pid: int) -> int | None:
        """The number in the box of a process that may have ended; None if it is not known, or was never in the box."""
        if (known := self._known.get(pid)) is not None:
            return known.number
        found = self._ancestor(pid)
        if found is not None:
            return found.number
        return self._recent[pid][0] if pid in self._recent else None

    def channel_of(self, number: int) -> int | None:
        """The channel of the process that has that number in the box, or had it last."""
        return self._channels.get(number)

    def number_of(self, parent: int) -> int:
        """The number in the box of a parent; 0 for one outside."""
        if parent in (0, self.spawner):
            return 0
        found = self._ancestor(parent)
        return found.number if found is not None else 0

    def forget(self, process: Process) -> None:
        """It has ended."""
        if self._known.get(process.pid) is process:
            del self._known[process.pid]
        self._unheld.pop(process.pid, None)
        if process.pidfd >= 0:
            del self._by_fd[process.pidfd]
            with suppress(OSError):
                self._poll.unregister(process.pidfd)
            os.close(process.pidfd)
            process.pidfd = -1

    def ended(self) -> list[Process]:
        """Those without a pidfd that have ended since it was asked last, and those whose number was taken by others."""
        found, self.lost = self.lost, []
        now = time.monotonic()
        if self._unheld and now - self._looked >= POLL_SECONDS:
            self._looked = now
            found += [one for one in self._unheld.values() if _born(one.pid) != one.born]
        return found

    @property
    def polls(self) -> bool:
        """There are processes without a pidfd, which `ended` must be asked for."""
        return bool(self._unheld) or bool(self.lost)

    # ---- making one known

    def _add(self, pid: int, pidfd: int, told: kernel.Info, depth: int = 0) -> Process:
        process = Process(pid, pidfd, self._numbers(pid), None)
        self._known[pid] = process
        if pidfd >= 0:
            self._by_fd[pidfd] = process
            self._poll.register(pidfd, select.EPOLLIN)
        else:
            process.born = _born(pid)
            self._unheld[pid] = process
        process.channel = self._channel_of(process, told, depth)
        _remember(self._recent, pid, (process.number, process.channel))
        _remember(self._channels, process.number, process.channel)
        return process

    def _without_pidfd(self, tid: int) -> tuple[Process, kernel.Info] | None:
        known = self._unheld.get(tid)
        if known is not None and known.born != _born(tid):
            self.lost.append(known)
            del self._unheld[tid]
            known = None
        told = kernel.info_of_old(-1, tid)
        if told is None:
            return None
        if told.tgid != tid:
            return self._without_pidfd(told.tgid)
        return known or self._add(tid, -1, told), told

    def _replaced(self, process: Process) -> None:
        """It ended, and we were not told yet."""
        self.lost.append(process)
        del self._known[process.pid]

    def _channel_of(self, process: Process, told: kernel.Info, depth: int) -> int | None:
        if told.parent == self.spawner and self.spawner:
            channel = self.channel()
            if channel is not None:
                _remember(self._sessions, process.pid, channel)
            return channel
        parent = self._ancestor(told.parent, depth + 1)
        if parent is not None and parent.pid != self._init:
            return parent.channel
        # Its parent has ended: what started it may still be told by the session it is in.
        now = kernel.stat(process.pid)
        return self._sessions.get(now.session) if now is not None else None

    def _ancestor(self, pid: int, depth: int = 0) -> Process | None:
        known = self._known.get(pid)
        if known is not None:
            return known
        if pid <= 1 or pid == self.spawner or depth > _DEPTH:
            return None
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return None
        told = kernel.info(pidfd, pid)
        if told is None or told.tgid != pid or told.status is not None or not self._numbers(pid):
            os.close(pidfd)
            return None
        return self._add(pid, pidfd, told, depth)


def _remember(memory: "OrderedDict[int, Any]", key: int, value: object) -> None:
    memory[key] = value
    memory.move_to_end(key)
    if len(memory) > _RECENT:
        memory.popitem(last=False)


def how_it_ended(process: Process) -> int | None:
    """The status of a process that has ended, as wait(2) has it; None where the kernel does not tell."""
    if process.pidfd < 0:
        return None
    now = None
    for _ in range(_TRIES):
        told = kernel.info(process.pidfd, process.pid)
        if told is None:  # it is being reaped this very moment, or the kernel is of before 6.15
            os.sched_yield()
            continue
        if told.status is not None:
            return told.status
        if now is not None and now.zombie:
            return now.status  # it is not reaped even now, so that it was what /proc showed
        now = kernel.stat(process.pid)
    return None


def signal_name(status: int) -> str | None:
    """The signal, without SIG, by which a process with this status ended."""
    number = status & 0x7F
    if not number:
        return None
    try:
        return signal.Signals(number).name.removeprefix("SIG")
    except ValueError:
        return str(number)


def _born(pid: int) -> str:
    """When a process was started, as the kernel counts; empty if it is gone or is a zombie."""
    try:
        fields = kernel.text(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in b"ZX" else fields[19].decode()
