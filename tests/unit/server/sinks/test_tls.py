"""A TLS server that fails."""

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes.server.sinks.tls import Tls
from hermes.server.sinks.turns import ClientHello
from tests.unit.server.sinks.test_clienthello import hello


def test_a_real_client_takes_the_alert_for_what_it_is() -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="a.example")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    turn = Tls().feed(outgoing.read())
    assert turn.over
    (fact,) = turn.facts
    assert isinstance(fact, ClientHello)
    assert fact.server_name == b"a.example"
    incoming.write(bytes(turn.answer))
    with pytest.raises(ssl.SSLError, match=r"(?i)handshake.failure"):
        client.do_handshake()


def test_a_hello_in_crumbs() -> None:
    server, records = Tls(), hello(record=50)
    for at in range(len(records) - 1):
        assert not server.feed(records[at : at + 1]).over
    assert server.feed(records[-1:]).facts


@given(st.lists(st.binary(min_size=1, max_size=50)))
def test_hostile_bytes_get_an_alert_or_silence(pieces: list[bytes]) -> None:
    server = Tls()
    for piece in [b"\x16\x03", *pieces]:
        turn = server.feed(piece)
        assert turn.over == bool(turn.answer)
        if turn.over:
            break
