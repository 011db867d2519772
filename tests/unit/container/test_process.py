import asyncio
import fcntl
import os
import struct
import termios

import pytest

from hermes.container import ContainerProcess
from hermes.container.messages import Resize, Signal

Controls = list[tuple[int, str, Signal | Resize]]


def piped(controls: Controls | None = None) -> tuple[ContainerProcess, list[int]]:
    """A process with pipes, and their other ends."""
    pipes = [os.pipe() for _ in range(3)]
    ours = [pipes[0][1], pipes[1][0], pipes[2][0]]
    theirs = [pipes[0][0], pipes[1][1], pipes[2][1]]
    log = [] if controls is None else controls
    return ContainerProcess(1, 42, ours, tty=False, control=lambda *control: log.append(control)), theirs


def close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def test_the_end_of_input_is_passed_on() -> None:
    process, (stdin, *others) = piped()
    assert process.stdin is not None
    os.write(process.stdin, b"last")
    process.close_stdin()
    process.close_stdin()
    assert process.stdin is None
    assert os.read(stdin, 100) == b"last"
    assert os.read(stdin, 100) == b""
    process.close()
    close([stdin, *others])


def test_a_detached_fd_is_the_callers() -> None:
    process, theirs = piped()
    stdout = process.detach("stdout")
    assert stdout is not None
    assert process.detach("stdout") is None
    process.close()
    os.write(theirs[1], b"still open")
    assert os.read(stdout, 100) == b"still open"
    close([stdout, *theirs])


def test_close_closes_all_and_only_once() -> None:
    process, theirs = piped()
    ours = [fd for fd in (process.stdin, process.stdout, process.stderr) if fd is not None]
    assert len(ours) == 3
    process.close()
    for fd in ours:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
    again = os.dup(theirs[0])  # may take the number of one that was closed
    process.close()
    os.fstat(again)
    close([again, *theirs])


@pytest.mark.asyncio
async def test_a_real_terminal_is_sized_and_hung_up() -> None:
    master, slave = os.openpty()
    controls: Controls = []
    process = ContainerProcess(1, 42, [master], tty=True, control=lambda *control: controls.append(control))
    process.resize(132, 43, 1000, 70_000)
    assert struct.unpack("HHHH", fcntl.ioctl(slave, termios.TIOCGWINSZ, bytes(8))) == (43, 132, 1000, 65535)
    process.resize(-1, 1 << 40)
    assert struct.unpack("HHHH", fcntl.ioctl(slave, termios.TIOCGWINSZ, bytes(8))) == (65535, 0, 0, 0)
    assert controls == []
    process.close()
    assert os.read(slave, 10) == b""
    process.resize(1, 1)
    os.close(slave)


def test_a_size_for_what_claims_to_be_a_terminal_and_is_not_is_ignored() -> None:
    r, w = os.pipe()
    process = ContainerProcess(1, 42, [r], tty=True, control=lambda *_: None)
    process.resize(80, 24)
    process.close()
    os.close(w)


def test_an_idle_process_is_small() -> None:
    process, theirs = piped()
    assert not hasattr(process, "__dict__")
    assert process._waiters is None
    process.close()
    close(theirs)


@pytest.mark.asyncio
async def test_waiting_leaves_nothing_behind() -> None:
    process, theirs = piped()
    for _ in range(100):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await process.wait()
    assert process._waiters == []
    process.close()
    close(theirs)
