"""RFC 4254's terminal modes on a real terminal."""

import os
import termios
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hermes.broker.termmodes import apply

IUTF8 = 0o40000


@pytest.fixture
def tty() -> Iterator[int]:
    master, slave = os.openpty()
    yield slave
    os.close(master)
    os.close(slave)


def test_flags_are_set_and_cleared(tty: int) -> None:
    apply(tty, {53: 0, 51: 0, 50: 1, 42: 1, 36: 0, 72: 0})
    iflag, oflag, _, lflag = termios.tcgetattr(tty)[:4]
    assert not lflag & (termios.ECHO | termios.ICANON)
    assert lflag & termios.ISIG
    assert iflag & IUTF8
    assert not iflag & termios.ICRNL
    assert not oflag & termios.ONLCR


def test_characters(tty: int) -> None:
    apply(tty, {1: 5, 3: 8, 10: 255, 18: 300})
    characters = termios.tcgetattr(tty)[6]
    assert characters[termios.VINTR] == b"\x05"
    assert characters[termios.VERASE] == b"\x08"
    assert characters[termios.VSUSP] == b"\0", "255 disables"
    assert characters[termios.VDISCARD] == b"\x0f", "300 is no character"


def test_speed(tty: int) -> None:
    apply(tty, {128: 9600, 129: 115200})
    assert termios.tcgetattr(tty)[5] == termios.B115200
    apply(tty, {129: 12345})
    assert termios.tcgetattr(tty)[5] == termios.B115200


def test_what_a_pty_cannot_do_hinders_nothing_else(tty: int) -> None:
    apply(tty, {90: 1, 92: 1, 53: 0})
    attributes = termios.tcgetattr(tty)
    assert attributes[2] & termios.CSIZE == termios.CS8
    assert not attributes[3] & termios.ECHO


def test_nothing_asked_nothing_changed(tty: int) -> None:
    before = termios.tcgetattr(tty)
    apply(tty, {})
    apply(tty, {0: 1, 11: 3, 17: 3, 200: 9})
    assert termios.tcgetattr(tty) == before


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(modes=st.dictionaries(st.integers(-5, 300), st.integers(-(2**31), 2**32)))
def test_any_modes_are_survived(tty: int, modes: dict[int, int]) -> None:
    apply(tty, modes)
