"""A mail server that takes everything: Postfix, by its words."""

import secrets

from hermes.server.sinks.lines import LineReader, Sasl
from hermes.server.sinks.turns import Turn

PORTS = frozenset({25, 26, 587, 2525})
"""Where a mail server greets first."""

MAX_LINE = 4096
"""Bytes of one command line."""
MAX_MESSAGE = 10_240_000
"""Postfix's message_size_limit."""
MAX_RECIPIENTS = 1000
"""Postfix's smtpd_recipient_limit."""
MAX_ERRORS = 20
"""Postfix's smtpd_hard_error_limit."""

_END = b"\r\n.\r\n"
_GOODBYE = b"221 2.7.0 Error: I can break rules, too. Goodbye.\r\n"
_SYNTAX = b"501 5.5.4 Syntax: "
_EXTENSIONS = (
    "PIPELINING",
    f"SIZE {MAX_MESSAGE}",
    "ETRN",
    "AUTH PLAIN LOGIN",
    "ENHANCEDSTATUSCODES",
    "8BITMIME",
    "DSN",
    "CHUNKING",
)


class Smtp:
    """A dialogue with a mail client, up to any number of messages. Every login is accepted, every recipient is known."""

    protocol = "smtp"

    def __init__(self, host: str) -> None:
        """`host`: what the server calls itself, plain ASCII."""
        self._host = host.encode()
        self._lines = LineReader(MAX_LINE)
        self._sender = False
        self._recipients = 0
        self._errors = 0
        self._login: Sasl | None = None
        self._message: int | None = None
        """Bytes of the message so far; None outside of one."""
        self._tail = b""
        """The last bytes of the message, in which its end may have begun."""
        self._chunk = 0
        """Bytes of a chunk (RFC 3030) that are still to come."""
        self._last_chunk = False

    def greeting(self) -> bytes:
        """What is said before the client says anything."""
        return b"220 " + self._host + b" ESMTP Postfix (Debian/GNU)\r\n"

    def feed(self, data: bytes) -> Turn:
        turn = Turn()
        at = 0
        while at < len(data) and not turn.over:
            if self._chunk:
                at = self._skip_chunk(data, at, turn)
            elif self._message is not None:
                at = self._take_message(data, at, turn)
            else:
                at = self._take_line(data, at, turn)
        return turn

    # Each of these takes what it can of `data` from `at` on, and returns where it came to.

    def _take_line(self, data: bytes, at: int, turn: Turn) -> int:
        line, at = self._lines.take(data, at)
        if line is not None and self._lines.too_long:
            self._login = None
            self._fail(turn, b"500 5.5.2 Error: line too long\r\n")
        elif line is not None:
            self._obey(line, turn)
        return at

    def _obey(self, line: bytes, turn: Turn) -> None:
        if self._login is not None:
            self._go_on_with_login(self._login, line, turn)
            return
        verb, _, argument = line.partition(b" ")
        command = _COMMANDS.get(verb.upper())
        if command is not None:
            command(self, argument.strip(), turn)
        elif verb.upper() in (b"GET", b"POST", b"CONNECT"):  # smtpd_forbidden_commands
            turn.answer += _GOODBYE
            turn.over = True
        else:
            self._fail(turn, b"502 5.5.2 Error: command not recognized\r\n")

    def _fail(self, turn: Turn, answer: bytes) -> None:
        self._errors += 1
        if self._errors > MAX_ERRORS:
            turn.answer += b"421 4.7.0 " + self._host + b" Error: too many errors\r\n"
            turn.over = True
        else:
            turn.answer += answer

    # ---- commands

    def _helo(self, argument: bytes, turn: Turn) -> None:
        if not argument:
            self._fail(turn, _SYNTAX + b"HELO hostname\r\n")
            return
        self._reset()
        turn.answer += b"250 " + self._host + b"\r\n"

    def _ehlo(self, argument: bytes, turn: Turn) -> None:
        if not argument:
            self._fail(turn, _SYNTAX + b"EHLO hostname\r\n")
            return
        self._reset()
        lines = [self._host, *(it.encode() for it in _EXTENSIONS)]
        turn.answer += b"".join(b"250-" + it + b"\r\n" for it in lines[:-1]) + b"250 " + lines[-1] + b"\r\n"

    def _mail(self, argument: bytes, turn: Turn) -> None:
        if not argument.upper().startswith(b"FROM:"):
            self._fail(turn, _SYNTAX + b"MAIL FROM:<address>\r\n")
        elif self._sender:
            self._fail(turn, b"503 5.5.1 Error: nested MAIL command\r\n")
        else:
            self._sender = True
            turn.answer += b"250 2.1.0 Ok\r\n"

    def _rcpt(self, argument: bytes, turn: Turn) -> None:
        if not self._sender:
            self._fail(turn, b"503 5.5.1 Error: need MAIL command\r\n")
        elif not argument.upper().startswith(b"TO:"):
            self._fail(turn, _SYNTAX + b"RCPT TO:<address>\r\n")
        elif self._recipients >= MAX_RECIPIENTS:
            self._fail(turn, b"452 4.5.3 Error: too many recipients\r\n")
        else:
            self._recipients += 1
            turn.answer += b"250 2.1.5 Ok\r\n"

    def _data(self, argument: bytes, turn: Turn) -> None:
        if argument:
            self._fail(turn, _SYNTAX + b"DATA\r\n")
        elif not self._recipients:
            self._fail(
                turn, b"503 5.5.1 Error: need RCPT command\r\n" if self._sender else b"503 5.5.1 Error: need MAIL command\r\n"
            )
        else:
            self._message, self._tail = 0, b"\r\n"
            turn.answer += b"354 End data with <CR><LF>.<CR><LF>\r\n"

    def _bdat(self, argument: bytes, turn: Turn) -> None:
        size, _, last = argument.partition(b" ")
        if not size.isdigit() or len(size) > 9 or last.strip().upper() not in (b"", b"LAST"):
            self._fail(turn, _SYNTAX + b"BDAT count [LAST]\r\n")
            return
        self._chunk, self._last_chunk = int(size), bool(last)
        if not self._chunk:
            self._chunk_over(turn)

    def _auth(self, argument: bytes, turn: Turn) -> None:
        mechanism, _, initial = argument.partition(b" ")
        if mechanism.upper() not in (b"PLAIN", b"LOGIN"):
            self._fail(turn, b"535 5.7.8 Error: authentication failed: Invalid authentication mechanism\r\n")
            return
        self._login = Sasl(mechanism.upper())
        if initial.strip():
            self._go_on_with_login(self._login, initial.strip(), turn)
        else:
            turn.answer += b"334 " + self._login.challenge + b"\r\n"

    def _go_on_with_login(self, login: Sasl, line: bytes, turn: Turn) -> None:
        self._login = None
        if line == b"*":
            self._fail(turn, b"501 5.7.0 Authentication aborted\r\n")
        elif not login.answer(line):
            self._fail(turn, b"501 5.5.2 Invalid base64 data\r\n")
        elif login.credentials is not None:
            turn.facts.append(login.credentials)
            turn.answer += b"235 2.7.0 Authentication successful\r\n"
        else:
            self._login = login
            turn.answer += b"334 " + login.challenge + b"\r\n"

    def _rset(self, argument: bytes, turn: Turn) -> None:
        self._reset()
        turn.answer += b"250 2.0.0 Ok\r\n"

    def _noop(self, argument: bytes, turn: Turn) -> None:
        turn.answer += b"250 2.0.0 Ok\r\n"

    def _vrfy(self, argument: bytes, turn: Turn) -> None:
        turn.answer += b"252 2.0.0 " + argument[:256] + b"\r\n" if argument else _SYNTAX + b"VRFY address\r\n"

    def _starttls(self, argument: bytes, turn: Turn) -> None:
        self._fail(turn, b"502 5.5.1 Error: command not implemented\r\n")

    def _quit(self, argument: bytes, turn: Turn) -> None:
        turn.answer += b"221 2.0.0 Bye\r\n"
        turn.over = True

    def _reset(self) -> None:
        self._sender, self._recipients = False, 0

    # ---- messages

    def _take_message(self, data: bytes, at: int, turn: Turn) -> int:
        assert self._message is not None
        head = self._tail + data[at : at + len(_END)]  # where the end began in what came before
        end = head.find(_END)
        stop = at + end + len(_END) - len(self._tail)
        if end < 0:
            end = data.find(_END, at)
            stop = end + len(_END)
        if end < 0:
            self._message += len(data) - at
            self._tail = (head + data[max(at + len(_END), len(data) - len(_END)) :])[1 - len(_END) :]
            return len(data)
        size, self._message = self._message + stop - at, None
        self._message_over(turn, size)
        return stop

    def _skip_chunk(self, data: bytes, at: int, turn: Turn) -> int:
        taken = min(self._chunk, len(data) - at)
        self._chunk -= taken
        if not self._chunk:
            self._chunk_over(turn)
        return at + taken

    def _chunk_over(self, turn: Turn) -> None:
        if not self._recipients:
            self._fail(turn, b"503 5.5.1 Error: need RCPT command\r\n")
        elif self._last_chunk:
            self._message_over(turn, 0)
        else:
            turn.answer += b"250 2.0.0 Ok\r\n"

    def _message_over(self, turn: Turn, size: int) -> None:
        self._reset()
        if size > MAX_MESSAGE:
            turn.answer += b"552 5.3.4 Error: message file too big\r\n"
        else:
            turn.answer += b"250 2.0.0 Ok: queued as " + secrets.token_hex(5).upper().encode() + b"\r\n"


_COMMANDS = {
    b"HELO": Smtp._helo, b"EHLO": Smtp._ehlo, b"MAIL": Smtp._mail, b"RCPT": Smtp._rcpt, b"DATA": Smtp._data, b"BDAT": Smtp._bdat,
    b"AUTH": Smtp._auth, b"RSET": Smtp._rset, b"NOOP": Smtp._noop, b"VRFY": Smtp._vrfy, b"STARTTLS": Smtp._starttls,
    b"QUIT": Smtp._quit,
}  # fmt: skip
