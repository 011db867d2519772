"""What is at the moment of asking: the part of the metrics that no event tells."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from hermes.container import PoolStatus
from hermes.errors import AllocationError
from hermes.server.ssh import Front
from hermes.store.cursors import Standing

BROKER_PATIENCE = 1.0
"""Seconds within which a broker that is there answers."""
STALE_SECONDS = 1.0
"""For this long an answer is given again instead of asking anew, so that whoever asks often costs little."""


class WatchedJournal(Protocol):
    """What is asked of the journal."""

    @property
    def healthy(self) -> bool: ...
    @property
    def waiting(self) -> int: ...


class WatchedIntake(Protocol):
    """What is asked of the intake of facts from containers."""

    @property
    def waiting(self) -> int: ...


class WatchedPool(Protocol):
    """What is asked of the pool."""

    async def status(self) -> PoolStatus: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What is, at one moment. `containers` is their number by state; None while the broker does not answer."""

    listening: bool = False
    connections: int = 0
    unauthenticated: int = 0
    sessions: int = 0
    channels: int = 0
    journal_healthy: bool = False
    journal_waiting: int = 0
    spools_waiting: int = 0
    containers: Mapping[str, int] | None = None
    outputs: Sequence[Standing] = ()
    """How each output does."""
    index_lag: int | None = None
    """Events the index has yet to take in; None where there is no index, or that is not known."""

    @property
    def checks(self) -> dict[str, bool]:
        """What must be true of a sensor that is well."""
        return {"listening": self.listening, "journal": self.journal_healthy, "broker": self.containers is not None}


class Watch:
    """Looks at the sensor's parts."""

    def __init__(
        self,
        front: Front,
        journal: WatchedJournal,
        pool: WatchedPool,
        intake: WatchedIntake,
        outputs: Callable[[], Sequence[Standing]] = tuple,
        index_lag: Callable[[], int | None] = lambda: None,
    ) -> None:
        """`outputs` tells how each output does, `index_lag` how many events the index lacks; they may block for a moment."""
        self._front = front
        self._outputs = outputs
        self._index_lag = index_lag
        self._journal = journal
        self._pool = pool
        self._intake = intake
        self._asked = -STALE_SECONDS
        self._containers: Mapping[str, int] | None = None

    async def look(self) -> State:
        """Return what is. Takes at most `BROKER_PATIENCE` seconds."""
        if time.monotonic() - self._asked >= STALE_SECONDS:
            self._containers = await self._ask_broker()
            self._asked = time.monotonic()
        visitors = self._front.visitors
        sessions = sum(visitor.session is not None for visitor in visitors)
        return State(
            listening=not self._front.closing,
            connections=len(visitors),
            unauthenticated=len(visitors) - sessions,
            sessions=sessions,
            channels=sum(visitor.open_channels for visitor in visitors),
            journal_healthy=self._journal.healthy,
            journal_waiting=self._journal.waiting,
            spools_waiting=self._intake.waiting,
            containers=self._containers,
            outputs=await asyncio.to_thread(self._outputs),
            index_lag=await asyncio.to_thread(self._index_lag),
        )

    async def _ask_broker(self) -> Mapping[str, int] | None:
        try:
            async with asyncio.timeout(BROKER_PATIENCE):
                status = await self._pool.status()
        except (AllocationError, TimeoutError):
            return None
        return {"warm": status.warm, "creating": status.creating, "active": status.active, "stopped": status.stopped}
