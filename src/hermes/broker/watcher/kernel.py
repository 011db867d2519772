"""What the kernel tells of processes, by pidfd and /proc; of processes of a box only while they cannot vanish, or by pidfd."""

import ctypes
import errno
import fcntl
import os
import signal
import struct
from typing import NamedTuple

from hermes.confine.kernel import checked, syscall

_libc = ctypes.CDLL(None, use_errno=True)

_PIDFD_OPEN, _PIDFD_GETFD = 434, 438
_PIDFD_THREAD = os.O_EXCL
_GET_INFO = 0xC040FF0B
_INFO = struct.Struct("=QQ11Ii")
_WANTED = 0x1 | 0x2 | 0x8  # pid, credentials, exit
_HAS_EXIT = 0x8
_FORKED_NEVER_EXECUTED = 0x40  # PF_FORKNOEXEC
_ASKED = struct.pack("=Q", _WANTED) + bytes(_INFO.size - 8)
_PID_IN_NAMESPACE = 0x8004B708  # NS_GET_PID_IN_PIDNS
_MAX_TEXT = 8192


class Info(NamedTuple):
    """A process: ids in this process's own namespaces. `status`: how it ended, as wait(2) has it; None: it runs, or unknown."""

    tgid: int
    parent: int
    uid: int
    gid: int
    status: int | None


def pidfd_open(pid: int, *, thread: bool = False) -> int:
    """pidfd_open(2); with `thread`, of any thread (Linux 6.9)."""
    return syscall(_PIDFD_OPEN, "pidfd_open", ctypes.c_int(pid), ctypes.c_uint(_PIDFD_THREAD if thread else 0))


def getfd(pidfd: int, fd: int) -> int:
    """pidfd_getfd(2): our own copy of another process's fd."""
    return syscall(_PIDFD_GETFD, "pidfd_getfd", ctypes.c_int(pidfd), ctypes.c_int(fd), ctypes.c_uint(0))


def text(path: str) -> bytes:
    """A file of /proc, as far as it is of use."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, _MAX_TEXT)
    finally:
        os.close(fd)


def info(pidfd: int, pid: int) -> Info | None:
    """What there is to know of the process; None if it is gone and nothing is known of it any more."""
    try:
        buffer = fcntl.ioctl(pidfd, _GET_INFO, _ASKED)
    except OSError as error:
        if error.errno == errno.ESRCH:
            return None
        return info_of_old(pidfd, pid)
    mask, _, _, tgid, parent, _, _, uid, gid, *_, status = _INFO.unpack(buffer)
    return Info(tgid, parent, uid, gid, status if mask & _HAS_EXIT else None)


def info_of_old(pidfd: int, pid: int) -> Info | None:
    """The same from /proc: for Linux before 6.13, and without a pidfd (-1)."""
    try:
        fields = dict(line.partition(b":")[::2] for line in text(f"/proc/{pid}/status").splitlines())
        if pidfd >= 0:
            signal.pidfd_send_signal(pidfd, 0)  # it was this process that was read of
        uid, gid = (int(fields[name].split()[1]) for name in (b"Uid", b"Gid"))
        return Info(int(fields[b"Tgid"]), int(fields[b"PPid"]), uid, gid, None)
    except (OSError, KeyError, ValueError, IndexError):
        return None


class Numbers:
    """Tells the numbers of processes in the pid namespace of one of them, the box's init."""

    def __init__(self, init: int) -> None:
        self._namespace = os.open(f"/proc/{init}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._new = fcntl.ioctl(self._namespace, _PID_IN_NAMESPACE, init) == 1
        except OSError:  # Linux before 6.11
            self._new = False

    def __call__(self, pid: int) -> int:
        """The number there of a process of ours that cannot vanish meanwhile; 0 if it is not there."""
        try:
            return fcntl.ioctl(self._namespace, _PID_IN_NAMESPACE, pid) if self._new else _last_number(pid)
        except OSError:
            return 0


def _last_number(pid: int) -> int:
    for line in text(f"/proc/{pid}/status").splitlines():
        if line.startswith(b"NSpid:"):
            numbers = line.split()[1:]
            return int(numbers[-1]) if len(numbers) > 1 else 0
    return 0


def leader_of(tid: int) -> int | None:
    """The process of a thread; None if it is gone."""
    try:
        pidfd = pidfd_open(tid, thread=True)
    except OSError as error:
        if error.errno != errno.EINVAL:
            return None
        try:
            fields = dict(line.partition(b":")[::2] for line in text(f"/proc/{tid}/status").splitlines())
            return int(fields[b"Tgid"])
        except (OSError, KeyError, ValueError):
            return None
    try:
        found = info(pidfd, tid)
        return found.tgid if found is not None else None
    finally:
        os.close(pidfd)


def disconnect(sock: int) -> None:
    """connect(2) to nobody (AF_UNSPEC), for which Python has no address: the socket is as if it had never been connected."""
    nobody = bytes(16)
    checked(_libc.connect(ctypes.c_int(sock), nobody, ctypes.c_uint(len(nobody))), "connect")


class Stat(NamedTuple):
    """Of /proc/PID/stat."""

    session: int
    executed: bool
    """It has executed a program since it was forked."""
    zombie: bool
    status: int
    """How it ended, if it is a zombie."""


def stat(pid: int) -> Stat | None:
    """What /proc/PID/stat says; None if it is gone."""
    try:
        fields = text(f"/proc/{pid}/stat").rpartition(b")")[2].split()
        return Stat(int(fields[3]), not int(fields[6]) & _FORKED_NEVER_EXECUTED, fields[0] in b"ZX", int(fields[49]))
    except (OSError, IndexError, ValueError):
        return None


def image(pid: int) -> bytes:
    """What differs between two programs that a process executes one after the other: the kernel's words to it, whose addresses
    are random. Empty if it is gone."""
    try:
        return text(f"/proc/{pid}/auxv")
    except OSError:
        return b""


class IdMap:
    """User or group ids of the box by those outside (`/proc/PID/uid_map` of its init)."""

    def __init__(self, path: str) -> None:
        try:
            lines = text(path).splitlines()
            self._ranges = [tuple(map(int, line.split())) for line in lines]
        except (OSError, ValueError):
            self._ranges = []

    def __call__(self, outside: int) -> int:
        for first, begins, count in self._ranges:
            if begins <= outside < begins + count:
                return first + outside - begins
        return 65534
