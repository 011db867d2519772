"""A mailbox's answers over IMAP."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes.server.sinks.imap import MAX_LINE, Imap
from hermes.server.sinks.turns import Credentials
from tests.unit.server.sinks.pieces import feed, say

LINES = [
    b"a LOGIN u p", b'a LOGIN "u" "p"', b"a LOGIN {1}", b"a LOGIN {1+}", b"u {1}", b"p", b"a AUTHENTICATE PLAIN", b"AHUAcA==",
    b"a SELECT x", b"a LOGOUT", b'"', b"{0}", b"{99999}", b"\\", b"\xff", b"",
]  # fmt: skip


def test_a_dialogue() -> None:
    server = Imap()
    assert server.greeting().startswith(b"* OK [CAPABILITY IMAP4rev1")
    assert say(server, b"1 noop", b'2 SELECT "INBOX"', b"3 XYZ", b"4 LOGOUT") == [
        b"1 OK Noop completed.", b"* FLAGS (\\Answered \\Flagged \\Deleted \\Seen \\Draft)", b"* 0 EXISTS", b"* 0 RECENT",
        b"* OK [UIDVALIDITY 1672531200] UIDs valid", b"* OK [UIDNEXT 1] Predicted next UID", b"2 OK Select completed.",
        b"3 BAD Error in IMAP command XYZ: Unknown command.", b"* BYE Logging out", b"4 OK Logout completed.",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"a LOGIN u p\r\n", Credentials("LOGIN", b"u", b"p")),
        (b'a login "u v" "p\\"\\\\"\r\n', Credentials("LOGIN", b"u v", b'p"\\')),
        (b'a LOGIN {3}\r\nu"v {2}\r\np\\\r\n', Credentials("LOGIN", b'u"v', b"p\\")),
        (b"a LOGIN {0+}\r\n {2+}\r\n\r\n\r\n", Credentials("LOGIN", b"", b"\r\n")),
        (b"a AUTHENTICATE PLAIN AHUAcA==\r\n", Credentials("PLAIN", b"u", b"p")),
        (b"a AUTHENTICATE LOGIN\r\ndQ==\r\ncA==\r\n", Credentials("LOGIN", b"u", b"p")),
    ],
)
def test_logins_of_each_kind(data: bytes, expected: Credentials) -> None:
    turn = Imap().feed(data)
    assert turn.facts == [expected]
    assert bytes(turn.answer).endswith(b"Logged in\r\n")


def test_what_is_too_long_is_refused() -> None:
    assert say(Imap(), b"a LOGIN {%d}" % MAX_LINE)[0].startswith(b"a BAD")
    assert say(Imap(), b'a LOGIN "' + b'\\"' * MAX_LINE, b"b NOOP")[-1] == b"b OK Noop completed."


@given(st.lists(st.sampled_from(LINES) | st.binary(max_size=30)))
def test_hostile_bytes_in_crumbs_change_nothing(lines: list[bytes]) -> None:
    text = b"\r\n".join(lines)
    assert feed(Imap(), text, [1]) == Imap().feed(text)
