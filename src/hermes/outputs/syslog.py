"""Syslog messages (RFC 5424) over UDP, TCP (RFC 6587, counted) or TLS (RFC 5425).

None of these has a confirmation. Over TCP and TLS a batch counts as delivered once the receiver's machine has acknowledged its
last byte: what a receiver that dies had taken but not kept is lost. Over UDP it counts once it has left.
"""

import asyncio
import fcntl
import re
import socket
import ssl
import struct
import termios
from collections.abc import Sequence

from hermes.config.outputs import SyslogOutput
from hermes.config.values import parse_endpoint
from hermes.outputs.jsonl import line
from hermes.outputs.sink import ALERT, Record, SinkError, written

APP = "hermes"
ID = "hermes@32473"
"""The name of our structured data; 32473 is the number set aside for documentation (RFC 5612), for Hermes has none of its own."""
LOOK_SECONDS = 0.01
"""Between two looks whether what was sent is acknowledged."""
_SEVERITIES = {"low": 5, "medium": 4, "high": 3, "critical": 2}
_NOTICE, _INFORMATIONAL = 5, 6
_UNPRINTABLE = re.compile(rb"[^\x21-\x7e]")
_CUT = " [cut]"


def message(record: Record, *, facility: int, limit: int) -> bytes:
    """The record as one message of at most `limit` bytes: its JSON, and as structured data what one filters by."""
    severity = _SEVERITIES[record.body["severity"]] if record.event == ALERT else _NOTICE
    if record.event.startswith(("sensor.", "container.", "pool.")):
        severity = _INFORMATIONAL
    about = {
        "event_id": record.event_id, "id": str(record.id), "connection_id": record.connection_id,
        "session_id": record.session_id, "source_ip": record.body.get("source_ip"),
    }  # fmt: skip
    data = "".join(f' {name}="{_escaped(value)}"' for name, value in about.items() if value is not None)
    head = f"<{facility * 8 + severity}>1 {written(record.time)} {_name(record.sensor, 255)} {APP} - {_name(record.event, 32)} "
    text = (head + f"[{ID}{data}] ").encode() + line(record).rstrip(b"\n")
    return text if len(text) <= limit else text[: limit - len(_CUT)] + _CUT.encode()


def _name(text: str, longest: int) -> str:
    """A field of the header: printable ASCII without spaces."""
    return _UNPRINTABLE.sub(b"_", text.encode())[:longest].decode() or "-"


def _escaped(text: str) -> str:
    """The value of a parameter: `"`, `\\` and `]` escaped, in printable characters of bounded number."""
    printable = "".join(it if it.isprintable() else "?" for it in text[:256])
    return re.sub(r'(["\\\]])', r"\\\1", printable)


class SyslogSink:
    """Sends records to one receiver."""

    limit = 200

    def __init__(self, config: SyslogOutput, trust: ssl.SSLContext | None) -> None:
        self._config = config
        self._trust = trust
        self._host, self._port = parse_endpoint(config.address, 6514 if config.transport == "tls" else 514)
        self._writer: asyncio.StreamWriter | None = None
        self._reader: asyncio.StreamReader | None = None
        self._datagrams: socket.socket | None = None

    async def send(self, records: Sequence[Record]) -> None:
        """Return when the receiver's machine has the messages, as far as that can be known. SinkError or OSError else."""
        messages = [message(it, facility=self._config.facility, limit=self._config.max_bytes) for it in records]
        try:
            async with asyncio.timeout(self._config.timeout):
                if self._config.transport == "udp":
                    await self._send_datagrams(messages)
                else:
                    await self._send_stream(b"".join(b"%d %s" % (len(it), it) for it in messages))
        except BaseException as error:
            self._drop()
            if isinstance(error, TimeoutError):
                raise SinkError(f"{self._host} took nothing for {self._config.timeout:g} s") from None
            if isinstance(error, OSError | EOFError):  # ssl.SSLError too
                raise SinkError(f"{self._host} cannot be reached: {error}") from None
            raise

    async def close(self) -> None:
        self._drop()

    def _drop(self) -> None:
        """Give up the connection: what it holds may be cut in the middle of a message."""
        if self._writer is not None:
            self._writer.transport.abort()
        if self._datagrams is not None:
            self._datagrams.close()
        self._writer = self._reader = self._datagrams = None

    async def _send_datagrams(self, messages: list[bytes]) -> None:
        loop = asyncio.get_running_loop()
        if self._datagrams is None:
            family, kind, protocol, _, address = (await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_DGRAM))[0]
            self._datagrams = socket.socket(family, kind, protocol)
            self._datagrams.setblocking(False)
            await loop.sock_connect(self._datagrams, address)
        for it in messages:
            await loop.sock_sendall(self._datagrams, it)

    async def _send_stream(self, data: bytes) -> None:
        if self._reader is not None and self._reader.at_eof():
            self._drop()
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(
                self._host, self._port, ssl=self._trust, server_hostname=self._host if self._trust else None
            )
        assert self._reader is not None
        self._writer.write(data)
        await self._writer.drain()
        while self._writer.transport.get_write_buffer_size() or _unacknowledged(self._writer):
            if self._reader.at_eof() or self._reader.exception() is not None:
                raise ConnectionResetError("it closed the connection")
            await asyncio.sleep(LOOK_SECONDS)


def _unacknowledged(writer: asyncio.StreamWriter) -> int:
    """Bytes sent that the receiver's machine has not acknowledged (SIOCOUTQ)."""
    sock = writer.get_extra_info("socket")
    (count,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"))
    if writer.transport.is_closing() or sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise ConnectionResetError("it closed the connection")
    return int(count)
