"""Which calls the filter asks for."""

import os
import struct

import pytest

from hermes.broker.watcher import notify
from tests.unit.bpf import verdict as judged

ALLOW, ASK = 0x7FFF0000, 0x7FC00000
ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}[os.uname().machine]
CALLS = notify.CALLS[os.uname().machine]


def verdict(number: int, arguments: tuple[int, ...] = (), architecture: int = ARCHITECTURE) -> int:
    return judged(notify.program(), number, *arguments, architecture=architecture)


@pytest.mark.parametrize("name", [name for name in CALLS if name != "sendto"])
def test_each_is_asked_for(name: str) -> None:
    assert verdict(CALLS[name]) == ASK


def test_sendto_is_asked_for_where_it_names_an_address() -> None:
    assert verdict(CALLS["sendto"]) == ALLOW
    assert verdict(CALLS["sendto"], (3, 4096, 5, 0, 4096, 16)) == ASK
    assert verdict(CALLS["sendto"], (3, 4096, 5, 0, 1 << 40, 16)) == ASK


def test_nothing_else_is() -> None:
    for number in set(range(500)) - set(CALLS.values()):
        assert verdict(number, (1, 2, 3, 4, 5, 6)) == ALLOW


def test_another_architecture_is_left_to_the_policy() -> None:
    assert verdict(11, architecture=0x40000003) == ALLOW


def test_it_is_whole_instructions() -> None:
    program = notify.program()
    assert len(program) % 8 == 0
    assert struct.unpack_from("=HBBI", program, len(program) - 8) == (0x06, 0, 0, ASK)
