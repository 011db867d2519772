"""The stream of a Docker exec: written to without blocking, closed without waiting."""

import asyncio

import aiohttp
from aiodocker import DockerError
from aiodocker.stream import Stream

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
