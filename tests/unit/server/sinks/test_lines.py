"""Lines in whatever pieces they come, and logins."""

import base64

from hypothesis import given
from hypothesis import strategies as st

from hermes.server.sinks.lines import LineReader, Sasl
from hermes.server.sinks.turns import Credentials


def read(reader: LineReader, data: bytes) -> list[tuple[bytes, bool]]:
    found, at = [], 0
    while at < len(data):
        line, at = reader.take(data, at)
        if line is not None:
            found.append((line, reader.too_long))
    return found


def test_lines_end_with_or_without_a_carriage_return() -> None:
    assert read(LineReader(10), b"one\r\ntwo\n\nthree") == [(b"one", False), (b"two", False), (b"", False)]


def test_longer_lines_are_cut_and_say_so() -> None:
    reader = LineReader(4)
    assert read(reader, b"1234\n12345\n1234\n") == [(b"1234", False), (b"1234", True), (b"1234", False)]


@given(st.lists(st.binary(max_size=12)), st.lists(st.integers(1, 9), min_size=1))
def test_pieces_do_not_matter(lines: list[bytes], cuts: list[int]) -> None:
    text = b"".join(it + b"\n" for it in lines)
    pieces, at = LineReader(6), 0
    found: list[tuple[bytes, bool]] = []
    for number in range(len(text)):
        size = cuts[number % len(cuts)]
        found += read(pieces, text[at : at + size])
        at += size
    assert found == read(LineReader(6), text)


def encoded(text: bytes) -> bytes:
    return base64.b64encode(text)


def test_plain_takes_one_answer() -> None:
    login = Sasl(b"PLAIN")
    assert login.challenge == b""
    assert login.answer(encoded(b"\0u\0p"))
    assert login.credentials == Credentials("PLAIN", b"u", b"p")


def test_login_takes_two() -> None:
    login = Sasl(b"LOGIN")
    assert base64.b64decode(login.challenge) == b"Username:"
    assert login.answer(encoded(b"u"))
    assert login.credentials is None
    assert base64.b64decode(login.challenge) == b"Password:"
    assert login.answer(encoded(b"p"))
    assert login.credentials == Credentials("LOGIN", b"u", b"p")


@given(st.binary(max_size=50), st.sampled_from([b"PLAIN", b"LOGIN"]))
def test_hostile_answers_make_no_sense_or_credentials(data: bytes, mechanism: bytes) -> None:
    assert Sasl(mechanism).answer(encoded(data))
    Sasl(mechanism).answer(data)
