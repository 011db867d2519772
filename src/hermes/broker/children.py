"""The launcher's children: started with the descriptors they need, told apart from the orphans that a subreaper inherits."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

LINE_BYTES = 8192
"""Of a longer line, this much arrives."""
LINES = 256
"""Lines that wait to be read; what a child says beyond is dropped."""
PAUSE = 0.5
"""Seconds for which a child that says too much is not read."""

_KEPT = re.compile(r"PATH|TZ|LANG|LC_[A-Z]+|HERMES_DATA_DIR|HERMES_TEST_[A-Z_]+")


def environment(own: Mapping[str, str]) -> dict[str, str]:
    """What a child gets of the launcher's own environment: nothing that could be a secret or change what Python runs.

    (Settings come another way; the data directory stands in it for those who look through /proc.)
    """
    return {name: value for name, value in own.items() if _KEPT.fullmatch(name)}


@dataclass(slots=True)
class Child:
    """A process of Hermes's own: `status` lines arrive in `lines`; `ended` is set when it has exited, with `code`."""

    name: str
    pid: int
    lines: "asyncio.Queue[str]" = field(default_factory=lambda: asyncio.Queue(LINES))
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    code: int | None = None
    """Exit status, or minus the number of the signal that ended it."""

    @property
    def how(self) -> str:
        """How it ended, for an operator."""
        if self.code is None:
            return "runs"
        return f"exit status {self.code}" if self.code >= 0 else f"killed by {signal.Signals(-self.code).name}"


class Children:
    """Starts processes and reaps every process that ends below this one, its own children or not."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._children: dict[int, Child] = {}

    def watch(self) -> None:
        """Begin to reap. Call once, in the main thread's event loop."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._reap)

    def start(
        self, name: str, module: Sequence[str], fds: Sequence[tuple[str, int]], secrets: Mapping[str, str] | None = None
    ) -> Child:
        """Start `python -m module…` with `--name fd` for each of `fds`, which it inherits, and `--status fd` of a pipe. `secrets`
        are variables of its environment alone.

        It is in a session of its own: Ctrl-C is the launcher's to hear, and no child can type into the operator's shell.
        """
        reader, writer = os.pipe2(os.O_CLOEXEC)
        passed = [*fds, ("--status", writer)]
        arguments = [str(item) for pair in passed for item in pair]
        with _output(1) as out, _output(2) as error:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", *module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=error,
                pass_fds=[fd for _, fd in passed],
                env={**self._environment, **(secrets or {})},
                cwd="/",
                start_new_session=True,
            )
        process.returncode = 0  # reaped here, never by subprocess
        os.close(writer)
        child = self._children[process.pid] = Child(name, process.pid)
        self._read_lines(reader, child)
        self._reap()
        return child

    def _read_lines(self, fd: int, child: Child) -> None:
        loop = asyncio.get_running_loop()
        os.set_blocking(fd, False)
        buffer = bytearray()

        def readable() -> None:
            try:
                data = os.read(fd, 65536)
            except BlockingIOError:
                return
            if not data:
                loop.remove_reader(fd)
                os.close(fd)
                return
            buffer.extend(data)
            *lines, rest = bytes(buffer).split(b"\n")
            buffer[:] = rest[:LINE_BYTES]
            try:
                for line in lines:
                    child.lines.put_nowait(line[:LINE_BYTES].decode(errors="replace"))
            except asyncio.QueueFull:  # it says more than anybody could want to know: let it wait
                loop.remove_reader(fd)
                loop.call_later(PAUSE, loop.add_reader, fd, readable)

        loop.add_reader(fd, readable)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self._children.pop(pid, None)
            if child is not None:
                child.code = os.waitstatus_to_exitcode(status)
                child.ended.set()

    async def end(
        self, child: Child, *, patience: float, log: Callable[[str], object], ask: signal.Signals = signal.SIGTERM
    ) -> None:
        """Ask the child to end; after `patience` seconds, make it."""
        if child.ended.is_set():
            return
        os.kill(child.pid, ask)
        try:
            async with asyncio.timeout(patience):
                await child.ended.wait()
        except TimeoutError:
            log(f"the {child.name} does not end: killing it")
            os.kill(child.pid, signal.SIGKILL)
            await child.ended.wait()

    async def end_orphans(self, *, patience: float, log: Callable[[str], object]) -> None:
        """Kill whatever is below this process and none of its own, and what becomes its child by that, until nothing is left
        or time is up."""
        try:
            async with asyncio.timeout(patience):
                while pids := _below() - self._children.keys():
                    for pid in pids:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
                    await asyncio.sleep(0.01)
                    self._reap()
        except TimeoutError:
            log(f"processes do not end yet: {', '.join(map(str, sorted(_below() - self._children.keys())))}")


def _below() -> set[int]:
    """Pids of this process's children, those included that have ended and were not reaped."""
    found: set[int] = set()
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found.update(map(int, (thread / "children").read_text().split()))
    return found


@contextlib.contextmanager
def _output(fd: int) -> Iterator[int | None]:
    """What a child gets for our descriptor 1 or 2; None for that itself. Of a terminal it gets one that it can only write to:
    who can read from a terminal can make it his own."""
    if not os.isatty(fd):
        yield None
        return
    fresh = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        yield fresh
    finally:
        os.close(fresh)
