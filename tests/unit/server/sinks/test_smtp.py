"""A mail server's answers."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes.server.sinks.smtp import MAX_ERRORS, MAX_LINE, MAX_MESSAGE, MAX_RECIPIENTS, Smtp
from hermes.server.sinks.turns import Credentials
from tests.unit.server.sinks.pieces import feed, say

LINES = [
    b"EHLO x", b"HELO x", b"EHLO", b"MAIL FROM:<a@b>", b"RCPT TO:<c@d>", b"DATA", b".", b"..", b"BDAT 3 LAST",
    b"BDAT 0", b"BDAT x",
    b"AUTH LOGIN", b"AUTH PLAIN", b"AUTH PLAIN AGEAYg==", b"AUTH LOGIN dQ==", b"AUTH CRAM-MD5", b"cA==", b"*", b"RSET", b"NOOP",
    b"VRFY root", b"STARTTLS", b"", b"\xff\xfe\x00", b"x" * 5000,
]  # fmt: skip


def codes(server: Smtp, *lines: bytes) -> list[str]:
    """The code of each line answered."""
    return [it[:4].decode() for it in say(server, *lines)]


def test_a_dialogue_goes_on_to_the_message_and_to_the_next() -> None:
    server = Smtp("mx.example")
    assert server.greeting() == b"220 mx.example ESMTP Postfix (Debian/GNU)\r\n"
    assert codes(server, b"HELO me") == ["250 "]
    for _ in range(2):
        assert codes(server, b"MAIL FROM:<a@b>", b"rcpt to:<c@d>", b"RCPT TO:<e@f>", b"DATA") == ["250 ", "250 ", "250 ", "354 "]
        assert codes(server, b"Subject: x", b"", b"..", b"MAIL FROM:<not@a.command>") == []
        assert codes(server, b".") == ["250 "]
    assert codes(server, b"QUIT") == ["221 "]


def test_extensions_are_listed() -> None:
    answer = bytes(Smtp("mx.example").feed(b"EHLO me\r\n").answer).splitlines()
    assert answer[0] == b"250-mx.example"
    assert b"250-AUTH PLAIN LOGIN" in answer
    assert b"250-SIZE 10240000" in answer
    assert answer[-1].startswith(b"250 ")
    assert not any(b"STARTTLS" in it for it in answer)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([b"AUTH PLAIN", base64.b64encode(b"\0user\0pass")], Credentials("PLAIN", b"user", b"pass")),
        ([b"AUTH PLAIN " + base64.b64encode(b"z\0user\0pa\0ss")], Credentials("PLAIN", b"user", b"pa\0ss")),
        ([b"AUTH PLAIN " + base64.b64encode(b"only")], Credentials("PLAIN", b"", b"")),
        ([b"auth login", base64.b64encode(b"user"), base64.b64encode(b"pass")], Credentials("LOGIN", b"user", b"pass")),
        ([b"AUTH LOGIN " + base64.b64encode(b"user"), base64.b64encode(b"")], Credentials("LOGIN", b"user", b"")),
    ],
)
def test_logins_are_accepted_and_learnt(lines: list[bytes], expected: Credentials) -> None:
    server = Smtp("mx.example")
    turn = server.feed(b"EHLO me\r\n" + b"".join(it + b"\r\n" for it in lines))
    assert turn.facts == [expected]
    assert bytes(turn.answer).endswith(b"235 2.7.0 Authentication successful\r\n")
    assert codes(server, b"MAIL FROM:<a@b>") == ["250 "]


def test_logins_that_make_no_sense_are_refused_and_the_dialogue_goes_on() -> None:
    server = Smtp("mx.example")
    assert codes(server, b"AUTH PLAIN", b"no base64!", b"AUTH LOGIN", b"*", b"AUTH NTLM", b"NOOP") == [
        "334 ", "501 ", "334 ", "501 ", "535 ", "250 ",
    ]  # fmt: skip


def test_what_comes_out_of_order_is_told_so() -> None:
    server = Smtp("mx.example")
    assert codes(server, b"RCPT TO:<a@b>", b"DATA", b"MAIL a@b", b"MAIL FROM:<a@b>", b"DATA", b"MAIL FROM:<a@b>", b"RCPT a") == [
        "503 ", "503 ", "501 ", "250 ", "503 ", "503 ", "501 ",
    ]  # fmt: skip


def test_a_message_in_chunks_is_taken() -> None:
    server = Smtp("mx.example")
    assert codes(server, b"MAIL FROM:<a@b>", b"RCPT TO:<c@d>") == ["250 ", "250 "]
    assert bytes(server.feed(b"BDAT 5\r\nQUIT\n").answer).startswith(b"250 ")
    assert b"queued" in server.feed(b"BDAT 0 LAST\r\n").answer
    assert bytes(server.feed(b"NOOP\r\n").answer).startswith(b"250 ")


def test_limits_are_postfixes() -> None:
    server = Smtp("mx.example")
    assert codes(server, b"MAIL FROM:<a@b>", *[b"RCPT TO:<c@d>"] * (MAX_RECIPIENTS + 1))[-1] == "452 "
    server.feed(b"DATA\r\n")
    for _ in range(MAX_MESSAGE // 1_000_000 + 1):
        assert not server.feed(b"x" * 1_000_000).answer
    assert codes(server, b"", b".") == ["552 "]
    assert codes(server, b"x" * (MAX_LINE + 1), b"NOOP") == ["500 ", "250 "]
    turn = server.feed(b"nonsense\r\n" * MAX_ERRORS)
    assert turn.over
    assert bytes(turn.answer).endswith(b"Error: too many errors\r\n")


def test_a_web_client_is_sent_away_as_postfix_does() -> None:
    turn = Smtp("mx.example").feed(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (turn.over, bytes(turn.answer)[:4]) == (True, b"221 ")


@given(st.lists(st.sampled_from(LINES) | st.binary(max_size=40)), st.lists(st.integers(1, 60), min_size=1))
def test_however_it_is_cut_the_answer_is_the_same(lines: list[bytes], cuts: list[int]) -> None:
    text = b"\r\n".join(lines)
    whole, pieces = Smtp("mx.example").feed(text), feed(Smtp("mx.example"), text, cuts)
    assert [it[:4] for it in bytes(pieces.answer).splitlines()] == [it[:4] for it in bytes(whole.answer).splitlines()]
    assert (pieces.facts, pieces.over) == (whole.facts, whole.over)
