"""What the `local` engine knows of one box besides the box itself. Plain data."""

import asyncio
from dataclasses import dataclass, field

from hermes.broker import trees
from hermes.broker.boxfs import BoxFiles
from hermes.broker.cgroups import BoxCgroup
from hermes.broker.engines.base import Box
from hermes.broker.engines.oci_exec import OciExecServer
from hermes.broker.gauges import Gauge
from hermes.errors import EngineError


@dataclass(slots=True, eq=False)
class Cell:
    """One box as the engine sees it."""

    box: Box
    slot: int
    files: BoxFiles
    cgroup: BoxCgroup
    limit: int
    """Bytes of its disk."""
    pidfd: int = -1
    gauge: Gauge = field(init=False)
    server: OciExecServer | None = None
    """Starts processes in it where no spawner can."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    ending: "asyncio.Task[EngineError | None] | None" = None
    copied: trees.Copied | None = None

    def __post_init__(self) -> None:
        self.gauge = Gauge(self.cgroup.paths, self.files.disk, self.limit)
