"""The box socket of one container, served over Docker's exec API, where no spawner can enter: the daemon is on another machine.

The other end of the socket gets the ends of pipes (or of a socket pair, for a terminal); this side pumps between them and the
stream of an exec. At most a few hundred KiB wait in either direction: who does not read is not written to.
"""

import asyncio
import os
import secrets
import signal
import socket
from contextlib import suppress
from typing import Any

import structlog
from aiodocker import Docker, DockerError
from aiodocker.execs import Exec
from aiodocker.stream import Stream

from hermes.broker.engines import docker_scripts as scripts
from hermes.broker.engines.docker_stream import FAULTS, close_stream, one_line, opened, read_fd, write_eof, write_fd, written
from hermes.container.messages import (
    SIGNALS,
    BoxReply,
    BoxRequest,
    Exited,
    Failed,
    Resize,
    Signal,
    Spawn,
    Spawned,
    decode_box_request,
    encode,
)
from hermes.container.packets import PacketSocket, close_fds, refuse_descriptors
from hermes.tasks import TaskOwner

log = structlog.get_logger(__name__)

MAX_PROCESSES = 64
"""Processes of one box that run or are being started over its socket at once."""
START_TIMEOUT = 20.0
"""Seconds a process has to start."""
CALL_TIMEOUT = 20.0
"""Seconds for a signal, a change of size, or the question how a process ended."""
LAST_OUTPUT = 3.0
"""Seconds without output after which nothing more is expected of a process that has ended."""
STDIN, STDOUT, STDERR = 0, 1, 2
_MAX_EARLY = 1 << 18
"""Bytes that may come before the greeting is complete: whoever says more is no script of ours."""
_PID_DIGITS = 10
_STUCK = 1.0
_POLLS = (0.005, 0.5)
"""Seconds between questions whether a process ended, after its streams did: the first pause and the longest."""
_NUMBERS = {name: signal.Signals[f"SIG{name}"].value for name in SIGNALS}


class _Refused(Exception):
    """The process could not be started; the text says why."""


class _Process:
    """One exec, from the request to its end. `pid` is the session it leads, in the box."""

    def __init__(self, spawn: Spawn, stream: Stream, exec_id: str, pid: int, early: list[tuple[int, bytes]]) -> None:
        self.id = spawn.id
        self.tty = spawn.terminal is not None
        self.stream = stream
        self.exec_id = exec_id
        self.pid = pid
        self.early = early
        """Output, by stream, that came together with the greeting."""
        self.asked = asyncio.Event()
        self.signals: dict[str, None] = {}
        """Still to be sent, in order; each at most once at a time."""
        self.sent: set[str] = set()
        self.size: tuple[int, int] | None = None
        """Still to be set: rows and columns."""
        self.over = False
        """It is known to have ended; its stream may not know."""
        self.reading: asyncio.Timeout | None = None
        """Bounds the wait for output, once it is over."""
        self.fds: dict[int, int] = {}
        """Our ends by stream number; a terminal is one fd under two numbers."""

    def signal(self, *names: str) -> None:
        """Have these sent to its session."""
        self.signals.update(dict.fromkeys(names))
        self.asked.set()

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


class ExecServer:
    """Serve `sock`, a `SOCK_SEQPACKET` socket it takes over, for a container. Processes outlive its other end.

    `unset`: names of the variables the container's own configuration sets.
    """

    def __init__(self, docker: Docker, container: str, sock: socket.socket, *, unset: tuple[str, ...] = ()) -> None:
        self._docker = docker
        self._container = container
        self._unset = unset
        self._processes: dict[int, _Process | None] = {}
        self._accounts: dict[str, asyncio.Task[None]] = {}
        self._tasks = TaskOwner(f"exec {container}")
        refuse_descriptors(sock)
        self._packets = PacketSocket[BoxRequest](sock, decode_box_request, self._received, self._closed)
        self._gone = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._packets.start()

    async def box_ended(self) -> None:
        """The container has stopped: let every process's end be told, then close the socket."""
        self._gone = True
        with suppress(TimeoutError):
            async with asyncio.timeout(CALL_TIMEOUT):
                await self._idle.wait()
        await self.close()

    async def close(self) -> None:
        """Let go of the socket and of all processes' streams, at once."""
        await self._tasks.close()
        self._packets.close()

    # ---- requests

    def _received(self, request: BoxRequest, fds: list[int]) -> None:
        process = self._processes.get(request.id)
        match request:
            case Spawn() if request.id in self._processes:
                self._say(Failed(id=request.id, error="id is in use"))
            case Spawn() if len(self._processes) >= MAX_PROCESSES or self._gone:
                self._say(Failed(id=request.id, error="Resource temporarily unavailable"))
            case Spawn():
                self._processes[request.id] = None
                self._idle.clear()
                self._tasks.spawn(self._serve(request), name=f"process {request.id}")
            case Signal() if process is not None and request.signal in SIGNALS:
                process.signal(request.signal)
            case Resize() if process is not None and process.tty:
                process.size = scripts.limit(request.height), scripts.limit(request.width)
                process.asked.set()

    def _closed(self, reason: str) -> None:
        log.debug("box socket closed", container=self._container, reason=reason)

    def _say(self, reply: BoxReply, fds: tuple[int, ...] = ()) -> None:
        self._packets.send(encode(reply), fds)

    # ---- one process

    async def _serve(self, spawn: Spawn) -> None:
        outcome: BoxReply
        try:
            async with asyncio.timeout(START_TIMEOUT):
                process = await self._start(spawn)
            outcome = await self._see_through(process)
        except (_Refused, scripts.Impossible, *FAULTS) as error:
            outcome = Failed(id=spawn.id, error=one_line(error))
        del self._processes[spawn.id]
        self._say(outcome)
        if not self._processes:
            self._idle.set()

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
        except (_Refused, DockerError) as error:
            if "unable to find user" not in str(error):
                raise
            if not scripts.may_be_made(spawn.user):
                raise _Refused("no such user") from error
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
            while b"\n" not in seen[STDOUT] and len(seen[STDOUT]) + len(seen[STDERR]) < _MAX_EARLY:
                if (message := await stream.read_out()) is None:
                    break
                seen[STDERR if message.stream == STDERR else STDOUT] += message.data
            line, _, rest = seen[STDOUT].partition(b"\n")
            words = line.split()
            if len(words) != 3 or words[0] != token.encode() or not words[1].isdigit() or len(words[1]) > _PID_DIGITS:
                said = (seen[STDOUT] + seen[STDERR])[:_MAX_EARLY]
                raise _Refused(said.decode(errors="replace").strip() or "it ended at once")
            early = [(STDERR, seen[STDERR]), (STDOUT, rest)]
            process = _Process(spawn, stream, exec_id, int(words[1]), early)
            if spawn.terminal is not None and words[2] == b"-":
                await self._resize(process, scripts.limit(spawn.terminal.height), scripts.limit(spawn.terminal.width))
        except BaseException:
            await close_stream(stream)
            raise
        return process

    async def _create(self, command: list[str], user: str, *, tty: bool = False) -> str:
        wanted = {"AttachStdin": True, "AttachStdout": True, "AttachStderr": True, "Tty": tty, "Cmd": command, "User": user}
        answer = await self._docker._query_json(f"containers/{self._container}/exec", method="POST", data=wanted)
        return str(answer["Id"])

    async def _make_account(self, name: str) -> None:
        """Make a user's account, once, however many processes ask for it at the same time."""
        task = self._accounts.get(name)
        if task is None:
            task = self._accounts[name] = self._tasks.spawn(self._as_root(scripts.account(name)), name=f"account {name}")
            task.add_done_callback(lambda _: self._accounts.pop(name, None))
        await asyncio.shield(task)

    async def _as_root(self, command: list[str]) -> None:
        """Run a command as root in the box and return when it has ended. What it writes is nobody's business."""
        with suppress(*FAULTS):
            async with asyncio.timeout(CALL_TIMEOUT):
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

    async def _control(self, process: _Process) -> None:
        """Send signals and set sizes, one after the other; of what comes in between only the latest counts."""
        while True:
            await process.asked.wait()
            process.asked.clear()
            if (size := process.size) is not None:
                process.size = None
                with suppress(*FAULTS):
                    await self._resize(process, *size)
            if names := tuple(process.signals):
                process.signals.clear()
                process.sent.update(names)
                await self._as_root(scripts.signal(process.pid, names))

    async def _resize(self, process: _Process, rows: int, columns: int) -> None:
        async with asyncio.timeout(CALL_TIMEOUT):
            await Exec(self._docker, process.exec_id).resize(h=rows, w=columns)

    # ---- its end

    async def _state(self, process: _Process) -> dict[str, Any]:
        async with asyncio.timeout(CALL_TIMEOUT):
            return await Exec(self._docker, process.exec_id).inspect()

    async def _ended(self, process: _Process) -> Exited:
        """How it ended. Docker tells 128+n for signal n as well as for such a status: it counts as a signal if we know of one."""
        pause, longest = _POLLS
        failures = 0
        while True:
            try:
                state = await self._state(process)
            except FAULTS as error:
                failures += 1
                if failures > 3 or self._gone or (isinstance(error, DockerError) and error.status in {404, 409}):
                    return Exited(id=process.id, signal="KILL")
            else:
                if not state.get("Running") and (status := state.get("ExitCode")) is not None:
                    return self._exit(process, int(status))
                if self._gone:
                    return Exited(id=process.id, signal="KILL")
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, longest)

    def _exit(self, process: _Process, status: int) -> Exited:
        known = process.sent | ({"KILL"} if self._gone else set())
        for name in known:
            if status == 128 + _NUMBERS.get(name, -1):
                return Exited(id=process.id, signal=name)
        return Exited(id=process.id, status=status & 0xFF)


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
