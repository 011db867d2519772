"""Keystrokes to lines."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes.session.lines import MAX_LINE, Line, LineAssembler


def typed(data: bytes, *, terminal: bool = True) -> list[str]:
    assembler = LineAssembler(terminal=terminal)
    return [line.text for line in [*assembler.feed(data), *assembler.finish()]]


@pytest.mark.parametrize(
    ("keys", "lines"),
    [
        (b"ls -la\r", ["ls -la"]),
        (b"ls\r\nid\r", ["ls", "id"]),
        (b"ls\nid\n", ["ls", "id"]),
        (b"lx\x7fs\r", ["ls"]),
        (b"lx\x08s\r", ["ls"]),
        ("é\x7fe\r".encode(), ["e"]),
        (b"rm -rf /\x15id\r", ["id"]),
        (b"rm -rf /\x17id\r", ["rm -rf id"]),
        (b"rm  \x17id\r", ["id"]),
        (b"nonsense\x03id\r", ["id"]),
        (b"\x1b[A\x1b[1;5Cid\x1bOP\r", ["id"]),
        (b"\x1bbid\r", ["id"]),
        (b"\r\r  \r", []),
        (b"unfinished", ["unfinished"]),
        (b"a\xffb\r", ["a\\xffb"]),
        (b"\x7f\x7f\x17\x15id\r", ["id"]),
        (b"cd\t/\r", ["cd\t/"]),
    ],
)
def test_terminal(keys: bytes, lines: list[str]) -> None:
    assert typed(keys) == lines
    one_by_one = LineAssembler(terminal=True)
    found = [line.text for byte in keys for line in one_by_one.feed(bytes((byte,)))]
    assert found + [line.text for line in one_by_one.finish()] == lines


def test_pipe_takes_bytes_as_they_are() -> None:
    assert typed(b"echo \x1b[A\x7f\r\nid\nrest", terminal=False) == ["echo \x1b[A\x7f", "id", "rest"]


def test_long_lines_are_cut_and_say_so() -> None:
    assembler = LineAssembler(terminal=True)
    assert assembler.feed(b"x" * (MAX_LINE + 10) + b"\rid\r") == [Line("x" * MAX_LINE, truncated=True), Line("id")]


@pytest.mark.parametrize("terminal", [True, False])
def test_endless_input_is_bounded(terminal: bool) -> None:
    assembler = LineAssembler(terminal=terminal)
    for _ in range(100):
        assert assembler.feed(b"x" * MAX_LINE + b"\x1b[" + b"1" * 1000) == []
    assert [len(line.text) for line in assembler.finish()] == [MAX_LINE]


@given(st.lists(st.binary(max_size=40), max_size=20), st.booleans())
def test_chunking_does_not_matter(chunks: list[bytes], terminal: bool) -> None:
    whole, pieces = LineAssembler(terminal=terminal), LineAssembler(terminal=terminal)
    expected = [*whole.feed(b"".join(chunks)), *whole.finish()]
    found = [line for chunk in chunks for line in pieces.feed(chunk)]
    assert found + pieces.finish() == expected
