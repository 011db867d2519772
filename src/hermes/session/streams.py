"""Non-blocking file descriptors as awaitable streams, without a transport's buffers in between."""

import asyncio
import os

CHUNK = 256 * 1024
"""Bytes read at once, at most."""
LINGER = 0.2
"""Seconds spent waiting, all waits together, for what may still trickle out after `finish()`."""
LAST_WORDS = 256 * 1024
"""Bytes taken after `finish()`, at most: more than a pipe or a terminal holds, less than who goes on writing wants."""


class FdReader:
    """Reads a pipe or a pty master until its other end is closed."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._finishing = False
        self._patience = LINGER
        self._room = LAST_WORDS
        self._waiter: asyncio.Future[None] | None = None

    def finish(self) -> None:
        """Come to the end: the process is gone, though others may hold the other end and write to it for ever.

        What it left behind is still read, for at most `LINGER` seconds of waiting and `LAST_WORDS` bytes.
        """
        self._finishing = True
        self._wake()

    async def read(self) -> bytes:
        """Return what there is, at least one byte; `b""` at the end. A pty gives 4 KiB at a time: take all that waits."""
        while True:
            limit = min(CHUNK, self._room) if self._finishing else CHUNK
            if not limit:
                return b""
            try:
                data = os.read(self._fd, limit)
            except BlockingIOError:
                if self._finishing and not await self._readable_in_time():
                    return b""
                if not self._finishing:
                    await self._readable()
                continue
            except OSError:  # EIO: every process has closed the terminal
                return b""
            if len(data) == 4095 or len(data) == 4096:
                data = self._more(data, limit)
            if self._finishing:
                self._room -= len(data)
            return data

    def _more(self, data: bytes, limit: int) -> bytes:
        chunks = [data]
        size = len(data)
        while size < limit:
            try:
                data = os.read(self._fd, limit - size)
            except OSError:
                break
            if not data:
                break
            chunks.append(data)
            size += len(data)
        return b"".join(chunks)

    async def _readable_in_time(self) -> bool:
        """Wait as long as patience lasts; return whether there is something to read, or the end."""
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._patience):
                await self._readable()
        except TimeoutError:
            return False
        finally:
            self._patience -= asyncio.get_running_loop().time() - began
        return True

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


def _settle(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)
