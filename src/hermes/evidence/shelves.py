"""The recordings' directory: what lies in it, and its removal, so that a kill at any moment leaves nothing half.

A session's recordings of one day are one item. It goes in three steps: renamed into `.removing`, where no reader looks, under a
name that says what it was; emptied there; and forgotten, once the event that states its removal is in the journal.

Everything is reached by directory fd. No link is followed, and nothing but regular names is entered. All of it blocks.
"""

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hermes.recording.recorder import is_session_id

REMOVING = ".removing"

_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_NAME = re.compile(r"(\d{4}-\d{2}-\d{2}),([A-Za-z0-9_-][A-Za-z0-9._-]{0,127}),([a-z_.]{1,64}),(\d{1,18})")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Item(NamedTuple):
    """What was recorded of a session on one day, and the bytes it takes on disk."""

    day: str
    session_id: str
    bytes: int

    @property
    def path(self) -> str:
        """Where it lies, relative to the recordings' directory."""
        return f"{self.day}/{self.session_id}"


class Removal(NamedTuple):
    """An item that is being removed, and the setting that says so."""

    item: Item
    reason: str

    @property
    def name(self) -> str:
        """Its name in `.removing`."""
        return f"{self.item.day},{self.item.session_id},{self.reason},{self.item.bytes}"


class Shelves:
    """The recordings under `root`. Methods raise OSError."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def days(self) -> dict[str, int]:
        """Return the days of which there is something, oldest first, each with a number that changes when items come or go."""
        found = {}
        with self._open() as root, os.scandir(root) as entries:
            for entry in entries:
                if _DAY.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                    found[entry.name] = entry.stat(follow_symlinks=False).st_mtime_ns
        return dict(sorted(found.items()))

    def items(self, day: str) -> Iterator[Item]:
        """Yield what there is of a day."""
        with self._open(day) as here, os.scandir(here) as entries:
            for entry in entries:
                if is_session_id(entry.name) and entry.is_dir(follow_symlinks=False):
                    with contextlib.suppress(FileNotFoundError):
                        yield Item(day, entry.name, _measure(here, entry.name))

    def take(self, item: Item, reason: str) -> Removal:
        """Take an item out of readers' sight."""
        removal = Removal(item, reason)
        with self._open() as root, self._open(item.day) as day, self._removing(root) as removing:
            os.rename(item.session_id, removal.name, src_dir_fd=day, dst_dir_fd=removing)
        return removal

    def empty(self, removal: Removal, limit: int = 1000) -> bool:
        """Remove up to `limit` files of what was taken; return True when none is left."""
        with self._open(REMOVING, removal.name) as here, os.scandir(here) as entries:
            for number, entry in enumerate(entries):
                if number >= limit:
                    return False
                os.unlink(entry.name, dir_fd=here)
        return True

    def forget(self, removal: Removal) -> None:
        """Remove the last trace of what was emptied."""
        with self._open() as root, self._removing(root) as removing, contextlib.suppress(FileNotFoundError):
            os.rmdir(removal.name, dir_fd=removing)

    def tidy(self, day: str) -> None:
        """Remove a day's directory if nothing is in it."""
        with self._open() as root, contextlib.suppress(OSError):
            os.rmdir(day, dir_fd=root)

    def unfinished(self) -> list[Removal]:
        """Return what was taken and not forgotten."""
        with self._open() as root, self._removing(root) as removing, os.scandir(removing) as entries:
            return [
                Removal(Item(match[1], match[2], int(match[4])), match[3])
                for entry in entries
                if (match := _NAME.fullmatch(entry.name)) and entry.is_dir(follow_symlinks=False)
            ]

    @contextlib.contextmanager
    def _open(self, *names: str) -> Iterator[int]:
        fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in names:
                there = os.open(name, _DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = there
            yield fd
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _removing(self, root: int) -> Iterator[int]:
        with contextlib.suppress(FileExistsError):
            os.mkdir(REMOVING, 0o700, dir_fd=root)
        fd = os.open(REMOVING, _DIRECTORY, dir_fd=root)
        try:
            yield fd
        finally:
            os.close(fd)


def _measure(day: int, name: str) -> int:
    """Bytes on disk of a session's directory and its files."""
    fd = os.open(name, _DIRECTORY, dir_fd=day)
    try:
        blocks = os.fstat(fd).st_blocks
        with os.scandir(fd) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                blocks += 0 if stat.S_ISDIR(status.st_mode) else status.st_blocks
        return blocks * 512
    finally:
        os.close(fd)
