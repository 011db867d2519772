"""Who answers at the far end of a forward."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes.server.sinks.conversation import DECIDED, Conversation
from tests.unit.server.sinks.test_clienthello import hello


@pytest.mark.parametrize(
    ("host", "port", "greeting"),
    [
        ("MX.example.org", 25, b"220 mx.example.org ESMTP"),
        ("192.0.2.1", 587, b"220 mail ESMTP"),
        ("evil\r\n250 x", 25, b"220 mail ESMTP"),
        ("a" * 300 + ".example", 25, b"220 mail ESMTP"),
        ("192.0.2.1", 110, b"+OK Dovecot"),
        ("192.0.2.1", 143, b"* OK [CAPABILITY IMAP4rev1"),
        ("192.0.2.1", 22, b"SSH-2.0-OpenSSH"),
        ("192.0.2.1", 80, b""),
        ("", 0, b""),
    ],
)
def test_servers_that_speak_first(host: str, port: int, greeting: bytes) -> None:
    said = Conversation(host, port).greeting()
    assert said.startswith(greeting)
    assert bool(said) == bool(greeting)


@pytest.mark.parametrize(
    ("data", "protocol", "begins"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "http", b"HTTP/1.1 200"),
        (b"EHLO x\r\n", "smtp", b"250-"),
        (b"SSH-2.0-Go\r\n", "ssh", b"SSH-2.0-"),
        (hello(), "tls", b"\x15\x03\x03"),
        (b"NICK somebody or other\r\n", "", b""),
        (b"\x00" * 100, "", b""),
    ],
)
def test_others_are_chosen_by_what_the_client_says(data: bytes, protocol: str, begins: bytes) -> None:
    one = Conversation("192.0.2.1", 8080)
    assert one.greeting() == b""
    turn = one.feed(data)
    assert one.protocol == protocol
    assert bytes(turn.answer).startswith(begins)
    crumbs = Conversation("192.0.2.1", 8080)
    answers = b"".join(bytes(crumbs.feed(data[at : at + 1]).answer) for at in range(len(data)))
    assert (crumbs.protocol, answers) == (protocol, bytes(turn.answer))


def test_a_client_that_begins_tls_where_a_greeting_came_is_understood() -> None:
    for port in (22, 25, 110, 143):
        one = Conversation("192.0.2.1", port)
        one.greeting()
        assert one.feed(hello()).facts
        assert one.protocol == "tls"


def test_what_goes_through_a_tunnel_begins_anew() -> None:
    one = Conversation("192.0.2.1", 3128)
    turn = one.feed(b"CONNECT a.example:443 HTTP/1.1\r\n\r\n" + hello())
    assert bytes(turn.answer) == b"HTTP/1.1 200 Connection established\r\n\r\n\x15\x03\x03\x00\x02\x02\x28"
    assert (turn.over, one.protocol, len(turn.facts)) == (True, "tls", 1)
    nested = Conversation("192.0.2.1", 3128)
    answer = nested.feed(b"CONNECT a:80 HTTP/1.1\r\n\r\n" * 5 + b"GET / HTTP/1.1\r\n\r\n").answer
    assert answer.count(b"established") == 5
    assert b"200 OK" in answer


def test_it_waits_until_it_can_tell() -> None:
    one = Conversation("192.0.2.1", 8080)
    assert not one.feed(b"G").answer
    assert one.feed(b"ET / HTTP/1.1\r\n\r\n").answer
    silent = Conversation("192.0.2.1", 8080)
    silent.feed(b"x" * DECIDED)
    assert not silent.feed(b"GET / HTTP/1.1\r\n\r\n").answer


@given(
    st.sampled_from([0, 22, 25, 80, 110, 143, 443]),
    st.lists(st.binary(max_size=60) | st.sampled_from([b"CONNECT x:1 HTTP/1.0\r\n\r\n", b"EHLO x\r\n"])),
)
def test_hostile_bytes_raise_nothing(port: int, pieces: list[bytes]) -> None:
    one = Conversation("192.0.2.1", port)
    one.greeting()
    for piece in pieces:
        turn = one.feed(piece)
        assert turn.rest is None
        if turn.over:
            break
