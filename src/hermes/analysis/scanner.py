"""Hostile files are looked at by a process that can do nothing but read one of them, compute, and answer.

The *scanner* is forked from the analyst while that is still small and has no threads. It gives up its user, its capabilities
and all files, and then only waits: for each file that the analyst hands it (`SCM_RIGHTS`), it forks a *look*, which has limits
of memory and time, the system calls of `filters.look()` (`broker/filters.py`), and ends with the file. So a file that breaks a
parser ends its own look; one that takes it over sees no other file and changes no other's answer, and it can tell the analyst
only one bounded record about itself.
"""

import contextlib
import ctypes
import gc
import math
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import msgspec

from hermes.confine import kernel, landlock
from hermes.confine.process import drop_privileges
from hermes.errors import MachineError

MAX_ANSWER = 60_000
"""Bytes of an answer; more is no answer."""
PATIENCE = 15.0
"""Seconds that the scanner may take beyond the time that the look may."""
_DESCRIPTORS = 16
_PR_SET_NAME = 15
_MAX_OUTCOME = MAX_ANSWER + 4096

Look = Callable[[int], bytes]
"""Looks at the file that this descriptor reads; returns the answer."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one look may use."""

    seconds: float
    memory: int
    """Bytes of address space beyond what the scanner had when it began."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a look ended: with an answer, or with the reason why there is none."""

    answer: bytes | None = None
    failure: str | None = None
    seconds: float = 0.0


class Scanner:
    """The analyst's end. `look` is from one thread at a time."""

    def __init__(self, look: Look, *, user: str | None, program: bytes, limits: Limits, keep: Sequence[int] = ()) -> None:
        """Fork the scanner; the calling process must have no threads. Raises MachineError.

        `look` runs in the forked processes, with whatever it has loaded by now; `user`: whom to become (None: nobody else);
        `program`: the filter that each look submits to; `keep`: descriptors that the scanner keeps open besides its own.
        """
        self._limits = limits
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        gc.collect()
        gc.freeze()
        self.pid = os.fork()
        if self.pid == 0:
            _run(theirs, look, user, program, limits, {2, theirs.fileno(), *keep})
        gc.unfreeze()
        theirs.close()
        self._socket = ours
        ours.settimeout(limits.seconds + PATIENCE)
        first = self._receive()
        if first != b"ready":
            self.close()
            raise MachineError(f"the scanner cannot start: {first.decode(errors='replace') or 'it died'}")

    def look(self, fd: int) -> Outcome:
        """Have the file looked at; return when that has ended in any way. Raises MachineError when the scanner died."""
        try:
            socket.send_fds(self._socket, [b"look"], [fd], socket.MSG_NOSIGNAL)
        except OSError as error:
            raise MachineError(f"the scanner is gone: {error.strerror}") from error
        data = self._receive()
        try:
            return msgspec.msgpack.decode(data, type=Outcome)
        except msgspec.MsgspecError:
            raise MachineError("the scanner is gone") from None

    def close(self) -> None:
        """End the scanner, and what it does."""
        self._socket.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(_MAX_OUTCOME)
        except OSError as error:
            raise MachineError(f"the scanner does not answer: {error.strerror or 'in time'}") from error


# ---- in the scanner


def _run(sock: socket.socket, look: Look, user: str | None, program: bytes, limits: Limits, keep: set[int]) -> NoReturn:
    """Be the scanner; never return."""
    try:
        _close_all_but(keep)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
        ctypes.CDLL(None).prctl(_PR_SET_NAME, b"hermes-scanner", 0, 0, 0)
        base = _address_space()
        if user is not None:
            drop_privileges(user)
        else:
            kernel.set_no_new_privileges()
            kernel.set_undumpable()
            kernel.set_parent_death_signal(signal.SIGTERM)
        landlock.restrict([], landlock.abi())
        sock.send(b"ready")
        _serve(sock, look, program, Limits(seconds=limits.seconds, memory=base + limits.memory))
        os._exit(0)
    except BaseException as error:  # noqa: BLE001 - a forked process ends here, whatever happens
        with contextlib.suppress(OSError):
            sock.send(str(error).encode()[:1000])
        os._exit(1)


def _serve(sock: socket.socket, look: Look, program: bytes, limits: Limits) -> None:
    """Answer until the analyst is gone."""
    while True:
        data, fds, _, _ = socket.recv_fds(sock, 64, 1)
        if not data:
            return
        try:
            outcome = _one(sock, look, fds[0], program, limits)
        finally:
            for fd in fds:
                os.close(fd)
        sock.send(msgspec.msgpack.encode(outcome))


def _one(sock: socket.socket, look: Look, fd: int, program: bytes, limits: Limits) -> Outcome:
    """Have a process of its own look at the file; it is dead when this returns."""
    began = time.monotonic()
    reading, writing = os.pipe()
    try:
        pid = os.fork()
    except OSError as error:
        os.close(reading)
        os.close(writing)
        return Outcome(failure=f"could not be looked at: {error.strerror}")
    if pid == 0:
        _look(look, fd, writing, program, limits)
    os.close(writing)
    answer, in_time = _read(reading, sock, began + limits.seconds)
    os.close(reading)
    if not in_time or len(answer) > MAX_ANSWER:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    seconds = time.monotonic() - began
    if not in_time:
        return Outcome(failure=f"the analysis was stopped after {limits.seconds:g} s", seconds=seconds)
    if len(answer) > MAX_ANSWER:
        return Outcome(failure="the analysis gave no answer that could be read", seconds=seconds)
    if os.WIFSIGNALED(status):
        return Outcome(failure=f"the analysis was killed: {_signal_name(os.WTERMSIG(status))}", seconds=seconds)
    if os.WEXITSTATUS(status):
        reason = answer[:200].decode(errors="replace") or "it gave no reason"
        return Outcome(failure=f"the analysis failed: {reason}", seconds=seconds)
    if not answer:
        return Outcome(failure="the analysis gave no answer that could be read", seconds=seconds)
    return Outcome(answer=answer, seconds=seconds)


def _read(fd: int, sock: socket.socket, deadline: float) -> tuple[bytes, bool]:
    """Read until the look closes its end or has said too much (True), or the time is over or the analyst gone (False)."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    poll.register(sock, select.POLLRDHUP)
    answer = b""
    while len(answer) <= MAX_ANSWER:
        left = deadline - time.monotonic()
        ready = dict(poll.poll(left * 1000)) if left > 0 else {}
        if not ready or sock.fileno() in ready:
            return answer, False
        part = os.read(fd, MAX_ANSWER + 1 - len(answer))
        if not part:
            return answer, True
        answer += part
    return answer, True


def _signal_name(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
    return {"SIGXCPU": "SIGXCPU (it took too much time)", "SIGSYS": "SIGSYS (a system call that no analysis makes)"}.get(
        name, name
    )


# ---- in a look


def _look(look: Look, fd: int, writing: int, program: bytes, limits: Limits) -> NoReturn:
    """Give up everything, look at the file, write the answer, and end."""
    try:
        kernel.set_parent_death_signal(signal.SIGKILL)
        for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT):
            signal.signal(number, signal.SIG_DFL)  # what libraries would do about them, the filter does not let them
        os.dup2(0, 2)
        _close_all_but({0, 1, 2, fd, writing})
        seconds = math.ceil(limits.seconds) + 1  # the scanner's clock comes first
        for kind, most in (
            (resource.RLIMIT_AS, limits.memory), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_FSIZE, 0),
            (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, _DESCRIPTORS), (resource.RLIMIT_NPROC, 0),
        ):  # fmt: skip
            resource.setrlimit(kind, (most, most))
        kernel.set_seccomp_filter(program)
        answer = look(fd)
        status = 0
    except MemoryError:
        answer, status = b"out of memory", 1
    except BaseException as error:  # noqa: BLE001 - a forked process ends here, whatever happens
        answer, status = f"{type(error).__name__}: {error}".encode(errors="replace")[:200], 1
    try:
        while answer:
            answer = answer[os.write(writing, answer) :]
    finally:
        os._exit(status)


def _close_all_but(keep: set[int]) -> None:
    low = 0
    for fd in sorted(keep):
        if low < fd:
            os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 1 << 20))


def _address_space() -> int:
    """Bytes of address space that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
