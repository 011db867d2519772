"""What all stand-ins for a spawner have in common, with an exec API that does what a test says."""

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from aiodocker import DockerError

from hermes.broker.engines import exec_server
from hermes.broker.engines.exec_server import MAX_PROCESSES, ExecProcess, ExecServer, Refused, one_line
from hermes.container.messages import BoxReply, Exited, Failed, Resize, Signal, Spawn, decode_box_reply, encode


class Api(ExecServer[ExecProcess]):
    """Processes that end when they are told to, by a status or by SIGTERM."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__("box", sock)
        self.started = asyncio.Event()
        self.end = asyncio.Event()
        self.status = 0
        self.commands: list[list[str]] = []
        self.sizes: list[tuple[int, int]] = []

    async def _start(self, spawn: Spawn) -> ExecProcess:
        if spawn.user != "root":
            await self._make_account(spawn.user)
        if spawn.command == b"hang":
            await asyncio.Event().wait()
        if spawn.command == b"fault":
            raise OSError("broken")
        return ExecProcess(spawn.id, 42, tty=spawn.terminal is not None)

    async def _see_through(self, process: ExecProcess) -> BoxReply:
        self._processes[process.id] = process
        self.started.set()
        control = self._tasks.spawn(self._control(process), name="control")
        await self.end.wait()
        control.cancel()
        return self._exit(process, self.status)

    async def _resize(self, process: ExecProcess, rows: int, columns: int) -> None:
        self.sizes.append((rows, columns))

    async def _run_as_root(self, command: list[str]) -> None:
        self.commands.append(command)
        if command[-1] == "TERM":
            self.status = 143
            self.end.set()


class Front:
    """The other end of the box socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.setblocking(False)

    def say(self, *messages: Spawn | Signal | Resize) -> None:
        for message in messages:
            self.sock.send(encode(message))

    async def hears(self) -> BoxReply:
        async with asyncio.timeout(20):
            reply: BoxReply = decode_box_reply(await asyncio.get_running_loop().sock_recv(self.sock, 65536))
            return reply


@pytest_asyncio.fixture
async def pair() -> AsyncIterator[tuple[Api, Front]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    api = Api(ours)
    yield api, Front(theirs)
    await api.close()
    theirs.close()


@pytest.mark.asyncio
async def test_a_signal_of_ours_is_told_from_such_a_status(pair: tuple[Api, Front]) -> None:
    api, front = pair
    front.say(Spawn(id=1))
    await api.started.wait()
    front.say(Signal(id=1, signal="NONE"), Signal(id=2, signal="KILL"), Signal(id=1, signal="TERM"))
    assert await front.hears() == Exited(id=1, signal="TERM")
    assert [command[-2:] for command in api.commands] == [["42", "TERM"]]
    api.status = 143
    front.say(Spawn(id=3))
    assert await front.hears() == Exited(id=3, status=143), "nobody sent it that"


@pytest.mark.asyncio
async def test_requests_are_bounded(pair: tuple[Api, Front]) -> None:
    api, front = pair
    front.say(*(Spawn(id=number) for number in range(MAX_PROCESSES + 1)), Spawn(id=0))
    assert await front.hears() == Failed(id=MAX_PROCESSES, error="Resource temporarily unavailable")
    assert await front.hears() == Failed(id=0, error="id is in use")
    api.end.set()
    assert {(await front.hears()).id for _ in range(MAX_PROCESSES)} == set(range(MAX_PROCESSES))


@pytest.mark.asyncio
async def test_what_fails_is_told(pair: tuple[Api, Front], monkeypatch: pytest.MonkeyPatch) -> None:
    _, front = pair
    monkeypatch.setattr(exec_server, "START_TIMEOUT", 0.05)
    front.say(Spawn(id=1, command=b"fault"), Spawn(id=2, user="no such"))
    assert {await front.hears(), await front.hears()} == {Failed(id=1, error="broken"), Failed(id=2, error="no such user")}
    front.say(Spawn(id=3, command=b"hang"))
    assert await front.hears() == Failed(id=3, error="no answer in time")


@pytest.mark.asyncio
async def test_an_account_is_made_once_for_all_who_ask(pair: tuple[Api, Front]) -> None:
    api, _ = pair
    await asyncio.gather(*(api._make_account("alice") for _ in range(3)))
    assert len(api.commands) == 1
    with pytest.raises(Refused):
        await api._make_account("-x")


@pytest.mark.asyncio
async def test_the_end_of_the_box_is_every_processs(pair: tuple[Api, Front]) -> None:
    api, front = pair
    front.say(Spawn(id=1))
    await api.started.wait()
    api.status = 137
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        group.create_task(api.box_ended())
        await api._gone.wait()
        api.end.set()
        assert await front.hears() == Exited(id=1, signal="KILL")
        assert await asyncio.get_running_loop().sock_recv(front.sock, 10) == b""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (DockerError(500, "first\nsecond"), "first"),
        (OSError("\x1b[31mred\x00"), "\N{REPLACEMENT CHARACTER}[31mred\N{REPLACEMENT CHARACTER}"),
        (TimeoutError(), "no answer in time"),
        (AssertionError(), "AssertionError"),
        (OSError("x" * 1000), "x" * 300),
    ],
)
def test_a_fault_is_told_on_one_safe_line(error: BaseException, line: str) -> None:
    assert one_line(error) == line
