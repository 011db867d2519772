"""fanotify(7): told, with an open descriptor each, of files that were written and closed, and of files that are executed.

A descriptor is the file's own: what was in it can be read although it has no name any more. Events have no time of theirs.
Imported by the zygote, so it imports little.
"""

import array
import ctypes
import errno
import fcntl
import os
import stat
import struct
import termios
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from hermes.confine.kernel import syscall

WRITTEN = 0x08
"""FAN_CLOSE_WRITE: it was closed by who could write it."""
EXECUTED = 0x1000
"""FAN_OPEN_EXEC: it is being executed, or interprets what is."""

_MACHINE = os.uname().machine
_INIT, _MARK = {"x86_64": (300, 301), "aarch64": (262, 263)}.get(_MACHINE, (0, 0))
_LARGEFILE = 0o400000 if _MACHINE == "aarch64" else 0o100000
_FLAGS = 0x01 | 0x02 | 0x10 | 0x20  # CLOEXEC, NONBLOCK, UNLIMITED_QUEUE, UNLIMITED_MARKS; the class is FAN_CLASS_NOTIF
_FILE_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOATIME | _LARGEFILE
_ADD, _REMOVE, _MOUNT, _IGNORED, _SURVIVES, _FILESYSTEM = 0x01, 0x02, 0x10, 0x20, 0x40, 0x100
_AT_FDCWD = -100
_EVENT = struct.Struct("=IBBHQii")
_UNOPENED = -1


class Event(NamedTuple):
    """`mask` holds `WRITTEN`, `EXECUTED` or both; `fd` is the receiver's to close; `pid` is of this pid namespace."""

    mask: int
    fd: int
    pid: int


class Place(NamedTuple):
    """What is watched: a whole file system, or (where others use it too) one mount of it."""

    path: str
    whole: bool


def start() -> int:
    """Return the descriptor of a new group, non-blocking, whose queue has no limit: see `waiting`. Needs CAP_SYS_ADMIN."""
    return syscall(_INIT, "fanotify_init", ctypes.c_uint(_FLAGS), ctypes.c_uint(_FILE_FLAGS))


def mark(group: int, place: Place, mask: int, *, remove: bool = False) -> None:
    """Begin, or with `remove` cease, to be told of that in the place."""
    _mark(group, (_REMOVE if remove else _ADD) | (_FILESYSTEM if place.whole else _MOUNT), mask, place.path)


def ignore(group: int, path: str) -> None:
    """Never be told of this one file."""
    _mark(group, _ADD | _IGNORED | _SURVIVES, WRITTEN | EXECUTED, path)


def _mark(group: int, flags: int, mask: int, path: str) -> None:
    at = ctypes.c_int(_AT_FDCWD)
    syscall(
        _MARK, f"fanotify_mark {path}", ctypes.c_int(group), ctypes.c_uint(flags), ctypes.c_uint64(mask), at, os.fsencode(path)
    )


def waiting(group: int) -> int:
    """How many events wait in the kernel; the same one of the same process is there once."""
    size = array.array("i", [0])
    fcntl.ioctl(group, termios.FIONREAD, size)
    return size[0] // _EVENT.size


def read(group: int, most: int) -> list[Event]:
    """Take up to `most` events; none when none waits. Those of which the kernel could open no descriptor are left out."""
    try:
        packet = os.read(group, most * _EVENT.size)
    except BlockingIOError:
        return []
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise
        return [Event(0, _UNOPENED, 0)]
    found = []
    for at in range(0, len(packet), _EVENT.size):
        _, _, _, _, mask, fd, pid = _EVENT.unpack_from(packet, at)
        found.append(Event(mask, fd, pid))
    return found


_WHOLE = ("overlay", "tmpfs")
"""File systems that are a container's own, where their root is what is mounted."""
_OTHERS = (*_WHOLE, "ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "fuse")
"""File systems of which a container may have been given a part."""


def places(init: int) -> list[Place]:
    """Every writable place of the container whose init is `init`, as paths of this process that lead into it."""
    found = []
    with open(f"/proc/{init}/mountinfo", "rb") as file:  # noqa: PTH123
        for line in file:
            before, _, after = line.partition(b" - ")
            _, _, _, root, point, options, *_ = before.split(b" ")
            fstype = after.split(b" ", 1)[0].decode()
            if fstype not in _OTHERS or b"ro" in options.split(b","):
                continue
            path = f"/proc/{init}/root{os.fsdecode(_unescaped(point))}"
            whole = fstype in _WHOLE and root == b"/"
            if whole or os.path.isdir(path) or os.path.isfile(path):  # noqa: PTH112, PTH113
                found.append(Place(path, whole))
    return found


def devices(init: int) -> Iterator[str]:
    """Paths to the devices of a container: no files, but closed by writers all the time."""
    with suppress(OSError), os.scandir(f"/proc/{init}/root/dev") as entries:
        for entry in entries:
            if stat.S_ISCHR(entry.stat(follow_symlinks=False).st_mode):
                yield entry.path


def _unescaped(point: bytes) -> bytes:
    """A mount point without mountinfo's octal escapes."""
    return point.decode("unicode_escape").encode("latin-1")


def path_of(fd: int) -> bytes:
    """The path of an open file, as those see it who share its mounts. OSError if it is too long."""
    return os.readlink(b"/proc/self/fd/%d" % fd)  # noqa: PTH115


def pid_inside(host_pid: int) -> int | None:
    """A process's number in its own pid namespace; None when it has ended."""
    try:
        with open(f"/proc/{host_pid}/status", "rb") as file:  # noqa: PTH123
            for line in file:
                if line.startswith(b"NSpid:"):
                    return int(line.split()[-1])
    except (OSError, ValueError):
        pass
    return None
