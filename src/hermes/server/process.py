"""One session channel as a process with standard streams: what the session handler is given."""

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Protocol

import asyncssh

from hermes.events import from_bytes
from hermes.server import persona
from hermes.server.backend import PTYRequest

if TYPE_CHECKING:
    from hermes.server.channel import Channel
    from hermes.server.connection import Connection
    from hermes.server.visitor import Visitor

MAX_COMMAND = 128 * 1024
"""Bytes of a command that are kept in events: as long as an argument can be on Linux (MAX_ARG_STRLEN)."""
INPUT_HIGH_WATER = 256 * 1024
"""Bytes of input that wait for the container before the client is made to wait (by its channel window)."""

INPUT_LOW_WATER = 64 * 1024
"""Bytes of waiting input at which the client may go on."""


class Controls(Protocol):
    """Whoever runs the channel's process: told of what is not data."""

    def resize(self, width: int, height: int, pixel_width: int, pixel_height: int) -> None:
        """The client's window has this size now."""

    def signal(self, name: str) -> None:
        """The client sends this signal (name without SIG)."""

    def gone(self) -> None:
        """The channel is closed."""


class InputStream:
    """Bytes from the client."""

    def __init__(self, process: "ChannelProcess") -> None:
        self._process = process
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._ended = False
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None

    async def read(self) -> bytes:
        """Return the next bytes, at least one and a packet's at most; `b""` once the client has sent end-of-file or is gone."""
        while not self._chunks:
            if self._ended:
                return b""
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        data = self._chunks.popleft()
        self._size -= len(data)
        if self._paused and self._size <= INPUT_LOW_WATER:
            self._paused = False
            self._process.resume_reading()
        return data

    def feed(self, data: bytes) -> None:
        """Take bytes that arrived."""
        self._chunks.append(data)
        self._size += len(data)
        if self._size > INPUT_HIGH_WATER and not self._paused:
            self._paused = True
            self._process.pause_reading()
        self._wake()

    def feed_eof(self) -> None:
        """No more bytes will arrive."""
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class OutputStream:
    """Bytes to the client: `stdout`, or `stderr` (RFC 4254 extended data)."""

    def __init__(self, process: "ChannelProcess", datatype: asyncssh.DataType) -> None:
        self._process = process
        self._datatype = datatype

    def write(self, data: bytes) -> None:
        """Send `data`; without effect once the channel is closed."""
        self._process.send(data, self._datatype)

    async def drain(self) -> None:
        """Return when the client has room for more, or is gone."""
        await self._process.drain()


class ChannelProcess(asyncssh.SSHServerSession[bytes]):
    """The client's side of one channel. What the client asked for is in `kind`, `command`, `pty` and `env`."""

    def __init__(self, visitor: "Visitor", connection: "Connection", channel: "Channel", number: int) -> None:
        self.visitor = visitor
        self.number = number
        self.kind = ""
        self.command: bytes | None = None
        self.label: str | None = None
        """What was asked for, in an event's words: the exec command, or the subsystem's name."""
        self.stated = False
        """It has been stated what the channel runs."""
        self.pty: PTYRequest | None = None
        self.env: dict[bytes, bytes] = {}
        self.stdin = InputStream(self)
        self.stdout = OutputStream(self, None)
        self.stderr = OutputStream(self, asyncssh.EXTENDED_DATA_STDERR)
        self.controls: Controls | None = None
        self.requests = 0
        """Requests so far."""
        self.bytes_in = 0
        self.bytes_out = 0
        self.exit_status: int | None = None
        self.exit_signal: str | None = None
        self._channel: Channel | None = channel
        self._connection = connection
        self._writable: asyncio.Event | None = None

    @property
    def closed(self) -> bool:
        """The channel is gone."""
        return self._channel is None

    # ---- for the handler

    def exit(self, status: int = 0) -> None:
        """Report the exit status and close the channel once all output is sent."""
        if self._channel is not None:
            self.exit_status = status
            self._channel.exit(status)

    def exit_with_signal(self, signal: str, core_dumped: bool = False) -> None:
        """Report that a signal ended the process and close the channel once all output is sent."""
        if self._channel is not None:
            self.exit_signal = signal
            self._channel.exit_with_signal(signal, core_dumped)

    def close(self) -> None:
        """Close the channel without a status."""
        if self._channel is not None:
            self._channel.close()

    def send(self, data: bytes, datatype: asyncssh.DataType) -> None:
        """Send `data` as output of the given type."""
        if self._channel is not None and not self._channel.is_closing():
            self.bytes_out += len(data)
            self.visitor.touch(sent=len(data))
            self._channel.write(data, datatype)

    async def drain(self) -> None:
        """Return when there is room to send, or no one to send to."""
        while self._channel is not None:
            if self._writable is not None:
                await self._writable.wait()
            elif self._connection.congested:
                await self._connection.wait_for_room()
            else:
                return

    def pause_reading(self) -> None:
        """Let the client wait: its window is no longer refilled."""
        if self._channel is not None:
            self._channel.pause_reading()

    def resume_reading(self) -> None:
        """Let the client go on."""
        if self._channel is not None:
            self._channel.resume_reading()

    # ---- from the channel

    def terminal_requested(self, pty: PTYRequest) -> None:
        """The client wants a terminal."""
        self.pty = pty
        self.visitor.pty_requested(self.number, pty)

    def env_requested(self, name: bytes, value: bytes, *, accepted: bool) -> None:
        """The client wants an environment variable."""
        self.visitor.env_requested(self.number, name, value, accepted=accepted)

    def forward_requested(self, kind: str, *, accepted: bool) -> None:
        """The client wants X11 or its agent forwarded."""
        self.visitor.forward_requested(kind, accepted=accepted)

    def start_requested(self, kind: str, command: bytes | None) -> bool:
        """The client wants a shell, a command or a subsystem. Return whether it gets one."""
        if command is not None:
            self.label = from_bytes(command[:MAX_COMMAND])
        if kind == "subsystem":
            command = persona.SUBSYSTEMS.get(command or b"")
            if command is None:
                self.visitor.channel_failed(self.number, f"unknown subsystem {self.label}")
                return False
        self.kind = kind
        self.command = command
        return True

    def session_started(self) -> None:
        self.visitor.channel_started(self)

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        self.bytes_in += len(data)
        self.visitor.touch(received=len(data))
        self.stdin.feed(data)

    def eof_received(self) -> bool:
        self.stdin.feed_eof()
        return True

    def terminal_size_changed(self, width: int, height: int, pixwidth: int, pixheight: int) -> None:
        if self.pty is None:
            return
        sizes = [min(value, 0xFFFF) for value in (width, height, pixwidth, pixheight)]
        self.pty = PTYRequest(self.pty.term_type, sizes[0], sizes[1], sizes[2], sizes[3], self.pty.modes)
        self.visitor.resized(self.number, sizes[0], sizes[1])
        if self.controls is not None:
            self.controls.resize(*sizes)

    def signal_received(self, signal: str) -> None:
        self.visitor.signalled(self.number, signal)
        if self.controls is not None:
            self.controls.signal(signal)

    def break_received(self, msec: int) -> bool:
        self.visitor.signalled(self.number, "BREAK")
        return self.pty is not None

    def pause_writing(self) -> None:
        self._writable = asyncio.Event()

    def resume_writing(self) -> None:
        if self._writable is not None:
            self._writable.set()
            self._writable = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._channel = None
        self.stdin.feed_eof()
        self.resume_writing()
        if self.controls is not None:
            self.controls.gone()
        self.visitor.channel_closed(self)
