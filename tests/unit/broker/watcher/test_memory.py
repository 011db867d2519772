"""Reading what a process hands to the kernel, whatever the pointers say."""

import ctypes
import os
from collections.abc import Iterator

import pytest

from hermes.broker.watcher import memory


@pytest.fixture
def mem() -> Iterator[int]:
    fd = os.open("/proc/self/mem", os.O_RDONLY)
    yield fd
    os.close(fd)


def array(*texts: bytes) -> tuple[int, list[object]]:
    """The address of such an argv, and what keeps it alive."""
    kept = [ctypes.create_string_buffer(text) for text in texts]
    pointers = (ctypes.c_void_p * (len(texts) + 1))(*map(ctypes.addressof, kept), None)
    return ctypes.addressof(pointers), [kept, pointers]


def test_a_string_ends_at_its_end_or_at_the_limit(mem: int) -> None:
    kept = ctypes.create_string_buffer(b"a" * 10_000)
    at = ctypes.addressof(kept)
    assert memory.string(mem, at, 20_000) == (b"a" * 10_000, False)
    assert memory.string(mem, at, 10_000) == (b"a" * 10_000, False)
    assert memory.string(mem, at, 9_999) == (b"a" * 9_999, True)
    assert memory.string(mem, at, 0) == (b"", True)
    assert memory.string(mem, at + 9_990, 100) == (b"a" * 10, False)


def test_arguments_are_read_up_to_their_limits(mem: int) -> None:
    texts = [b"%d" % number for number in range(100)]
    at, kept = array(*texts)
    assert memory.strings(mem, at, count=100, limit=10_000) == (texts, False)
    assert memory.strings(mem, at, count=99, limit=10_000) == (texts[:99], True)
    assert memory.strings(mem, at, count=100, limit=3) == ([b"0", b"1", b"2"], True)
    at, more = array(b"", b"abc", b"")
    assert memory.strings(mem, at, count=10, limit=100) == ([b"", b"abc", b""], False)
    assert kept
    assert more


@pytest.mark.parametrize("address", [0, 1, 4095, 1 << 46, (1 << 47) - 1, 1 << 63, (1 << 64) - 1])
def test_where_there_is_nothing_nothing_is_read(mem: int, address: int) -> None:
    assert memory.string(mem, address, 100) == (b"", False)
    assert memory.strings(mem, address, count=10, limit=100) == ([], False)
    assert memory.read(mem, address, 8) == b""
    assert memory.read(-1, address, 8) == b""


def test_an_array_of_bad_pointers_ends(mem: int) -> None:
    pointers = (ctypes.c_void_p * 5)(1, 2, (1 << 64) - 1, 1 << 50, None)
    assert memory.strings(mem, ctypes.addressof(pointers), count=10, limit=100) == ([b""] * 4, False)
