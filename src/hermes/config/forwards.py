"""Settings of what a client may forward."""

from typing import Annotated, Literal

from pydantic import Field

from hermes.config.section import Section
from hermes.config.values import Bytes, Means, Seconds

Answer = Literal["accept", "refuse"]
Pattern = Annotated[
    str, Means("a host or address, in which * and ? stand for any characters"), Field(min_length=1, max_length=255)
]
Port = Annotated[int, Field(ge=1, le=65535)]


class ForwardsConfig(Section):
    """What a client may forward. Nothing is ever connected, and nothing listens: a connection through the server leads to a sink
    in the front, which answers mail, web, TLS and SSH clients as long as it takes to get the next bytes
    (`docs/how-to/forwards.md`)."""

    direct_tcpip: Answer = "accept"
    """Connections to hosts and ports (`ssh -L`, `-W`, `-D`): led to the sink, or refused as by sshd's `AllowTcpForwarding no`."""
    direct_streamlocal: Answer = "refuse"
    """Connections to unix sockets: led to the sink, or refused as by an sshd that finds no such socket."""
    tcpip_forward: Answer = "accept"
    """Ports to listen on (`ssh -R`): the client believes it has them, or is refused as by `AllowTcpForwarding local`."""
    streamlocal_forward: Answer = "accept"
    """Unix sockets to listen on: as for ports."""
    refused_hosts: tuple[Pattern, ...] = ()
    """Hosts (and paths of unix sockets) that refuse connections, as if nothing listened there; patterns with `*` and `?`."""
    refused_ports: tuple[Port, ...] = ()
    """Ports that refuse connections, as if nothing listened there."""
    max_open: int = Field(default=50, ge=1, le=10_000)
    """Connections through one client's connection at once; one more fails."""
    max_total: int = Field(default=1000, ge=1)
    """Connections through one client's connection, one after the other; more fail."""
    max_seconds: Seconds = Field(default=300, gt=0)
    """Seconds that one of them stays open, whatever it does."""
    max_received: Bytes = Field(default=16 * 1024**2, ge=1024)
    """Bytes that one of them takes from the client; past it, it is closed."""
    max_unread: Bytes = Field(default=256 * 1024, ge=1024)
    """Bytes that one of them takes from a client that does not read what it is answered; past it, it is closed."""
    max_kept: Bytes = 64 * 1024
    """Bytes kept of each direction of one of them, its first; 0 keeps none."""
    max_kept_connection: Bytes = 4 * 1024**2
    """Bytes kept of all of them together in one client's connection."""
