"""The watcher's process, from its fork to the box's end. Forked by the zygote."""

import os
import select
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

import msgspec

from hermes import events
from hermes.broker import linux
from hermes.broker.artifacts import Budgets
from hermes.broker.files import Files
from hermes.broker.watcher import kernel, notify
from hermes.broker.watcher.attempts import Attempts
from hermes.broker.watcher.lookup import Lookup
from hermes.broker.watcher.network import Network
from hermes.broker.watcher.notify import CHANNEL, LISTENER, READY, Listener, Notification
from hermes.broker.watcher.processes import Process, Processes
from hermes.broker.watcher.programs import Limits, Programs
from hermes.broker.watcher.writer import FullError, Writer
from hermes.container.spool import Record

DONE, FULL = b"done", b"full"
"""What it says to the broker, after `READY`: that the box is gone and all is written; that nothing more can be, and why."""
BURST_SECONDS = 0.005
"""While programs are executed one after the other, ends of processes are looked at only so often: a wake-up for each would cost
more than all the rest. By so much the times of ends may be late."""
ORPHAN_SECONDS = 20.0
"""How long it stays when its broker is gone and the box is not."""
_CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "SYS_ADMIN", "SYS_PTRACE", "KILL")


class Part(Protocol):
    """Something else that watches the box, in turn with this: see `Host`."""

    def fds(self) -> Sequence[int]: ...
    def ready(self, fd: int) -> None: ...
    def busy(self) -> bool: ...
    def step(self) -> None: ...
    def executing(self, host_pid: int, fd: int) -> None: ...
    def executed(self, host_pid: int) -> None: ...
    def close(self) -> None: ...


class Watch(msgspec.Struct, frozen=True, tag=True):
    """Fork a watcher of the box whose init is `init`. Brings along its pidfd, the spool (to append to), the eventfd that tells of
    news, the spawner's end of a socket pair, and the socket over which it speaks with the broker."""

    init: int
    container_id: str
    spool_bytes: int
    arguments: int
    argument_bytes: int
    files: Budgets | None = None
    """How much is kept of files that are written and executed; None: nothing."""


class Watcher:
    """Watches one box until it is gone."""

    def __init__(self, request: Watch, pidfd: int, spool: int, news: int, spawner: socket.socket, broker: socket.socket) -> None:
        self._request = request
        self._init = pidfd
        self._spawner = spawner
        self._broker = broker
        self._orphaned: float | None = None
        self._poll = select.epoll()
        self._ends = select.epoll()
        self._in_burst = False
        self._look_at_ends = 0.0
        self._listener: Listener | None = None
        self._parts: list[Part] = []
        self._part_fds: dict[int, Part] = {}
        self._calls = {number: name for name, number in notify.CALLS[os.uname().machine].items()}
        self._writer = Writer(spool, news, request.spool_bytes)
        root = os.open(f"/proc/{request.init}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        lookup = Lookup(root)
        ids = kernel.IdMap(f"/proc/{request.init}/uid_map"), kernel.IdMap(f"/proc/{request.init}/gid_map")
        self._uid = ids[0]
        self._channel: int | None = None
        self._processes = Processes(self._ends, request.init)
        self._processes.channel = self._channel_now
        limits = Limits(request.arguments, request.argument_bytes)
        self._programs = Programs(request.container_id, self._processes, self._writer, lookup, ids, limits)
        self._programs.on_executed = self._executed
        self._attempts = Attempts(request.container_id, _in_network(request.init, pidfd, lookup), self._writer)
        for fd in (pidfd, spawner.fileno(), broker.fileno(), self._ends.fileno()):
            self._poll.register(fd, select.EPOLLIN)

    # ---- for parts

    def add(self, part: Part) -> None:
        """Give a part its turns from now on."""
        self._parts.append(part)

    def emit(self, event: events.Event, time_us: int) -> None:
        """State a part's fact. What is stated of a process (`pid`, its number in the box) gets the channel it belongs to."""
        if isinstance(event, events.FileWritten | events.FileExecuted) and event.channel is None and event.pid is not None:
            event = msgspec.structs.replace(event, channel=self._processes.channel_of(event.pid))
        self._writer.emit(event, time_us)

    def number_in_box(self, host_pid: int) -> int | None:
        """A process's number in the box; None if that cannot be told any more."""
        return self._processes.number_in_box(host_pid)

    # ---- the loop

    def run(self) -> None:
        """Return when the box is gone, and all that was seen of it is written."""
        while not self._turn():
            pass
        self._finish()

    def _turn(self) -> bool:
        """Wait, and do what there is to do; True when the box is gone."""
        if self._parts:
            self._register_parts()
        over = asked = False
        ends = self._ends.fileno()
        for fd, what in self._poll.poll(self._timeout()):
            if self._listener is not None and fd == self._listener.fd:
                asked = bool(what & select.EPOLLIN)
                if not asked:  # nobody is left who could ask
                    self._poll.unregister(fd)
            elif fd == self._init:
                over = True
            elif fd == self._spawner.fileno():
                self._hear_spawner()
            elif fd == self._broker.fileno():
                self._broker_gone()
            elif fd == ends:
                self._take_ends()
            elif (part := self._part_fds.get(fd)) is not None:
                part.ready(fd)
        if asked:
            self._answer()
            self._writer.tell()
            self._burst()
            return over
        now = time.monotonic()
        if self._in_burst and now >= self._look_at_ends:
            self._in_burst = False
            self._poll.modify(ends, select.EPOLLIN)
            self._take_ends()
        if self._processes.polls:
            self._ended(self._processes.ended())
        self._programs.look()
        self._attempts.look()
        self._step_parts()
        self._writer.tell()
        return over or (self._orphaned is not None and now > self._orphaned)

    def _step_parts(self) -> None:
        for part in self._parts:
            if part.busy():
                part.step()

    def _burst(self) -> None:
        """Somebody asked: more may."""
        now = time.monotonic()
        if not self._in_burst:
            self._in_burst = True
            self._poll.modify(self._ends.fileno(), 0)
            self._look_at_ends = now + BURST_SECONDS
        elif now >= self._look_at_ends:
            self._look_at_ends = now + BURST_SECONDS
            self._take_ends()
            self._programs.look()
            self._step_parts()

    def _take_ends(self) -> None:
        found = (self._processes.by_fd(fd) for fd, _ in self._ends.poll(0, 256))
        self._ended([process for process in found if process is not None])

    def _ended(self, processes: list[Process]) -> None:
        records: list[Record] = []
        for process in processes:
            self._attempts.ended(process)
            records += self._programs.ended(process)
        if records:
            self._writer.write(*records)

    def _timeout(self) -> float | None:
        if any(part.busy() for part in self._parts):
            return 0
        waits = [wait for wait in (self._programs.next_look(), self._attempts.next_look()) if wait is not None]
        if self._in_burst:
            waits.append(max(0.0, self._look_at_ends - time.monotonic()))
        if self._processes.polls:
            waits.append(0.25)
        if self._orphaned is not None:
            waits.append(1.0)
        return min(waits) if waits else None

    def _answer(self) -> None:
        """Let one thread go on, once what it wants is written. One that cannot be written down never goes on: the box ends."""
        assert self._listener is not None
        asked = self._listener.receive()
        if asked is None or (asked.tid != self._processes.spawner and not self._note(self._listener, asked)):
            return
        self._listener.go_on(asked)

    def _note(self, listener: Listener, asked: Notification) -> bool:
        """Write down what a thread wants; False if it is gone."""
        call = self._calls.get(asked.nr, "")
        try:
            mem = os.open(f"/proc/{asked.tid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # it has ended; if it has not, what it wants cannot be read
            mem = -1
        try:
            if call in ("execve", "execveat"):
                program = self._programs.read(asked, mem, _cwd(asked.tid), at=call == "execveat")
                if not listener.is_valid(asked):
                    return False
                if program is None or mem < 0:
                    raise self._writer.failed("unreadable")
                if program.descriptor is not None:
                    for part in self._parts:
                        part.executing(asked.tid, program.descriptor)
                self._programs.state(program)
                return True
            fd, targets = self._attempts.read(call, asked, mem)
            if not targets:
                return True
            found, cwd = self._processes.find(asked.tid), _cwd(asked.tid)
            if not listener.is_valid(asked):
                return False
            if found is None:
                raise self._writer.failed("unreadable")
            process, told = found
            self._attempts.state(call, asked.tid, fd, targets, process, cwd=cwd, root=self._uid(told.uid) == 0)
            return True
        finally:
            if mem >= 0:
                os.close(mem)

    # ---- the others

    def _hear_spawner(self) -> None:
        """Take what the spawner said: its listener, then the channel of each process before it starts it."""
        while True:
            try:
                said = self._spawner.recv(64, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                said = b""
            if len(said) == LISTENER.size and self._listener is None:
                self._listen(*LISTENER.unpack(said))
            elif len(said) == CHANNEL.size:
                (channel,) = CHANNEL.unpack(said)
                self._channel = channel if channel >= 0 else None
            else:
                with suppress(OSError, ValueError):
                    self._poll.unregister(self._spawner)
                return

    def _channel_now(self) -> int | None:
        """For which channel the spawner is starting a process, which it said before."""
        self._hear_spawner()
        return self._channel

    def _listen(self, pid: int, fd: int) -> None:
        """Take the listener over from the spawner, which waits until that is done."""
        pidfd = kernel.pidfd_open(pid)
        try:
            self._listener = Listener(kernel.getfd(pidfd, fd))
        finally:
            os.close(pidfd)
        self._processes.spawner = pid
        self._poll.register(self._listener.fd, select.EPOLLIN)
        self._spawner.send(READY)

    def _broker_gone(self) -> None:
        """Its broker has died, or let go: the box is about to end."""
        self._poll.unregister(self._broker)
        self._orphaned = time.monotonic() + ORPHAN_SECONDS

    def _executed(self, pid: int) -> None:
        for part in self._parts:
            part.executed(pid)

    def _register_parts(self) -> None:
        wanted = {fd: part for part in self._parts for fd in part.fds()}
        for fd in self._part_fds.keys() - wanted.keys():
            with suppress(OSError):
                self._poll.unregister(fd)
        for fd in wanted.keys() - self._part_fds.keys():
            self._poll.register(fd, select.EPOLLIN)
        self._part_fds = wanted

    # ---- the end

    def _finish(self) -> None:
        """The box is gone: state the end of all that ran in it, and let the parts finish."""
        self._attempts.close()
        for process in self._processes.all():  # one by one: what does not fit any more costs only itself
            self._ended([process])
        for part in self._parts:
            part.close()
        self._writer.tell()


def _cwd(tid: int) -> bytes:
    try:
        return os.readlink(b"/proc/%d/cwd" % tid)  # noqa: PTH115
    except OSError:
        return b""


def _in_network(init: int, pidfd: int, lookup: Lookup) -> Network:
    """Make what looks at the box's network, in that network."""
    own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        linux.setns(pidfd, linux.CLONE_NEWNET)
        try:
            return Network(init, lookup)
        finally:
            linux.setns(own, linux.CLONE_NEWNET)
    finally:
        os.close(own)


def run(request: Watch, pidfd: int, spool: int, news: int, spawner: socket.socket, broker: socket.socket) -> None:
    """Be the watcher. Return when the box is gone, or nothing more can be written of it."""
    linux.set_name(b"hermes-watcher")
    linux.set_undumpable()
    watcher = Watcher(request, pidfd, spool, news, spawner, broker)
    if request.files is not None:
        watcher.add(
            Files(
                request.init, container_id=request.container_id, budgets=request.files, emit=watcher.emit,
                box_pid=watcher.number_in_box,
            )
        )  # fmt: skip
    linux.set_capabilities(linux.capability_mask(_CAPABILITIES))
    broker.send(READY, socket.MSG_NOSIGNAL)
    try:
        watcher.run()
    except FullError as error:
        with suppress(OSError):
            broker.send(FULL + b" " + str(error).encode(), socket.MSG_NOSIGNAL)
        # Whoever asks now waits until the box is dead, by the broker's hand or by its own end.
        select.select([pidfd], [], [], ORPHAN_SECONDS)
        return
    broker.send(DONE, socket.MSG_NOSIGNAL)
