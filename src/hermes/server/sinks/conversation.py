"""One connection through the server, and who answers it: chosen by port where a server speaks first, else by the first bytes."""

import re
import time
from collections.abc import Callable

from hermes.server.sinks.http import REQUEST, Http
from hermes.server.sinks.imap import PORTS as IMAP_PORTS
from hermes.server.sinks.imap import Imap
from hermes.server.sinks.pop3 import PORTS as POP3_PORTS
from hermes.server.sinks.pop3 import Pop3
from hermes.server.sinks.smtp import PORTS as SMTP_PORTS
from hermes.server.sinks.smtp import Smtp
from hermes.server.sinks.tls import Tls
from hermes.server.sinks.turns import Silence, Talk, Turn

SSH_PORTS = frozenset({22, 2222})
SSH_BANNER = b"SSH-2.0-OpenSSH_8.4p1 Debian-5+deb11u3\r\n"

DECIDED = 16
"""Bytes after which it is certain what a client speaks, or that it is unknown."""

_HOST_NAME = re.compile(
    r"(?=.{4,253}$)[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*\.[A-Za-z]{2,}"
)
_TLS = re.compile(rb"\x16\x03[\x00-\x04]")
_SMTP = re.compile(rb"(?:EHLO|HELO) ", re.IGNORECASE)


class Conversation:
    """What is at the far end of one forward, as far as its client can tell."""

    def __init__(self, host: str, port: int, *, now: Callable[[], float] = time.time) -> None:
        """`host` and `port`: where the client wants to be; a unix socket has neither. `now`: seconds since the epoch."""
        self._host = host.lower() if _HOST_NAME.fullmatch(host) else "mail"
        self._port = port
        self._now = now
        self._talk: Talk | None = None
        self._undecided = b""
        self._greeted = False

    @property
    def protocol(self) -> str:
        """What is spoken, as far as is known: `http`, `smtp`, `pop3`, `imap`, `tls`, `ssh`, or empty."""
        return "" if self._talk is None else self._talk.protocol

    def greeting(self) -> bytes:
        """What is said before the client says anything; b"" where a client speaks first."""
        mail = self._mail_server()
        if mail is not None:
            self._talk, self._greeted = mail, True
            return mail.greeting()
        if self._port in SSH_PORTS:
            self._talk, self._greeted = Silence("ssh"), True
            return SSH_BANNER
        return b""

    def _mail_server(self) -> Smtp | Pop3 | Imap | None:
        if self._port in SMTP_PORTS:
            return Smtp(self._host)
        if self._port in POP3_PORTS:
            return Pop3()
        return Imap() if self._port in IMAP_PORTS else None

    def feed(self, data: bytes) -> Turn:
        """Take bytes of the client's; return what comes of them."""
        turn = Turn()
        rest: bytes | None = data
        while rest is not None and not turn.over:
            one = self._feed(rest)
            turn.answer += one.answer
            turn.facts += one.facts
            turn.over = one.over
            rest = one.rest
            if rest is not None:
                self._talk, self._undecided, self._greeted = None, b"", False
        return turn

    def _feed(self, data: bytes) -> Turn:
        if self._greeted and _TLS.match(data):  # not waiting for a greeting, or not impressed by it
            self._talk = Tls()
        self._greeted = False
        if self._talk is not None:
            return self._talk.feed(data)
        self._undecided += data
        talk = self._recognise(self._undecided)
        if talk is None and len(self._undecided) < DECIDED:
            return Turn()
        self._talk = talk or Silence()
        begun, self._undecided = self._undecided, b""
        turn = self._talk.feed(begun)
        if isinstance(self._talk, Silence) and self._talk.protocol == "ssh":
            turn.answer += SSH_BANNER
        return turn

    def _recognise(self, data: bytes) -> Talk | None:
        if _TLS.match(data):
            return Tls()
        if REQUEST.match(data):
            return Http(self._now)
        if _SMTP.match(data):
            return Smtp(self._host)
        if data.startswith(b"SSH-"):
            return Silence("ssh")
        return None
