"""A web server's answers."""

import base64
import http.client
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes.server.sinks.http import MAX_HEAD, MAX_REQUESTS, Http
from hermes.server.sinks.turns import Credentials
from tests.unit.server.sinks.pieces import feed

NOON = 1_700_000_000.0
PIECES = [
    b"GET / HTTP/1.1\r\n", b"POST /x HTTP/1.0\r\n", b"HEAD http://a/ HTTP/1.1\r\n", b"OPTIONS * HTTP/1.1\r\n",
    b"FOO / HTTP/1.1\r\n", b"GET /\r\n", b"PRI * HTTP/2.0\r\n", b"Host: a\r\n", b"Content-Length: 5\r\n",
    b"Content-Length: -1\r\n", b"Connection: close\r\n", b"Connection: keep-alive\r\n", b"Transfer-Encoding: chunked\r\n",
    b"Expect: 100-continue\r\n", b"Authorization: Basic dTpw\r\n", b"Authorization: Basic \xff\r\n", b"\r\n", b"\n",
    b"5\r\nhello\r\n", b"0\r\n\r\n", b"zz\r\n", b"hello", b"\x00\xff", b"x" * 400,
]  # fmt: skip


class _Sock:
    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def makefile(self, mode: str) -> io.BytesIO:
        return self._file


def server() -> Http:
    return Http(lambda: NOON)


def read(answer: bytes, method: str = "GET") -> http.client.HTTPResponse:
    """The answer, as a client understands it."""
    response = http.client.HTTPResponse(_Sock(answer), method=method)  # type: ignore[arg-type]
    response.begin()
    return response


@pytest.mark.parametrize(
    ("request_line", "status", "over"),
    [
        (b"GET / HTTP/1.1", 200, False),
        (b"GET / HTTP/1.0", 200, True),
        (b"GET /", 200, True),
        (b"POST /login HTTP/1.1", 200, False),
        (b"HEAD / HTTP/1.1", 200, False),
        (b"OPTIONS * HTTP/1.1", 204, False),
        (b"DELETE /x HTTP/1.1", 405, False),
        (b"PRI * HTTP/2.0", 400, True),
        (b"GET / x HTTP/1.1", 400, True),
    ],
)
def test_each_method_has_its_answer(request_line: bytes, status: int, over: bool) -> None:
    turn = server().feed(request_line + b"\r\nHost: a\r\n\r\n")
    response = read(bytes(turn.answer), request_line.split()[0].decode())
    assert (response.status, turn.over) == (status, over)
    assert (response.getheader("Server"), response.getheader("Date")) == ("nginx/1.22.1", "Tue, 14 Nov 2023 22:13:20 GMT")
    assert response.getheader("Connection") == ("close" if over else "keep-alive")
    body = response.read()
    assert bool(body) == (status != 204 and not request_line.startswith(b"HEAD"))


def test_a_body_is_awaited_whatever_it_looks_like() -> None:
    one = server()
    assert not one.feed(b"POST / HTTP/1.1\r\nContent-Length: 18\r\n\r\nGET / HTTP").answer
    assert bytes(one.feed(b"/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n").answer).count(b"200 OK") == 2
    assert not one.feed(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n3;x=y\r\nabc\r\n0\r\n").answer
    assert b"200 OK" in one.feed(b"X-Trailer: 1\r\n\r\n").answer


def test_expectations_are_met() -> None:
    one = server()
    assert (
        one.feed(b"POST / HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n").answer
        == b"HTTP/1.1 100 Continue\r\n\r\n"
    )
    assert b"200 OK" in one.feed(b"ab").answer


def test_a_tunnel_is_granted_and_what_follows_is_handed_on() -> None:
    turn = server().feed(b"CONNECT a.example:443 HTTP/1.1\r\nProxy-Authorization: basic dTpw\r\n\r\n\x16\x03\x01")
    assert turn.answer == b"HTTP/1.1 200 Connection established\r\n\r\n"
    assert turn.rest == b"\x16\x03\x01"
    assert turn.facts == [Credentials("Proxy-Basic", b"u", b"p")]
    assert server().feed(b"CONNECT a:1 HTTP/1.1\r\n\r\n").rest == b""


def test_credentials_are_learnt() -> None:
    given_ = base64.b64encode(b"admin:a:b")
    turn = server().feed(b"GET / HTTP/1.1\r\nAuthorization: Basic " + given_ + b"\r\n\r\n")
    assert turn.facts == [Credentials("Basic", b"admin", b"a:b")]


def test_heads_and_requests_have_an_end() -> None:
    turn = server().feed(b"GET /" + b"x" * MAX_HEAD)
    assert (turn.over, read(bytes(turn.answer)).status) == (True, 414)
    turn = server().feed(b"GET / HTTP/1.1\r\n\r\n" * (MAX_REQUESTS + 5))
    assert turn.over
    assert turn.answer.count(b"200 OK") == MAX_REQUESTS


@given(st.lists(st.sampled_from(PIECES) | st.binary(max_size=20)), st.lists(st.integers(1, 30), min_size=1))
def test_however_it_is_cut_the_answer_is_the_same(pieces: list[bytes], cuts: list[int]) -> None:
    text = b"GET " + b"".join(pieces)
    assert feed(server(), text, cuts) == server().feed(text)
