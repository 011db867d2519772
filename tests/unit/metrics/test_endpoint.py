"""Metrics over HTTP: for a scraper, and nothing that a client does keeps the sensor from its work."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hermes.broker.sockets import bound, bound_for_metrics
from hermes.errors import MachineError
from hermes.metrics import Endpoint, Metrics, State
from hermes.metrics.endpoint import MAX_CLIENTS, MAX_REQUEST

WELL = State(listening=True, journal_healthy=True, containers={"warm": 3})


@asynccontextmanager
async def serving(state: State = WELL, address: str = "127.0.0.1:1") -> AsyncIterator[tuple[int, list[int], Endpoint]]:
    """An endpoint: its port, and how often it looked. At a path, or for tests on a port that is free."""
    looks = [0]

    async def look() -> State:
        looks[0] += 1
        return state

    sock = bound("127.0.0.1", 0) if address == "127.0.0.1:1" else bound_for_metrics(address)
    endpoint = Endpoint(sock, Metrics(), look)
    await endpoint.start()
    try:
        yield sock.getsockname()[1] if sock is not None and sock.family == socket.AF_INET else 0, looks, endpoint
    finally:
        await endpoint.close()


async def ask(port: int, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send a request; return the answer's status, headers and body, once the server has closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    async with asyncio.timeout(20):
        answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *rest = head.decode().split("\r\n")
    return int(first.split()[1]), dict(it.split(": ", 1) for it in rest), body


def get(path: str, *headers: str, method: str = "GET", version: str = "HTTP/1.1") -> bytes:
    return "\r\n".join([f"{method} {path} {version}", "Host: x", *headers, "", ""]).encode()


@pytest.mark.asyncio
async def test_metrics_in_both_formats() -> None:
    async with serving() as (port, _, _):
        status, headers, body = await ask(port, get("/metrics"))
        assert (status, headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
        assert int(headers["Content-Length"]) == len(body)
        assert headers["Connection"] == "close"
        assert b'\nhermes_containers{state="warm"} 3.0\n' in body
        accept = "Accept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3"
        status, headers, body = await ask(port, get("/metrics?x=1", accept))
        assert headers["Content-Type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
        assert body.endswith(b"# EOF\n")


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("state", "status", "well"),
    [
        (WELL, 200, {"listening": True, "journal": True, "broker": True}),
        (State(listening=True, journal_healthy=True), 503, {"listening": True, "journal": True, "broker": False}),
        (State(containers={}), 503, {"listening": False, "journal": False, "broker": True}),
    ],
)
async def test_health(state: State, status: int, well: dict[str, bool]) -> None:
    async with serving(state) as (port, _, _):
        found, headers, body = await ask(port, get("/healthz"))
        assert (found, headers["Content-Type"], json.loads(body)) == (status, "application/json", well)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (get("/"), 404),
        (get("/metrics/../../etc/passwd"), 404),
        (get("/metrics", method="POST"), 405),
        (get("/metrics", version="SPDY/3"), 400),
        (b"SSH-2.0-x\r\n\r\n", 400),
        (b"\xff\xfe\0\r\n\r\n", 400),
        (b"x" * (MAX_REQUEST + 5) + b"\r\n\r\n", 431),
    ],
)
async def test_what_cannot_be_answered(request_: bytes, status: int) -> None:
    async with serving() as (port, _, _):
        assert (await ask(port, request_))[0] == status
        assert (await ask(port, get("/healthz")))[0] == 200


@pytest.mark.asyncio
async def test_head_has_no_body() -> None:
    async with serving() as (port, _, _):
        status, headers, body = await ask(port, get("/healthz", method="HEAD"))
        assert (status, body) == (200, b"")
        assert int(headers["Content-Length"]) > 0


@pytest.mark.asyncio
@pytest.mark.parametrize("start", [b"", b"GET /metrics HTTP/1.1\r\nHost: x\r\n"])
async def test_a_slow_client_is_cut(monkeypatch: pytest.MonkeyPatch, start: bytes) -> None:
    monkeypatch.setattr("hermes.metrics.endpoint.PATIENCE", 0.1)
    async with serving() as (port, _, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(start)
        assert await until_closed(reader) == b""
        writer.close()


async def until_closed(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(20):
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""


@pytest.mark.asyncio
async def test_one_client_too_many_is_cut_and_the_others_are_answered() -> None:
    async with serving() as (port, _, _):
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(MAX_CLIENTS)]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await until_closed(reader) == b""
        writer.close()
        for reader, writer in held:
            writer.write(get("/healthz"))
            assert (await until_closed(reader)).startswith(b"HTTP/1.1 200")
            writer.close()


@pytest.mark.asyncio
async def test_a_client_that_does_not_read_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hermes.metrics.endpoint.PATIENCE", 0.2)
    monkeypatch.setattr(Metrics, "text", lambda self, state, **options: bytes(64 * 1024 * 1024))
    async with serving() as (port, _, endpoint):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.sendall(get("/metrics"))
        async with asyncio.timeout(20):
            while not endpoint._tasks:  # noqa: ASYNC110
                await asyncio.sleep(0)
            while endpoint._tasks:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        sock.close()


@pytest.mark.asyncio
async def test_who_asks_without_end_is_given_the_same_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hermes.metrics.endpoint.STALE_SECONDS", 1000)
    async with serving() as (port, looks, _):
        first = await ask(port, get("/metrics"))
        assert [await ask(port, get("/metrics")) for _ in range(5)] == [first] * 5
        assert looks == [1]


@pytest.mark.asyncio
async def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "metrics.sock"
    for _ in range(2):  # one that is left behind is in nobody's way
        async with serving(address=str(path)):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(get("/healthz"))
            assert (await until_closed(reader)).startswith(b"HTTP/1.1 200")
            writer.close()
    assert path.is_socket()


@pytest.mark.asyncio
async def test_off_is_off() -> None:
    async with serving(address="off") as (port, _, _):
        assert port == 0


@pytest.mark.asyncio
async def test_where_another_has_begun_to_listen_it_says_so() -> None:
    with bound("127.0.0.1", 0) as sock, socket.socket() as faster:
        faster.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        faster.bind(sock.getsockname())
        faster.listen()
        endpoint = Endpoint(sock, Metrics(), never)
        with pytest.raises(MachineError, match=r"metrics\.address: cannot listen there: Address already in use"):
            await endpoint.start()
        await endpoint.close()


async def never() -> State:
    raise AssertionError
