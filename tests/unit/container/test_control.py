"""The control socket and the status pipe: what launcher and children say to each other."""

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from hermes.container import ControlSocket, Report
from hermes.container import control as control_module
from hermes.container.messages import ControlMessage, Peer, Reload, encode

PATIENCE = 10.0
A = TypeVar("A")
B = TypeVar("B")
RELOAD = Reload(changed=["server.banner"], ignored=["data_dir"])


class Heard:
    """A control socket's owner: what it was told, and the launcher's end."""

    def __init__(self) -> None:
        self.launcher, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.peers: list[tuple[socket.socket, Peer]] = []
        self.settings: list[tuple[bytes, Reload]] = []
        self.news = asyncio.Event()
        self.control = ControlSocket(
            ours, on_peer=self._noting(self.peers), on_reload=self._noting(self.settings)
        )  # fmt: skip
        self.control.start()

    def _noting(self, said: list[tuple[A, B]]) -> Callable[[A, B], None]:
        def note(what: A, message: B) -> None:
            said.append((what, message))
            self.news.set()

        return note

    def say(self, message: ControlMessage, *fds: int) -> None:
        socket.send_fds(self.launcher, [encode(message)], list(fds))

    async def hear(self) -> None:
        await asyncio.wait_for(self.news.wait(), PATIENCE)
        self.news.clear()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


@pytest.mark.asyncio
async def test_a_peer_brings_its_socket() -> None:
    heard = Heard()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        heard.say(Peer(deaths=[("broker", "killed")]), theirs.fileno())
        await heard.hear()
        ((sock, message),) = heard.peers
        with sock:
            sock.send(b"through")
            assert ours.recv(10) == b"through"
        assert message.deaths == [("broker", "killed")]
    heard.control.close()
    heard.launcher.close()


@pytest.mark.asyncio
async def test_settings_are_read_from_their_beginning_whoever_read_them_before() -> None:
    heard = Heard()
    fd = os.memfd_create("settings")
    os.write(fd, b'{"server":{}}')
    heard.say(RELOAD, fd)
    await heard.hear()
    assert heard.settings == [(b'{"server":{}}', RELOAD)]
    os.close(fd)
    heard.control.close()
    heard.launcher.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("fds", [0, 2])
async def test_a_message_with_other_than_one_fd_is_the_end(fds: int, pipe: tuple[int, int]) -> None:
    heard = Heard()
    before = len(list(Path("/proc/self/fd").iterdir()))
    heard.say(RELOAD, *pipe[:fds])
    await asyncio.wait_for(heard.control.closed.wait(), PATIENCE)
    assert heard.settings == []
    assert len(list(Path("/proc/self/fd").iterdir())) < before
    heard.launcher.close()


@pytest.mark.asyncio
async def test_the_end_of_the_launcher_is_noticed() -> None:
    heard = Heard()
    heard.launcher.close()
    await asyncio.wait_for(heard.control.closed.wait(), PATIENCE)


@pytest.mark.asyncio
async def test_a_line_is_one_line_whatever_is_in_it(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    report = Report(writer)
    report("failed because\nof \udcff this")
    assert os.read(reader, 1000) == b"failed because of \\udcff this\n"


@pytest.mark.asyncio
async def test_nobody_who_reads_blocks_nobody_who_says(pipe: tuple[int, int]) -> None:
    report = Report(pipe[1])
    for _ in range(100):
        report("x" * 4000)
    assert not os.get_blocking(pipe[1])


@pytest.mark.asyncio
async def test_alive_is_said_again_and_again(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_module, "ALIVE_SECONDS", 0.001)
    reader, writer = pipe
    heard = asyncio.Event()
    said: list[bytes] = []

    def read() -> None:
        said.append(os.read(reader, 100))
        if b"".join(said).count(b"alive\n") >= 3:
            heard.set()

    asyncio.get_running_loop().add_reader(reader, read)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(Report(writer).stay_alive())
        await asyncio.wait_for(heard.wait(), PATIENCE)
        task.cancel()
    asyncio.get_running_loop().remove_reader(reader)
