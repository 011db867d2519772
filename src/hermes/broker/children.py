"""The launcher's children: started with the descriptors they need, told apart from the orphans that a subreaper inherits."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Child:
    """A process of Hermes's own: `status` lines arrive in `lines`; `ended` is set when it has exited, with `code`."""

    name: str
    pid: int
    lines: "asyncio.Queue[str]" = field(default_factory=asyncio.Queue)
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

    def __init__(self) -> None:
        self._children: dict[int, Child] = {}
        self._readers: set[int] = set()

    def watch(self) -> None:
        """Begin to reap. Call once, in the main thread's event loop."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._reap)

    def start(self, name: str, module: Sequence[str], fds: Sequence[tuple[str, int]]) -> Child:
        """Start `python -m module…` with `--name fd` for each of `fds`, which it inherits, and `--status fd` of a pipe."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        passed = [*fds, ("--status", writer)]
        arguments = [str(item) for pair in passed for item in pair]
        process = subprocess.Popen(
            [sys.executable, "-m", *module, *arguments],
            stdin=subprocess.DEVNULL,
            pass_fds=[fd for _, fd in passed],
            process_group=0,  # Ctrl-C is the launcher's to hear
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
            buffer[:] = rest
            for line in lines:
                child.lines.put_nowait(line.decode(errors="replace"))

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

    async def end(self, child: Child, *, patience: float, log: Callable[[str], object]) -> None:
        """Ask the child to end; after `patience` seconds, make it."""
        if child.ended.is_set():
            return
        os.kill(child.pid, signal.SIGTERM)
        try:
            async with asyncio.timeout(patience):
                await child.ended.wait()
        except TimeoutError:
            log(f"the {child.name} does not end: killing it")
            os.kill(child.pid, signal.SIGKILL)
            await child.ended.wait()
