"""A pool for tests of sessions: boxes of a fake engine, in this process, without a broker."""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from hermes.broker.engines.base import Box, Engine
from hermes.container import BrokerEvent, Container, PoolStatus
from hermes.errors import AllocationError, EngineError
from hermes.tasks import TaskOwner
from hermes.testing.engines import FakeEngine


class _Lease:
    def __init__(self, made: "asyncio.Task[tuple[Box, Container] | EngineError]") -> None:
        self.made = made
        self.holders = 0


class FakePool:
    """Does what a `ContainerPool` does; each box is made when it is asked for.

    `allocations` and `releases` are the session ids of the calls, in order.
    """

    def __init__(self, engine: Engine | None = None) -> None:
        self.engine: Engine = engine or FakeEngine()
        self.on_event: Callable[[BrokerEvent], None] | None = None
        self.closed = asyncio.Event()
        self.allocations: list[str] = []
        self.releases: list[str] = []
        self._leases: dict[str, _Lease] = {}
        self._tasks = TaskOwner("fake-pool")
        self._numbers = iter(range(1, 1 << 31))

    async def start(self) -> None:
        """Start the engine."""
        await self.engine.start()

    async def allocate(self, session_id: str, timeout: float | None = None) -> Container:
        """See `ContainerPool`."""
        self.allocations.append(session_id)
        if self.closed.is_set():
            raise AllocationError("the pool is closed")
        lease = self._leases.get(session_id)
        if lease is None:
            lease = self._leases[session_id] = _Lease(self._tasks.spawn(self._make(), name=session_id))
        lease.holders += 1
        try:
            async with asyncio.timeout(timeout):
                made = await asyncio.shield(lease.made)
        except TimeoutError:
            self._let_go(session_id, lease)
            raise AllocationError(f"no container within {timeout:g} seconds") from None
        except asyncio.CancelledError:
            self._let_go(session_id, lease)
            if self.closed.is_set() and lease.made.cancelled():
                raise AllocationError("the pool is closed") from None
            raise
        if isinstance(made, EngineError):
            self._let_go(session_id, lease)
            raise AllocationError(str(made)) from made
        return made[1]

    async def release(self, session_id: str) -> None:
        """See `ContainerPool`."""
        self.releases.append(session_id)
        lease = self._leases.get(session_id)
        if lease is not None and lease.made.done():
            self._let_go(session_id, lease)

    async def status(self) -> PoolStatus:
        """See `ContainerPool`."""
        made = sum(lease.made.done() for lease in self._leases.values())
        return PoolStatus(engine=self.engine.name, size=0, warm=0, creating=len(self._leases) - made, active=made, stopped=0)

    async def close(self) -> None:
        """End every box, and the engine."""
        self.closed.set()
        for session_id, lease in list(self._leases.items()):
            lease.holders = 1
            self._let_go(session_id, lease)
        await self._tasks.close()
        await self.engine.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        await self.close()

    async def _make(self) -> tuple[Box, Container] | EngineError:
        try:
            box = await self.engine.create(f"fake-{next(self._numbers)}")
            return box, Container(box.id, await self.engine.open(box), engine=self.engine.name, image="fake")
        except EngineError as error:
            return error

    def _let_go(self, session_id: str, lease: _Lease) -> None:
        lease.holders -= 1
        if lease.holders > 0 or self._leases.get(session_id) is not lease:
            return
        del self._leases[session_id]
        if not lease.made.done():
            lease.made.cancel()
        elif not lease.made.cancelled() and not isinstance(made := lease.made.result(), EngineError):
            box, container = made
            container.stop()
            self._tasks.spawn(self.engine.destroy(box), name=box.id)
