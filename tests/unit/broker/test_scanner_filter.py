"""The scanner's filter, judged by running its BPF; `tests/unit/analysis/test_scanner.py` asks the kernel."""

import errno

import pytest

from hermes.broker import scanner_filter, seccomp
from tests.unit.bpf import ALLOW, ERRNO, I386, KILL, X86_64, verdict

READ, WRITE, MMAP, MPROTECT, CLONE, FORK, EXECVE, OPENAT, SOCKET, CONNECT, KILL_, PRCTL, NANOSLEEP = (
    0, 1, 9, 10, 56, 57, 59, 257, 41, 42, 62, 157, 35,
)  # fmt: skip
REFUSED = ERRNO | errno.EPERM


@pytest.mark.parametrize(
    ("number", "arguments", "outcome"),
    [
        (READ, (), ALLOW), (WRITE, (), ALLOW), (MMAP, (0, 4096, 3), ALLOW), (MMAP, (0, 4096, 7), REFUSED),
        (MPROTECT, (0, 4096, 5), REFUSED), (NANOSLEEP, (), REFUSED), (600, (), REFUSED),
        *((number, (), KILL) for number in (CLONE, FORK, EXECVE, OPENAT, SOCKET, CONNECT, KILL_, PRCTL)),
    ],
)  # fmt: skip
def test_a_look_may_read_compute_and_answer(number: int, arguments: tuple[int, ...], outcome: int) -> None:
    if seccomp.machine()[2] != X86_64:
        pytest.skip("the numbers are x86_64's")
    assert verdict(scanner_filter.compiled(), number, *arguments) == outcome


def test_calls_of_other_architectures_end_it() -> None:
    assert verdict(scanner_filter.compiled(), READ, architecture=I386) == KILL
