"""A box socket in the hands of a test or a bench: start processes in a box, talk to them, see how they end."""

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from hermes.container import Container, ContainerProcess, Exit, Terminal
from hermes.container.fds import CHUNK, read_fd, write_fd

PATIENCE = 30.0
"""Seconds after which something awaited counts as never going to happen."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a process wrote (with a terminal, all of it is `stdout`) and how it ended."""

    exit: Exit
    stdout: bytes
    stderr: bytes

    @property
    def status(self) -> int | None:
        """The exit status; None if a signal ended it."""
        return self.exit.status


async def eventually(condition: Callable[[], Awaitable[bool]], *, patience: float = PATIENCE, interval: float = 0.02) -> None:
    """Return when the condition holds; TimeoutError when it does not come to hold."""
    async with asyncio.timeout(patience):
        while not await condition():  # noqa: ASYNC110 - a box cannot set an event of ours
            await asyncio.sleep(interval)


class Running:
    """A process of a box. Every wait of it is bounded by `PATIENCE`."""

    def __init__(self, process: ContainerProcess) -> None:
        self.process = process
        self._pending = b""

    @property
    def _input(self) -> int:
        fd = self.process.terminal if self.process.terminal is not None else self.process.stdin
        assert fd is not None, "its input is closed"
        return fd

    @property
    def _output(self) -> int:
        fd = self.process.terminal if self.process.terminal is not None else self.process.stdout
        assert fd is not None, "its output is closed"
        return fd

    async def read(self, size: int = CHUNK) -> bytes:
        """Some output, empty at its end."""
        if self._pending:
            data, self._pending = self._pending[:size], self._pending[size:]
            return data
        async with asyncio.timeout(PATIENCE):
            return await read_fd(self._output, size)

    async def read_until(self, needle: bytes) -> bytes:
        """Output up to and with the needle. AssertionError, with what came, if the output ends without it or it does not come."""
        seen, self._pending = self._pending, b""
        try:
            async with asyncio.timeout(PATIENCE):
                while needle not in seen:
                    data = await read_fd(self._output)
                    assert data, f"ended without {needle!r}: {seen!r}"
                    seen += data
        except TimeoutError:
            raise AssertionError(f"{needle!r} did not come: {seen[-2000:]!r}") from None
        end = seen.index(needle) + len(needle)
        self._pending = seen[end:]
        return seen[:end]

    async def write(self, data: bytes) -> None:
        """Write all of it to the process."""
        async with asyncio.timeout(PATIENCE):
            await write_fd(self._input, data)

    async def wait(self) -> Exit:
        """How it ended."""
        async with asyncio.timeout(PATIENCE):
            return await self.process.wait()

    async def result(self, stdin: bytes | None = b"") -> Result:
        """Feed it, end its input (unless `stdin` is None), take all it writes, wait for its end, and close it."""
        try:
            async with asyncio.timeout(2 * PATIENCE), asyncio.TaskGroup() as group:
                if stdin is not None:
                    group.create_task(self._feed(stdin))
                out = group.create_task(self._all(self._output))
                err = None if self.process.stderr is None else group.create_task(self._all(self.process.stderr))
                ended = group.create_task(self.process.wait())
            return Result(ended.result(), self._pending + out.result(), b"" if err is None else err.result())
        finally:
            self.close()

    def close(self) -> None:
        """Close its fds; a terminal hangs up."""
        self.process.close()

    async def _feed(self, data: bytes) -> None:
        try:
            await write_fd(self._input, data)
        except OSError as error:
            if error.errno not in {errno.EPIPE, errno.EIO, errno.ECONNRESET}:
                raise
        self.process.close_stdin()

    @staticmethod
    async def _all(fd: int) -> bytes:
        taken = bytearray()
        while data := await read_fd(fd):
            taken += data
        return bytes(taken)


class BoxClient:
    """A box to start processes in. Closing it lets go of the box socket, not of the box."""

    def __init__(self, sock: socket.socket, id: str = "box") -> None:
        self.container = Container(id, sock)

    async def start(
        self,
        command: str | bytes | None = None,
        *argv: bytes,
        user: str = "root",
        env: dict[bytes, bytes] | None = None,
        cwd: bytes | None = None,
        terminal: Terminal | None = None,
    ) -> Running:
        """Start a command of the login shell; or, with a command of None, exactly `argv`; or, without either, the login shell.

        Raises what `Container.spawn` raises.
        """
        line = command.encode() if isinstance(command, str) else command
        async with asyncio.timeout(PATIENCE):
            spawn = self.container.spawn(user=user, argv=argv, command=line, env=env, cwd=cwd, terminal=terminal)
            return Running(await spawn)

    async def run(
        self,
        command: str | bytes | None = None,
        *argv: bytes,
        stdin: bytes = b"",
        user: str = "root",
        env: dict[bytes, bytes] | None = None,
        cwd: bytes | None = None,
        terminal: Terminal | None = None,
    ) -> Result:
        """Start a process as `start()` does, and see it through to its end."""
        process = await self.start(command, *argv, user=user, env=env, cwd=cwd, terminal=terminal)
        return await process.result(stdin if terminal is None else None)

    async def output(self, command: str | bytes, *, user: str = "root") -> str:
        """What a command writes, stripped. AssertionError if it fails."""
        result = await self.run(command, user=user)
        assert result.status == 0, result
        return result.stdout.decode().strip()

    def close(self) -> None:
        """Let go of the box socket. Safe to call twice."""
        self.container.stop()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
