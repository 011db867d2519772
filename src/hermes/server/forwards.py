"""Port and socket forwards: answered as a default sshd would, and stated; nothing is connected and nothing listens."""

import random
from typing import TYPE_CHECKING

from hermes import events

if TYPE_CHECKING:
    from hermes.server.visitor import Visitor

EPHEMERAL_PORTS = range(32768, 61000)
"""Linux's ip_local_port_range, from which a forward of port 0 gets its number."""


class Forwards:
    """What one connection asked to have forwarded."""

    def __init__(self, visitor: "Visitor", most: int) -> None:
        self._visitor = visitor
        self._most = most
        self._listeners: set[tuple[str, int]] = set()

    def connect_requested(self, host: str, port: int, origin_host: str, origin_port: int) -> None:
        """A connection to elsewhere was asked for (`ssh -L`, `-W`, `-D`)."""
        self._visitor.repeat(
            events.ForwardRequested, kind="direct-tcpip", accepted=False,
            host=host, port=port, origin_host=origin_host, origin_port=origin_port,
        )  # fmt: skip

    def connect_path_requested(self, path: str) -> None:
        """A connection to a unix socket was asked for."""
        self._visitor.repeat(events.ForwardRequested, kind="direct-streamlocal", accepted=False, path=path)

    def tunnel_requested(self, mode: int) -> None:
        """A tun device was asked for (`ssh -w`)."""
        self._visitor.repeat(events.ForwardRequested, kind="tun", accepted=False, port=mode)

    def listen_requested(self, host: str, port: int) -> int:
        """A listening port was asked for (`ssh -R`). Return the port it may believe it has, 0 if none."""
        bound = port or random.choice(EPHEMERAL_PORTS)
        accepted = port <= 65535 and self._listen(host, bound)
        self._visitor.repeat(events.ForwardRequested, kind="tcpip-forward", host=host, port=port, accepted=accepted)
        return bound if accepted else 0

    def listen_cancelled(self, host: str, port: int) -> bool:
        """A listening port is no longer wanted. Return whether there was one."""
        there = (host, port) in self._listeners
        self._listeners.discard((host, port))
        return there

    def listen_path_requested(self, path: str) -> bool:
        """A listening unix socket was asked for."""
        accepted = self._listen(path, -1)
        self._visitor.repeat(events.ForwardRequested, kind="streamlocal-forward", path=path, accepted=accepted)
        return accepted

    def listen_path_cancelled(self, path: str) -> bool:
        """A listening unix socket is no longer wanted. Return whether there was one."""
        return self.listen_cancelled(path, -1)

    def _listen(self, host: str, port: int) -> bool:
        if (host, port) in self._listeners:
            return False
        if len(self._listeners) >= self._most:
            self._visitor.limit_reached("server.max_forwards", self._most)
            return False
        self._listeners.add((host, port))
        return True
