"""What asyncssh leaves without bounds, bounded: what a client does not read, sends in crumbs, or inflates costs only itself.

Like `connection`, this overrides private methods of the pinned asyncssh; `tests/unit/server/test_connection.py` checks them.
"""

import asyncio
import sys
import zlib
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import asyncssh
import structlog
from asyncssh.channel import SSHServerChannel
from asyncssh.connection import SSHServerConnection
from asyncssh.constants import MSG_IGNORE
from asyncssh.packet import PacketDecodeError, SSHPacket, SSHPacketLogger

from hermes.config import ServerConfig

if TYPE_CHECKING:
    from hermes.server.visitor import Visitor

log = structlog.get_logger(__name__)

WRITE_HIGH_WATER = 512 * 1024
"""Bytes that wait for a client to read them before what produces more is made to wait."""
READ_SIZE = 32 * 1024
"""Bytes taken from the network at once: a flood of tiny packets must not keep the event loop."""
MIN_PACKET = 1024
"""Smallest packet size a client may ask for: smaller ones cost us far more than they cost it."""
CRUMB = 4096
"""While a channel's reading is paused, pieces smaller than this many bytes are put together."""


class BoundedConnection(SSHServerConnection):
    """A server connection that can be neither swollen nor used to keep the event loop."""

    _owner: "Visitor"

    def __init__(
        self, loop: asyncio.AbstractEventLoop, options: asyncssh.SSHServerConnectionOptions, config: ServerConfig
    ) -> None:  # fmt: skip
        super().__init__(loop, options)
        self._config = config
        self._room = asyncio.Event()
        self._write_paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.max_size = READ_SIZE  # type: ignore[attr-defined]
        transport.set_write_buffer_limits(high=WRITE_HIGH_WATER)  # type: ignore[attr-defined]
        super().connection_made(transport)

    # ---- what the client does not read

    @property
    def congested(self) -> bool:
        """What is sent now would wait: for the client to read, or for a key exchange to end."""
        waits_for_keys = self._auth_complete and bool(self._deferred_packets)
        return self._transport is not None and (self._write_paused or waits_for_keys)

    async def wait_for_room(self) -> None:
        """Return when the connection is not congested, or gone."""
        while self.congested:
            self._room.clear()
            await self._room.wait()

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        self._room.set()

    def _send_deferred_packets(self) -> None:
        super()._send_deferred_packets()
        self._room.set()

    def _send(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():  # or asyncio would log every write to nobody
            super()._send(data)

    def send_packet(self, pkttype: int, *args: bytes, handler: SSHPacketLogger | None = None) -> None:
        """Send a packet, without the SSH_MSG_IGNORE that asyncssh puts before each one.

        It guards against a weakness of CBC ciphers. We offer none, and sshd sends none.
        """
        if pkttype == MSG_IGNORE:
            return
        super().send_packet(pkttype, *args, handler=handler)
        if self._transport is None:
            return
        if len(self._deferred_packets) > self._config.max_deferred:
            self._cut("server.max_deferred", self._config.max_deferred, "key exchange not finished")
        elif self._transport.get_write_buffer_size() > self._config.max_unread:
            self._cut("server.max_unread", self._config.max_unread, "answers not read")

    def _cut(self, limit: str, value: int, reason: str) -> None:
        """End the connection: the client breaks the rules."""
        self._owner.limit_reached(limit, value, detail=reason)
        self._force_close(asyncssh.ProtocolError(reason))

    # ---- what the client sends

    def data_received(self, data: bytes, datatype: asyncssh.DataType = None) -> None:
        if self._transport is not None:
            super().data_received(data, datatype)

    def _choose_alg(self, alg_type: str, local_algs: Sequence[bytes], remote_algs: Sequence[bytes]) -> bytes:
        try:
            return super()._choose_alg(alg_type, local_algs, remote_algs)
        except UnicodeDecodeError:
            raise asyncssh.KeyExchangeFailed(f"no {alg_type} algorithm in common, and names that are no text") from None

    def _process_newkeys(self, pkttype: int, pktid: int, packet: SSHPacket) -> None:
        super()._process_newkeys(pkttype, pktid, packet)
        if self._decompressor is not None:
            self._decompressor = _Inflater(self._config.max_inflated, self._inflated_too_far)  # type: ignore[assignment]

    def _inflated_too_far(self) -> None:
        self._owner.limit_reached("server.max_inflated", self._config.max_inflated, detail="a compressed packet")

    # ---- the end

    def _force_close(self, exc: Exception | None) -> None:
        super()._force_close(exc)
        self._inpbuf = b""  # nothing that came with the end is acted on

    def _cleanup(self, exc: Exception | None) -> None:
        super()._cleanup(exc)
        # Half a megabyte each, in a circle of references that is collected only some hundred connections later.
        self._compressor = self._decompressor = self._next_decompressor = None
        self._room.set()

    def internal_error(self, exc_info: Any = None, error_logger: Any = None) -> None:
        """End the connection after an exception: the client's doing, or a mistake of ours, which is logged."""
        kind, error, trace = exc_info or sys.exc_info()
        if not isinstance(error, asyncssh.Error | PacketDecodeError | OSError):
            _log_mistake(kind, error, trace)
        super().internal_error((kind, error, trace), error_logger)  # type: ignore[arg-type]


def _log_mistake(kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
    log.error("a connection ended by a mistake of ours", exc_info=(kind, error, trace))


class _Inflater:
    """zlib, a packet at a time, with an end to what one packet may become."""

    def __init__(self, limit: int, on_limit: Callable[[], None]) -> None:
        self._zlib = zlib.decompressobj()
        self._limit = limit
        self._on_limit = on_limit

    def decompress(self, data: bytes) -> bytes | None:
        """Return the packet, or None when it is malformed or too large."""
        try:
            inflated = self._zlib.decompress(data, self._limit)
        except zlib.error:
            return None
        if self._zlib.unconsumed_tail:
            self._on_limit()
            return None
        return inflated


class BoundedChannel(SSHServerChannel[bytes]):
    """A session channel that keeps crumbs together while nobody reads."""

    def _accept_data(self, data: bytes, datatype: asyncssh.DataType = None) -> None:
        if self._recv_paused and self._recv_buf and self._send_state not in {"close_pending", "closed"}:
            last, kind = self._recv_buf[-1]
            if kind == datatype and len(last) < CRUMB:
                self._recv_window -= len(data)
                self._recv_buf[-1] = (last + data, kind)
                return
        super()._accept_data(data, datatype)
