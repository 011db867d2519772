"""Clients that break rules which asyncssh does not enforce: each costs its own connection, and nobody else anything."""

import asyncio
import socket
from typing import Any

import asyncssh
import pytest
from asyncssh.constants import MSG_CHANNEL_DATA, MSG_CHANNEL_OPEN, MSG_CHANNEL_REQUEST, MSG_DISCONNECT
from asyncssh.packet import Boolean, String, UInt32
from structlog.testing import capture_logs

from hermes import events
from hermes.server.process import ChannelProcess
from hermes.server.visitor import Visitor
from tests.front.conftest import Running, Serve

MIB = 1024 * 1024


class Pourer:
    """A handler that writes without end, waiting for the client as it must; `poured` is how far it came."""

    def __init__(self) -> None:
        self.poured = 0
        self.calls: list[bytes | None] = []

    async def __call__(self, visitor: Visitor, process: ChannelProcess) -> None:
        self.calls.append(process.command)
        visitor.channel_running(process, recording=None)
        while not process.closed and self.poured < 64 * MIB:
            process.stdout.write(bytes(256 * 1024))
            self.poured += 256 * 1024
            await process.stdout.drain()
            await asyncio.sleep(0)


async def settled(pourer: Pourer) -> int:
    """How much was poured once nothing more is."""
    async with asyncio.timeout(20):
        while True:
            before = pourer.poured
            await asyncio.sleep(0.2)
            if pourer.poured == before:
                return before


def server_side(running: Running) -> Any:
    """The server's end of the one connection there is."""
    (visitor,) = running.front.visitors
    return visitor._connection


@pytest.mark.asyncio
async def test_a_request_behind_a_disconnect_is_not_acted_on(serve: Serve) -> None:
    pourer = Pourer()
    async with serve(pourer) as running:
        connection = await running.connect()
        number = connection.create_tcp_channel()._recv_chan
        connection.send_packet(MSG_CHANNEL_OPEN, String("session"), UInt32(number), UInt32(2 * MIB), UInt32(32768))
        await running.journal.wait_for(events.ChannelOpened)
        held: list[bytes] = []
        original = connection._send
        connection._send = held.append
        connection.send_packet(MSG_DISCONNECT, UInt32(11), String("bye"), String(""))
        connection.send_packet(MSG_CHANNEL_REQUEST, UInt32(0), String("exec"), Boolean(False), String("id"))
        connection._send = original
        connection._transport.write(b"".join(held))
        (closed,) = await running.journal.wait_for(events.ConnectionClosed)
        assert closed.cause == "client"
        assert pourer.calls == []
        connection.abort()
        await connection.wait_closed()


@pytest.mark.asyncio
async def test_answers_to_a_client_that_is_gone_are_not_logged(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    async with serve() as running, running.connect():
        server = server_side(running)
        server._transport.abort()
        for _ in range(20):
            server.send_packet(MSG_CHANNEL_DATA, UInt32(0), String(b"x"))
    assert [record.message for record in caplog.records if record.name == "asyncio"] == []


@pytest.mark.asyncio
async def test_a_huge_window_nobody_reads_is_bounded(serve: Serve) -> None:
    pourer = Pourer()
    async with serve(pourer) as running, running.connect() as connection:
        await connection.create_process("pour", window=2**31 - 1, encoding=None)
        connection._transport.pause_reading()
        assert await settled(pourer) < 16 * MIB
        connection.abort()


@pytest.mark.asyncio
async def test_a_key_exchange_that_never_ends_is_bounded(serve: Serve) -> None:
    pourer = Pourer()
    async with serve(pourer) as running, running.connect() as connection:
        await connection.create_process("pour", window=2**31 - 1, encoding=None)
        connection._send_kexinit()
        connection._transport.pause_reading()
        assert await settled(pourer) < 16 * MIB
        assert len(server_side(running)._deferred_packets) < 1000
        connection.abort()


@pytest.mark.asyncio
async def test_requests_whose_answers_are_not_read_end_the_connection(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve() as running:
        monkeypatch.setitem(vars(running.front.settings.server), "max_unread", 4096)
        connection = await running.connect()
        connection._transport.pause_reading()
        for end, option in ((connection, socket.SO_RCVBUF), (server_side(running), socket.SO_SNDBUF)):
            end._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, option, 2048)
        for number in range(50_000):
            connection._send_global_request(b"x" * 8, want_reply=True)
            if number % 100 == 0:
                await asyncio.sleep(0)
            if running.journal.of(events.ConnectionClosed):
                break
        (closed,) = await running.journal.wait_for(events.ConnectionClosed)
        assert (closed.cause, closed.detail) == ("protocol-error", "answers not read")
        assert [limit.limit for limit in running.journal.of(events.LimitReached)] == ["server.max_unread"]
        connection.abort()
        await connection.wait_closed()


@pytest.mark.asyncio
async def test_a_packet_that_inflates_beyond_measure_ends_the_connection(serve: Serve) -> None:
    async with serve() as running:
        connection = await running.connect(compression_algs=["zlib@openssh.com"])
        assert (await connection.run("x" * 100_000, stdin=asyncssh.DEVNULL)).exit_status == 7
        with pytest.raises((asyncssh.Error, OSError)):
            await connection.run("x" * (MIB), stdin=asyncssh.DEVNULL)
        (closed,) = await running.journal.wait_for(events.ConnectionClosed)
        assert closed.cause == "protocol-error"
        assert [limit.limit for limit in running.journal.of(events.LimitReached)] == ["server.max_inflated"]
        assert len(running.journal.of(events.ChannelStarted)) == 1


@pytest.mark.asyncio
async def test_packets_of_one_byte_are_not_for_the_asking(serve: Serve) -> None:
    async with serve() as running, running.connect() as connection:
        with pytest.raises(asyncssh.ChannelOpenError, match="open failed"):
            await connection.create_process("x", max_pktsize=1)
        assert (await connection.run("x", stdin=asyncssh.DEVNULL)).exit_status == 7
        assert len(running.journal.of(events.ChannelOpened)) == 1


@pytest.mark.asyncio
async def test_crumbs_that_nobody_reads_yet_are_kept_together(serve: Serve) -> None:
    async with serve() as running, running.connect() as connection:
        number = connection.create_tcp_channel()._recv_chan
        connection.send_packet(MSG_CHANNEL_OPEN, String("session"), UInt32(number), UInt32(2 * MIB), UInt32(32768))
        await running.journal.wait_for(events.ChannelOpened)
        for _ in range(20_000):
            connection.send_packet(MSG_CHANNEL_DATA, UInt32(0), String(b"x"))
        (channel,) = server_side(running)._channels.values()
        async with asyncio.timeout(20):
            while channel._recv_window > 2 * MIB - 20_000:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert len(channel._recv_buf) < 20
        assert b"".join(data for data, _ in channel._recv_buf) == b"x" * 20_000
        connection.abort()


@pytest.mark.asyncio
async def test_what_was_asked_for_is_stated_even_if_it_never_runs(serve: Serve) -> None:
    async def no_box(visitor: Visitor, process: ChannelProcess) -> None:
        visitor.channel_failed(process.number, "no box")

    async with serve(no_box) as running, running.connect() as connection:
        await connection.run("wget http://192.0.2.1/x", stdin=asyncssh.DEVNULL)
        (started,) = running.journal.of(events.ChannelStarted)
        assert (started.kind, started.command, started.recording) == ("exec", "wget http://192.0.2.1/x", None)


@pytest.mark.asyncio
async def test_the_end_is_stated_last(serve: Serve) -> None:
    evidence_open = asyncio.Event()

    async def slow_to_close(visitor: Visitor, process: ChannelProcess) -> None:
        visitor.channel_running(process, recording=None)
        await process.stdin.read()
        await evidence_open.wait()

    async with serve(slow_to_close) as running:
        connection = await running.connect()
        await connection.create_process("x")
        await running.journal.wait_for(events.ChannelStarted)
        connection.abort()
        async with asyncio.timeout(20):
            while running.front.visitors:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert not running.journal.of(events.SessionClosed)
        evidence_open.set()
        await running.journal.wait_for(events.ConnectionClosed)
        assert [type(event) for event in running.journal.events[-3:]] == [
            events.ChannelClosed, events.SessionClosed, events.ConnectionClosed,
        ]  # fmt: skip


@pytest.mark.asyncio
async def test_a_mistake_of_ours_is_logged(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    def mistaken(visitor: Visitor, line: bytes) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(Visitor, "version_received", mistaken)
    async with serve() as running:
        with capture_logs() as logged, pytest.raises((asyncssh.Error, OSError)):
            await running.connect()
    assert [entry["event"] for entry in logged] == ["a connection ended by a mistake of ours"]


@pytest.mark.asyncio
async def test_a_large_environment_is_cut(serve: Serve) -> None:
    seen: list[int] = []

    async def handler(visitor: Visitor, process: ChannelProcess) -> None:
        seen.append(sum(map(len, process.env.values())))
        process.exit(0)

    async with serve(handler) as running, running.connect() as connection:
        await connection.run("x", env={f"LC_{number}": "x" * 10_000 for number in range(50)}, stdin=asyncssh.DEVNULL)
    assert seen == [30_000]


@pytest.mark.asyncio
async def test_a_method_that_is_not_offered_gets_nobody_in_and_says_so(serve: Serve) -> None:
    async with serve(authentication={"methods": ("publickey",)}) as running:
        connection = None
        with pytest.raises(asyncssh.PermissionDenied):
            connection = await running.connect(preferred_auth="password")
        assert connection is None
        assert not any(attempt.accepted for attempt in running.journal.of(events.AuthAttempt))


@pytest.mark.asyncio
async def test_a_session_after_no_more_sessions_ends_the_connection(serve: Serve) -> None:
    async with serve() as running:
        connection = await running.connect()
        connection._send_global_request(b"no-more-sessions@openssh.com")
        with pytest.raises((asyncssh.Error, OSError)):
            await connection.run("x", stdin=asyncssh.DEVNULL)
        await running.journal.wait_for(events.ConnectionClosed)
        assert not running.journal.of(events.ChannelStarted)
