"""Between the client and the container: bytes both ways, each recorded before it is delivered."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from hermes.container import Container, ContainerProcess, Exit
from hermes.container.fds import write_fd
from hermes.container.messages import Terminal
from hermes.errors import HermesError, RecordingError
from hermes.recording import SessionRecorder
from hermes.server.backend import PTYRequest
from hermes.session.streams import FdReader

PIECE = 32 * 1024
"""Bytes of input taken at once, at most; between two pieces the other sessions have their turn."""


class ContainerLostError(HermesError):
    """The container went away under its session."""


class _ClientGoneError(Exception):
    """The client closed the channel, or is gone."""


class ClientProcess(Protocol):
    """The client's side of a channel."""

    stdin: Any
    """`await read() -> bytes`, empty at the end."""
    stdout: Any
    """`write(bytes)`, `await drain()`."""
    stderr: Any

    def exit(self, status: int = 0) -> None: ...
    def exit_with_signal(self, signal: str, core_dumped: bool = False) -> None: ...


class ContainerProxy:
    """Run one process in the container for one channel, and connect the two.

    `start()` starts it, `wait_completion()` returns when it has ended and all of its output is sent, or the client is gone;
    `stop()` lets go of everything and may be called at any time, any number of times.
    """

    def __init__(
        self,
        container: Container,
        process: ClientProcess,
        pty_request: PTYRequest | None = None,
        recorder: SessionRecorder | None = None,
        *,
        user: str = "root",
        command: bytes | None = None,
        env: Mapping[bytes, bytes] | None = None,
        channel: int | None = None,
        on_input: Callable[[bytes], None] | None = None,
    ) -> None:
        """`command` None runs the user's login shell; `on_input` sees the client's bytes once they are recorded."""
        self._container = container
        self._client = process
        self._pty = pty_request
        self._recorder = recorder
        self._user = user
        self._command = command
        self._env = dict(env or {})
        self._channel = channel
        self._on_input = on_input
        self._process: ContainerProcess | None = None
        self._over: asyncio.Future[None] | None = None

    @property
    def exit(self) -> Exit | None:
        """How the process ended, once it has."""
        return self._process.exit if self._process is not None else None

    async def start(self) -> None:
        """Start the process. Raises SpawnError or EngineError when the container cannot."""
        pty = self._pty
        terminal = None
        if pty is not None:
            terminal = Terminal(
                term=pty.term_type,
                width=pty.width,
                height=pty.height,
                pixel_width=pty.pixel_width,
                pixel_height=pty.pixel_height,
                modes=dict(pty.modes),
            )
        self._over = asyncio.get_running_loop().create_future()
        self._process = await self._container.spawn(
            user=self._user, command=self._command, env=self._env, terminal=terminal, channel=self._channel
        )  # fmt: skip
        self._client.controls = self  # type: ignore[attr-defined]
        self._catch_up()
        if getattr(self._client, "closed", False) is True:
            self.gone()

    def _catch_up(self) -> None:
        """Pass on a window size that came while the process was being started."""
        wanted: PTYRequest | None = getattr(self._client, "pty", None)
        if self._pty is None or wanted is None:
            return
        size = (wanted.width, wanted.height, wanted.pixel_width, wanted.pixel_height)
        if size != (self._pty.width, self._pty.height, self._pty.pixel_width, self._pty.pixel_height):
            self.resize(*size)

    async def wait_completion(self) -> None:
        """Return when process or client is done; the client has then been told the exit status.

        Raises RecordingError when the recording failed: nothing was delivered that was not recorded. Raises
        ContainerLostError when the container is gone.
        """
        if self._process is None or self._over is None:
            raise RuntimeError("start() first")
        exit: Exit | None = None
        failure: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as group:
                helpers = [group.create_task(self._pump_input(self._process)), group.create_task(self._until_over(self._over))]
                exit = await self._pump_output(self._process, group)
                for helper in helpers:
                    helper.cancel()
        except* _ClientGoneError:
            pass
        except* RecordingError as failures:
            failure = failures.exceptions[0]
        if failure is not None:
            raise failure
        if exit is None:
            return
        if exit.lost:
            raise ContainerLostError(f"container {self._container.id} is gone")
        if exit.signal is not None:
            self._client.exit_with_signal(exit.signal, exit.core_dumped)
        else:
            self._client.exit(exit.status or 0)

    async def stop(self) -> None:
        """Let go of the process: its terminal hangs up, its pipes close."""
        self._client.controls = None  # type: ignore[attr-defined]
        if self._process is not None:
            self._process.close()

    # ---- told by the channel, at any time

    def resize(self, width: int, height: int, pixel_width: int = 0, pixel_height: int = 0) -> None:
        """Pass on the client's window size."""
        if self._process is None:
            return
        if self._recorder is not None:
            try:
                self._recorder.resize(width, height, pixel_width, pixel_height)
            except RecordingError as error:
                self._end(error)
                return
        self._process.resize(width, height, pixel_width, pixel_height)

    def signal(self, name: str) -> None:
        """Pass on a signal."""
        if self._process is None:
            return
        if self._recorder is not None:
            try:
                self._recorder.marker(f"signal {name}")
            except RecordingError as error:
                self._end(error)
                return
        self._process.signal(name)

    def gone(self) -> None:
        """The channel is closed: nothing can be delivered any more."""
        self._end(_ClientGoneError())

    def _end(self, reason: Exception) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_exception(reason)
            self._over.exception()  # seen, even if nobody waits

    # ---- the pumps

    async def _until_over(self, over: "asyncio.Future[None]") -> None:
        await asyncio.shield(over)

    async def _pump_input(self, process: ContainerProcess) -> None:
        target = process.terminal if process.terminal is not None else process.stdin
        while data := await self._client.stdin.read():
            for start in range(0, len(data), PIECE):
                piece = data[start : start + PIECE]
                if self._recorder is not None:
                    self._recorder.input(piece)
                if self._on_input is not None:
                    self._on_input(piece)
                if target is not None:
                    try:
                        await write_fd(target, piece)
                    except OSError:  # the process closed its input: what else comes is recorded, and dropped
                        target = None
                await asyncio.sleep(0)  # a paster must not starve the other sessions
        if self._recorder is not None:
            self._recorder.input_eof()
        process.close_stdin()

    async def _pump_output(self, process: ContainerProcess, group: asyncio.TaskGroup) -> Exit:
        """Deliver all output. Return how the process ended."""
        if process.terminal is not None:
            reader = FdReader(process.terminal)
            pump = group.create_task(self._pump(reader, self._client.stdout, stderr=False))
            exit = await process.wait()
            reader.finish()
            await pump
            return exit
        assert process.stdout is not None
        assert process.stderr is not None
        out, err = FdReader(process.stdout), FdReader(process.stderr)
        group.create_task(self._finish_when_lost(process, out, err))
        errors = group.create_task(self._pump(err, self._client.stderr, stderr=True))
        await self._pump(out, self._client.stdout, stderr=False)
        await errors
        return await process.wait()

    async def _finish_when_lost(self, process: ContainerProcess, *readers: FdReader) -> None:
        """Without its container a pipe may never come to its end: take what is in it, and be done."""
        if (await process.wait()).lost:
            for reader in readers:
                reader.finish()

    async def _pump(self, reader: FdReader, stream: Any, *, stderr: bool) -> None:
        recorder = self._recorder
        while data := await reader.read():
            if recorder is not None:
                recorder.output(data, stderr=stderr)
            stream.write(data)
            await stream.drain()
            await asyncio.sleep(0)  # a fast writer must not starve the other sessions
