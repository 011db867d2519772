"""A mailbox's answers over POP3."""

from hypothesis import given
from hypothesis import strategies as st

from hermes.server.sinks.pop3 import Pop3
from hermes.server.sinks.turns import Credentials
from tests.unit.server.sinks.pieces import feed, say

LINES = [
    b"USER u",
    b"PASS p",
    b"CAPA",
    b"AUTH PLAIN",
    b"AUTH LOGIN dQ==",
    b"AHUAcA==",
    b"STAT",
    b"RETR 1",
    b"QUIT",
    b"\xff",
    b"",
    b"AUTH",
]


def test_a_dialogue() -> None:
    server = Pop3()
    assert server.greeting().startswith(b"+OK")
    assert say(server, b"user u", b"pass p", b"STAT", b"RETR 1", b"STLS", b"QUIT") == [
        b"+OK", b"+OK Logged in.", b"+OK 0 0", b"-ERR There's no message 1.", b"-ERR Unknown command.", b"+OK Logging out.",
    ]  # fmt: skip
    assert b"SASL PLAIN LOGIN" in say(Pop3(), b"CAPA")


def test_logins_of_each_kind() -> None:
    assert Pop3().feed(b"USER a b\r\nPASS c d\r\n").facts == [Credentials("USER", b"a b", b"c d")]
    assert Pop3().feed(b"AUTH PLAIN AHUAcA==\r\n").facts == [Credentials("PLAIN", b"u", b"p")]
    assert Pop3().feed(b"AUTH LOGIN\r\ndQ==\r\ncA==\r\n").facts == [Credentials("LOGIN", b"u", b"p")]
    assert say(Pop3(), b"AUTH PLAIN", b"no base64!", b"NOOP") == [
        b"+ ", b"-ERR [AUTH] Invalid base64 data in continued response", b"+OK",
    ]  # fmt: skip


@given(st.lists(st.sampled_from(LINES) | st.binary(max_size=30)))
def test_hostile_bytes_in_crumbs_change_nothing(lines: list[bytes]) -> None:
    text = b"\r\n".join(lines)
    assert feed(Pop3(), text, [1]) == Pop3().feed(text)
