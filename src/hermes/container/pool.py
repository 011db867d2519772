"""The pool as the front sees it: the client of the broker socket."""

import asyncio
import socket
from collections import Counter
from collections.abc import Callable
from typing import Protocol

import structlog

from hermes.container.client import Container, one_line
from hermes.container.messages import (
    Allocate,
    Allocated,
    BrokerEvent,
    BrokerReply,
    BrokerRequest,
    Dropped,
    PoolStatus,
    Refused,
    Release,
    Spooled,
    Status,
    Taken,
    decode_broker_reply,
    encode,
)
from hermes.container.packets import PacketSocket
from hermes.errors import AllocationError

log = structlog.get_logger(__name__)


class SpoolTaker(Protocol):
    """Takes spools over (see `messages.Allocated`): their fds are its own from then on."""

    def add(self, container_id: str, session_id: str, spool: int, news: int) -> None: ...
    def dropped(self, container_id: str) -> None: ...


class _Lease:
    """A session's hold on a container, from the first `allocate` to the last `release`."""

    __slots__ = ("answer", "container", "holders")

    def __init__(self, answer: "asyncio.Future[Container | str]") -> None:
        self.answer = answer
        self.container: Container | None = None
        self.holders = 0


class ContainerPool:
    """Ask the broker for containers. When the broker is gone, the containers held are about to be lost, and whoever wants one
    waits `patience` seconds for another broker (`attach`). `closed` is set when that was in vain, or after `close()`:
    nothing is allocated then.

    `on_event` is called with each fact the broker states, `spools` gets the spools of boxes that sessions have or had. `sock`
    None: no broker is there yet.
    """

    def __init__(
        self,
        sock: socket.socket | None = None,
        *,
        on_event: Callable[[BrokerEvent], None] | None = None,
        spools: SpoolTaker | None = None,
        patience: float = 0.0,
    ) -> None:
        self.on_event = on_event
        self.spools = spools
        self.closed = asyncio.Event()
        self._sock = sock
        self._patience = patience
        self._giving_up: asyncio.TimerHandle | None = None
        self._packets: PacketSocket[BrokerReply] | None = None
        self._gone: str | None = "not started"
        self._leases: dict[str, _Lease] = {}
        self._stale: Counter[str] = Counter()
        """Answers still to come that nobody waits for, by session. The broker answers each `Allocate` once, in order."""
        self._status: asyncio.Future[PoolStatus | str] | None = None

    async def start(self) -> None:
        """Begin to talk with the broker, or to wait for one."""
        if self._sock is not None:
            self.attach(self._sock)
        else:
            self._wait_for_broker("no broker is there")

    @property
    def attached(self) -> bool:
        """A broker is there."""
        return self._packets is not None and not self._packets.closed

    def attach(self, sock: socket.socket) -> None:
        """Talk with this broker from now on, instead of the one before; whoever waits for a container waits for one of its."""
        if self._packets is not None:
            self._packets.close()
        if self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None
        self._stale.clear()
        self._packets = PacketSocket(sock, decode_broker_reply, self._received, self._lost, max_queue=65536)
        self._packets.start()
        self._gone = None
        self.closed.clear()
        for session_id, lease in self._leases.items():
            if not lease.answer.done():
                self._packets.send(encode(Allocate(session_id=session_id)))

    async def allocate(self, session_id: str, timeout: float | None = None) -> Container:
        """Return the session's container: the same one each time, until it was released as often as it was allocated.

        Raises AllocationError when the broker refuses (the pool's own time limit included), after `timeout` seconds, or when
        the broker is gone. Whatever way it ends other than by returning, nothing stays allocated.
        """
        lease = self._leases.get(session_id)
        if lease is None:
            if self._giving_up is None:
                self._send(Allocate(session_id=session_id))
            lease = self._leases[session_id] = _Lease(asyncio.get_running_loop().create_future())
        lease.holders += 1
        try:
            async with asyncio.timeout(timeout):
                answer = await asyncio.shield(lease.answer)
        except TimeoutError:
            self._let_go(session_id, lease)
            raise AllocationError(f"no container within {timeout:g} seconds") from None
        except asyncio.CancelledError:
            self._let_go(session_id, lease)
            raise
        if isinstance(answer, str):
            raise AllocationError(answer)
        return answer

    async def release(self, session_id: str) -> None:
        """Undo one `allocate`; the last one stops the container. Ignored for a session that holds none."""
        lease = self._leases.get(session_id)
        if lease is not None and lease.container is not None:
            self._let_go(session_id, lease)

    async def status(self) -> PoolStatus:
        """How the pool is. Raises AllocationError when the broker is gone."""
        if self._status is None:
            self._send(Status())
            self._status = asyncio.get_running_loop().create_future()
        answer = await asyncio.shield(self._status)
        if isinstance(answer, str):
            raise AllocationError(answer)
        return answer

    def taken(self, container_id: str) -> None:
        """Tell the broker that all of a box's spool is in the journal. One that is not told offers it again."""
        if self.attached and self._packets is not None:
            self._packets.send(encode(Taken(container_id=container_id)))

    async def close(self) -> None:
        """Stop every container held, and hang up: the broker then releases whatever this front had."""
        if self._packets is not None:
            self._packets.close()
        elif self._sock is not None:
            self._sock.close()
        for lease in self._leases.values():
            if lease.container is not None:
                lease.container.stop()
        self._end("the pool is closed")

    def _send(self, message: BrokerRequest) -> None:
        if self._gone is not None or self._packets is None or self._packets.closed:
            raise AllocationError(self._gone or "not started")
        if not self._packets.send(encode(message)):
            raise AllocationError("the broker does not answer")

    def _let_go(self, session_id: str, lease: _Lease) -> None:
        lease.holders -= 1
        if lease.holders > 0 or self._leases.get(session_id) is not lease:
            return
        del self._leases[session_id]
        if lease.container is not None:
            lease.container.stop()
        else:
            self._stale[session_id] += 1
        self._send_release(session_id)

    def _send_release(self, session_id: str) -> None:
        if not self.attached or self._packets is None:
            return
        if not self._packets.send(encode(Release(session_id=session_id))):
            # A box that cannot be released would be held for ever: rather hang up, and have the broker release all.
            self._packets.close()
            self._lost("it does not read")

    # ---- from the broker

    def _received(self, message: BrokerReply, fds: list[int]) -> None:
        match message:
            case Allocated() | Refused():
                self._answered(message, fds)
            case Spooled(container_id=container_id, session_id=session_id):
                self._spooled(container_id, session_id, fds)
            case Dropped(container_id=container_id):
                if self.spools is not None:
                    self.spools.dropped(container_id)
            case PoolStatus():
                if self._status is not None:
                    self._status.set_result(message)
                    self._status = None
            case BrokerEvent():
                if self.on_event is not None:
                    self.on_event(message)

    def _spooled(self, container_id: str, session_id: str, fds: list[int]) -> None:
        """Pass on the last two fds, the spool's."""
        if self.spools is not None and len(fds) >= 2:
            news, spool = fds.pop(), fds.pop()
            self.spools.add(container_id, session_id, spool, news)

    def _answered(self, message: Allocated | Refused, fds: list[int]) -> None:
        session_id = message.session_id
        if isinstance(message, Allocated) and len(fds) == 3:
            self._spooled(message.container_id, session_id, fds)
        if self._stale[session_id] > 0:
            self._stale[session_id] -= 1
            if self._stale[session_id] == 0:
                del self._stale[session_id]
            return
        lease = self._leases.get(session_id)
        if lease is None or lease.answer.done():
            log.warning("the broker answered what was not asked", session_id=one_line(session_id, 64))
            return
        if isinstance(message, Allocated) and fds:
            lease.container = Container(
                message.container_id,
                socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=fds.pop(0)),
                engine=message.engine,
                image=message.image,
                waited=message.waited,
            )
            lease.answer.set_result(lease.container)
            return
        del self._leases[session_id]
        if isinstance(message, Refused):
            lease.answer.set_result(one_line(message.reason))
        else:
            lease.answer.set_result("the container's socket was lost on the way (too many open files?)")
            self._send_release(session_id)

    def _lost(self, reason: str) -> None:
        log.error("the broker is gone", reason=reason)
        if self._status is not None:
            self._status.set_result("the broker is gone")
            self._status = None
        self._wait_for_broker("the broker is gone")

    def _wait_for_broker(self, reason: str) -> None:
        self._gone = reason
        if self._patience:
            self._giving_up = asyncio.get_running_loop().call_later(self._patience, self._end, reason)
        else:
            self._end(reason)

    def _end(self, reason: str) -> None:
        self._gone = reason
        if self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None
        self.closed.set()
        for lease in self._leases.values():
            if not lease.answer.done():
                lease.answer.set_result(reason)
        self._leases = {id: lease for id, lease in self._leases.items() if lease.container is not None}
        self._stale.clear()
        if self._status is not None:
            self._status.set_result(reason)
            self._status = None
