"""Files kept by their content: copied from an open descriptor in small slices, hashed meanwhile, and put in their place whole.

    <data_dir>/artifacts/ab/cd/<sha256>   root's, 0640, of the group of `sensor.user`; its mtime says when it was seen last
    <data_dir>/artifacts/.incoming/       what is being written; swept at the next start

Nothing is flushed to the disk: a crash of the whole machine may take what was kept in its last seconds, and leave files that are
empty, which `sweep` removes. Imported by the zygote, so it imports little. All of it blocks.
"""

import hashlib
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from hermes import artifacts

SLICE = 256 * 1024
"""Bytes copied at once: about a millisecond."""
GONE = ".gone-"
"""What the name of an artifact begins with that is being removed, among those that are being written."""
EMPTY = hashlib.sha256(b"").hexdigest()
_TRIES = 3
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

TOO_LARGE = "larger than artifacts.file_bytes"
SESSION_FULL = "artifacts.session_bytes reached"
NO_ROOM = "artifacts.min_free reached"
CHANGING = "changed whenever it was copied"
NO_TIME = "artifacts.end_seconds reached"


class Budgets(msgspec.Struct, frozen=True, kw_only=True):
    """Where artifacts go, and the settings of `artifacts`, as a process without pydantic gets them."""

    directory: str
    group: int
    """Who may read them."""
    file_bytes: int
    session_bytes: int
    session_entries: int
    backlog: int
    min_free: int
    end_seconds: float


class Content(NamedTuple):
    """What is kept: its names by three hash functions, its size, and when (seconds since the epoch) it was seen before."""

    sha256: str
    sha1: str
    md5: str
    size: int
    seen: float | None

    @property
    def known(self) -> bool:
        """It was kept already."""
        return self.seen is not None


class Skipped(Exception):
    """It is not kept: why."""


def prepare(directory: str, group: int) -> None:
    """Make the directory, and undo what an earlier run left unfinished: what it was writing, and removals. Raises OSError."""
    for path in (directory, f"{directory}/{artifacts.INCOMING}"):
        with suppress(FileExistsError):
            Path(path).mkdir(0o750)
        fd = os.open(path, _DIRECTORY)
        try:
            os.fchown(fd, 0, group)
            os.fchmod(fd, 0o750 if path == directory else 0o700)
        finally:
            os.close(fd)
    with os.scandir(f"{directory}/{artifacts.INCOMING}") as entries:
        for entry in entries:
            sha256 = entry.name.removeprefix(GONE)
            place = artifacts.path(Path(directory), sha256) if artifacts.is_sha256(sha256) else None
            if place is not None and place.parent.is_dir():
                Path(entry.path).rename(place)
            else:
                Path(entry.path).unlink()


class Store:
    """Takes files into the directory of artifacts, within what one session may add to it.

    `limit` is told of a setting that was reached, with its value. `owner` names what this process is writing.
    """

    def __init__(self, budgets: Budgets, owner: str, limit: Callable[[str, int], None]) -> None:
        self.budgets = budgets
        self.added = 0
        """Bytes kept that were not kept already."""
        self._owner = owner
        self._limit = limit
        self._numbers = 0
        self._top = os.open(budgets.directory, _DIRECTORY)
        try:
            self._incoming = os.open(artifacts.INCOMING, _DIRECTORY, dir_fd=self._top)
        except OSError:
            os.close(self._top)
            raise

    def close(self) -> None:
        """Let go of the directory."""
        os.close(self._incoming)
        os.close(self._top)

    def copying(self, fd: int, *, executed: bool = False) -> "Copying":
        """Begin to keep what is in the open file, which must be a regular one and stays the caller's.

        A quarter of what the session may add is set aside for what is `executed`.
        """
        return Copying(self, fd, executed)

    def admit(self, size: int) -> None:
        """Raise Skipped for a file of that size."""
        if size > self.budgets.file_bytes:
            raise Skipped(TOO_LARGE)

    def see(self, sha256: str, size: int) -> float | None:
        """When that was seen last; it is now. None if it is not kept."""
        place = artifacts.name(sha256)
        try:
            there = os.stat(place, dir_fd=self._top, follow_symlinks=False)
            os.utime(place, dir_fd=self._top, follow_symlinks=False)
        except OSError:
            return None
        return there.st_mtime if there.st_size == size else None

    def begin(self, size: int, executed: bool) -> "tuple[int, str]":
        """Return a new file to write that many bytes to, and its name. Raises Skipped, OSError."""
        most = self.budgets.session_bytes
        if self.added + size > (most if executed else most - most // 4):
            self._limit("session_bytes", self.budgets.session_bytes)
            raise Skipped(SESSION_FULL)
        there = os.fstatvfs(self._top)
        if there.f_bavail * there.f_frsize < self.budgets.min_free + size:
            self._limit("min_free", self.budgets.min_free)
            raise Skipped(NO_ROOM)
        self._numbers += 1
        name = f"{self._owner}.{os.getpid()}.{self._numbers}"
        return os.open(name, _NEW, 0o600, dir_fd=self._incoming), name

    def finish(self, out: int, name: str, sha256: str, size: int) -> None:
        """Put a file that was written in its place. Raises OSError."""
        os.fchown(out, 0, self.budgets.group)
        os.fchmod(out, 0o640)
        place = artifacts.name(sha256)
        try:
            os.rename(name, place, src_dir_fd=self._incoming, dst_dir_fd=self._top)
        except FileNotFoundError:
            self._make(place)
            os.rename(name, place, src_dir_fd=self._incoming, dst_dir_fd=self._top)
        self.added += size

    def abandon(self, out: int, name: str) -> None:
        """Remove a file that was begun."""
        os.close(out)
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._incoming)

    def _make(self, place: str) -> None:
        first, second, _ = place.split("/")
        for directory in (first, f"{first}/{second}"):
            with suppress(FileExistsError):
                os.mkdir(directory, 0o700, dir_fd=self._top)
            os.chown(directory, 0, self.budgets.group, dir_fd=self._top, follow_symlinks=False)
            os.chmod(directory, 0o750, dir_fd=self._top)


class Copying:
    """One file on its way into the store. Call `step` until it returns something."""

    def __init__(self, store: Store, fd: int, executed: bool) -> None:
        self._store = store
        self._executed = executed
        self._fd = fd
        self._out: tuple[int, str] | None = None
        self._tries = 0
        self._begin()

    def _begin(self) -> None:
        status = os.fstat(self._fd)
        self._version = (status.st_size, status.st_mtime_ns)
        self._done = 0
        self._hashes = (hashlib.sha256(), hashlib.sha1(usedforsecurity=False), hashlib.md5(usedforsecurity=False))

    def step(self) -> Content | str | None:
        """Copy one slice. Return what is kept, or why it is not, once that is known."""
        try:
            return self._step()
        except Skipped as skipped:
            self.abandon()
            return str(skipped)
        except OSError as error:
            self.abandon()
            return error.strerror or "unknown error"

    def abandon(self) -> None:
        """Leave nothing of it."""
        if self._out is not None:
            out, self._out = self._out, None
            self._store.abandon(*out)

    def _step(self) -> Content | None:
        size = self._version[0]
        self._store.admit(size)
        data = os.pread(self._fd, SLICE, self._done)
        if self._done + len(data) > size or (not data and self._done < size):
            self._again()  # it became longer or shorter
            return None
        for one in self._hashes:
            one.update(data)
        self._done += len(data)
        if self._done < size or self._out is not None:
            self._write(data)
        return self._finish(data) if self._done == size else None

    def _write(self, data: bytes) -> None:
        if self._out is None:
            self._out = self._store.begin(self._version[0], self._executed)
        at = self._done - len(data)
        if data.count(0) == len(data):
            return  # a hole, or as good as one
        view = memoryview(data)
        while view:
            at += (written := os.pwrite(self._out[0], view, at))
            view = view[written:]

    def _finish(self, last: bytes) -> Content | None:
        status = os.fstat(self._fd)
        if (status.st_size, status.st_mtime_ns) != self._version:
            self._again()
            return None
        size = self._done
        sha256, sha1, md5 = (one.hexdigest() for one in self._hashes)
        seen = self._store.see(sha256, size)
        if seen is not None:
            self.abandon()
        else:
            if self._out is None:
                self._out = self._store.begin(size, self._executed)
                os.pwrite(self._out[0], last, 0)
            out, name = self._out
            os.ftruncate(out, size)
            self._store.finish(out, name, sha256, size)
            os.close(out)
            self._out = None
        return Content(sha256, sha1, md5, size, seen)

    def _again(self) -> None:
        """It changed: copy it anew, unless that was tried often enough."""
        self.abandon()
        self._tries += 1
        if self._tries >= _TRIES:
            raise Skipped(CHANGING)
        self._begin()


def is_regular(status: os.stat_result) -> bool:
    """Whether that is a file with content."""
    return stat.S_ISREG(status.st_mode)
