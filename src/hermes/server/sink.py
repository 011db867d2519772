"""Where connections through the server end: a channel whose far end is a `Conversation` in this process."""

import asyncio
import time
from typing import TYPE_CHECKING, NamedTuple, Protocol

import asyncssh
from asyncssh.channel import SSHForwardChannel

from hermes import events
from hermes.events import from_bytes
from hermes.server import persona
from hermes.server.sinks.conversation import Conversation
from hermes.server.sinks.turns import Credentials, Fact

if TYPE_CHECKING:
    from hermes.config.forwards import ForwardsConfig
    from hermes.server.connection import Connection
    from hermes.server.visitor import Visitor

FLUSH_SECONDS = 1.0
"""What was said is stated this long after it at the latest: whoever is killed loses no more."""
FLUSH_BYTES = 16 * 1024
"""Bytes that one event states at most."""


class Owner(Protocol):
    """Whoever counts the sinks of one connection."""

    kept: int
    """Bytes kept of all of them."""

    def closed(self, number: int) -> None:
        """The sink of this number is no more."""


class Opening(NamedTuple):
    """A channel to a sink, as asyncssh takes it."""

    channel: "SinkChannel"
    session: "Sink"


class SinkChannel(SSHForwardChannel[bytes]):
    """The channel of a connection to elsewhere, with the window that sshd gives it."""

    def __init__(self, connection: "Connection", loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(connection, loop, None, "strict", persona.FORWARD_WINDOW, persona.FORWARD_PACKET)


class _Direction:
    """What went one way: how much, and what of it is still to be stated."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.size = 0
        self.stated = 0
        self.waiting = bytearray()
        self.since = 0.0
        """When the first of what waits came."""


class Sink(asyncssh.SSHTCPSession[bytes]):
    """One connection to elsewhere: fed by its channel, answered by its conversation, stated to the journal, within limits."""

    def __init__(
        self, visitor: "Visitor", owner: Owner, number: int, conversation: Conversation, config: "ForwardsConfig"
    ) -> None:  # fmt: skip
        self.number = number
        self._visitor = visitor
        self._owner = owner
        self._conversation = conversation
        self._config = config
        self._channel: asyncssh.SSHTCPChannel[bytes] | None = None
        self._in, self._out = _Direction("in"), _Direction("out")
        self._started = time.monotonic()
        self._over = False
        self._full = False
        self._held: bytearray | None = None
        """What came while the client does not read what it is answered; None: it reads."""
        loop = asyncio.get_running_loop()
        self._end_timer = loop.call_later(config.max_seconds, self._expire)
        self._flush_timer: asyncio.TimerHandle | None = None

    def connection_made(self, chan: asyncssh.SSHTCPChannel[bytes]) -> None:
        self._channel = chan

    def session_started(self) -> None:
        self._answer(self._conversation.greeting())

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        self._visitor.touch(received=len(data))
        self._keep(self._in, data)
        if self._in.size > self._config.max_received:
            self._limit("forwards.max_received", self._config.max_received, "it was closed")
            self._close()
        elif self._held is None:
            self._feed(data)
        elif len(self._held) + len(data) <= self._config.max_unread:
            self._held += data
        else:
            self._limit("forwards.max_unread", self._config.max_unread, "it was closed")
            self._close()

    def _feed(self, data: bytes) -> None:
        turn = self._conversation.feed(data)
        for fact in turn.facts:
            self._state(fact)
        self._answer(bytes(turn.answer))
        if turn.over:
            self._close()

    def eof_received(self) -> bool:
        self._close()
        return False

    def pause_writing(self) -> None:
        self._held = self._held or bytearray()

    def resume_writing(self) -> None:
        held, self._held = self._held, None
        if held and self._channel is not None and not self._channel.is_closing():
            self._feed(bytes(held))

    def connection_lost(self, exc: Exception | None) -> None:
        self.finish()

    def finish(self) -> None:
        """State what is left to say, and that it is closed; without effect the second time."""
        if self._over:
            return
        self._over = True
        self._channel = None
        self._end_timer.cancel()
        self._flush()
        self._owner.closed(self.number)
        self._visitor.say(
            events.ForwardClosed, forward=self.number, protocol=self._conversation.protocol,
            duration=time.monotonic() - self._started, bytes_in=self._in.size, bytes_out=self._out.size,
        )  # fmt: skip

    def _answer(self, data: bytes) -> None:
        if data and self._channel is not None and not self._channel.is_closing():
            self._visitor.touch(sent=len(data))
            self._keep(self._out, data)
            self._channel.write(data)

    def _close(self) -> None:
        if self._channel is not None:
            self._channel.close()

    def _expire(self) -> None:
        self._limit("forwards.max_seconds", self._config.max_seconds, "it was closed")
        if self._channel is not None:
            self._channel.abort()  # whatever the client still has to read, or to say
        self.finish()

    # ---- evidence

    def _keep(self, direction: _Direction, data: bytes) -> None:
        """Keep of `data` what there is room for."""
        begin, direction.size = direction.size, direction.size + len(data)
        room = self._config.max_kept - begin
        limit, value = "forwards.max_kept", self._config.max_kept
        if (left := self._config.max_kept_connection - self._owner.kept) < min(room, len(data)):
            room, limit, value = left, "forwards.max_kept_connection", self._config.max_kept_connection
        if begin == direction.stated + len(direction.waiting):  # or a gap would come before it
            kept = data[: max(room, 0)]
            direction.since = direction.since if direction.waiting else time.monotonic()
            self._owner.kept += len(kept)
            direction.waiting += kept
            while len(direction.waiting) >= FLUSH_BYTES:
                self._say(direction, FLUSH_BYTES)
        if begin + len(data) > direction.stated + len(direction.waiting) and not self._full:
            self._full = True
            self._limit(limit, value, "more is only counted")
        if direction.waiting and self._flush_timer is None:
            self._flush_timer = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._flush)

    def _flush(self) -> None:
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        for direction in sorted((self._in, self._out), key=lambda it: it.since):
            if direction.waiting:
                self._say(direction, len(direction.waiting))

    def _say(self, direction: _Direction, size: int) -> None:
        data = bytes(direction.waiting[:size])
        del direction.waiting[:size]
        self._visitor.repeat(
            events.ForwardData, forward=self.number, direction=direction.name, data=from_bytes(data), size=len(data),
            offset=direction.stated, protocol=self._conversation.protocol,
        )  # fmt: skip
        direction.stated += len(data)

    def _state(self, fact: Fact) -> None:
        if isinstance(fact, Credentials):
            self._visitor.repeat(
                events.ForwardLogin, forward=self.number, protocol=self._conversation.protocol, method=fact.method,
                username=from_bytes(fact.username), password=from_bytes(fact.password),
            )  # fmt: skip
        else:
            self._visitor.repeat(
                events.ForwardTLS, forward=self.number, ja4=fact.ja4, server_name=from_bytes(fact.server_name),
                alpn=[from_bytes(name) for name in fact.alpn],
            )  # fmt: skip

    def _limit(self, limit: str, value: float, outcome: str) -> None:
        self._visitor.limit_reached(limit, value, detail=f"forward {self.number}: {outcome}")
