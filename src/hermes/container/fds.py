"""The fds of a process in a container, or of whoever plays one: non-blocking, read and written without a transport's buffers."""

import asyncio
import errno
import os

CHUNK = 1 << 16


async def read_fd(fd: int, size: int = CHUNK) -> bytes:
    """What the fd has, at least one byte; empty at its end, which is also a terminal's that every process has closed."""
    while True:
        try:
            return os.read(fd, size)
        except BlockingIOError:
            await _ready(fd, write=False)
        except OSError as error:
            if error.errno not in (errno.EIO, errno.ECONNRESET):
                raise
            return b""


async def write_fd(fd: int, data: bytes) -> None:
    """Write all of it. Raises OSError (EPIPE, EIO) when nobody reads any more."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            await _ready(fd, write=True)


async def _ready(fd: int, *, write: bool) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    add, remove = (loop.add_writer, loop.remove_writer) if write else (loop.add_reader, loop.remove_reader)
    add(fd, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        remove(fd)
