"""The broker's end of the broker socket: the whole of what a front, even one that was taken over, can ask for."""

import asyncio
import os
import re
import socket
from collections import deque
from collections.abc import Callable

import structlog

from hermes.broker.plan import PooledBox
from hermes.broker.pool import Pool
from hermes.broker.spools import Spool, Spools
from hermes.container.messages import (
    Allocate,
    Allocated,
    BrokerEvent,
    BrokerReply,
    BrokerRequest,
    Dropped,
    Refused,
    Release,
    Spooled,
    Status,
    Taken,
    decode_broker_request,
    encode,
)
from hermes.container.packets import PacketSocket, ProtocolError, close_fds, refuse_descriptors
from hermes.errors import AllocationError
from hermes.tasks import TaskOwner

log = structlog.get_logger(__name__)

MAX_ASKING = 10_000
"""Allocations that may be waited for at once: as many as `container_pool.max_active` can be."""
MAX_QUEUED = 4096
"""Answers that wait for a front that does not read; past it the front is cut off."""
MAX_QUEUED_FACTS = 1024
"""Facts among them, and facts that wait for the next front while there is none; past it facts are dropped, and counted."""
MAX_REASON = 500

_SESSION_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class BrokerServer:
    """Serve one front over its socket, from `start()` until `closed` is set: the front is gone, or broke the protocol.

    A front holds what it allocated, can release only that, and loses all of it when it goes. Each `Allocate` is answered
    once; the answers for one session come in the order of its requests. `front`, if given, is the user it must run as.
    `spools` are those of the boxes; what no front before has taken is offered to this one.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        front: int | None = None,
        spools: Spools | None = None,
        max_asking: int = MAX_ASKING,
        on_gone: Callable[[], None] = lambda: None,
    ) -> None:
        self.closed = asyncio.Event()
        self._on_gone = on_gone
        self.dropped = 0
        """Facts dropped because the front did not read."""
        self._pool: Pool | None = None
        self._spools = spools
        self._max_asking = max_asking
        self._asking: dict[str, set[asyncio.Task[None]]] = {}
        self._held: set[str] = set()
        self._tasks = TaskOwner("broker.server")
        refuse_descriptors(sock)
        self._packets = PacketSocket(
            sock, decode_broker_request, self._received, self._gone, max_queue=MAX_QUEUED, peer=front
        )  # fmt: skip

    def start(self, pool: Pool) -> None:
        """Begin to serve boxes of that pool."""
        self._pool = pool
        self._packets.start()
        for spool in self._spools.waiting() if self._spools is not None else ():
            self._offer(spool)

    def emit(self, fact: BrokerEvent) -> None:
        """State a fact to the front. It may be called before `start()`."""
        if self._packets.queued >= MAX_QUEUED_FACTS:
            self.dropped += 1
            if self.dropped.bit_count() == 1:
                log.warning("the front does not read; facts are dropped", dropped=self.dropped, kind=fact.kind, **fact.fields)
        elif not self._packets.closed:
            self._send(fact)

    @property
    def queued(self) -> int:
        """Answers and facts that wait for the front to read them."""
        return self._packets.queued

    def hang_up(self) -> None:
        """Release everything the front holds, and hear it no more."""
        self._packets.close()
        self._release_all()
        self.closed.set()

    async def close(self) -> None:
        """Hang up, and return when nothing is under way any more."""
        self.hang_up()
        await self._tasks.close()

    # ---- from the front

    def _received(self, message: BrokerRequest, fds: list[int]) -> None:
        assert self._pool is not None
        if fds:
            raise ProtocolError("file descriptors were sent")
        match message:
            case Allocate(session_id=session_id):
                self._ask(self._pool, _checked(session_id))
            case Release(session_id=session_id):
                self._release(self._pool, _checked(session_id))
            case Taken(container_id=container_id):
                self._taken(container_id)
            case Status():
                self._send(self._pool.status())

    def _ask(self, pool: Pool, session_id: str) -> None:
        if len(self._tasks) >= self._max_asking:
            self._send(Refused(session_id=session_id, reason="too many sessions wait for a container"))
            return
        task = self._tasks.spawn(self._allocate(pool, session_id), name=session_id)
        self._asking.setdefault(session_id, set()).add(task)

    async def _allocate(self, pool: Pool, session_id: str) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            box = await pool.allocate(session_id)
        except AllocationError as error:
            self._send(Refused(session_id=session_id, reason=str(error)[:MAX_REASON]))
        else:
            self._give(pool, session_id, box)
        finally:
            self._forget(session_id, task)

    def _give(self, pool: Pool, session_id: str, box: PooledBox) -> None:
        spool = self._spools.of(box.id) if self._spools is not None else None
        fds: list[int] = []
        try:
            fds += [os.dup(box.sock.fileno())]
            fds += spool.give(session_id) if spool is not None else []
        except OSError as error:
            close_fds(fds)
            pool.release(session_id)
            self._send(Refused(session_id=session_id, reason=f"the broker: {error.strerror}"))
            return
        self._held.add(session_id)
        answer = Allocated(
            session_id=session_id, container_id=box.id, engine=pool.engine_name, image=pool.image, waited=box.waited
        )
        self._send(answer, fds)

    def _forget(self, session_id: str, task: asyncio.Task[None]) -> None:
        if (tasks := self._asking.get(session_id)) is not None:
            tasks.discard(task)
            if not tasks:
                del self._asking[session_id]

    def _release(self, pool: Pool, session_id: str) -> None:
        for task in self._asking.pop(session_id, ()):
            task.cancel()
            self._send(Refused(session_id=session_id, reason="released"))
        if session_id in self._held:
            self._held.discard(session_id)
            pool.release(session_id)

    # ---- spools

    def _offer(self, spool: Spool) -> None:
        try:
            fds = spool.reading()
        except OSError as error:  # the next front is offered it again
            log.error("a spool cannot be handed over", path=str(spool.path), reason=error.strerror)
            return
        self._send(Spooled(container_id=spool.container_id, session_id=spool.session_id or ""), fds)

    def _taken(self, container_id: str) -> None:
        if self._spools is not None and not self._spools.taken(container_id):
            raise ProtocolError("that box is not gone")
        self._send(Dropped(container_id=container_id))

    # ---- to the front

    def _send(self, message: BrokerReply, fds: list[int] | None = None) -> None:
        if not self._packets.send(encode(message), fds or ()) and not self._packets.closed:
            self._packets.close()
            self._gone("it does not read")

    def _gone(self, reason: str) -> None:
        log.info("the front is gone", reason=reason)
        self._release_all()
        self.closed.set()
        self._on_gone()

    def _release_all(self) -> None:
        for tasks in self._asking.values():
            for task in tasks:
                task.cancel()
        self._asking.clear()
        if self._pool is not None:
            for session_id in self._held:
                self._pool.release(session_id)
        self._held.clear()


class Fronts:
    """The fronts of this broker, one after the other. What the broker states while there is none waits for the next.

    `user`, if given, is the uid each must run as; `spools`: see `BrokerServer`. `on_alone` is called when a front is gone, or was
    cut off.
    """

    def __init__(
        self, *, user: int | None = None, spools: Spools | None = None, on_alone: Callable[[], None] = lambda: None
    ) -> None:
        self._user = user
        self._spools = spools
        self._on_alone = on_alone
        self.dropped = 0
        """Facts dropped because no front came."""
        self._pool: Pool | None = None
        self._server: BrokerServer | None = None
        self._sock: socket.socket | None = None
        self._kept: deque[BrokerEvent] = deque()

    def start(self, pool: Pool) -> None:
        """Begin to serve boxes of that pool to whoever is there or comes."""
        self._pool = pool
        if self._sock is not None:
            self._serve(pool, self._sock)

    def connect(self, sock: socket.socket) -> None:
        """Serve the front at the other end of `sock` from now on; one before it has lost what it held."""
        if self._sock is not None and self._server is None:
            self._sock.close()
        self._sock = sock
        if self._pool is not None:
            self._serve(self._pool, sock)

    def emit(self, fact: BrokerEvent) -> None:
        """State a fact."""
        if self._server is not None and not self._server.closed.is_set():
            self._server.emit(fact)
            return
        if len(self._kept) >= MAX_QUEUED_FACTS:
            self._kept.popleft()
            self.dropped += 1
            if self.dropped.bit_count() == 1:
                log.warning("no front is there to hear; facts are dropped", dropped=self.dropped)
        self._kept.append(fact)

    @property
    def has_room(self) -> bool:
        """Whether facts that could wait are taken without others being dropped for them."""
        gone = self._server is None or self._server.closed.is_set()
        return (len(self._kept) if gone or self._server is None else self._server.queued) < MAX_QUEUED_FACTS // 4

    async def close(self) -> None:
        """Hang up and release everything that is held."""
        if self._server is not None:
            await self._server.close()
        elif self._sock is not None:
            self._sock.close()

    def _serve(self, pool: Pool, sock: socket.socket) -> None:
        if self._server is not None:
            self._server.hang_up()
        self._server = BrokerServer(sock, front=self._user, spools=self._spools, on_gone=self._on_alone)
        self._server.start(pool)
        while self._kept:
            self._server.emit(self._kept.popleft())


def _checked(session_id: str) -> str:
    if not _SESSION_ID.fullmatch(session_id):
        raise ProtocolError("that is no session id")
    return session_id
