"""Real processes, a client in memory: what goes where, in which order, and how it ends."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from hermes.config import RecordingConfig
from hermes.container import Container, ContainerProcess, Exit
from hermes.errors import RecordingError, RecordingLimitError, SpawnError
from hermes.recording import SessionRecorder
from hermes.recording.lossless import Kind
from hermes.recording.reader import channels
from hermes.server.backend import PTYRequest, SessionInfo
from hermes.session.proxy import PIECE, ContainerLostError, ContainerProxy
from hermes.testing import FakePool

PATIENCE = 20.0


class Client:
    """The client's side of a channel, in memory. It reads nothing while `reading` is not set."""

    def __init__(self) -> None:
        self.stdin = self
        self.stdout = Output(self)
        self.stderr = Output(self)
        self.controls: Any = None
        self.pty: PTYRequest | None = None
        self.closed = False
        self.status: int | None = None
        self.signal: str | None = None
        self.reading = asyncio.Event()
        self.reading.set()
        self._input: asyncio.Queue[bytes] = asyncio.Queue()

    def send(self, data: bytes) -> None:
        self._input.put_nowait(data)

    async def read(self) -> bytes:
        return await self._input.get()

    def exit(self, status: int = 0) -> None:
        self.status = status

    def exit_with_signal(self, signal: str, core_dumped: bool = False) -> None:
        self.signal = signal

    def vanish(self) -> None:
        self.closed = True
        self.send(b"")
        self.reading.set()
        if self.controls is not None:
            self.controls.gone()


class Output:
    def __init__(self, client: Client) -> None:
        self.data = bytearray()
        self.news = asyncio.Event()
        self._client = client

    def write(self, data: bytes) -> None:
        self.data += data
        self.news.set()

    async def drain(self) -> None:
        await self._client.reading.wait()

    async def until(self, needle: bytes) -> None:
        async with asyncio.timeout(PATIENCE):
            while needle not in self.data:
                self.news.clear()
                await self.news.wait()


class Ledger:
    """A recorder that notes what had been delivered when each byte was recorded."""

    def __init__(self, client: Client, *, fail_on: bytes | None = None) -> None:
        self.client = client
        self.out = bytearray()
        self.into = bytearray()
        self.sizes: list[tuple[int, int]] = []
        self.eof = False
        self.ahead = True
        self._fail_on = fail_on

    def output(self, data: bytes, *, stderr: bool = False) -> None:
        if self._fail_on is not None and self._fail_on in data:
            raise RecordingError("disk full")
        self.out += data
        self.ahead &= len(self.client.stdout.data) + len(self.client.stderr.data) < len(self.out)

    def input(self, data: bytes) -> None:
        if self._fail_on is not None and self._fail_on in data:
            raise RecordingError("disk full")
        self.into += data

    def input_eof(self) -> None:
        self.eof = True

    def resize(self, width: int, height: int, pixel_width: int = 0, pixel_height: int = 0) -> None:
        self.sizes.append((width, height))

    def marker(self, label: str) -> None:
        pass


@pytest_asyncio.fixture
async def container() -> AsyncIterator[Container]:
    """A container of the fake engine: real processes on this machine."""
    pool = FakePool()
    await pool.start()
    yield await pool.allocate("session")
    await pool.release("session")
    await pool.close()


async def run(
    container: Container, client: Client, command: bytes | None, recorder: Any = None, **options: Any
) -> ContainerProxy:
    """Run a command to its end; `typed` waits before it starts."""
    if typed := options.pop("typed", b""):
        client.send(typed)
    proxy = ContainerProxy(container, client, options.pop("pty", None), recorder, command=command, **options)
    try:
        async with asyncio.timeout(PATIENCE):
            await proxy.start()
            await proxy.wait_completion()
    finally:
        await proxy.stop()
    return proxy


@pytest.mark.asyncio
async def test_streams_apart_and_status(container: Container) -> None:
    client = Client()
    client.send(b"")
    proxy = await run(container, client, b"echo out; echo err >&2; exit 5")
    assert client.stdout.data == b"out\n"
    assert client.stderr.data == b"err\n"
    assert (client.status, client.signal) == (5, None)
    assert proxy.exit is not None
    assert proxy.exit.status == 5


@pytest.mark.asyncio
async def test_end_by_a_signal(container: Container) -> None:
    client = Client()
    client.send(b"")
    await run(container, client, b"kill -TERM $$")
    assert (client.status, client.signal) == (None, "TERM")


@pytest.mark.asyncio
async def test_input_and_its_end_reach_the_process_and_the_recorder(container: Container) -> None:
    client = Client()
    recorder = Ledger(client)
    seen: list[bytes] = []
    for data in (b"a\xc3", b"\xa9\x00\x1b", b""):
        client.send(data)
    await run(container, client, b"cat", recorder, on_input=seen.append)
    assert client.stdout.data == b"a\xc3\xa9\x00\x1b"
    assert (recorder.into, recorder.out, recorder.eof, recorder.ahead) == (client.stdout.data, client.stdout.data, True, True)
    assert b"".join(seen) == recorder.into


@pytest.mark.asyncio
async def test_much_input_is_taken_in_pieces_and_lets_others_run(container: Container) -> None:
    client = Client()
    turns = 0
    pieces: list[tuple[int, int]] = []

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    data = bytes(range(256)) * 1000
    client.send(data)
    client.send(b"")
    async with asyncio.TaskGroup() as group:
        task = group.create_task(other())
        await run(container, client, b"cat", on_input=lambda piece: pieces.append((len(piece), turns)))
        task.cancel()
    assert client.stdout.data == data
    assert len(pieces) == 8
    assert max(size for size, _ in pieces) == PIECE
    assert len({turn for _, turn in pieces}) == len(pieces)


@pytest.mark.asyncio
async def test_a_terminal(container: Container) -> None:
    client = Client()
    recorder = Ledger(client)
    pty = PTYRequest("vt100", 91, 31)
    proxy = ContainerProxy(container, client, pty, recorder, command=b"stty size; echo $TERM; read line; stty size; exit 3")  # type: ignore[arg-type]
    await proxy.start()
    running = asyncio.gather(proxy.wait_completion())
    await client.stdout.until(b"31 91\r\nvt100\r\n")
    client.controls.resize(120, 40)
    client.send(b"\r")
    await client.stdout.until(b"40 120\r\n")
    await asyncio.wait_for(running, PATIENCE)
    await proxy.stop()
    assert client.status == 3
    assert recorder.sizes == [(120, 40)]
    assert recorder.out == client.stdout.data


@pytest.mark.asyncio
async def test_a_terminal_resized_while_it_was_started(container: Container) -> None:
    client = Client()
    recorder = Ledger(client)
    client.pty = PTYRequest("xterm", 132, 43, 1, 2)
    await run(container, client, b"read line; stty size", recorder, pty=PTYRequest("xterm", 80, 24), typed=b"\r")
    assert recorder.sizes == [(132, 43)]
    assert client.stdout.data.endswith(b"43 132\r\n")


@pytest.mark.asyncio
async def test_a_terminal_ends_though_a_background_job_goes_on_printing(container: Container) -> None:
    client = Client()
    pty = PTYRequest("xterm", 80, 24)
    await run(container, client, b"trap '' HUP; while :; do echo x; sleep 0.05; done & exit 4", pty=pty)
    assert client.status == 4


@pytest.mark.asyncio
async def test_a_signal_from_the_client(container: Container) -> None:
    client = Client()
    proxy = ContainerProxy(container, client, command=b"trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done")
    await proxy.start()
    running = asyncio.gather(proxy.wait_completion())
    await client.stdout.until(b"ready")
    client.controls.signal("TERM")
    await asyncio.wait_for(running, PATIENCE)
    await proxy.stop()
    assert client.status == 9


@pytest.mark.asyncio
@pytest.mark.parametrize("pty", [None, PTYRequest("xterm", 80, 24)])
async def test_the_client_vanishes(container: Container, pty: PTYRequest | None) -> None:
    client = Client()
    proxy = ContainerProxy(container, client, pty, command=b"echo ready; exec sleep 1000")
    await proxy.start()
    running = asyncio.gather(proxy.wait_completion())
    await client.stdout.until(b"ready")
    client.vanish()
    await asyncio.wait_for(running, PATIENCE)
    await proxy.stop()
    assert (client.status, client.signal) == (None, None)


@pytest.mark.asyncio
async def test_a_client_that_was_gone_before_the_start(container: Container) -> None:
    client = Client()
    client.closed = True
    await run(container, client, b"exec sleep 1000")
    assert client.status is None


@pytest.mark.asyncio
async def test_what_cannot_be_recorded_is_not_delivered(container: Container) -> None:
    client = Client()
    client.send(b"")
    with pytest.raises(RecordingError, match="disk full"):
        await run(container, client, b"echo fine; sleep 0.1; echo forbidden; echo never", Ledger(client, fail_on=b"forbidden"))
    assert client.stdout.data == b"fine\n"


@pytest.mark.asyncio
async def test_input_that_cannot_be_recorded_does_not_reach_the_process(container: Container, tmp_path: Path) -> None:
    client = Client()
    client.send(b"forbidden")
    received = tmp_path / "received"
    with pytest.raises(RecordingError, match="disk full"):
        await run(container, client, f"cat > {received}".encode(), Ledger(client, fail_on=b"forbidden"))
    assert not received.exists() or received.read_bytes() == b""


@pytest.mark.asyncio
async def test_up_to_a_limit_every_byte_delivered_is_recorded(container: Container, tmp_path: Path) -> None:
    config = RecordingConfig(output_dir=tmp_path, max_channel_bytes=1024**2)
    recorder = SessionRecorder(config, SessionInfo("s", "root", "192.0.2.7", 1))
    recorder.start()
    client = Client()
    client.send(b"")
    with pytest.raises(RecordingLimitError):
        await run(container, client, b"exec seq 1 10000000", recorder)
    recorder.close()
    (recording,) = channels(tmp_path, "s")
    recorded = b"".join(recording.raw(Kind.STDOUT))
    assert recorded.startswith(client.stdout.data)
    assert len(recorded) - len(client.stdout.data) < 256 * 1024, "of what was read last, as much as fitted"
    assert len(client.stdout.data) > 100_000


@pytest.mark.asyncio
async def test_the_container_is_lost(container: Container) -> None:
    client = Client()
    proxy = ContainerProxy(container, client, command=b"echo ready; exec sleep 1000")
    await proxy.start()
    running = asyncio.gather(proxy.wait_completion())
    await client.stdout.until(b"ready")
    container.stop()
    client.vanish()
    with contextlib.suppress(ContainerLostError):  # either is true
        await asyncio.wait_for(running, PATIENCE)
    await proxy.stop()
    assert (client.status, client.signal) == (None, None)


class CutOff:
    """A container whose socket breaks while its process goes on holding its pipes."""

    id = "box"

    def __init__(self) -> None:
        self.ours, self.theirs = [], []
        for end in (1, 0, 0):
            pair = os.pipe()
            self.ours.append(pair[end])
            self.theirs.append(pair[1 - end])

    async def spawn(self, **options: Any) -> ContainerProcess:
        self.process = ContainerProcess(1, 0, self.ours, tty=False, control=lambda *_: None)
        return self.process


@pytest.mark.asyncio
async def test_a_container_lost_whose_pipes_stay_open() -> None:
    client, container = Client(), CutOff()
    proxy = ContainerProxy(container, client)  # type: ignore[arg-type]
    await proxy.start()
    running = asyncio.gather(proxy.wait_completion())
    os.write(container.theirs[1], b"ready")
    await client.stdout.until(b"ready")
    os.write(container.theirs[2], b"last words")
    container.process.ended(Exit())
    with pytest.raises(ContainerLostError):
        await asyncio.wait_for(running, PATIENCE)
    assert client.stderr.data == b"last words"
    await proxy.stop()
    for fd in container.theirs:
        os.close(fd)


@pytest.mark.asyncio
@pytest.mark.parametrize("pty", [None, PTYRequest("xterm", 80, 24)])
async def test_a_lost_container_is_told_from_an_exit(container: Container, pty: PTYRequest | None) -> None:
    client = Client()
    proxy = ContainerProxy(container, client, pty, command=b"echo ready; exec sleep 1000")
    await proxy.start()
    running = asyncio.gather(proxy.wait_completion(), return_exceptions=True)
    await client.stdout.until(b"ready")
    container.stop()
    (result,) = await asyncio.wait_for(running, PATIENCE)
    await proxy.stop()
    assert isinstance(result, ContainerLostError)


@pytest.mark.asyncio
async def test_a_process_that_cannot_be_started(container: Container) -> None:
    with pytest.raises(SpawnError):
        await run(container, Client(), b"id", user="no/such/name")


@pytest.mark.asyncio
async def test_a_client_that_stops_reading_stops_the_process(container: Container) -> None:
    client = Client()
    client.reading.clear()
    proxy = ContainerProxy(container, client, command=b"head -c 50000000 /dev/zero")
    await proxy.start()
    running = asyncio.gather(proxy.wait_completion())
    await client.stdout.until(b"\0")
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(client.stdout.data) <= 1024 * 1024
    client.reading.set()
    client.send(b"")
    await asyncio.wait_for(running, PATIENCE)
    await proxy.stop()
    assert (len(client.stdout.data), client.status) == (50_000_000, 0)


@pytest.mark.asyncio
async def test_cancelled_at_any_point_it_lets_go(container: Container, tmp_path: Path) -> None:
    info = SessionInfo("session", "root", "192.0.2.1", 1, authenticated=True)
    for rounds in range(12):
        client = Client()
        recorder = SessionRecorder(RecordingConfig(output_dir=tmp_path), info, channel=rounds)
        recorder.start()

        async def session(client: Client = client, recorder: SessionRecorder = recorder) -> None:
            proxy = ContainerProxy(container, client, PTYRequest("xterm", 80, 24), recorder, command=b"echo ready; sleep 1000")
            try:
                await proxy.start()
                await proxy.wait_completion()
            finally:
                await proxy.stop()
                recorder.close()

        async with asyncio.TaskGroup() as group:
            task = group.create_task(session())
            for _ in range(rounds):
                await asyncio.sleep(0)
            task.cancel()
        assert task.cancelled()
    async with asyncio.timeout(PATIENCE):
        while container.processes:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
