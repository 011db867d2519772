"""Keystrokes to lines."""

import sys
from types import FrameType

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
        (b"i\x00\x04\x1fd\r\n\n\rls\r", ["id", "ls"]),
        (b"\x1b[" + b";" * 63 + b"id\r", ["id"]),
        (b"\x1b\rid\r", ["id"]),
        (b"a b\x7f\x7f\x08\x08\x08id\r", ["id"]),
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


def test_a_cut_line_that_was_erased_leaves_no_trace() -> None:
    assembler = LineAssembler(terminal=True)
    for erase in (b"\x15", b"\x03", b"\x17", b"\x7f" * MAX_LINE):
        assert assembler.feed(b"x" * (MAX_LINE + 10) + erase + b"id\r") == [Line("id")]


def test_runs_are_taken_at_once() -> None:
    """Not character by character: pasted text must not hold up everyone's loop."""
    calls = 0

    def count(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    assembler = LineAssembler(terminal=True)
    before = sys.getprofile()
    sys.setprofile(count)
    try:
        assembler.feed((b"x" * 60 + b"\r") * 100 + b"x" * 60_000 + b"\x7f" * 60_000)
    finally:
        sys.setprofile(before)
    assert 100 < calls < 60 * 100 + MAX_LINE * 2


@pytest.mark.parametrize("terminal", [True, False])
def test_endless_input_is_bounded(terminal: bool) -> None:
    assembler = LineAssembler(terminal=terminal)
    for _ in range(100):
        assert assembler.feed(b"x" * MAX_LINE + b"\x1b[" + b"1" * 1000) == []
    assert [len(line.text) for line in assembler.finish()] == [MAX_LINE]


KEYS = st.sampled_from([b"\x1b", b"[", b"O", b"\r", b"\n", b"\x7f", b"\x17", b"\x15", b"\xc3\xa9", b"a ", b";" * 30, b"x" * 3000])


@given(st.lists(st.one_of(st.binary(max_size=40), KEYS), max_size=20), st.booleans())
def test_chunking_does_not_matter(chunks: list[bytes], terminal: bool) -> None:
    whole, pieces = LineAssembler(terminal=terminal), LineAssembler(terminal=terminal)
    expected = [*whole.feed(b"".join(chunks)), *whole.finish()]
    found = [line for chunk in chunks for line in pieces.feed(chunk)]
    assert found + pieces.finish() == expected
