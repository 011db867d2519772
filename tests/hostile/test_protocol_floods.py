"""Floods of protocol against a confined front: whatever is sent however often, memory stays flat and others are served."""

import asyncio
import os
import zlib
from collections.abc import Awaitable, Callable

import pytest

from tests.hostile.fuzz.client import honest
from tests.hostile.fuzz.grammar import text, u32
from tests.hostile.fuzz.targets import FrontTarget

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(600)]

MIB = 1024 * 1024
Flood = Callable[[int, int], Awaitable[None]]
OPEN = b"\x5a" + text(b"session") + u32(0) + u32(2**21) + u32(32768)


def request(name: bytes, body: bytes = b"", channel: int = 0) -> bytes:
    """A channel request that wants no answer."""
    return b"\x62" + u32(channel) + text(name) + b"\0" + body


async def slow_logins(port: int, scale: int) -> None:
    """Clients that send their first bytes one at a time."""

    async def crawl() -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            for byte in b"SSH-2.0-slow_and_steady\r\n\0\0\0\x2c\x04\x14":
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0)
        finally:
            writer.transport.abort()

    async with asyncio.TaskGroup() as group:
        for _ in range(40 * scale):
            group.create_task(crawl())


async def half_open(port: int, scale: int) -> None:
    """Connections that stop in the middle of something, all there at once."""
    beginnings = (
        b"",
        b"SSH-2.0-",
        b"SSH-2.0-x\r\n",
        b"SSH-2.0-x\r\n\0\0\x80\0\4\x14",
        b"SSH-2.0-x\r\n" + b"\0\3\xff\xff\4" + bytes(200_000),
    )
    writers = []
    for number in range(50 * scale):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(beginnings[number % len(beginnings)])
        writers.append(writer)
    await asyncio.sleep(0.1)
    for writer in writers:
        writer.transport.abort()


async def authentication(port: int, scale: int) -> None:
    """Passwords, as many as a connection is allowed, connection after connection."""
    for _ in range(6 * scale):
        async with honest("keyed", port) as client:
            client.send_frame(b"\x05" + text(b"ssh-userauth"))
            secret = b"\0" + text(os.urandom(2000))
            await client.flood(b"\x32" + text(b"root") + text(b"ssh-connection") + text(b"password") + secret for _ in range(30))
            await client.pause()


async def channels(port: int, scale: int) -> None:
    """Channels opened far beyond what is allowed, and closed, and opened again."""
    async with honest("authenticated", port) as client:
        for _ in range(30 * scale):
            await client.flood([OPEN] * 20)
            await client.flood(b"\x61" + u32(number) for number in range(20))
            await client.pause()


async def window_games(port: int, scale: int) -> None:
    """A window that grows byte by byte, beyond all bounds, and is never read."""
    async with honest("authenticated", port) as client:
        await client.flood([OPEN[:-8] + u32(0) + u32(32768), request(b"exec", text(b"pour"))])
        await client.flood([b"\x5d" + u32(0) + u32(1)] * 3000 * scale)
        await client.flood([b"\x5d" + u32(0) + u32(2**32 - 1)] * 1000 * scale)
        client.deaf = True
        assert client._transport is not None
        client._transport.pause_reading()
        await asyncio.sleep(0.2)


async def giants(port: int, scale: int) -> None:
    """The largest packets there may be, and some that are larger."""
    async with honest("authenticated", port) as client:
        await client.flood([b"\x02" + text(bytes(200_000))] * 50 * scale)
        await client.flood([b"\x02" + text(bytes(2**20))])
        await client.pause()


async def crumbs(port: int, scale: int) -> None:
    """Data a byte a packet, more than the channel takes."""
    async with honest("authenticated", port) as client:
        await client.flood([OPEN, request(b"shell")])
        await client.flood([b"\x5e" + u32(0) + text(b"x")] * 5000 * scale)
        await client.flood([b"\x02" + text(b"")] * 5000 * scale)


async def rekeying(port: int, scale: int) -> None:
    """One key exchange after another, with data between."""
    async with honest("authenticated", port) as client:
        await client.flood([OPEN, request(b"shell")])
        for _ in range(10 * scale):
            if client._transport is None or not client._kex_complete:
                await client.pause()
                continue
            client._send_kexinit()
            await client.pause()


async def bombs(port: int, scale: int) -> None:
    """Small packets that would inflate to a hundred megabytes each."""
    for _ in range(4 * scale):
        async with honest("authenticated", port, compressed=True) as client:
            squeeze = client._compressor
            assert squeeze is not None
            bomb = zlib.compressobj()
            packed = bomb.compress(b"\x02" + u32(10**8) + bytes(10**8)) + bomb.flush(zlib.Z_SYNC_FLUSH)
            client._compressor = None
            await client.flood([packed[:200_000]])
            await client.pause()
        async with honest("authenticated", port, compressed=True) as client:
            await client.flood([b"\x02" + text(bytes(250_000))] * 60)  # as large as is allowed, again and again
            await client.pause()


async def requests(port: int, scale: int) -> None:
    """Requests that cost nothing to send: global ones, environment, window sizes, signals."""
    async with honest("authenticated", port) as client:
        await client.flood([b"\x50" + text(b"keepalive@openssh.com") + b"\1"] * 2000 * scale)
        await client.flood([OPEN, request(b"pty-req", text(b"xterm") + u32(80) * 4 + text(b"")), request(b"shell")])
        await client.flood(request(b"window-change", u32(number % 200) * 4) for number in range(2000 * scale))
        await client.flood(request(b"env", text(b"LC_%d" % number) + text(bytes(100))) for number in range(1000 * scale))
        await client.flood([request(b"signal", text(b"WINCH"))] * 1000 * scale)


FLOODS: tuple[Flood, ...] = (
    slow_logins, half_open, authentication, channels, window_games, giants, crumbs, rekeying, bombs, requests,
)  # fmt: skip


@pytest.mark.parametrize("flood", FLOODS, ids=lambda flood: flood.__name__)
async def test_memory_stays_flat_and_others_are_served(flood: Flood) -> None:
    """Twice to warm up, then three times as much: what the second round needed must do for the third."""
    async with FrontTarget.running() as target:
        for _ in range(2):
            await target.watched(flood(target.port, 1))
        warm = await target.memory()
        assert await target.watched(flood(target.port, 3)) > 0
        assert await target.memory() - warm < 6 * MIB


async def test_all_of_them_at_once() -> None:
    async with FrontTarget.running() as target:

        async def together() -> None:
            async with asyncio.TaskGroup() as group:
                for flood in FLOODS:
                    group.create_task(_whatever_comes(flood(target.port, 1)))

        await target.watched(together())
        warm = await target.memory()
        await target.watched(together())
        assert await target.memory() - warm < 16 * MIB


async def _whatever_comes(work: Awaitable[None]) -> None:
    await work
