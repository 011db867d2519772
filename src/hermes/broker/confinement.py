"""What a process must submit to before it stands in a box. Plain data: the zygote gets it over its socket."""

import msgspec


class Confinement(msgspec.Struct, frozen=True, kw_only=True):
    """Limits that the spawner puts on itself, and that everything it starts inherits."""

    capabilities: int
    """Bit mask of the capabilities kept."""
    rlimits: dict[int, int]
    """Soft and hard limit by RLIMIT number."""
    no_new_privileges: bool
    seccomp: bytes
    """Array of `struct sock_filter`."""
