"""How what runs in a container is watched."""

from pydantic import Field

from hermes.config.section import Section
from hermes.config.values import Bytes


class WatchConfig(Section):
    """How what runs in containers is watched: every program executed, every address asked for."""

    enabled: bool = True
    """Watch containers that a spawner enters. A container whose watcher dies is stopped."""
    spool_bytes: Bytes = Field(default=128 * 1024 * 1024, ge=1024 * 1024)
    """Bytes that the facts of one container may take on their way to the journal, from its start to its end; at the limit the
    container is stopped."""
    argument_bytes: Bytes = Field(default=32 * 1024, ge=1024, le=256 * 1024)
    """Bytes kept of the arguments of one program; what is cut is noted."""
    arguments: int = Field(default=512, ge=16, le=8192)
    """Arguments kept of one program."""
