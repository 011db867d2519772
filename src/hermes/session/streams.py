"""Non-blocking file descriptors as awaitable streams, without a transport's buffers in between."""

import asyncio
import os

CHUNK = 256 * 1024
"""Bytes read at once, at most."""
LINGER = 0.2
"""Seconds that output may still trickle out of a terminal whose process has ended but which others hold open."""


class FdReader:
    """Reads a pipe or a pty master until its other end is closed."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._finishing = False
        self._waiter: asyncio.Future[None] | None = None

    def finish(self) -> None:
        """Treat silence as the end from now on: the process is gone, though others may hold the other end."""
        self._finishing = True
        self._wake()

    async def read(self) -> bytes:
        """Return what there is, at least one byte; `b""` at the end. A pty gives 4 KiB at a time: take all that waits."""
        while True:
            try:
                data = os.read(self._fd, CHUNK)
            except BlockingIOError:
                if self._finishing:
                    return await self._last_words()
                await self._readable()
                continue
            except OSError:  # EIO: every process has closed the terminal
                return b""
            if len(data) == 4095 or len(data) == 4096:
                return self._more(data)
            return data

    def _more(self, data: bytes) -> bytes:
        chunks = [data]
        size = len(data)
        while size < CHUNK:
            try:
                data = os.read(self._fd, CHUNK - size)
            except OSError:
                break
            if not data:
                break
            chunks.append(data)
            size += len(data)
        return b"".join(chunks)

    async def _last_words(self) -> bytes:
        try:
            async with asyncio.timeout(LINGER):
                await self._readable()
        except TimeoutError:
            return b""
        try:
            return os.read(self._fd, CHUNK)
        except OSError:
            return b""

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        loop.add_reader(self._fd, self._wake)
        try:
            await self._waiter
        finally:
            loop.remove_reader(self._fd)
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None:
            _settle(self._waiter)


async def write_fd(fd: int, data: bytes) -> None:
    """Write all of `data`. Raises OSError (EPIPE, EIO) when the other end is closed."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            await _writable(fd)


def _settle(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)


async def _writable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()
    loop.add_writer(fd, _settle, waiter)
    try:
        await waiter
    finally:
        loop.remove_writer(fd)
