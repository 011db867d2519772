"""The stream of a Docker exec, and the fds at our end: read and written without blocking, closed without waiting."""

import asyncio
import os

import aiohttp
from aiodocker import DockerError
from aiodocker.stream import Stream

_CHUNK = 1 << 16
FAULTS = (DockerError, aiohttp.ClientError, OSError, TimeoutError, AssertionError, RuntimeError)
"""What aiodocker raises when the daemon is gone, refuses, or answers nonsense."""


async def opened(stream: Stream) -> asyncio.WriteTransport:
    """The transport under an exec's stream, which aiodocker keeps to itself; opens the stream if it is not."""
    await stream._init()
    connection = stream._resp.connection if stream._resp is not None else None
    if connection is None or not isinstance(connection.transport, asyncio.WriteTransport):
        raise ConnectionResetError("the stream is closed")
    return connection.transport


def write_eof(transport: asyncio.WriteTransport) -> None:
    """Tell the other end that nothing more comes, which aiodocker has no way to say."""
    if transport.can_write_eof() and not transport.is_closing():
        transport.write_eof()


async def written(stream: Stream, data: bytes) -> bool:
    """Write to an exec's stream; return when there is room for more, and whether it still can be written to."""
    try:
        await stream.write_in(data)
    except FAULTS:
        return False
    return True


async def close_stream(stream: Stream) -> None:
    """Close an exec's stream without waiting for what it has still to write."""
    try:
        transport = await opened(stream) if stream._resp is not None else None
    except ConnectionResetError:
        transport = None
    await stream.close()
    if transport is not None:
        transport.abort()


async def _ready(fd: int, *, writing: bool) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    add, remove = (loop.add_writer, loop.remove_writer) if writing else (loop.add_reader, loop.remove_reader)

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    add(fd, wake)
    try:
        await ready
    finally:
        remove(fd)


async def read_fd(fd: int) -> bytes:
    """What a non-blocking fd has; empty at its end."""
    while True:
        try:
            return os.read(fd, _CHUNK)
        except BlockingIOError:
            await _ready(fd, writing=False)


async def write_fd(fd: int, data: bytes) -> None:
    """Write all of it to a non-blocking fd."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            await _ready(fd, writing=True)
