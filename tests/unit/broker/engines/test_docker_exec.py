"""What a container says in place of a greeting: it may be the attacker's."""

import socket
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
import pytest_asyncio
from aiodocker import Docker
from aiodocker.stream import Message

from hermes.broker.engines import docker_exec
from hermes.broker.engines.docker_exec import STDERR, STDOUT, DockerExecServer
from hermes.broker.engines.exec_server import MAX_EARLY, Refused
from hermes.container.messages import Spawn

TOKEN = "0123456789abcdef"
CHUNK = 1 << 15
Output = Iterator[tuple[int, bytes]]


class Stream:
    """An exec's stream of which only the output is real."""

    def __init__(self, output: Output) -> None:
        self.output = output
        self.read = 0
        self._resp = None

    async def read_out(self) -> Message | None:
        for number, data in self.output:
            self.read += len(data)
            return Message(number, data)
        return None

    async def close(self) -> None:
        self.output = iter(())


Say = Callable[[Output], Stream]


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch) -> Say:
    """Has the next exec write this."""

    def say(output: Output) -> Stream:
        stream = Stream(output)

        class Exec:
            def __init__(self, *_: object, **__: object) -> None:
                pass

            def start(self) -> Stream:
                return stream

        async def create(*_: object, **__: object) -> str:
            return "id"

        monkeypatch.setattr(docker_exec, "Exec", Exec)
        monkeypatch.setattr(DockerExecServer, "_create", create)
        monkeypatch.setattr("secrets.token_hex", lambda _: TOKEN)
        return stream

    return say


@pytest_asyncio.fixture
async def server() -> AsyncIterator[DockerExecServer]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    docker = Docker(url="http://127.0.0.1:1")
    server = DockerExecServer(docker, "box", ours)
    yield server
    await server.close()
    theirs.close()
    await docker.close()


@pytest.mark.asyncio
async def test_what_came_around_the_greeting_is_the_processs(server: DockerExecServer, say: Say) -> None:
    pieces = [(STDERR, b"early"), (STDOUT, TOKEN.encode()), (STDOUT, b" 42 -\nfirst "), (STDOUT, b"words")]
    say(iter(pieces))
    process = await server._greeted(Spawn(id=1))
    assert process.pid == 42
    assert process.early == [(STDERR, b"early"), (STDOUT, b"first ")]
    assert await process.next_output() == (STDOUT, b"words")


@pytest.mark.asyncio
@pytest.mark.parametrize("streams", [(STDOUT,), (STDERR,), (STDOUT, STDERR)])
async def test_an_endless_greeting_is_not_listened_to(server: DockerExecServer, say: Say, streams: tuple[int, ...]) -> None:
    many = 4 * MAX_EARLY // CHUNK
    stream = say((streams[number % len(streams)], b"x" * CHUNK) for number in range(many))
    with pytest.raises(Refused):
        await server._greeted(Spawn(id=1))
    assert stream.read <= MAX_EARLY + CHUNK


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "line",
    [b"other 42 -", b"%s 42", b"%s -1 -", b"%s x -", b"%s \xb2 -", b"%s " + b"9" * 5000 + b" -", b"%s 99999999999 -", b""],
    ids=["token", "short", "negative", "letters", "superscript", "huge", "long", "empty"],
)
async def test_what_is_no_greeting_is_refused(server: DockerExecServer, say: Say, line: bytes) -> None:
    say(iter([(STDOUT, line.replace(b"%s", TOKEN.encode()) + b"\n")]))
    with pytest.raises(Refused):
        await server._greeted(Spawn(id=1))
