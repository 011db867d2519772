"""Between the launcher and front or broker: what they hear (of each other, of changed settings), what they say of themselves."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable

from hermes.container.messages import ControlMessage, Peer, Reload, decode_control
from hermes.container.packets import PacketSocket, ProtocolError

MAX_SETTINGS = 1 << 20
"""Bytes of settings, as JSON."""


ALIVE_SECONDS = 5.0
"""How often a process says that its event loop runs."""


class Report:
    """The status pipe: lines to the launcher, which never block and never fail. Owns the fd `pipe`."""

    def __init__(self, pipe: int) -> None:
        os.set_blocking(pipe, False)
        self._pipe = pipe

    def __call__(self, line: str) -> None:
        """Say one line; lost when the launcher is gone or does not read."""
        with contextlib.suppress(OSError):
            os.write(self._pipe, line.replace("\n", " ").encode(errors="backslashreplace")[:4000] + b"\n")

    async def stay_alive(self) -> None:
        """Say that this process is alive, again and again. Does not return."""
        while True:
            self("alive")
            await asyncio.sleep(ALIVE_SECONDS)


class ControlSocket:
    """Own a control socket from `start()` to `close()`. `closed` is set when the launcher is gone.

    `on_peer` gets a broker socket, and what is said of it; `on_reload` the settings as JSON, and what is said of them.
    """

    def __init__(
        self, sock: socket.socket, *, on_peer: Callable[[socket.socket, Peer], None], on_reload: Callable[[bytes, Reload], None]
    ) -> None:
        self.closed = asyncio.Event()
        self._on_peer = on_peer
        self._on_reload = on_reload
        self._packets = PacketSocket(sock, decode_control, self._received, lambda reason: self.closed.set())

    def start(self) -> None:
        """Begin to listen."""
        self._packets.start()

    def close(self) -> None:
        """Hear nothing more."""
        self._packets.close()

    def _received(self, message: ControlMessage, fds: list[int]) -> None:
        if len(fds) != 1:
            raise ProtocolError("a control message brings one file descriptor along")
        match message:
            case Peer():
                self._on_peer(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=fds.pop()), message)
            case Reload():
                self._on_reload(os.pread(fds[0], MAX_SETTINGS, 0), message)
