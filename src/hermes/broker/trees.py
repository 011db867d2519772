"""Trees that attackers made, read and removed by root of the host: nothing in them can lead it out, hold it up or use it up.

Every name is opened from the descriptor of its own directory, never as a path, in a way that follows no link and crosses no
mount; what was opened is looked at before anything of it is read, so that devices, FIFOs and sockets are never opened at all. All
of this holds while the tree is being changed. Budgets bound what is read. Everything here blocks.
"""

import errno
import os
import stat
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec

from hermes import events
from hermes.broker.linux import open_beneath
from hermes.broker.manifest import KINDS, UNKNOWN, Entry, Origin, named

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 1 << 20
_OURS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""What the kernel says when the host is at its limits, and not the tree."""
_LINE = 256
"""Bytes of a manifest's line that cost nothing but the entry: longer ones would be a way to fill the disk."""
_OPAQUE = ("trusted.overlay.opaque", "user.overlay.opaque")


# ---- copying


class Budget(NamedTuple):
    """How much of one tree is read at most: bytes (with those of long paths), entries, directories within each other, seconds."""

    bytes: int
    entries: int
    depth: int
    seconds: float


@dataclass(slots=True)
class Copied:
    """What came of copying a tree. `exceeded`: the parts of the budget that did not suffice; something was left out then."""

    bytes: int = 0
    entries: int = 0
    unreadable: int = 0
    """Entries that could not be read, or were gone before they were."""
    exceeded: set[str] = field(default_factory=set)
    origin: Origin = UNKNOWN
    """What the tree is the difference from."""


def copy(source: Path, target: Path, manifest: Path, budget: Budget, *, ids: int = 0) -> Copied:
    """Copy what is in `source` to the new directory `target`, and write a line on each entry to the new file `manifest`.

    What is made belongs to root and can neither be executed nor raise anybody's privileges: files have mode 0600, directories
    0700. Holes stay holes. Devices, FIFOs and sockets are only noted. With `ids`, owners are noted modulo that. OSError when
    `source` cannot be opened or `target` not be written; what cannot be read is noted.
    """
    with ExitStack() as stack:
        top = os.open(source, _DIRECTORY)
        stack.callback(os.close, top)
        target.mkdir(mode=0o700)
        there = os.open(target, _DIRECTORY)
        stack.callback(os.close, there)
        file = stack.enter_context(os.fdopen(os.open(manifest, _WRITE, 0o600), "wb"))
        return _Copy(budget, file, ids).run(top, there)


class _Unaffordable(Exception):
    """The budget does not suffice to go on."""


class _Copy:
    def __init__(self, budget: Budget, manifest: BinaryIO, ids: int) -> None:
        self.copied = Copied()
        self._budget = budget
        self._deadline = time.monotonic() + budget.seconds
        self._manifest = manifest
        self._ids = ids
        self._encode = msgspec.json.Encoder().encode
        self._linked: dict[tuple[int, int], int] = {}
        self._lines = 0

    def run(self, source: int, target: int) -> Copied:
        """Copy from one directory to another, deepest first, holding two descriptors a level."""
        with suppress(_Unaffordable):
            self._directory(source, target, b"", 1)
        return self.copied

    def _directory(self, source: int, target: int, path: bytes, depth: int) -> None:
        with closing(self._names(source)) as names:
            inner = [name for name in names if self._entry(source, target, name, path, depth)]
        for name in inner:
            self._check_time()
            with ExitStack() as stack:
                below = self._open(source, name, _DIRECTORY)
                if below is None:
                    continue
                stack.callback(os.close, below)
                there = os.open(name, _DIRECTORY, dir_fd=target)
                stack.callback(os.close, there)
                self._directory(below, there, path + os.fsencode(name) + b"/", depth + 1)

    def _names(self, source: int) -> Generator[str, None, None]:
        try:
            with os.scandir(source) as entries:
                for entry in entries:
                    yield entry.name
        except OSError as error:
            if error.errno in _OURS:
                raise
            self.copied.unreadable += 1

    def _open(self, source: int, name: str, flags: int) -> int | None:
        """None for what is there no more, or is something else by now."""
        try:
            return open_beneath(source, name, flags)
        except OSError as error:
            if error.errno in _OURS:
                raise
            self.copied.unreadable += 1
            return None

    def _entry(self, source: int, target: int, name: str, path: bytes, depth: int) -> bool:
        """Take one entry, without what is below it; return whether to go there."""
        self._check_time()
        if self.copied.entries >= self._budget.entries:
            self._stop("entries")
        self.copied.entries += 1
        fd = self._open(source, name, _LOOK)
        if fd is None:
            return False
        try:
            status = os.fstat(fd)
            return self._take(fd, status, target, name, path + os.fsencode(name), depth)
        finally:
            os.close(fd)

    def _take(self, fd: int, status: os.stat_result, target: int, name: str, path: bytes, depth: int) -> bool:
        more: dict[str, object] = {}
        enter = False
        match stat.S_IFMT(status.st_mode):
            case stat.S_IFDIR:
                enter = depth < self._budget.depth
                if not enter:
                    more["left_out"] = "depth"
                    self.copied.exceeded.add("depth")
                os.mkdir(name, 0o700, dir_fd=target)
                more["opaque"] = _is_opaque(fd)
            case stat.S_IFREG:
                inode = (status.st_dev, status.st_ino)
                if status.st_nlink > 1 and inode in self._linked:
                    more["same_as"] = self._linked[inode]
                else:
                    if status.st_nlink > 1:
                        self._linked[inode] = self._lines + 1
                    more["left_out"] = self._file(fd, status.st_size, target, name)
            case stat.S_IFLNK:
                to = os.readlink("", dir_fd=fd)
                os.symlink(to, name, dir_fd=target)
                more["target"] = events.from_bytes(os.fsencode(to))
            case stat.S_IFCHR | stat.S_IFBLK:
                more["device"] = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
        self._note(status, path, more)
        return enter

    def _file(self, fd: int, size: int, target: int, name: str) -> str | None:
        """Copy one file's content; return why not all of it."""
        out = os.open(name, _WRITE, 0o600, dir_fd=target)
        try:
            try:
                opened = os.open(f"/proc/self/fd/{fd}", _READ)
            except OSError as error:
                return self._unread(error)
            try:
                return self._content(opened, size, out)
            finally:
                os.close(opened)
        finally:
            os.close(out)

    def _content(self, source: int, size: int, out: int) -> str | None:
        for start, end in _data(source, size):
            os.lseek(out, start, os.SEEK_SET)
            while start < end:
                self._check_time()
                left = self._budget.bytes - self.copied.bytes
                if left <= 0:
                    self.copied.exceeded.add("bytes")
                    return "bytes"
                try:
                    sent = os.sendfile(out, source, start, min(_CHUNK, end - start, left))
                except OSError as error:
                    return self._unread(error)
                if sent == 0:
                    break
                start += sent
                self.copied.bytes += sent
        try:
            os.ftruncate(out, size)
        except OSError as error:
            return error.strerror
        return None

    def _note(self, status: os.stat_result, path: bytes, more: dict[str, object]) -> None:
        kind = KINDS.get(stat.S_IFMT(status.st_mode), "unknown")
        if kind == "character device" and status.st_rdev == 0:  # how an overlay marks what was removed
            kind = "deleted"
            del more["device"]
        entry = Entry(
            **named(path),
            kind=kind,
            mode=f"{stat.S_IMODE(status.st_mode):04o}",
            uid=status.st_uid % self._ids if self._ids else status.st_uid,
            gid=status.st_gid % self._ids if self._ids else status.st_gid,
            size=status.st_size,
            mtime=status.st_mtime,
            **more,  # type: ignore[arg-type]
        )
        line = self._encode(entry) + b"\n"
        extra = max(0, len(line) - _LINE)
        if extra and self.copied.bytes + extra > self._budget.bytes:
            self._stop("bytes")
        self.copied.bytes += extra
        self._manifest.write(line)
        self._lines += 1

    def _unread(self, error: OSError) -> str:
        if error.errno in _OURS:
            raise error
        self.copied.unreadable += 1
        return error.strerror or "unknown error"

    def _check_time(self) -> None:
        if time.monotonic() > self._deadline:
            self._stop("seconds")

    def _stop(self, what: str) -> None:
        self.copied.exceeded.add(what)
        raise _Unaffordable


def _data(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Where a file has data, as start and end of each stretch, up to `size`."""
    start = end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
            end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        except OSError:  # only a hole is left, or the file became shorter
            return
        if start >= size:
            return
        yield start, end


def _is_opaque(fd: int) -> bool:
    for name in _OPAQUE:
        with suppress(OSError):
            if os.getxattr(f"/proc/self/fd/{fd}", name) == b"y":
                return True
    return False


# ---- measuring


class Measured(NamedTuple):
    """Bytes on disk of everything in a tree, hard links counted once; the entries seen; whether that was all."""

    bytes: int
    entries: int
    whole: bool


def measure(directory: Path, max_entries: int) -> Measured:
    """Measure a tree, which may be changing. Stops at more than `max_entries`, and at a directory that was moved meanwhile."""
    total = seen = 0
    whole = True
    linked: set[tuple[int, int]] = set()
    fd = os.open(directory, _DIRECTORY)
    pending: list[tuple[tuple[int, int], list[str]]] = []  # by level, which directory it is, and those in it still to enter
    try:
        while True:
            names: list[str] = []
            with os.scandir(fd) as entries:
                for entry in entries:
                    seen += 1
                    if seen > max_entries:
                        return Measured(total, seen, False)
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    if stat.S_ISDIR(status.st_mode):
                        names.append(entry.name)
                    elif status.st_nlink > 1:
                        if (status.st_dev, status.st_ino) in linked:
                            continue
                        linked.add((status.st_dev, status.st_ino))
                    total += status.st_blocks * 512
            pending.append((_identity(fd), names))
            entered = False
            while pending and not entered:
                if not pending[-1][1]:
                    pending.pop()
                    if pending:
                        fd = _replace(fd, os.open("..", _DIRECTORY, dir_fd=fd))
                        if _identity(fd) != pending[-1][0]:
                            return Measured(total, seen, False)  # it was moved, perhaps to where this must not go
                    continue
                try:
                    fd = _replace(fd, open_beneath(fd, pending[-1][1].pop(), _DIRECTORY))
                    entered = True
                except FileNotFoundError:
                    continue
                except OSError:
                    whole = False
            if not entered:
                return Measured(total, seen, whole)
    finally:
        os.close(fd)


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _replace(fd: int, other: int) -> int:
    os.close(fd)
    return other


# ---- removing


def remove(pit: Path) -> None:
    """Remove a directory that holds nothing but numbered directories, of whatever depth. Raises OSError; go on by calling again.

    A directory's files are unlinked and its directories moved up into the pit, under the next numbers: nothing is ever more than
    one level deep when its turn comes, and few fds and little memory are held.
    """
    top = os.open(pit, _DIRECTORY)
    try:
        number = max((int(name) for name in os.listdir(top)), default=0)  # noqa: PTH208
        empty = False
        while not empty:
            empty = True
            with os.scandir(top) as entries:
                for entry in entries:
                    empty = False
                    number = _empty(top, entry.name, number)
                    with suppress(OSError):  # what a scan has missed is found by the next
                        os.rmdir(entry.name, dir_fd=top)
    finally:
        os.close(top)
    pit.rmdir()


def _empty(top: int, name: str, number: int) -> int:
    fd = open_beneath(top, name, _DIRECTORY)
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    number += 1
                    os.rename(entry.name, str(number), src_dir_fd=fd, dst_dir_fd=top)
                else:
                    os.unlink(entry.name, dir_fd=fd)
    finally:
        os.close(fd)
    return number
