"""The box socket of one container, served over Docker's exec API, where no spawner can enter: the daemon is on another machine.

The other end of the socket gets the ends of pipes (or of a socket pair, for a terminal); this side pumps between them and the
stream of an exec. At most a few hundred KiB wait in either direction: who does not read is not written to.
"""

import asyncio
import os
import secrets
import socket
from contextlib import suppress
from typing import Any, ClassVar

from aiodocker import Docker, DockerError
from aiodocker.execs import Exec
from aiodocker.stream import Stream

from hermes.broker.engines import exec_scripts as scripts
from hermes.broker.engines.docker_stream import FAULTS, close_stream, opened, write_eof, written
from hermes.broker.engines.exec_server import CALL_TIMEOUT, MAX_EARLY, ExecProcess, ExecServer, Refused
from hermes.container.fds import read_fd, write_fd
from hermes.container.messages import BoxReply, Exited, Spawn, Spawned
from hermes.container.packets import close_fds

LAST_OUTPUT = 3.0
"""Seconds without output after which nothing more is expected of a process that has ended."""
STDIN, STDOUT, STDERR = 0, 1, 2
_STUCK = 1.0
_POLLS = (0.005, 0.5)
"""Seconds between questions whether a process ended, after its streams did: the first pause and the longest."""


class _Process(ExecProcess):
    """One exec."""

    def __init__(self, spawn: Spawn, stream: Stream, exec_id: str, pid: int, early: list[tuple[int, bytes]]) -> None:
        super().__init__(spawn.id, pid, tty=spawn.terminal is not None)
        self.stream = stream
        self.exec_id = exec_id
        self.early = early
        """Output, by stream, that came together with the greeting."""
        self.over = False
        """It is known to have ended; its stream may not know."""
        self.reading: asyncio.Timeout | None = None
        """Bounds the wait for output, once it is over."""
        self.fds: dict[int, int] = {}
        """Our ends by stream number; a terminal is one fd under two numbers."""

    def has_ended(self) -> None:
        """What is on its way still arrives, but nothing more is waited for."""
        self.over = True
        if self.reading is not None:
            self.reading.reschedule(asyncio.get_running_loop().time() + LAST_OUTPUT)

    async def next_output(self) -> tuple[int, bytes] | None:
        """The next piece of output and its stream; None at the end. TimeoutError if it is over and nothing comes."""
        async with asyncio.timeout(LAST_OUTPUT if self.over else None) as self.reading:
            message = await self.stream.read_out()
        self.reading = None
        return None if message is None else (message.stream, message.data)

    def drop(self, stream: int) -> None:
        """Close our end of that stream. Safe to call twice."""
        if (fd := self.fds.pop(stream, None)) is not None and fd not in self.fds.values():
            os.close(fd)


class DockerExecServer(ExecServer[_Process]):
    """Serve `sock`, a `SOCK_SEQPACKET` socket it takes over, for a container. Processes outlive its other end.

    `unset`: names of the variables the container's own configuration sets.
    """

    faults: ClassVar[tuple[type[Exception], ...]] = FAULTS

    def __init__(self, docker: Docker, container: str, sock: socket.socket, *, unset: tuple[str, ...] = ()) -> None:
        super().__init__(container, sock)
        self._docker = docker
        self._unset = unset

    # ---- one process

    async def _see_through(self, process: _Process) -> BoxReply:
        """Hand a running process out, serve it to its end, and return that. OSError if no fds can be made for it."""
        try:
            theirs = _make_fds(process)
            self._processes[process.id] = process
            self._say(Spawned(id=process.id, pid=process.pid), theirs)
            await self._pump(process)
        finally:
            for stream in (STDIN, STDOUT, STDERR):
                process.drop(stream)
            await close_stream(process.stream)
        return await self._ended(process)

    async def _start(self, spawn: Spawn) -> _Process:
        """Start it; an unknown user is made first."""
        try:
            return await self._greeted(spawn)
        except (Refused, DockerError) as error:
            if "unable to find user" not in str(error):
                raise
        await self._make_account(spawn.user)
        return await self._greeted(spawn)

    async def _greeted(self, spawn: Spawn) -> _Process:
        """Start an exec and return when its script has greeted: what follows is the process's own."""
        token = secrets.token_hex(8)
        command = scripts.login(spawn, token, self._unset)
        tty = spawn.terminal is not None
        exec_id = await self._create(command, spawn.user, tty=tty)
        stream = Exec(self._docker, exec_id, tty=tty).start()
        try:
            seen = {STDOUT: b"", STDERR: b""}
            # What the process writes to stderr can overtake the greeting, which goes to stdout.
            while b"\n" not in seen[STDOUT] and len(seen[STDOUT]) + len(seen[STDERR]) < MAX_EARLY:
                if (message := await stream.read_out()) is None:
                    break
                seen[STDERR if message.stream == STDERR else STDOUT] += message.data
            line, _, rest = seen[STDOUT].partition(b"\n")
            greeting = scripts.greeting(line, token)
            if greeting is None:
                said = (seen[STDOUT] + seen[STDERR])[:MAX_EARLY]
                raise Refused(said.decode(errors="replace").strip() or "it ended at once")
            early = [(STDERR, seen[STDERR]), (STDOUT, rest)]
            process = _Process(spawn, stream, exec_id, greeting.pid, early)
            if spawn.terminal is not None and not greeting.sized:
                await self._resize(process, scripts.limit(spawn.terminal.height), scripts.limit(spawn.terminal.width))
        except BaseException:
            await close_stream(stream)
            raise
        return process

    async def _create(self, command: list[str], user: str, *, tty: bool = False) -> str:
        wanted = {"AttachStdin": True, "AttachStdout": True, "AttachStderr": True, "Tty": tty, "Cmd": command, "User": user}
        answer = await self._docker._query_json(f"containers/{self._name}/exec", method="POST", data=wanted)
        return str(answer["Id"])

    async def _run_as_root(self, command: list[str]) -> None:
        stream = Exec(self._docker, await self._create(command, "0"), tty=False).start()
        try:
            write_eof(await opened(stream))
            while await stream.read_out() is not None:
                pass
        finally:
            await close_stream(stream)

    # ---- its streams

    async def _pump(self, process: _Process) -> None:
        """Return when the process's output has ended."""
        async with asyncio.TaskGroup() as group:
            others = [group.create_task(self._feed(process)), group.create_task(self._control(process))]
            with suppress(*FAULTS):
                await self._deliver(process)
            for task in others:
                task.cancel()

    async def _deliver(self, process: _Process) -> None:
        """Bring output to the other end. Where nobody reads any more, a SIGPIPE tells the writer, and output is dropped."""
        for stream, data in process.early:
            await self._deliver_one(process, stream, data)
        process.early.clear()
        while (output := await process.next_output()) is not None:
            await self._deliver_one(process, *output)

    async def _deliver_one(self, process: _Process, stream: int, data: bytes) -> None:
        if (fd := process.fds.get(stream)) is None:
            return
        try:
            await write_fd(fd, data)
        except OSError:
            process.drop(stream)
            process.signal(*(("HUP", "CONT") if process.tty else ("PIPE",)))

    async def _feed(self, process: _Process) -> None:
        """Bring input to the process. The end of it is passed on; a terminal that is closed hangs up."""
        fd = process.fds[STDIN]
        with suppress(*FAULTS):
            while data := await read_fd(fd):
                await self._write_in(process, data)
        if process.tty:
            process.signal("HUP", "CONT")
        else:
            process.drop(STDIN)
            with suppress(*FAULTS):
                write_eof(await opened(process.stream))

    async def _write_in(self, process: _Process, data: bytes) -> None:
        """Write input to the process. Docker does not end the stream of one that ended while its input was stuck: so ask."""
        # A task of its own: aiohttp's wait for room does not survive that it is cancelled, and waited for again.
        writing = self._tasks.spawn(written(process.stream, data), name=f"input {process.id}")
        try:
            while not (await asyncio.wait({writing}, timeout=_STUCK))[0]:
                if (await self._state(process)).get("Running") is False:
                    process.has_ended()
                    raise ConnectionResetError("the process has ended")
        finally:
            writing.cancel()
        if not writing.result():
            raise ConnectionResetError("the stream is closed")

    async def _resize(self, process: _Process, rows: int, columns: int) -> None:
        async with asyncio.timeout(CALL_TIMEOUT):
            await Exec(self._docker, process.exec_id).resize(h=rows, w=columns)

    # ---- its end

    async def _state(self, process: _Process) -> dict[str, Any]:
        async with asyncio.timeout(CALL_TIMEOUT):
            return await Exec(self._docker, process.exec_id).inspect()

    async def _ended(self, process: _Process) -> Exited:
        """How it ended. Docker may not know at once."""
        pause, longest = _POLLS
        failures = 0
        while True:
            try:
                state = await self._state(process)
            except FAULTS as error:
                failures += 1
                if failures > 3 or self._gone.is_set() or (isinstance(error, DockerError) and error.status in {404, 409}):
                    return Exited(id=process.id, signal="KILL")
            else:
                if not state.get("Running") and (status := state.get("ExitCode")) is not None:
                    return self._exit(process, int(status))
                if self._gone.is_set():
                    return Exited(id=process.id, signal="KILL")
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, longest)


def _make_fds(process: _Process) -> tuple[int, ...]:
    """Make the process's fds; return those that go to the other end."""
    if process.tty:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        process.fds = dict.fromkeys((STDIN, STDOUT, STDERR), ours.detach())
        return (theirs.detach(),)
    opened: list[int] = []
    try:
        for _ in range(3):
            opened += os.pipe2(os.O_CLOEXEC)
    except OSError:
        close_fds(opened)
        raise
    in_read, in_write, out_read, out_write, err_read, err_write = opened
    process.fds = {STDIN: in_read, STDOUT: out_write, STDERR: err_write}
    for fd in process.fds.values():
        os.set_blocking(fd, False)
    return in_write, out_read, err_read
