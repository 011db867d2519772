"""Port and socket forwards: granted as configured, answered as a default sshd would, and stated. Connections to elsewhere lead
to a sink; nothing is connected and nothing listens."""

import asyncio
import random
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import asyncssh

from hermes import events
from hermes.server import persona
from hermes.server.sink import Opening, Sink, SinkChannel
from hermes.server.sinks.conversation import Conversation

if TYPE_CHECKING:
    from hermes.config import Settings
    from hermes.server.connection import Connection
    from hermes.server.visitor import Visitor

EPHEMERAL_PORTS = range(32768, 61000)
"""Linux's ip_local_port_range, from which a forward of port 0 gets its number."""


class Forwards:
    """What one connection asked to have forwarded."""

    def __init__(self, visitor: "Visitor", settings: "Settings") -> None:
        self.kept = 0
        self._visitor = visitor
        self._config = settings.forwards
        self._most_listeners = settings.server.max_forwards
        self._listeners: set[tuple[str, int]] = set()
        self._sinks: dict[int, Sink] = {}
        self._total = 0

    # ---- connections to elsewhere

    def connect_requested(
        self, connection: "Connection", host: str, port: int, origin_host: str, origin_port: int
    ) -> Opening:  # fmt: skip
        """A connection to elsewhere was asked for (`ssh -L`, `-W`, `-D`). Raises ChannelOpenError when it is refused."""
        details: dict[str, str | int] = {"host": host, "port": port, "origin_host": origin_host, "origin_port": origin_port}
        reachable = 0 < port <= 65535 and port not in self._config.refused_ports and not self._refused(host)
        refusal = None
        if self._config.direct_tcpip == "refuse":
            refusal = asyncssh.ChannelOpenError(asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, persona.OPEN_FAILED)
        elif not reachable:
            refusal = asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, persona.CONNECT_FAILED)
        return self._connect(connection, "direct-tcpip", Conversation(host, port), refusal, details)

    def connect_path_requested(self, connection: "Connection", path: str) -> Opening:
        """A connection to a unix socket was asked for. Raises ChannelOpenError when it is refused."""
        refusal = None
        if self._config.direct_streamlocal == "refuse" or self._refused(path):
            refusal = asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, persona.OPEN_FAILED)
        return self._connect(connection, "direct-streamlocal", Conversation("", 0), refusal, {"path": path})

    def closed(self, number: int) -> None:
        """The sink of this number is no more."""
        self._sinks.pop(number, None)

    def over(self) -> None:
        """The client's connection is gone, and all that led through it."""
        for sink in list(self._sinks.values()):
            sink.finish()

    def _refused(self, name: str) -> bool:
        return any(fnmatchcase(name.lower(), pattern.lower()) for pattern in self._config.refused_hosts)

    def _connect(
        self,
        connection: "Connection",
        kind: str,
        conversation: Conversation,
        refusal: asyncssh.ChannelOpenError | None,
        details: dict[str, str | int],
    ) -> Opening:
        if refusal is None and (limit := self._limit()) is not None:
            self._visitor.limit_reached(*limit, detail=f"a {kind}")
            refusal = asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, persona.OPEN_FAILED)
        if refusal is not None:
            self._visitor.repeat(events.ForwardRequested, kind=kind, accepted=False, **details)
            raise refusal
        self._total += 1
        number = self._total
        self._visitor.repeat(events.ForwardRequested, kind=kind, accepted=True, forward=number, **details)
        sink = self._sinks[number] = Sink(self._visitor, self, number, conversation, self._config)
        return Opening(SinkChannel(connection, asyncio.get_running_loop()), sink)

    def _limit(self) -> tuple[str, int] | None:
        """The limit that one more connection would exceed, and its value."""
        if len(self._sinks) >= self._config.max_open:
            return "forwards.max_open", self._config.max_open
        return ("forwards.max_total", self._config.max_total) if self._total >= self._config.max_total else None

    # ---- the rest

    def tunnel_requested(self, mode: int) -> None:
        """A tun device was asked for (`ssh -w`)."""
        self._visitor.repeat(events.ForwardRequested, kind="tun", accepted=False, port=mode)

    def listen_requested(self, host: str, port: int, *, privileged: bool) -> int:
        """A listening port was asked for (`ssh -R`), by root (`privileged`) or not. Return the port that the client may believe
        it has, 0 if none."""
        bound = port or random.choice(EPHEMERAL_PORTS)
        allowed = self._config.tcpip_forward == "accept" and (privileged or port not in persona.RESERVED_PORTS)
        accepted = allowed and port <= 65535 and self._listen(host, bound)
        self._visitor.repeat(events.ForwardRequested, kind="tcpip-forward", host=host, port=port, accepted=accepted)
        return bound if accepted else 0

    def listen_cancelled(self, host: str, port: int) -> bool:
        """A listening port is no longer wanted. Return whether there was one."""
        there = (host, port) in self._listeners
        self._listeners.discard((host, port))
        return there

    def listen_path_requested(self, path: str) -> bool:
        """A listening unix socket was asked for. Return whether the client may believe it has it."""
        accepted = self._config.streamlocal_forward == "accept" and self._listen(path, -1)
        self._visitor.repeat(events.ForwardRequested, kind="streamlocal-forward", path=path, accepted=accepted)
        return accepted

    def listen_path_cancelled(self, path: str) -> bool:
        """A listening unix socket is no longer wanted. Return whether there was one."""
        return self.listen_cancelled(path, -1)

    def _listen(self, host: str, port: int) -> bool:
        if (host, port) in self._listeners:
            return False
        if len(self._listeners) >= self._most_listeners:
            self._visitor.limit_reached("server.max_forwards", self._most_listeners)
            return False
        self._listeners.add((host, port))
        return True
