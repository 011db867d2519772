"""Lines in a file (or on standard output), which somebody else may rotate: on the disk itself before they count as written."""

import contextlib
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from hermes.outputs.sink import Record
from hermes.outputs.worker import Worker

LIMIT = 200
MODE = 0o640
TAIL = 2**20
"""Bytes at a file's end in which the end of its last whole line is looked for."""

Render = Callable[[Sequence[Record]], bytes]


class FileSink:
    """Appends what `render` makes of records: whole lines.

    Before each batch it looks whether its file is still the one at `path`, so a renamed one is left alone from then on; a file
    that was cut is gone on with from its new end. A line that a kill or a full disk left unfinished is finished, or taken away.
    """

    limit = LIMIT

    def __init__(self, path: str, render: Render, *, alone: bool = True) -> None:
        """`path`: absolute, or `stdout`. `alone`: nobody else appends to it now."""
        self._path = None if path == "stdout" else Path(path)
        self._render = render
        self._alone = alone
        self._worker = Worker("lines")
        self._fd = 1 if self._path is None else -1
        self._records: Sequence[Record] | None = None
        self._chunk = b""
        self._done = 0

    async def send(self, records: Sequence[Record]) -> None:
        """Return when the records' lines are in the file. OSError where they cannot be; the same then go on from there."""
        await self._worker.do(self._write, records)

    async def close(self) -> None:
        self._worker.close(self._shut)

    def _shut(self) -> None:
        if self._path is not None and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write(self, records: Sequence[Record]) -> None:
        if records is not self._records:
            self._chunk, self._done, self._records = self._render(records), 0, records
        if self._path is not None and self._reopen(self._path):
            self._done = self._chunk.rfind(b"\n", 0, self._done) + 1
        while self._done < len(self._chunk):
            self._done += os.write(self._fd, self._chunk[self._done : self._done + 65536])
        if self._path is not None:
            os.fsync(self._fd)
        self._records = None

    def _reopen(self, path: Path) -> bool:
        """Open the file if it is not open, or is not at its place any more; return whether it was opened."""
        if self._fd >= 0:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._fd), path.stat()):
                    return False
            os.close(self._fd)
            self._fd = -1
        flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
        try:
            self._fd = os.open(path, flags)
        except FileNotFoundError:
            self._fd = os.open(path, flags | os.O_CREAT, MODE)
            os.fchmod(self._fd, MODE)
            _sync_directory(path.parent)
        about = os.fstat(self._fd)
        if self._alone and stat.S_ISREG(about.st_mode):
            _mend(self._fd, about.st_size)
        return True


def _mend(fd: int, size: int) -> None:
    """Take away the line that a process which was killed did not finish."""
    tail = os.pread(fd, TAIL, max(0, size - TAIL))
    if tail and not tail.endswith(b"\n"):
        os.ftruncate(fd, size - len(tail) + tail.rfind(b"\n") + 1)


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
