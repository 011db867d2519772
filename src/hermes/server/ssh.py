"""The SSH front: listens, lets asyncssh parse, and hands each channel's process to the session handler."""

import asyncio
import contextlib
import random
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import asyncssh
import structlog

from hermes.config import Settings
from hermes.errors import JournalError
from hermes.events import ConnectionOrigin, ConnectionRefused, Event, LimitReached
from hermes.server import persona
from hermes.server.auth import Memory
from hermes.server.connection import Connection, Lobby
from hermes.server.limits import Limits, Refusal
from hermes.server.listener import Listener
from hermes.server.process import ChannelProcess
from hermes.server.reports import Report, Reports
from hermes.server.visitor import Visitor
from hermes.tasks import TaskOwner

log = structlog.get_logger(__name__)

Handler = Callable[[Visitor, ChannelProcess], Awaitable[None]]
"""Runs one channel's process; returns when it has ended and everything it held is let go."""


class Journal(Protocol):
    """Where events go."""

    @property
    def healthy(self) -> bool:
        """False while events cannot be written: then nobody more is let in."""

    def emit(self, event: Event) -> None:
        """Take an event. Raises JournalError when it cannot even be kept waiting."""


class Front:
    """All connections of this sensor."""

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        host_keys: Sequence[asyncssh.SSHKey],
        *,
        handler: Handler,
        on_channel_opened: Callable[[Visitor], None] = lambda visitor: None,
        on_session_over: Callable[[Visitor], None] = lambda visitor: None,
        no_room: Callable[[], str | None] = lambda: None,
        origin: Callable[[str], ConnectionOrigin | None] = lambda address: None,
    ) -> None:
        """`on_channel_opened` is called before a channel says what it wants: time to make ready for it. `no_room` tells why no
        evidence of one more connection could be kept, `origin` where an address is registered."""
        self.settings = settings
        self.visitors: set[Visitor] = set()
        server, remember = settings.server, settings.authentication.remember
        self.limits = Limits(server, lambda: self._remember_reached("server.max_sources", server.max_sources))
        self.memory = Memory(remember, lambda: self._remember_reached("authentication.remember", remember))
        self.channel_opened = on_channel_opened
        self.session_over = on_session_over
        self.origin = origin
        self.closing = False
        self._journal = journal
        self._no_room = no_room
        self._handler = handler
        self._tasks = TaskOwner("front")
        self._servers: list[Listener] = []
        self._accepting = TaskOwner("accepting")
        self._refused_logged = 0.0
        self._lobby = Lobby(lambda: self._overfull("server.max_connections", self.settings.server.max_connections))
        self._reports = Reports(server.limit_interval)
        self._report_timer: asyncio.TimerHandle | None = None
        self._drained: asyncio.Event | None = None
        self._host_keys = host_keys
        self._options = _options(settings, host_keys, lambda: Visitor(self))

    async def listen(self, sockets: Sequence[socket.socket]) -> None:
        """Accept connections on these listening sockets."""
        loop = asyncio.get_running_loop()
        asyncssh.set_log_level("CRITICAL")

        def connection() -> Connection:
            return Connection(loop, self._options, self.settings.server, self._lobby)

        for sock in sockets:
            sock.listen(1024)
            self._servers.append(Listener(sock, connection, self._accepting))

    def reconfigure(self, settings: Settings) -> None:
        """Treat connections that come from now on by these settings."""
        self.settings = settings
        self.limits.reconfigure(settings.server)
        self._options = _options(settings, self._host_keys, lambda: Visitor(self))

    async def drain(self, stop: asyncio.Event) -> None:
        """Accept no more, end who is not in, and return when every session is over, time is up, or `stop` is set.

        Sessions have `server.shutdown_grace` seconds.
        """
        self._accept_no_more()
        for visitor in list(self.visitors):
            if visitor.session is None:
                visitor.shut_down()
        self._drained = asyncio.Event()
        self._note_if_drained()
        with contextlib.suppress(TimeoutError):
            async with TaskOwner("drain") as tasks, asyncio.timeout(self.settings.server.shutdown_grace):
                ends = [tasks.spawn(stop.wait(), name="stop"), tasks.spawn(self._drained.wait(), name="drained")]
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)

    def _note_if_drained(self) -> None:
        if self._drained is not None and not self.visitors:
            self._drained.set()

    def _accept_no_more(self) -> None:
        self.closing = True
        for server in self._servers:
            server.close()

    async def close(self) -> None:
        """Accept no more, end every connection, and return when every channel's evidence is closed."""
        self._accept_no_more()
        for visitor in list(self.visitors):
            visitor.shut_down()
        await self._accepting.close()
        await asyncio.sleep(0)
        await self._tasks.close()
        if self._report_timer is not None:
            self._report_timer.cancel()
        self._state(self._reports.flush())

    def refusal(self, visitor: Visitor) -> str | None:
        """Take one more connection, or return why it cannot be taken."""
        if self.closing:
            return "shutting down"
        if not self._journal.healthy:
            return "events cannot be written"
        if (no_room := self._no_room()) is not None:
            return no_room
        if any(server.scarce for server in self._servers):
            return "open files are scarce"
        outcome = self.limits.admit(time.monotonic(), visitor.source_ip, random.randrange(100))
        if isinstance(outcome, Refusal):
            visitor.limit_reached(outcome.limit, outcome.value, detail="a connection")
            return f"{outcome.limit} reached"
        visitor.slot = outcome
        self.visitors.add(visitor)
        return None

    def refused(self, event: ConnectionRefused) -> None:
        """A connection was refused."""
        self.report(event, event.reason)
        now = time.monotonic()
        if now - self._refused_logged > 60:
            self._refused_logged = now
            log.warning("connections are being refused", reason=event.reason)

    def session_refused(self, visitor: Visitor) -> bool:
        """Let an authenticated connection become a session. Return whether it cannot."""
        assert visitor.slot is not None
        refusal = self.limits.log_in(visitor.slot)
        if refusal is not None:
            visitor.limit_reached(refusal.limit, refusal.value, detail="a session")
        return refusal is not None

    def left(self, visitor: Visitor) -> None:
        """The connection is gone."""
        self.visitors.discard(visitor)
        if visitor.slot is not None:
            self.limits.leave(visitor.slot)
        self._note_if_drained()

    def run(self, visitor: Visitor, process: ChannelProcess) -> None:
        """Run the channel's process in a task of the front's."""
        self._tasks.spawn(self._run(visitor, process), name=f"channel:{process.number}")

    async def _run(self, visitor: Visitor, process: ChannelProcess) -> None:
        started = time.monotonic()
        try:
            await self._handler(visitor, process)
        finally:
            process.close()
            visitor.channel_over(process, time.monotonic() - started)

    def emit(self, event: Event) -> None:
        """Write an event to the journal."""
        self._journal.emit(event)

    # ---- what an attacker can cause for free

    def report(self, event: Report, kind: str) -> None:
        """State a fact, or count it where its like was stated of the same network just now."""
        kinds = (type(event), kind)
        source = self.limits.network_of(event.source_ip) if event.source_ip else None
        self._state(self._reports.take(time.monotonic(), kinds, source, event))

    def _remember_reached(self, limit: str, value: int) -> None:
        self.report(LimitReached(limit=limit, value=value, detail="the least recently seen is forgotten"), limit)

    def _overfull(self, limit: str, value: int) -> None:
        self.report(LimitReached(limit=limit, value=value, detail="a connection without a PROXY header"), limit)

    def _state(self, stated: list[Report]) -> None:
        for event in stated:
            with contextlib.suppress(JournalError):  # it says so itself, and nobody is let in meanwhile
                self._journal.emit(event)
        due = self._reports.next_due
        if due is not None and self._report_timer is None and not self.closing:
            self._report_timer = asyncio.get_running_loop().call_later(max(0.0, due - time.monotonic()), self._report_due)

    def _report_due(self) -> None:
        self._report_timer = None
        self._state(self._reports.due(time.monotonic()))


def _options(
    settings: Settings, host_keys: Sequence[asyncssh.SSHKey], factory: Callable[[], Visitor]
) -> asyncssh.SSHServerConnectionOptions:
    algorithms = persona.algorithms()
    return asyncssh.SSHServerConnectionOptions(
        server_factory=factory,
        server_host_keys=list(host_keys),
        server_version=settings.server.version,
        kex_algs=algorithms.kex,
        encryption_algs=algorithms.encryption,
        mac_algs=algorithms.mac,
        compression_algs=algorithms.compression,
        encoding=None,
        login_timeout=0,  # the visitor keeps its own
        keepalive_interval=0,
        rekey_bytes="1G",
        rekey_seconds=0,
        gss_host=None,
        gss_kex=False,
        gss_auth=False,
        host_based_auth=False,
        line_editor=False,
        allow_scp=False,
        agent_forwarding=False,
        x11_forwarding=False,
    )
