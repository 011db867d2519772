"""The watcher's end of the spool: each record one write, before whoever caused it goes on."""

import errno
import os
from contextlib import suppress

from hermes import events
from hermes.container import spool
from hermes.container.spool import Record


class FullError(Exception):
    """Nothing more can be written, and why: the spool has its size (`full`), the disk is (`ENOSPC`), or what a process wants
    cannot be read (`unreadable`). What was said before is whole."""


class Writer:
    """Appends to the spool whose fd (O_APPEND) is `fd`; `news` is the eventfd that tells its reader. At most `size` bytes."""

    def __init__(self, fd: int, news: int, size: int) -> None:
        self._fd = fd
        self._news = news
        self._left = size
        self._untold = False
        self._failure = ""

    def write(self, *records: Record) -> None:
        """Write the records, all or none. FullError."""
        data = b"".join(map(spool.framed, records))
        if self._failure or len(data) > self._left:
            raise self.failed(self._failure or "full")
        try:
            written = os.write(self._fd, data)
        except OSError as error:
            raise self.failed(errno.errorcode.get(error.errno or 0, "error")) from error
        if written < len(data):
            with suppress(OSError):
                os.ftruncate(self._fd, os.fstat(self._fd).st_size - written)
            raise self.failed("ENOSPC")
        self._left -= len(data)
        self._untold = True

    def failed(self, reason: str) -> FullError:
        """From here on nothing can be written, for that reason; the error to raise."""
        self._failure = reason
        return FullError(reason)

    def emit(self, event: events.Event, time_us: int, ref: int = 0) -> None:
        """Write one fact."""
        self.write(spool.fact(event, time_us, ref))

    def tell(self) -> None:
        """Let the reader know, if there is news."""
        if self._untold:
            self._untold = False
            with suppress(BlockingIOError):
                os.eventfd_write(self._news, 1)
