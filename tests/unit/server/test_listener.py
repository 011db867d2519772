"""A listening socket when everything is well, and when descriptors run out."""

import asyncio
import os
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
from structlog.testing import capture_logs

from hermes.server import listener
from hermes.server.listener import Listener
from hermes.tasks import TaskOwner
from tests.unit.store.facts import eventually


class Greeter(asyncio.Protocol):
    """Says hello and closes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"hello")
        transport.close()


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[Listener, int]]:
    sock = socket.create_server(("127.0.0.1", 0), backlog=64)
    async with TaskOwner("test") as tasks:
        one = Listener(sock, Greeter, tasks)
        yield one, sock.getsockname()[1]
        one.close()


async def hello(port: int) -> bytes:
    async with asyncio.timeout(20):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        said = await reader.read()
        writer.close()
        await writer.wait_closed()
    return said


@contextmanager
def descriptors(left: int) -> Iterator[None]:
    """Leave this process so many descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    first = os.open("/dev/null", os.O_RDONLY)
    os.close(first)
    resource.setrlimit(resource.RLIMIT_NOFILE, (first + left, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.asyncio
async def test_many_at_once() -> None:
    async with listening() as (one, port):
        assert await asyncio.gather(*(hello(port) for _ in range(50))) == [b"hello"] * 50
        assert not one.scarce


@pytest.mark.asyncio
async def test_without_descriptors_clients_wait_and_are_served_once_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "PAUSE_SECONDS", 0.02)
    accepts = 0
    with capture_logs() as logs:
        async with listening() as (one, port):
            real = one._pause

            def counted(error: OSError) -> None:
                nonlocal accepts
                accepts += 1
                real(error)

            monkeypatch.setattr(one, "_pause", counted)
            clients = [socket.socket() for _ in range(20)]
            with descriptors(0):
                for client in clients:
                    client.connect(("127.0.0.1", port))
                await eventually(lambda: accepts >= 5)
                assert one.scarce
            for client in clients:
                client.setblocking(False)
                async with asyncio.timeout(20):
                    assert await asyncio.get_running_loop().sock_recv(client, 100) == b"hello"
                client.close()
            assert await hello(port) == b"hello"
            assert not one.scarce
    assert [entry["reason"] for entry in logs] == [os.strerror(24)], "once, however often it was tried"


@pytest.mark.asyncio
async def test_it_says_when_few_are_left() -> None:
    used = os.open("/dev/null", os.O_RDONLY)
    os.close(used)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + listener.RESERVE + 5, hard))
    try:
        async with listening() as (one, port):
            assert await hello(port) == b"hello"
            assert not one.scarce
            held = [os.open("/dev/null", os.O_RDONLY) for _ in range(10)]
            assert await hello(port) == b"hello"
            assert one.scarce
            for fd in held:
                os.close(fd)
            await hello(port)
            assert not one.scarce
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.asyncio
async def test_closed_it_accepts_no_more_also_while_it_pauses() -> None:
    async with listening() as (one, port):
        one._pause(OSError(24, "Too many open files"))
        one.close()
        one.close()
        with pytest.raises(ConnectionRefusedError):
            await hello(port)
