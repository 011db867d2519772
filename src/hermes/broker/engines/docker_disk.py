"""How much disk a Docker container may take: by the daemon where its storage driver can, else watched from here.

Watched means: as soon as the driver's file system has filled by a little more, the containers on it are measured, and one that
holds more than its limit is told to its engine, which ends it. Until then it may have written more: what a disk takes meanwhile.
What one writes while another frees as much does not show in that, so all are measured every now and then as well.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import structlog

from hermes.broker import trees
from hermes.config.models import LimitsConfig

log = structlog.get_logger(__name__)

LOOK = 1.0
"""Seconds between two looks at the file system."""
EVERY = 20.0
"""Seconds after which containers are measured although nothing was seen to fill."""
REST = 4.0
"""Times as long as a measurement took before the next: what the watch may cost is bounded."""
_STEPS = 16
"""A container is measured each time the file system has filled by this part of a container's limit."""


def upper_directory(details: dict[str, Any]) -> Path | None:
    """Where, on this machine, what changed in a container lies. `details` are what Docker said of it.

    The name of that directory is a random one of the daemon's: if it is here, the daemon's files are.
    """
    driver = details.get("GraphDriver") or {}
    upper = (driver.get("Data") or {}).get("UpperDir")
    if not str(driver.get("Name", "")).startswith("overlay") or not upper:
        return None
    return path if (path := Path(upper)).is_dir() else None


def lower_directories(details: dict[str, Any]) -> tuple[Path, ...]:
    """Where, on this machine, the layers of a container's image lie, upper ones first."""
    lower = ((details.get("GraphDriver") or {}).get("Data") or {}).get("LowerDir") or ""
    return tuple(path for name in str(lower).split(":") if name and (path := Path(name)).is_dir())


class DiskWatch:
    """Watches what lies in directories against the limits, while `run` runs.

    `freeze` stops a container for the time of a measurement that it would not let come to an end; `exceeded` is told of one that
    holds too much, with the limit's name.
    """

    def __init__(
        self,
        limits: LimitsConfig,
        *,
        freeze: Callable[[str, bool], Awaitable[None]],
        exceeded: Callable[[str, str], Awaitable[None]],
        look: float = LOOK,
        every: float = EVERY,
    ) -> None:
        self.uppers: dict[str, Path] = {}
        """What to watch, by container id."""
        self._limits = limits
        self._freeze = freeze
        self._exceeded = exceeded
        self._look = look
        self._every = every
        self._taken: tuple[int, int] | None = None

    async def run(self) -> None:
        """Watch until cancelled."""
        loop = asyncio.get_running_loop()
        measured = -self._every
        while True:
            await asyncio.sleep(self._look)
            if self.uppers and (self._has_filled() or loop.time() - measured >= self._every):
                began = measured = loop.time()
                for container_id in list(self.uppers):
                    if (name := await self._excess(container_id)) is not None:
                        await self._exceeded(container_id, name)
                await asyncio.sleep(REST * (loop.time() - began))

    def _has_filled(self) -> bool:
        """Whether the file system holds noticeably more than when containers were measured last."""
        try:
            seen = os.statvfs(next(iter(self.uppers.values())))
        except (OSError, StopIteration):
            return False
        taken = (seen.f_blocks - seen.f_bfree) * seen.f_frsize, seen.f_files - seen.f_ffree
        if self._taken is None:
            self._taken = taken
        steps = self._limits.disk // _STEPS, self._limits.inodes // _STEPS
        if any(now - before >= step for now, before, step in zip(taken, self._taken, steps, strict=True)):
            self._taken = taken
            return True
        self._taken = min(taken[0], self._taken[0]), min(taken[1], self._taken[1])
        return False

    async def _excess(self, container_id: str) -> str | None:
        """Measure one container; return which limit it exceeds."""
        measured = await self._measure(container_id)
        if measured is not None and not measured.whole and measured.entries <= self._limits.inodes:
            await self._freeze(container_id, True)
            try:
                measured = await self._measure(container_id)
            finally:
                await self._freeze(container_id, False)
        if measured is None:
            return None
        if measured.bytes > self._limits.disk:
            return "disk"
        return "inodes" if measured.entries > self._limits.inodes else None

    async def _measure(self, container_id: str) -> trees.Measured | None:
        upper = self.uppers.get(container_id)
        try:
            return await asyncio.to_thread(trees.measure, upper, self._limits.inodes) if upper is not None else None
        except OSError as error:
            log.debug("container not measured", container_id=container_id, reason=str(error))
            return None
