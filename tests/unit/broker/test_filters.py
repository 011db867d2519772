"""The front's filter, judged by running its BPF on system calls; `tests/unit/confine/test_process.py` asks the kernel."""

import errno
from collections.abc import Callable

import pytest

from hermes.broker import filters, seccomp
from tests.unit.bpf import ALLOW, ERRNO, I386, KILL, X86_64, verdict

HIGH = 1 << 35
READ, MMAP, MPROTECT, IOCTL, PIPE2, CLONE, FCNTL, PRCTL, OPENAT, PRLIMIT, SETSOCKOPT = (
    0,
    9,
    10,
    16,
    293,
    56,
    72,
    157,
    257,
    302,
    54,
)
SOCKET, CONNECT, ACCEPT4, SENDTO, SENDMSG, BIND, LISTEN, SOCKETPAIR, SENDMMSG = 41, 42, 288, 44, 46, 49, 50, 53, 307
KILL_, TKILL, TGKILL, PIDFD_SEND_SIGNAL, PIDFD_OPEN, CLONE3 = 62, 200, 234, 424, 434, 435
REFUSED = ERRNO | errno.EPERM
ABSENT = ERRNO | errno.ENOSYS
FASTOPEN = 0x20000000


@pytest.fixture(scope="module")
def program() -> bytes:
    if seccomp.machine()[2] != X86_64:
        pytest.skip("the numbers are x86_64's")
    return filters.front()


@pytest.mark.parametrize(
    ("number", "arguments", "outcome"),
    [
        (READ, (), ALLOW), (OPENAT, (), ALLOW), (PIPE2, (), ALLOW), (ACCEPT4, (), ALLOW), (LISTEN, (), ALLOW),
        (SOCKETPAIR, (1, 5), ALLOW), (SOCKETPAIR, (2, 1), REFUSED), (SOCKETPAIR, (1 | HIGH, 1), REFUSED),
        (SOCKET, (1, 1), REFUSED), (SOCKET, (2, 1), REFUSED), (SOCKET, (40, 1), REFUSED),
        (CONNECT, (), REFUSED), (BIND, (), REFUSED),
        (SENDTO, (3, 1, 1, 0, 0, 0), ALLOW), (SENDTO, (3, 1, 1, 0x4000, 0, 0), ALLOW),
        (SENDTO, (3, 1, 1, 0, 0x7000, 16), REFUSED),
        (SENDTO, (3, 1, 1, FASTOPEN, 0, 0), REFUSED), (SENDTO, (3, 1, 1, 0, HIGH, 16), REFUSED),
        (SENDMSG, (3, 1, 0x4000), ALLOW), (SENDMSG, (3, 1, FASTOPEN | 0x4000), REFUSED),
        (SENDMMSG, (3, 1, 2, 0), ALLOW), (SENDMMSG, (3, 1, 2, FASTOPEN), REFUSED),
        (MMAP, (0, 4096, 3), ALLOW), (MMAP, (0, 4096, 5), REFUSED),
        (MPROTECT, (0, 4096, 1), ALLOW), (MPROTECT, (0, 4096, 7), REFUSED),
        (CLONE, (0x3D0F00,), ALLOW), (CLONE, (17,), REFUSED), (CLONE, (0x10000000,), REFUSED), (CLONE3, (), ABSENT),
        (FCNTL, (3, 4), ALLOW), (FCNTL, (3, 8), REFUSED), (FCNTL, (3, 10), REFUSED), (FCNTL, (3, 15), REFUSED),
        (IOCTL, (3, 0x5414), ALLOW), (IOCTL, (3, 0x5412), REFUSED), (IOCTL, (3, 0x8902), REFUSED),
        (SETSOCKOPT, (3, 6, 1), ALLOW), (SETSOCKOPT, (3, 1, 9), ALLOW), (SETSOCKOPT, (3, 0, 41), ALLOW),
        (SETSOCKOPT, (3, 1, 13), REFUSED), (SETSOCKOPT, (3, 1, 13 | HIGH), REFUSED),
        (PRCTL, (15,), ALLOW), (PRCTL, (4, 1), REFUSED), (PRCTL, (22,), REFUSED),
        (PRLIMIT, (0, 7, 0, 0x7000), ALLOW), (PRLIMIT, (0, 7, 0x7000, 0), REFUSED), (PRLIMIT, (77, 7, 0, 0x7000), REFUSED),
        *((number, (1, 9), REFUSED) for number in (KILL_, TKILL, TGKILL, PIDFD_SEND_SIGNAL, PIDFD_OPEN)),
        (451, (), ABSENT), (600, (), ABSENT), (0x40000000 | READ, (), ABSENT),
    ],
)  # fmt: skip
def test_what_a_call_comes_to(program: bytes, number: int, arguments: tuple[int, ...], outcome: int) -> None:
    assert verdict(program, number, *arguments) == outcome


@pytest.mark.parametrize(
    "number",
    [
        59,
        322,
        101,
        310,
        311,
        57,
        58,
        165,
        166,
        155,
        161,
        272,
        308,
        321,
        298,
        323,
        425,
        426,
        427,
        248,
        250,
        175,
        313,
        246,
        304,
        438,
    ],
)
def test_what_only_an_attacker_calls_ends_the_front(program: bytes, number: int) -> None:
    assert verdict(program, number) == KILL


@pytest.mark.parametrize("made", [filters.analyst, filters.outputs])
def test_the_others_start_no_program_either_and_reach_no_other_process(made: Callable[[], bytes]) -> None:
    program = made()
    for number in (59, 322, 101, 310, 311, 165, 272, 308, 321, 298, 425):
        assert verdict(program, number) == KILL
    for number in (TKILL, TGKILL, PIDFD_SEND_SIGNAL, PIDFD_OPEN):
        assert verdict(program, number, 1, 9) == REFUSED
    assert verdict(program, MMAP, 0, 4096, 5) == REFUSED
    assert verdict(program, CLONE, 0x3D0F00) == ALLOW


def test_the_analyst_may_wait_for_its_scanner_fork_no_other_and_make_no_socket() -> None:
    program = filters.analyst()
    assert verdict(program, 61) == ALLOW, "wait4"
    assert verdict(program, CLONE, 0x1200011) == REFUSED
    assert verdict(program, KILL_, 1, 9) == REFUSED
    assert verdict(program, SENDMSG, 3, 1, 0x4000) == ALLOW
    assert verdict(program, SOCKET, 2, 1) == REFUSED
    assert verdict(program, CONNECT) == REFUSED
    assert verdict(program, SENDTO, 3, 1, 1, 0, 0x7000, 16) == REFUSED
    assert verdict(program, PRLIMIT, 0, 7, 0x7000, 0) == REFUSED


def test_a_look_at_a_file_may_read_compute_and_answer_and_what_else_it_tried_would_end_it() -> None:
    program = filters.look()
    for number, arguments in ((READ, ()), (1, ()), (8, ()), (MMAP, (0, 4096, 3)), (MPROTECT, (0, 4096, 1))):
        assert verdict(program, number, *arguments) == ALLOW
    for number, arguments in ((MMAP, (0, 4096, 7)), (MPROTECT, (0, 4096, 5)), (35, ()), (270, ())):
        assert verdict(program, number, *arguments) == REFUSED
    for number in (CLONE, 57, 59, OPENAT, SOCKET, SOCKETPAIR, CONNECT, SENDMSG, KILL_, TKILL, PIDFD_SEND_SIGNAL, PRCTL, 101):
        assert verdict(program, number) == KILL
    assert verdict(program, READ, architecture=I386) == KILL


def test_outputs_may_connect_and_not_fork() -> None:
    program = filters.outputs()
    for family in (1, 2, 10):
        assert verdict(program, SOCKET, family, 1) == ALLOW
    assert verdict(program, SOCKET, 16, 3, 0) == ALLOW
    for arguments in ((16, 3, 9), (17, 3), (40, 1), (38, 5)):
        assert verdict(program, SOCKET, *arguments) == REFUSED
    assert verdict(program, CONNECT) == ALLOW
    assert verdict(program, SENDTO, 3, 1, 1, 0, 0x7000, 16) == ALLOW
    assert verdict(program, CLONE, 17) == REFUSED
    assert verdict(program, KILL_, 1, 9) == REFUSED


def test_other_architectures_are_not_let_in(program: bytes) -> None:
    assert verdict(program, READ, architecture=I386) == KILL
