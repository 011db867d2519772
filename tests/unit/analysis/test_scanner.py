"""The scanner, with real looks at files and with looks that do what a hostile file would."""

import ctypes
import errno
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hermes.analysis.scanner import MAX_ANSWER, Limits, Outcome, Scanner
from hermes.broker import filters
from hermes.errors import MachineError

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root has power to give up")

LIMITS = Limits(seconds=10, memory=256 * 2**20)


@contextmanager
def scanning(look: Callable[[int], bytes], limits: Limits = LIMITS) -> Iterator[Scanner]:
    scanner = Scanner(look, user="nobody", program=filters.look(), limits=limits)
    try:
        yield scanner
    finally:
        scanner.close()


def looked_at(scanner: Scanner, path: Path) -> Outcome:
    fd = os.open(path, os.O_RDONLY)
    try:
        return scanner.look(fd)
    finally:
        os.close(fd)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"hostile")
    path.chmod(0o600)
    return path


def test_a_look_reads_the_file_it_is_given_and_nothing_else(file: Path) -> None:
    with scanning(lambda fd: os.read(fd, 100)) as scanner:
        for _ in range(3):
            outcome = looked_at(scanner, file)
            assert (outcome.answer, outcome.failure) == (b"hostile", None)


def test_each_look_is_a_process_of_its_own(file: Path) -> None:
    with scanning(lambda fd: str(os.getpid()).encode()) as scanner:
        pids = {looked_at(scanner, file).answer for _ in range(3)}
        assert len(pids) == 3
        assert str(scanner.pid).encode() not in pids


def segfault(fd: int) -> bytes:
    ctypes.string_at(0)
    raise AssertionError


def loop(fd: int) -> bytes:
    while True:
        pass


def swallow(fd: int) -> bytes:
    return bytes(bytearray(2**30)[:1])


def refuse(fd: int) -> bytes:
    raise ValueError("a \x1b[31mstrange file")


@pytest.mark.parametrize(
    ("look", "failure"),
    [
        (segfault, "the analysis was killed: SIGSEGV"),
        (loop, "the analysis was stopped after 0.3 s"),
        (swallow, "the analysis failed: out of memory"),
        (refuse, "the analysis failed: ValueError: a \x1b[31mstrange file"),
        (lambda fd: b"x" * (MAX_ANSWER + 1), "the analysis gave no answer that could be read"),
        (lambda fd: b"", "the analysis gave no answer that could be read"),
    ],
)
def test_what_breaks_a_look_is_its_result_and_the_next_file_is_looked_at(
    look: Callable[[int], bytes], failure: str, file: Path
) -> None:
    def sometimes(fd: int) -> bytes:
        return os.read(fd, 100) if os.fstat(fd).st_size else look(fd)

    with scanning(sometimes, Limits(seconds=0.3, memory=256 * 2**20)) as scanner:
        (file.parent / "empty").touch()
        for _ in range(2):
            assert looked_at(scanner, file.parent / "empty").failure == failure
        assert looked_at(scanner, file).answer == b"hostile"


@pytest.mark.parametrize(
    "attack",
    [
        lambda: os.execv("/bin/true", ["true"]),
        os.fork,
        lambda: socket.socket(),
        lambda: os.open("/etc/passwd", os.O_RDONLY),
        lambda: os.kill(os.getppid(), signal.SIGKILL),
        lambda: os.kill(os.getpid(), signal.SIGCONT),
        lambda: ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0),
        lambda: ctypes.CDLL(None).prctl(4, 1, 0, 0, 0),
    ],
    ids=["exec", "fork", "socket", "open", "kill", "signal", "ptrace", "dumpable"],
)
def test_a_look_that_was_taken_over_has_no_power(attack: Callable[[], object], file: Path) -> None:
    library = ctypes.CDLL(None)

    def look(fd: int) -> bytes:
        attack()
        return b"it could"

    assert library is not None
    with scanning(look) as scanner:
        outcome = looked_at(scanner, file)
        assert outcome.answer is None
        assert outcome.failure == "the analysis was killed: SIGSYS (a system call that no analysis makes)"
        assert looked_at(scanner, file).failure == outcome.failure


def test_what_a_look_may_not_do_but_libraries_try_is_only_refused(file: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)

    def look(fd: int) -> bytes:
        executable = libc.mmap(None, 4096, 7, 0x22, -1, 0)
        return f"{executable == ctypes.c_void_p(-1).value} {errno.errorcode[ctypes.get_errno()]}".encode()

    with scanning(look) as scanner:
        assert looked_at(scanner, file).answer == b"True EPERM"


def test_a_look_has_no_descriptor_but_its_file_and_its_answer(file: Path) -> None:
    def look(fd: int) -> bytes:
        found = []
        for number in range(64):
            try:
                os.fstat(number)
            except OSError:
                continue
            found.append(number)
        return repr((len(found), fd in found)).encode()

    with scanning(look) as scanner:
        assert looked_at(scanner, file).answer == b"(5, True)"


def test_the_scanner_is_nobody_and_keeps_no_descriptor_of_the_analysts(file: Path) -> None:
    secret = os.open(file, os.O_RDONLY)
    with scanning(lambda fd: os.read(fd, 100)) as scanner:
        status = Path(f"/proc/{scanner.pid}/status").read_text()
        assert "Uid:\t65534\t65534\t65534\t65534" in status
        assert "CapPrm:\t0000000000000000" in status
        assert "CapBnd:\t0000000000000000" in status
        assert "NoNewPrivs:\t1" in status
        fds = [str(it.readlink()) for it in Path(f"/proc/{scanner.pid}/fd").iterdir()]
        assert str(file) not in fds
        assert len(fds) == 4
    os.close(secret)


def test_a_scanner_that_dies_is_missed_not_waited_for(file: Path) -> None:
    with scanning(lambda fd: b"answer") as scanner:
        os.kill(scanner.pid, signal.SIGKILL)
        with pytest.raises(MachineError, match=r"the scanner is gone|the scanner does not answer"):
            looked_at(scanner, file)


def test_nothing_is_left_when_the_analyst_is_gone_in_the_middle_of_a_look(file: Path) -> None:
    scanner = Scanner(loop, user="nobody", program=filters.look(), limits=LIMITS)
    fd = os.open(file, os.O_RDONLY)
    socket.send_fds(scanner._socket, [b"look"], [fd])
    os.close(fd)
    children = Path(f"/proc/{scanner.pid}/task/{scanner.pid}/children")
    deadline = time.monotonic() + 10
    while not (looks := children.read_text().split()):
        assert time.monotonic() < deadline
    scanner.close()  # waits for the scanner's end, which comes after its look's
    assert not Path(f"/proc/{looks[0]}").exists()


def test_a_scanner_that_cannot_start_says_why() -> None:
    with pytest.raises(MachineError, match=r"the scanner cannot start: .*no-such-user"):
        Scanner(lambda fd: b"", user="no-such-user", program=filters.look(), limits=LIMITS)
