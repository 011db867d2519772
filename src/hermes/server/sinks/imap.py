"""A mailbox that lets everybody in and has nothing in it, over IMAP: Dovecot, by its words."""

import itertools
import re

from hermes.server.sinks.lines import LineReader, Sasl
from hermes.server.sinks.turns import MAX_SECRET, Credentials, Turn

PORTS = frozenset({143})

MAX_LINE = 8192
"""Bytes of a command, its literals included."""
MAX_WORDS = 8
"""Words of a command that are looked at: each may take as long as the line is, where its quote is never closed."""

_CAPABILITIES = b"CAPABILITY IMAP4rev1 SASL-IR LOGIN-REFERRALS ID ENABLE IDLE LITERAL+ AUTH=PLAIN AUTH=LOGIN"
_NONSENSE = b" BAD Invalid base64 data in continued response\r\n"
_LOGGED_IN = b" OK [" + _CAPABILITIES + b"] Logged in\r\n"
_WORD = re.compile(rb'"((?:[^"\\]|\\.)*)"|([^ "]+)', re.DOTALL)
_LITERAL = re.compile(rb"\{([0-9]{1,6})(\+?)\}$")
_SELECTED = (
    b"* FLAGS (\\Answered \\Flagged \\Deleted \\Seen \\Draft)\r\n* 0 EXISTS\r\n* 0 RECENT\r\n"
    b"* OK [UIDVALIDITY 1672531200] UIDs valid\r\n* OK [UIDNEXT 1] Predicted next UID\r\n"
)
_UNTAGGED = {
    b"CAPABILITY": b"* " + _CAPABILITIES + b"\r\n",
    b"NOOP": b"",
    b"CHECK": b"",
    b"CLOSE": b"",
    b"ID": b'* ID ("name" "Dovecot")\r\n',
    b"SELECT": _SELECTED,
    b"EXAMINE": _SELECTED,
    b"LIST": b'* LIST (\\HasNoChildren) "." INBOX\r\n',
    b"LSUB": b"",
    b"STATUS": b"* STATUS INBOX (MESSAGES 0 UNSEEN 0)\r\n",
    b"SEARCH": b"* SEARCH\r\n",
    b"FETCH": b"",
    b"UID": b"* SEARCH\r\n",
    b"LOGOUT": b"* BYE Logging out\r\n",
}


class Imap:
    """A dialogue with a mail client. Every login is accepted."""

    protocol = "imap"

    def __init__(self) -> None:
        self._lines = LineReader(MAX_LINE)
        self._command = b""
        """What came of a command before and with its last literal."""
        self._literal = 0
        """Bytes of a literal that are still to come."""
        self._content = bytearray()
        self._tag = b"*"
        self._login: Sasl | None = None

    def greeting(self) -> bytes:
        return b"* OK [" + _CAPABILITIES + b"] Dovecot (Debian) ready.\r\n"

    def feed(self, data: bytes) -> Turn:
        turn = Turn()
        at = 0
        while at < len(data) and not turn.over:
            if self._literal:
                part = data[at : at + self._literal]
                at += len(part)
                self._take_literal(part)
                continue
            line, at = self._lines.take(data, at)
            if line is not None:
                self._take_line(line, turn)
        return turn

    def _take_literal(self, part: bytes) -> None:
        self._content += part
        self._literal -= len(part)
        if not self._literal:
            self._command += b'"' + re.sub(rb'(["\\])', rb"\\\1", bytes(self._content)) + b'"'
            self._content = bytearray()

    def _take_line(self, line: bytes, turn: Turn) -> None:
        if self._login is not None:
            self._go_on(self._login, line, turn)
            return
        command, self._command = self._command + line, b""
        literal = _LITERAL.search(command)
        if literal is None:
            self._obey(command[:MAX_LINE], turn)
        elif len(command) + int(literal[1]) > MAX_LINE:
            turn.answer += command.partition(b" ")[0][:64] + b" BAD Error in IMAP command: Too long argument.\r\n"
        else:
            self._command, self._literal = command[: literal.start()], int(literal[1])
            turn.answer += b"" if literal[2] else b"+ OK\r\n"
            if not self._literal:
                self._command += b'""'

    def _obey(self, command: bytes, turn: Turn) -> None:
        found = itertools.islice(_WORD.finditer(command), MAX_WORDS)
        words = [re.sub(rb"\\(.)", rb"\1", it[1], flags=re.DOTALL) if it[2] is None else it[2] for it in found]
        if not words:
            turn.answer += b"* BAD Error in IMAP command received by server.\r\n"
            return
        self._tag = words[0][:64]
        name = words[1].upper() if len(words) > 1 else b""
        if name == b"LOGIN" and len(words) == 4:
            turn.facts.append(Credentials("LOGIN", words[2][:MAX_SECRET], words[3][:MAX_SECRET]))
            turn.answer += self._tag + _LOGGED_IN
        elif name == b"AUTHENTICATE" and len(words) > 2 and words[2].upper() in (b"PLAIN", b"LOGIN"):
            self._login = Sasl(words[2].upper())
            if len(words) > 3:
                self._go_on(self._login, words[3], turn)
            else:
                turn.answer += b"+ " + self._login.challenge + b"\r\n"
        elif name in _UNTAGGED:
            turn.answer += _UNTAGGED[name] + self._tag + b" OK " + name.capitalize() + b" completed.\r\n"
            turn.over = name == b"LOGOUT"
        else:
            turn.answer += self._tag + b" BAD Error in IMAP command " + name[:64] + b": Unknown command.\r\n"

    def _go_on(self, login: Sasl, line: bytes, turn: Turn) -> None:
        self._login = login.step(line, turn, nonsense=self._tag + _NONSENSE, accepted=self._tag + _LOGGED_IN)
