"""What the kernel itself says of programs executed below a process: the process connector, an account that Hermes has no part in.

https://docs.kernel.org/driver-api/connector.html; struct proc_event of linux/cn_proc.h.
"""

import errno
import os
import socket
import struct
import threading
import time
from collections import defaultdict
from pathlib import Path

_NETLINK_CONNECTOR, _CN_IDX_PROC, _CN_VAL_PROC = 11, 1, 1
_LISTEN, _IGNORE = 1, 2
_FORK, _EXEC = 0x1, 0x2
_SO_RCVBUFFORCE = 33
_BUFFER = 64 << 20
_NLMSG_HEADER, _CN_MESSAGE = 16, 20


class ProcessAccount:
    """Counts, from entering to leaving, what each child of `root` and whatever descends from it executes.

    `lost` is set when the kernel had more to say than was read.
    """

    def __init__(self, root: int) -> None:
        self.lost = False
        self._root = root
        self._families: dict[int, int] = {}  # pid -> the child of `root` that it descends from
        self._executed: defaultdict[int, list[tuple[float, int]]] = defaultdict(list)
        self._names: dict[bytes, int] = {}
        self._lock = threading.Lock()
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_CONNECTOR)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="account", daemon=True)

    def __enter__(self) -> "ProcessAccount":
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        self._socket.bind((os.getpid(), _CN_IDX_PROC))
        self._ask(_LISTEN)
        self._socket.settimeout(0.2)
        self._thread.start()
        self._know(self._root)
        return self

    def __exit__(self, *error: object) -> None:
        self._ask(_IGNORE)
        self._stop.set()
        self._thread.join()
        self._socket.close()

    def executed(self, marker: bytes, since: float, until: float) -> int | None:
        """Programs executed in the family in which one had `marker` among its arguments, from `since` to `until` (seconds of the
        monotonic clock); None when there is no such family."""
        with self._lock:
            family = self._names.get(marker)
            return None if family is None else sum(since <= at <= until for at, _ in self._executed[family])

    def _ask(self, what: int) -> None:
        operation = struct.pack("=I", what)
        message = struct.pack("=IIIIHH", _CN_IDX_PROC, _CN_VAL_PROC, 0, 0, len(operation), 0) + operation
        self._socket.send(struct.pack("=IHHII", _NLMSG_HEADER + len(message), 3, 0, 0, os.getpid()) + message)

    def _know(self, pid: int) -> None:
        """Take in what descends from a process already."""
        for child in _children(pid):
            with self._lock:
                self._families.setdefault(child, child if pid == self._root else self._families[pid])
            self._know(child)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                packet = self._socket.recv(1 << 16)
            except TimeoutError:
                continue
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.lost = True
                continue
            what, _, nanoseconds = struct.unpack_from("=IIQ", packet, _NLMSG_HEADER + _CN_MESSAGE)
            body = _NLMSG_HEADER + _CN_MESSAGE + 16
            if what == _FORK:
                _, parent, child, group = struct.unpack_from("=IIII", packet, body)
                if child == group:
                    self._forked(parent, child)
            elif what == _EXEC:
                _, pid = struct.unpack_from("=II", packet, body)
                self._has_executed(pid, nanoseconds / 1e9)

    def _forked(self, parent: int, child: int) -> None:
        with self._lock:
            if parent == self._root:
                self._families[child] = child
            elif (family := self._families.get(parent)) is not None:
                self._families[child] = family
            else:  # the number may have been another's before
                self._families.pop(child, None)

    def _has_executed(self, pid: int, at: float) -> None:
        with self._lock:
            if (family := self._families.get(pid)) is None:
                return
            self._executed[family].append((at, pid))
        try:
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return
        with self._lock:
            for argument in arguments:
                if argument.startswith(MARK):
                    self._names[argument] = family


MARK = b"corpus-"
"""How an argument begins that names the family of whoever has it."""


def now() -> float:
    """The clock of the account."""
    return time.monotonic()


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    except OSError:
        return found
    return found


def find_process(name: str, below: int) -> int:
    """The pid of the process of that name that descends from `below`. LookupError if there is none."""
    waiting = [below]
    while waiting:
        pid = waiting.pop()
        try:
            if Path(f"/proc/{pid}/comm").read_text().strip() == name:
                return pid
        except OSError:
            continue
        waiting += _children(pid)
    raise LookupError(f"no process {name} below {below}")
