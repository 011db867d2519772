"""What the pool keeps of boxes and of those who wait, and what it is to begin next, decided from numbers alone."""

import asyncio
import socket
import time
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from hermes.broker.engines.base import Box
from hermes.broker.forensics import Facts


class State(Enum):
    """Where a box is in its life."""

    WARM = "warm"
    ACTIVE = "active"
    STOPPED = "stopped"


@dataclass(slots=True, eq=False)
class PooledBox:
    """A box and what the pool knows of it. `sock` is its box socket; the pool keeps it until the box is stopped."""

    box: Box
    sock: socket.socket
    state: State = State.WARM
    session_id: str | None = None
    waited: float = 0.0
    created: float = field(default_factory=time.time)
    allocated: float | None = None
    delivered: bool = False
    """A caller of `allocate` has it."""

    @property
    def id(self) -> str:
        """The box's."""
        return self.box.id

    def facts(self, engine: str, image: str) -> Facts:
        """What is known of it, as if it were stopped now."""
        allocated = self.allocated or self.created
        return Facts(
            container_id=self.id, session_id=self.session_id or "", engine=engine, image=image,
            created=self.created, allocated=allocated, stopped=time.time(),
        )  # fmt: skip


@dataclass(slots=True)
class Removal:
    """A stopped box that is still to be removed; with facts if a session had it."""

    box: Box
    facts: Facts | None = None
    attempts: int = 0


class Waiter:
    """A session that waits for a box; several callers may wait for the same one."""

    __slots__ = ("callers", "outcome", "since")

    def __init__(self) -> None:
        self.outcome: asyncio.Future[PooledBox | str] = asyncio.get_running_loop().create_future()
        self.since = time.monotonic()
        self.callers = 0


class Plan(NamedTuple):
    """What to begin now."""

    create: int
    destroy: int


def plan(
    *,
    size: int,
    concurrency: int,
    max_stopping: int,
    warm: int,
    creating: int,
    waiting: int,
    stopping: int,
    destroying: int,
    failing: bool,
    paused: bool,
    courteous: bool,
) -> Plan:
    """Decide how many creations and removals to begin.

    Each waiting session wants a box besides the `size` warm ones. While the engine fails there is one creation at a time, and
    none while `paused`. Removals make way for creations as long as few boxes (no more than `size + concurrency`) wait for
    theirs; creations make way for removals when more than `max_stopping` do. While `courteous` both wait, as long as nobody waits
    for a box, half of the warm ones are there, and few boxes are to be removed.
    """
    if courteous and not waiting and 2 * warm >= size and stopping <= size + concurrency:
        return Plan(0, 0)
    short = max(0, size + waiting - warm - creating)
    room = 0 if paused or stopping > max_stopping else (1 if failing else concurrency) - creating
    slots = 1 if short and stopping <= size + concurrency else concurrency
    return Plan(create=max(0, min(short, room)), destroy=max(0, min(stopping, slots - destroying)))
