"""What both recordings of a channel say about the channel they hold."""

from typing import Annotated

import msgspec

MAX_TEXT = 1024
"""Characters kept of a user name or terminal type."""
MAX_COMMAND = 256 * 1024
"""Bytes kept of a command."""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """One channel, as it was when its recording began. Sizes are in characters, as the client stated them."""

    session_id: str
    username: str
    source_ip: str
    source_port: int
    channel: int
    kind: str
    """`shell`, `exec` or `subsystem`."""
    command: bytes | None = None
    """The exec command, or the subsystem's name, byte for byte (base64 in JSON)."""
    term: str | None = None
    """None: the channel has no terminal."""
    width: int = 80
    height: int = 24
    started_ns: Annotated[int, msgspec.Meta(ge=0, lt=2**62)] = 0
    """Nanoseconds since 1970 (UTC) at the recording's time zero."""

    @property
    def started(self) -> float:
        """Seconds since 1970 (UTC) at the recording's time zero."""
        return self.started_ns / 1e9
