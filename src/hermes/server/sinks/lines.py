"""What the sinks' protocols of lines have in common: taking lines out of whatever pieces they come in, and logins by SASL."""

import base64
import binascii
from typing import Self

from hermes.server.sinks.turns import MAX_SECRET, Credentials, Turn


class LineReader:
    """Lines of at most `most` bytes; of a longer one the first bytes, and `too_long` says so."""

    def __init__(self, most: int) -> None:
        self.too_long = False
        """The line that was taken last was longer."""
        self._most = most
        self._begun = bytearray()
        self._cut = False

    def take(self, data: bytes, at: int) -> tuple[bytes | None, int]:
        """Take from `data`, from `at` on. Return the line that ends there, None while it has no end, and where that came to."""
        end = data.find(b"\n", at)
        part = data[at : end if end >= 0 else len(data)]
        room = self._most - len(self._begun)
        self._begun += part[:room]
        self._cut = self._cut or len(part) > room
        if end < 0:
            return None, len(data)
        line, self.too_long = bytes(self._begun).rstrip(b"\r"), self._cut
        self._begun, self._cut = bytearray(), False
        return line, end + 1


class Sasl:
    """A login by the SASL mechanisms PLAIN (RFC 4616) or LOGIN, in base64: fed answers until it has both name and password."""

    USERNAME, PASSWORD = b"VXNlcm5hbWU6", b"UGFzc3dvcmQ6"

    def __init__(self, mechanism: bytes) -> None:
        """`mechanism`: `PLAIN` or `LOGIN`."""
        self.credentials: Credentials | None = None
        """What was given, once it is whole."""
        self._plain = mechanism == b"PLAIN"
        self._username: bytes | None = None

    @property
    def challenge(self) -> bytes:
        """What the server says next, in base64."""
        return b"" if self._plain else self.USERNAME if self._username is None else self.PASSWORD

    def answer(self, line: bytes) -> bool:
        """Take an answer to the challenge. Return whether it made sense."""
        try:
            given = base64.b64decode(line, validate=True)
        except (binascii.Error, ValueError):
            return False
        if self._plain:
            _, username, password = [*given.split(b"\0", 2), b"", b""][:3]
            self.credentials = Credentials("PLAIN", username[:MAX_SECRET], password[:MAX_SECRET])
        elif self._username is None:
            self._username = given[:MAX_SECRET]
        else:
            self.credentials = Credentials("LOGIN", self._username, given[:MAX_SECRET])
        return True

    def step(self, line: bytes, turn: Turn, *, nonsense: bytes, accepted: bytes) -> Self | None:
        """Take an answer, and say what a mailbox says to it; return the login if it goes on, None if it is over."""
        if not self.answer(line):
            turn.answer += nonsense
        elif self.credentials is None:
            turn.answer += b"+ " + self.challenge + b"\r\n"
            return self
        else:
            turn.facts.append(self.credentials)
            turn.answer += accepted
        return None
