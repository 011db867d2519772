"""What the sinks' protocols have in common: a `Talk` is fed the client's bytes and says, with a `Turn`, what comes of them."""

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeAlias

MAX_SECRET = 1024
"""Bytes of one credential that are kept."""


class Credentials(NamedTuple):
    """A login that was tried, in the client's bytes. `method`: `LOGIN`, `PLAIN`, `USER`, `Basic` or `Proxy-Basic`."""

    method: str
    username: bytes
    password: bytes


class ClientHello(NamedTuple):
    """What a TLS client offered: its JA4 fingerprint, the server name it wants (b"" for none) and its ALPN protocols."""

    ja4: str
    server_name: bytes
    alpn: tuple[bytes, ...]


Fact: TypeAlias = Credentials | ClientHello


@dataclass(slots=True)
class Turn:
    """What is answered; whether that is the end; what was learnt; and, where another protocol begins, its first bytes."""

    answer: bytearray = field(default_factory=bytearray)
    over: bool = False
    facts: list[Fact] = field(default_factory=list)
    rest: bytes | None = None


class Talk(Protocol):
    """One side of one protocol, the server's."""

    protocol: str
    """Its name in events."""

    def feed(self, data: bytes) -> Turn:
        """Take bytes of the client's."""


class Silence:
    """Listens, and says nothing."""

    def __init__(self, protocol: str = "") -> None:
        self.protocol = protocol

    def feed(self, data: bytes) -> Turn:
        return Turn()
