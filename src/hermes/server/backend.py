"""What the rest of Hermes needs to know of a session: plain data, no SSH library in sight."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """One authenticated connection: one attacker, one container."""

    session_id: str
    username: str
    source_ip: str
    source_port: int
    authenticated: bool = False


@dataclass(frozen=True, slots=True)
class PTYRequest:
    """The terminal a client asked for (RFC 4254, 6.2).

    `width` and `height` are in characters, `pixel_width` and `pixel_height` in pixels (0: unknown); `modes` are the
    encoded terminal modes by opcode (RFC 4254, 8).
    """

    term_type: str
    width: int
    height: int
    pixel_width: int = 0
    pixel_height: int = 0
    modes: Mapping[int, int] = field(default_factory=dict)
