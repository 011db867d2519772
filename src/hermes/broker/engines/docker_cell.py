"""What the `docker` engine knows of one box besides the box itself. Plain data."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from hermes.broker.engines.base import Box
from hermes.broker.engines.docker_exec import DockerExecServer
from hermes.broker.gauges import Gauge
from hermes.broker.trees import Copied
from hermes.errors import EngineError


@dataclass(slots=True, eq=False)
class Cell:
    """One box."""

    box: Box
    name: str
    details: dict[str, Any]
    """What Docker said of the container when it had started."""
    pidfd: int | None = None
    """Of its init, if that runs on this machine."""
    server: DockerExecServer | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    removal: "asyncio.Task[EngineError | None] | None" = None
    copied: Copied | None = None
    gauge: Gauge | None = None
