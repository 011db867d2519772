"""A TLS server that can agree with no client: it reads the ClientHello and fails as OpenSSL does."""

from hermes.server.sinks.clienthello import MalformedHello, parse
from hermes.server.sinks.turns import Turn

_HANDSHAKE_FAILURE, _DECODE_ERROR = 40, 50
"""Alerts (RFC 8446, 6)."""


class Tls:
    """A connection of a TLS client, until it has said hello."""

    protocol = "tls"

    def __init__(self) -> None:
        self._records = b""

    def feed(self, data: bytes) -> Turn:
        self._records += data
        try:
            hello = parse(self._records)
        except MalformedHello:
            return Turn(_alert(_DECODE_ERROR), over=True)
        if hello is None:
            return Turn()
        return Turn(_alert(_HANDSHAKE_FAILURE), over=True, facts=[hello])


def _alert(description: int) -> bytearray:
    return bytearray((21, 3, 3, 0, 2, 2, description))
