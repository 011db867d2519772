"""The limits of boxes while sessions hold them: looked at now and then, stated when reached, and the end of a box's lifetime."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from hermes import events
from hermes.broker.engines.base import Box, Engine
from hermes.broker.facts import fact
from hermes.broker.forensics import Facts, Forensics
from hermes.config.models import ContainerPoolConfig
from hermes.container.messages import BrokerEvent

LOOK = 2.0
"""Seconds between two looks at the boxes that sessions hold; each is looked at once more at its end."""
QUIET = 60.0
"""Seconds after a limit of a box was stated in which its being reached again is only counted."""

_MEANING = {
    "memory": "the kernel killed in the container",
    "pids": "no more processes could be started",
    "disk": "the container's disk was full",
    "host_free": "the host's disk was nearly full, most of it by this container, which was stopped",
    "inodes": "no more files could be made on the container's disk",
    "spool_bytes": "so much was seen in the container that no more is taken; it was stopped",
}
_WATCH = frozenset({"spool_bytes"})
"""Those that are settings of `container_pool.watch`; the others are of `container_pool.limits`."""


@dataclass(slots=True, eq=False)
class _Watched:
    box: Box
    lifetime: asyncio.TimerHandle | None
    stated: dict[str, tuple[float, int]] = field(default_factory=dict)  # when it was last, and how often it had been reached


class Watch:
    """Watches the boxes of one pool. `emit` is called with each fact."""

    def __init__(
        self,
        engine: Engine,
        config: ContainerPoolConfig,
        emit: Callable[[BrokerEvent], None],
        forensics: Forensics | None = None,
    ) -> None:
        self._engine = engine
        self._forensics = forensics
        self._config = config
        self._emit = emit
        self._boxes: dict[str, _Watched] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, box: Box, facts: Facts, *, expired: Callable[[], None]) -> None:
        """A session has the box from now on, which is noted for the next start. `expired` is called when its lifetime is over."""
        if self._forensics is not None:
            self._forensics.hold(facts)
        lifetime = self._config.limits.lifetime
        timer = asyncio.get_running_loop().call_later(lifetime, self._expire, box.id, expired) if lifetime else None
        self._boxes[box.id] = _Watched(box, timer)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK, self._look)

    def stop(self, box: Box) -> None:
        """The session has it no more."""
        if (watched := self._boxes.get(box.id)) is not None and watched.lifetime is not None:
            watched.lifetime.cancel()

    def end(self, box: Box) -> None:
        """It is gone, or was never used: state what was not stated yet."""
        self.stop(box)
        if (watched := self._boxes.pop(box.id, None)) is not None:
            self._state(watched, last=True)
            if self._forensics is not None:
                self._forensics.forget(box.id)

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _expire(self, container_id: str, expired: Callable[[], None]) -> None:
        self._reached("limits.lifetime", self._config.limits.lifetime, container_id, "the container was stopped")
        expired()

    def _look(self) -> None:
        for watched in self._boxes.values():
            self._engine.look(watched.box)
            self._state(watched)
        self._timer = asyncio.get_running_loop().call_later(LOOK, self._look) if self._boxes else None

    def _state(self, watched: _Watched, *, last: bool = False) -> None:
        now = time.monotonic()
        for name, times in watched.box.reached.items():
            when, before = watched.stated.get(name, (-QUIET, 0))
            if times > before and (last or now - when >= QUIET):
                watched.stated[name] = (now, times)
                section, settings = ("watch", self._config.watch) if name in _WATCH else ("limits", self._config.limits)
                value = getattr(settings, name)
                self._reached(f"{section}.{name}", value, watched.box.id, _MEANING[name], times - before - 1)

    def _reached(self, setting: str, value: float, container_id: str, detail: str, suppressed: int = 0) -> None:
        limit = f"container_pool.{setting}"
        self._emit(
            fact(events.LimitReached(limit=limit, value=value, container_id=container_id, detail=detail, suppressed=suppressed))
        )
