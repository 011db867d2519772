"""A packet socket on the event loop: typed messages and file descriptors, in and out, bounded both ways.

Whoever is at the other end may be hostile: a packet that is too long, malformed, or that the owner calls a `ProtocolError`
closes the socket; file descriptors nobody took are closed.
"""

import array
import asyncio
import os
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Generic, TypeVar

import msgspec

from hermes.container.messages import MAX_MESSAGE

MAX_FDS = 3
"""File descriptors one packet carries at most; the kernel drops the rest."""
PACKETS_A_TURN = 32
"""Packets read before other sockets get their turn."""
_SO_PASSRIGHTS = 83
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid
_KERNEL_OVERHEAD = 32
"""What Linux takes of a unix socket's send buffer for each packet."""

M = TypeVar("M")


class ProtocolError(Exception):
    """The other end said what it may not say."""


class _Buffer(threading.local):
    """One receive buffer a thread: packets are decoded before the next one is read."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(MAX_MESSAGE))


_buffer = _Buffer()
_ANCILLARY = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize) + socket.CMSG_SPACE(_CREDENTIALS.size)


def close_fds(fds: Sequence[int]) -> None:
    """Close each of them."""
    for fd in fds:
        os.close(fd)


def refuse_descriptors(sock: socket.socket) -> None:
    """Have the kernel refuse descriptors sent to this socket (Linux 6.16; before, they arrive and are closed).

    To close one can take as long as its sender likes: the last close of a connection that lingers waits for its peer.
    """
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)


def know_senders(sock: socket.socket) -> None:
    """Have each packet that comes to this socket tell who sent it. Call it before the other end can send: what was sent earlier
    tells nobody, and with `PacketSocket`'s `peer` breaks the protocol."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)


class PacketSocket(Generic[M]):
    """Own a non-blocking `SOCK_SEQPACKET` socket from `start()` to `close()`.

    `on_message(message, fds)` is called for each message; it takes the fds it keeps out of the list. `on_closed(reason)` is
    called once, when the other end is gone or broke the protocol, and never after `close()`. Both are called from the event loop.
    With `peer`, a packet that another user sent breaks the protocol: it is that user's socket, wherever the other end went.
    """

    __slots__ = (
        "_decode",
        "_loop",
        "_max_packet",
        "_max_queue",
        "_on_closed",
        "_on_message",
        "_on_writable",
        "_peer",
        "_queue",
        "_sock",
        "closed",
    )

    def __init__(
        self,
        sock: socket.socket,
        decode: Callable[[memoryview], M],
        on_message: Callable[[M, list[int]], None],
        on_closed: Callable[[str], None],
        *,
        on_writable: Callable[[], None] | None = None,
        max_queue: int = 1024,
        peer: int | None = None,
    ) -> None:
        sock.setblocking(False)
        if peer is not None:
            know_senders(sock)
        self._sock = sock
        self._decode = decode
        self._on_message = on_message
        self._on_closed = on_closed
        self._on_writable = on_writable
        self._max_queue = max_queue
        self._peer = peer
        self._max_packet = min(MAX_MESSAGE, sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) - _KERNEL_OVERHEAD)
        self._queue: deque[tuple[bytes, list[int]]] = deque()
        self._loop = asyncio.get_running_loop()
        self.closed = False

    def start(self) -> None:
        """Begin to read."""
        self._loop.add_reader(self._sock, self._readable)

    @property
    def queued(self) -> int:
        """Messages that wait because the other end does not read."""
        return len(self._queue)

    @property
    def blocked(self) -> bool:
        """Messages are queued; `on_writable` is called when the last of them went out."""
        return bool(self._queue)

    def send(self, data: bytes, fds: Sequence[int] = ()) -> bool:
        """Send a packet, or queue it if the other end is slow. Takes the fds over and closes them once they are sent.

        False if it can never be sent: the socket is closed, the queue is full, or the packet is too long.
        """
        if self.closed or len(self._queue) >= self._max_queue or len(data) > self._max_packet:
            close_fds(fds)
            return False
        if self._queue:
            self._queue.append((data, list(fds)))
            return True
        if self._send_now(data, fds):
            return not self.closed
        self._queue.append((data, list(fds)))
        self._loop.add_writer(self._sock, self._writable)
        return True

    def close(self) -> None:
        """Close at once; what is still queued is dropped."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        for _, fds in self._queue:
            close_fds(fds)
        self._queue.clear()

    def _send_now(self, data: bytes, fds: Sequence[int]) -> bool:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._sock.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            close_fds(fds)
            # The owner is in the middle of something: tell it from the loop, as for a socket that ends by itself.
            self._loop.call_soon(self._fail, str(error.strerror))
            return True
        close_fds(fds)
        return True

    def _writable(self) -> None:
        while self._queue:
            data, fds = self._queue[0]
            if not self._send_now(data, fds):
                return
            self._queue.popleft()
        self._loop.remove_writer(self._sock)
        if self._on_writable is not None and not self.closed:
            self._on_writable()

    def _readable(self) -> None:
        for _ in range(PACKETS_A_TURN):
            if self.closed or not self._read_one():
                return

    def _read_one(self) -> bool:
        view = _buffer.view
        try:
            size, ancillary, flags, _ = self._sock.recvmsg_into([view], _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self._fail(str(error.strerror))
            return False
        fds = array.array("i")
        sender = None
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
            elif level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                _, sender, _ = _CREDENTIALS.unpack(data)
        taken = list(fds)
        try:
            if size == 0:
                self._fail("the other end is gone")
                return False
            if self._peer is not None and sender != self._peer:
                raise ProtocolError(f"user {sender} has the socket of user {self._peer}")
            if flags & socket.MSG_TRUNC:
                raise ProtocolError("a message is too long")
            self._on_message(self._decode(view[:size]), taken)
        except (ProtocolError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self._fail(f"protocol error: {error}")
            return False
        finally:
            close_fds(taken)
        return True

    def _fail(self, reason: str) -> None:
        if not self.closed:
            self.close()
            self._on_closed(reason)
