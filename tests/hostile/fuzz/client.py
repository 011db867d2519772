"""Plays a case: asyncssh's own client as far as the case is honest, and from there its transport alone, a packet at a time."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Iterable
from typing import Any

import asyncssh
from asyncssh.packet import UInt32

from tests.hostile.fuzz.case import Case, Depth, Step

LOGIN_PATIENCE = 60.0
ANSWER_PATIENCE = 0.02
"""Seconds that a pause waits for the server to say something."""
SEND_PATIENCE = 20.0
"""Seconds that the server may take to read on; one that has had enough closes the connection."""


HONEST = Step("packet")


class Fuzzer(asyncssh.SSHClient):
    """The client's owner, which knows nothing."""


class FuzzedConnection(asyncssh.SSHClientConnection):
    """A client that stops where it is told to, and can be made to send anything."""

    held = True
    """Do not ask to log in."""
    said_all = False
    """Nothing can be sent any more."""
    deaf = False
    """Drop whatever arrives."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.keyed = asyncio.Event()
        self.over = asyncio.Event()
        self.heard = asyncio.Event()

    def send_service_request(self, service: bytes) -> None:
        self.keyed.set()
        if not self.held:
            super().send_service_request(service)

    def data_received(self, data: bytes, datatype: Any = None) -> None:
        self.heard.set()
        if not self.deaf:
            super().data_received(data, datatype)

    def connection_lost(self, exc: Exception | None = None) -> None:
        super().connection_lost(exc)
        self.over.set()

    def internal_error(self, exc_info: Any = None, error_logger: Any = None) -> None:
        """What the server answers to nonsense may be nonsense to asyncssh's client."""
        self.deaf = True

    def send_frame(self, payload: bytes, step: Step = HONEST) -> None:
        """Send a payload as asyncssh would, or in a frame that is wrong as the step says."""
        if self._compressor and (self._auth_complete or not self._compress_after_auth):
            payload = self._compressor.compress(payload) or b""
        size = -(self._send_enchdrlen + len(payload)) % self._send_blocksize
        size += self._send_blocksize if size < 4 else 0
        packet = bytes([size if step.padding is None else step.padding]) + payload + os.urandom(size)
        header, mac, sequence = UInt32(len(packet) + step.length & 0xFFFFFFFF), b"", self._send_seq
        if self._send_encryption:
            packet, mac = self._send_encryption.encrypt_packet(sequence, header, packet)
            wire = packet + mac
        else:
            wire = header + packet
        self.wire(wire[:-1] + bytes([wire[-1] ^ step.mac]))
        self._send_seq = sequence + 1 & 0xFFFFFFFF

    async def flood(self, payloads: Iterable[bytes]) -> None:
        """Send packets as fast as the server takes them, until it has had enough."""
        for payload in payloads:
            if self._transport is None:
                return
            self.send_frame(payload)
            await self.flushed()

    def _send(self, data: bytes) -> None:
        if not self.said_all:
            super()._send(data)

    def wire(self, data: bytes) -> None:
        """Send bytes as they are."""
        if self._transport is not None and not self.said_all:
            self._transport.write(data)

    async def flushed(self) -> None:
        """Return when little waits to be sent, or the other end is gone, or does not read."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SEND_PATIENCE):
                while self._transport is not None and self._transport.get_write_buffer_size() > 65536:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)

    async def pause(self) -> None:
        """Hear what the server says now."""
        self.heard.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.heard.wait(), ANSWER_PATIENCE)


@contextlib.asynccontextmanager
async def honest(depth: Depth, port: int, *, compressed: bool = False) -> AsyncIterator[FuzzedConnection]:
    """A connection on which an honest client came so far; cut afterwards. AssertionError if it cannot come there."""
    loop = asyncio.get_running_loop()
    options = asyncssh.SSHClientConnectionOptions(
        username="root", password="root", client_keys=None, known_hosts=None, config=None, client_factory=Fuzzer,
        preferred_auth="password", compression_algs=["zlib@openssh.com", "none"] if compressed else ["none"],
    )  # fmt: skip
    connection = FuzzedConnection(loop, options)
    authenticated: asyncio.Future[None] = loop.create_future()
    connection.held = depth != "authenticated"
    if not connection.held:
        connection._wait, connection._waiter = "auth", authenticated
    await loop.create_connection(lambda: connection, "127.0.0.1", port)
    try:
        try:
            async with asyncio.timeout(LOGIN_PATIENCE):
                await (connection.keyed.wait() if connection.held else authenticated)
        except (TimeoutError, OSError, asyncssh.Error) as error:
            raise AssertionError(f"an honest client does not get to be {depth}: {error!r}") from error
        yield connection
    finally:
        connection.deaf = True
        if (transport := connection._transport) is not None:
            transport.abort()
        await asyncio.wait_for(connection.over.wait(), LOGIN_PATIENCE)


async def play(case: Case, port: int) -> None:
    """Play a case against a server on this machine and hang up. AssertionError when what is honest does not work."""
    if case.depth in ("connected", "identified"):
        await _play_plain(case, socket.create_connection(("127.0.0.1", port)))
        return
    async with honest(case.depth, port, compressed=case.compressed) as connection:
        for step in case.steps:
            await _take(connection, step)
        await connection.pause()


async def _take(connection: FuzzedConnection, step: Step) -> None:
    match step.kind:
        case "wire":
            connection.wire(step.data)
        case "packet" | "frame":
            connection.send_frame(step.data, step)
        case "rekey":
            if connection._kex_complete and not connection.deaf:
                connection._send_kexinit()
                await connection.pause()
        case "pause":
            await connection.pause()
        case "deaf":
            connection.deaf = True
            if connection._transport is not None:
                connection._transport.pause_reading()
        case "eof":
            if connection._transport is not None and connection._transport.can_write_eof():
                connection.said_all = True
                with contextlib.suppress(OSError):  # the server has closed it
                    connection._transport.write_eof()
    await connection.flushed()


async def _play_plain(case: Case, sock: socket.socket) -> None:
    """Without keys there is nothing that needs a client: frames are made by hand."""
    reader, writer = await asyncio.open_connection(sock=sock)
    try:
        if case.depth == "identified":
            writer.write(b"SSH-2.0-OpenSSH_9.6\r\n")
        for step in case.steps:
            if step.kind == "pause":
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(65536), ANSWER_PATIENCE)
            elif step.kind == "eof":
                writer.write_eof()
                break
            elif step.kind in ("wire", "packet", "frame"):
                writer.write(step.data if step.kind == "wire" else _plain_frame(step))
            await asyncio.wait_for(writer.drain(), SEND_PATIENCE)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(reader.read(65536), ANSWER_PATIENCE)
    except (OSError, TimeoutError):
        pass  # the server had enough
    finally:
        writer.transport.abort()


def _plain_frame(step: Step) -> bytes:
    size = -(5 + len(step.data)) % 8
    size += 8 if size < 4 else 0
    packet = bytes([size if step.padding is None else step.padding]) + step.data + bytes(size)
    return UInt32(len(packet) + step.length & 0xFFFFFFFF) + packet
