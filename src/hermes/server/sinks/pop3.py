"""A mailbox that lets everybody in and has nothing in it, over POP3: Dovecot, by its words."""

from hermes.server.sinks.lines import LineReader, Sasl
from hermes.server.sinks.turns import MAX_SECRET, Credentials, Turn

PORTS = frozenset({110})

_CAPABILITIES = b"+OK\r\nCAPA\r\nTOP\r\nUIDL\r\nRESP-CODES\r\nPIPELINING\r\nAUTH-RESP-CODE\r\nUSER\r\nSASL PLAIN LOGIN\r\n.\r\n"
_ANSWERS = {
    b"CAPA": _CAPABILITIES,
    b"NOOP": b"+OK\r\n",
    b"RSET": b"+OK\r\n",
    b"STAT": b"+OK 0 0\r\n",
    b"LIST": b"+OK 0 messages:\r\n.\r\n",
    b"UIDL": b"+OK\r\n.\r\n",
}
_UNKNOWN = b"-ERR Unknown command.\r\n"
_NONSENSE = b"-ERR [AUTH] Invalid base64 data in continued response\r\n"
_LOGGED_IN = b"+OK Logged in.\r\n"


class Pop3:
    """A dialogue with a mail client. Every login is accepted."""

    protocol = "pop3"

    def __init__(self) -> None:
        self._lines = LineReader(4096)
        self._username = b""
        self._login: Sasl | None = None

    def greeting(self) -> bytes:
        return b"+OK Dovecot (Debian) ready.\r\n"

    def feed(self, data: bytes) -> Turn:
        turn = Turn()
        at = 0
        while at < len(data) and not turn.over:
            line, at = self._lines.take(data, at)
            if line is not None:
                self._obey(line, turn)
        return turn

    def _obey(self, line: bytes, turn: Turn) -> None:
        if self._login is not None:
            self._go_on(self._login, line, turn)
            return
        verb, _, argument = line.partition(b" ")
        command = verb.upper()
        if command == b"USER":
            self._username = argument[:MAX_SECRET]
            turn.answer += b"+OK\r\n"
        elif command == b"PASS":
            turn.facts.append(Credentials("USER", self._username, argument[:MAX_SECRET]))
            turn.answer += _LOGGED_IN
        elif command == b"AUTH" and (mechanism := argument.partition(b" ")[0].upper()) in (b"PLAIN", b"LOGIN"):
            self._login = Sasl(mechanism)
            if initial := argument.partition(b" ")[2].strip():
                self._go_on(self._login, initial, turn)
            else:
                turn.answer += b"+ " + self._login.challenge + b"\r\n"
        elif command in (b"RETR", b"TOP", b"DELE"):
            turn.answer += b"-ERR There's no message " + argument.partition(b" ")[0][:16] + b".\r\n"
        elif command == b"QUIT":
            turn.answer += b"+OK Logging out.\r\n"
            turn.over = True
        else:
            turn.answer += _ANSWERS.get(command, _UNKNOWN)

    def _go_on(self, login: Sasl, line: bytes, turn: Turn) -> None:
        self._login = login.step(line, turn, nonsense=_NONSENSE, accepted=_LOGGED_IN)
