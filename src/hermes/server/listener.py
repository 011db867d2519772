"""Accept connections, also when descriptors or memory run out.

asyncio's own loop then logs, and makes itself a timer, for each of the 1024 connections that it would take at once.
"""

import asyncio
import resource
import socket
import time
from collections.abc import Callable

import structlog

from hermes.tasks import TaskOwner

log = structlog.get_logger(__name__)

BURST = 64
"""Connections taken before others have their turn."""
PAUSE_SECONDS = 0.5
"""After a connection could not be accepted for want of descriptors or memory."""
RESERVE = 64
"""Descriptors, or a tenth of all if that is more, that new connections leave to sessions, recordings and the journal."""
LOG_SECONDS = 60.0


class Listener:
    """Makes a protocol for each connection to a listening socket, until `close()`."""

    def __init__(self, sock: socket.socket, factory: Callable[[], asyncio.Protocol], tasks: TaskOwner) -> None:
        self.scarce = False
        """The last connection came when few descriptors were left (the kernel gives the lowest number there is)."""
        self._sock = sock
        self._factory = factory
        self._tasks = tasks
        self._loop = asyncio.get_running_loop()
        self._paused: asyncio.TimerHandle | None = None
        self._logged = -LOG_SECONDS
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._enough = limit - max(RESERVE, limit // 10)
        sock.setblocking(False)
        self._resume()

    def close(self) -> None:
        """Accept no more."""
        if self._paused is not None:
            self._paused.cancel()
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()

    def _resume(self) -> None:
        self._paused = None
        self._loop.add_reader(self._sock.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(BURST):
            try:
                connection, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._pause(error)
                return
            self.scarce = connection.fileno() >= self._enough
            connection.setblocking(False)
            self._tasks.spawn(self._take(connection), name="accept")

    def _pause(self, error: OSError) -> None:
        """Come back later: whoever waits stays in the kernel's queue."""
        self.scarce = True
        self._loop.remove_reader(self._sock.fileno())
        self._paused = self._loop.call_later(PAUSE_SECONDS, self._resume)
        now = time.monotonic()
        if now - self._logged >= LOG_SECONDS:
            self._logged = now
            log.error("a connection cannot be accepted; it waits", reason=error.strerror)

    async def _take(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._factory, connection)
        except OSError as error:
            connection.close()
            log.warning("a connection was lost while it was accepted", reason=error.strerror)
