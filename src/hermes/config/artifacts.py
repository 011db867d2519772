"""Settings of the files that attackers bring and make, kept by their content."""

from pydantic import Field

from hermes.config.section import Section
from hermes.config.values import Bytes, Seconds


class ArtifactsConfig(Section):
    """What is kept of files that are written, executed or left in a container. Each content is kept once, by its SHA-256."""

    file_bytes: Bytes = 64 * 1024**2
    """Bytes of the largest file that is kept; of a larger one, name and size are stated. 0 keeps none."""
    session_bytes: Bytes = 512 * 1024**2
    """Bytes kept of one session that were not kept already, a quarter of which is set aside for what is executed; and three
    quarters of that again of what is found at its end."""
    session_entries: int = Field(default=20_000, ge=100, le=1_000_000)
    """Events of files written, and as many of files executed, that one session may cause; past it they are only counted."""
    session_changes: int = Field(default=10_000, ge=0, le=1_000_000)
    """Differences between container and image that are stated at the end of a session; 0: none."""
    backlog: int = Field(default=65_536, ge=1024, le=1_048_576)
    """Files written and closed that may wait in the kernel to be looked at. Past it, writes of that container are not looked at
    until those waiting are done; what they left is found at the end."""
    end_seconds: Seconds = Field(default=20, gt=0, le=25)
    """Seconds for what waits to be kept when a container ends; of the rest, name and size are stated."""
    max_bytes: Bytes = Field(default=10 * 1024**3, ge=1024**2)
    """Bytes of all that is kept; past it, what was not seen for longest goes first, but nothing of a session that is active."""
    max_age: Seconds = 180 * 86400
    """Seconds after which a content that was not seen again is removed; 0 for no limit."""
    min_free: Bytes = 1024**3
    """Bytes to leave free on their file system: with less, nothing more is kept. More than `evidence.min_free`, so that it is not
    artifacts that keep new connections out."""
