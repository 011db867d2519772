"""The fake engine's own process: `python -m hermes.testing.nursery <fd>`. It forks boxes that isolate nothing.

A box is an init, the subreaper of all that starts in it, and below it the real spawner. When an init ends, all of its box
ends; when the engine's socket closes, everything ends. Without root, every user is the one who runs it.
"""

import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hermes.broker import accounts, linux
from hermes.broker.spawner import Spawner


def descendants(root: int) -> set[int]:
    """Pids of every process below `root`."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208
        if entry.isdigit():
            with suppress(OSError):  # it ended
                parent = int(Path(f"/proc/{entry}/stat").read_bytes().rpartition(b")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry))
    found: set[int] = set()
    todo = [root]
    while todo:
        todo += (below := children.get(todo.pop(), []))
        found.update(below)
    return found


def kill_all(root: int) -> None:
    """Kill and reap everything below `root`, this process."""
    while below := descendants(root):
        for pid in below:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        reap()
        time.sleep(0.001)


def reap() -> set[int]:
    """Pids of the children that have ended."""
    ended: set[int] = set()
    with suppress(ChildProcessError):
        while pid := os.waitpid(-1, os.WNOHANG)[0]:
            ended.add(pid)
    return ended


def fork(run: Callable[[], None]) -> int:
    """Run that in a child and end it."""
    pid = os.fork()
    if pid == 0:
        try:
            run()
        finally:
            os._exit(0)
    return pid


class _Serving:
    """Messages with fds from one socket, and ends of children, in one loop."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self._wakeup, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def next(self) -> tuple[bytes, list[int]] | None:
        """The next message (empty: the socket closed), or None: children have ended."""
        ready, _, _ = select.select([self.control.fileno(), self._wakeup], [], [])
        if self._wakeup in ready:
            os.read(self._wakeup, 4096)
            return None
        data, fds, _, _ = socket.recv_fds(self.control, 64, 1)
        return data, fds


def _init(control: socket.socket, nursery: int) -> None:
    linux.set_subreaper()
    linux.set_parent_death_signal(signal.SIGKILL)
    if os.getppid() != nursery:
        return
    serving = _Serving(control)
    spawners: set[int] = set()
    me = os.getpid()
    control.send(b"%d" % me)
    while True:
        event = serving.next()
        if event is None:
            spawners -= reap()
            continue
        match event:
            case b"open", [fd]:
                spawners.add(fork(lambda fd=fd: _spawn(fd, me)))  # type: ignore[misc]
                os.close(fd)
            case b"freeze", _:
                stopped: set[int] = set()
                while more := descendants(me) - spawners - stopped:
                    _signal(more, signal.SIGSTOP)
                    stopped |= more
                control.send(b"frozen")
            case b"thaw", _:
                _signal(descendants(me) - spawners, signal.SIGCONT)
                control.send(b"thawed")
            case _:
                kill_all(me)
                return


def _signal(pids: set[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _spawn(fd: int, init: int) -> None:
    pidfd = os.pidfd_open(init)
    signal.set_wakeup_fd(-1)
    Spawner(
        socket.socket(fileno=fd), pidfd, os.open("/dev/pts", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), linux.ProcessTitle()
    ).serve()
    if select.select([pidfd], [], [], 0)[0]:
        kill_all(os.getpid())


def _refuse(name: bytes, root: str) -> accounts.Account:
    raise accounts.UnknownUser(name)


def _disarm() -> None:
    """These boxes share the host's files and users: none may be added, and without root none can be taken on."""
    vars(accounts)["_create"] = _refuse
    if os.geteuid() != 0:
        for call in ("setgroups", "setresgid", "setresuid", "fchown"):
            vars(os)[call] = lambda *_: None


def main(control: socket.socket) -> None:
    """Fork an init for each socket that comes, until `control` closes."""
    control.set_inheritable(False)
    _disarm()
    linux.set_subreaper()
    me = os.getpid()
    serving = _Serving(control)
    inits: set[int] = set()
    control.send(b"ready")
    while True:
        event = serving.next()
        if event is None:
            inits -= reap()
            _signal(_children(me) - inits, signal.SIGKILL)  # what a killed init left
            continue
        match event:
            case b"box", [fd]:
                inits.add(fork(lambda fd=fd: _adopted(fd, control, me)))  # type: ignore[misc]
                os.close(fd)
            case _:
                kill_all(me)
                return


def _children(pid: int) -> set[int]:
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def _adopted(fd: int, control: socket.socket, nursery: int) -> None:
    control.close()
    with socket.socket(fileno=fd) as own:
        _init(own, nursery)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
