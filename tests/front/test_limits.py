"""Over a limit a client sees what an overloaded sshd shows, everybody else is served, and each limit says that it was reached."""

import asyncio
import contextlib
import socket
from typing import Any

import asyncssh
import pytest
from asyncssh.constants import MSG_CHANNEL_FAILURE
from asyncssh.packet import UInt32

from hermes import events
from hermes.metrics import Metrics, State
from hermes.server.listener import BURST
from tests.front.conftest import PATIENCE, Running, Serve

REFUSED = b"Exceeded MaxStartups\r\n"
NONE = {"startups": 0, "connections": 0, "connections_per_minute": 0, "sessions": 0}


class Caller:
    """A TCP connection from an address of our own, and what it was greeted with."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, greeting: bytes) -> None:
        self.reader = reader
        self.writer = writer
        self.greeting = greeting

    def close(self) -> None:
        self.writer.close()


async def call(running: Running, source: str = "127.0.0.1", *, header: bytes = b"") -> Caller:
    """Connect and wait for the first line, or the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port, local_addr=(source, 0))
    writer.write(header)
    async with asyncio.timeout(PATIENCE):
        try:
            greeting = await reader.readline()
        except ConnectionResetError:
            greeting = b""
    return Caller(reader, writer, greeting)


def proxied(source: str) -> bytes:
    return f"PROXY TCP4 {source} 198.51.100.1 4711 22\r\n".encode()


def reached(running: Running) -> list[str]:
    return [event.limit for event in running.journal.of(events.LimitReached)]


async def left(running: Running, count: int) -> None:
    """Return once so many connections have ended."""
    await running.journal.wait_for(events.ConnectionClosed, count)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("OpenSSH_9.2p1 Debian-2+deb12u10", REFUSED),
        ("OpenSSH_8.2p1 Ubuntu-4ubuntu0.5", REFUSED),
        ("OpenSSH_8.1p1", b""),
        ("OpenSSH_7.4", b""),
        ("OpenSSH_9.8p1", b"Not allowed at this time\r\n"),
        ("OpenSSH_10.0p2 Debian-7", b"Not allowed at this time\r\n"),
        ("dropbear_2022.83", b""),
    ],
)
async def test_too_many_that_are_not_authenticated(serve: Serve, version: str, words: bytes) -> None:
    async with serve(server={"max_startups": "2", "version": version}) as running:
        silent = [await call(running) for _ in range(2)]
        turned_away = await call(running)
        assert turned_away.greeting == words
        assert await turned_away.reader.read() == b""
        assert (reached(running), running.journal.of(events.LimitReached)[0].value) == (["server.max_startups"], 2)
        (refused,) = running.journal.of(events.ConnectionRefused)
        assert (refused.source_ip, refused.reason) == ("127.0.0.1", "server.max_startups reached")
        silent[0].close()
        await left(running, 1)
        async with running.connect():  # authenticated, it is no startup any more
            silent.append(await call(running))
            assert silent[-1].greeting.startswith(b"SSH-2.0-")
        for caller in (*silent, turned_away):
            caller.close()


@pytest.mark.asyncio
async def test_early_ones_are_dropped_at_random(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = iter([0, 49, 50])
    monkeypatch.setattr("hermes.server.ssh.random.randrange", lambda most: next(draws))
    async with serve(server={"max_startups": "1:50:100"}) as running:
        callers = [await call(running) for _ in range(3)]
        assert [caller.greeting == REFUSED for caller in callers] == [False, True, False]
        for caller in callers:
            caller.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("name", ["startups", "connections", "connections_per_minute"])
async def test_an_address_has_its_limits_and_others_have_theirs(serve: Serve, name: str) -> None:
    async with serve(server={"exempt": [], "per_network": NONE, "per_address": {**NONE, name: 2}}) as running:
        held = [await call(running, "127.0.0.5") for _ in range(3)]
        assert [caller.greeting == REFUSED for caller in held] == [False, False, True]
        assert reached(running) == [f"server.per_address.{name}"]
        async with running.connect(local_addr=("127.0.0.6", 0)) as connection:
            assert (await connection.run("x", stdin=asyncssh.DEVNULL)).exit_status == 7
        for caller in held:
            caller.close()


@pytest.mark.asyncio
async def test_a_network_has_its_limits_and_others_have_theirs(serve: Serve) -> None:
    config = {"proxy_protocol": True, "per_address": NONE, "per_network": {**NONE, "connections": 2}}
    async with serve(server=config) as running:
        held = [await call(running, header=proxied(f"192.0.2.{number}")) for number in (1, 2, 3)]
        assert [caller.greeting == REFUSED for caller in held] == [False, False, True]
        other = await call(running, header=proxied("192.0.3.1"))
        assert other.greeting.startswith(b"SSH-2.0-")
        (limit,) = running.journal.of(events.LimitReached)
        assert (limit.limit, limit.value, limit.source_ip) == ("server.per_network.connections", 2, "192.0.2.3")
        held[0].close()
        await left(running, 1)
        again = await call(running, header=proxied("192.0.2.9"))
        assert again.greeting.startswith(b"SSH-2.0-")
        for caller in (*held, other, again):
            caller.close()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ({"per_network": NONE, "per_address": {**NONE, "sessions": 1}}, "server.per_address.sessions"),
        ({"per_address": NONE, "per_network": {**NONE, "sessions": 1}}, "server.per_network.sessions"),
        ({"max_sessions": 1}, "server.max_sessions"),
    ],
)
async def test_a_session_too_many_is_closed_once_it_is_authenticated(
    serve: Serve, config: dict[str, Any], limit: str
) -> None:  # fmt: skip
    async with serve(server={"exempt": [], **config}) as running:
        async with running.connect() as connection:
            with pytest.raises((asyncssh.Error, OSError)):
                async with running.connect(password="root") as second:
                    await second.run("x", stdin=asyncssh.DEVNULL)
            (closed,) = await running.journal.wait_for(events.ConnectionClosed)
            assert (closed.cause, closed.session_id) == ("limit", None)
            assert reached(running) == [limit]
            assert [attempt.password for attempt in running.journal.of(events.AuthAttempt) if attempt.accepted] == ["root"] * 2
            assert len(running.journal.of(events.SessionOpened)) == 1
            assert (await connection.run("x", stdin=asyncssh.DEVNULL)).exit_status == 7
        await left(running, 2)
        async with running.connect() as connection:
            assert (await connection.run("x", stdin=asyncssh.DEVNULL)).exit_status == 7
    assert running.front.limits.connections == 0


@pytest.mark.asyncio
async def test_channels_one_after_the_other_come_to_an_end(serve: Serve) -> None:
    async with serve(server={"max_session_channels": 2}) as running, running.connect() as connection:
        for _ in range(2):
            assert (await connection.run("x", stdin=asyncssh.DEVNULL)).exit_status == 7
        with pytest.raises(asyncssh.ChannelOpenError, match="open failed"):
            await connection.run("x", stdin=asyncssh.DEVNULL)
        assert reached(running) == ["server.max_session_channels"]
        (failed,) = running.journal.of(events.ChannelFailed)
        assert failed.reason == "server.max_session_channels reached"


@pytest.mark.asyncio
async def test_channels_at_once(serve: Serve) -> None:
    async with serve(server={"max_channels": 1}) as running, running.connect() as connection:
        held = await connection.create_process("wait")
        with pytest.raises(asyncssh.ChannelOpenError, match="open failed"):
            await connection.create_process("one too many")
        assert reached(running) == ["server.max_channels"]
        held.stdin.write_eof()
        await held.wait()


@pytest.mark.asyncio
async def test_requests_on_one_channel_come_to_an_end(serve: Serve) -> None:
    async with serve(server={"max_channel_requests": 10}) as running, running.connect() as connection:
        process = await connection.create_process("x", term_type="xterm", term_size=(80, 24))
        for number in range(20):
            process.change_terminal_size(80 + number, 24)
        process.stdin.write_eof()
        assert (await process.wait()).exit_status == 7
        (limit,) = running.journal.of(events.LimitReached)
        assert (limit.limit, limit.value, limit.channel) == ("server.max_channel_requests", 10, 1)
        assert len(running.journal.of(events.ChannelResize)) == 8  # besides the terminal and the command
        assert (await connection.run("x", stdin=asyncssh.DEVNULL)).exit_status == 7


@pytest.mark.asyncio
async def test_a_request_too_many_fails_for_who_wants_to_know(serve: Serve) -> None:
    async with serve(server={"max_channel_requests": 10}) as running, running.connect() as connection:
        with pytest.raises(asyncssh.ChannelOpenError):  # the eleventh request is the one to start something
            await connection.create_process("x", env={f"LC_{number}": "C" for number in range(10)})
        assert reached(running) == ["server.max_channel_requests"]


@pytest.mark.asyncio
async def test_forwards_and_environment_have_an_end(serve: Serve) -> None:
    async with serve(server={"max_forwards": 1, "max_environment": 100}) as running, running.connect() as connection:
        await connection.forward_remote_port("", 0, "127.0.0.1", 9)
        with pytest.raises(asyncssh.ChannelListenError):
            await connection.forward_remote_port("", 0, "127.0.0.1", 9)
        await connection.run("x", env={"LC_ALL": "x" * 200, "LANG": "C"}, stdin=asyncssh.DEVNULL)
        assert reached(running) == ["server.max_forwards", "server.max_environment"]
        assert {event.variable: event.accepted for event in running.journal.of(events.ChannelEnv)} == {
            "LC_ALL": False, "LANG": True,
        }  # fmt: skip


@pytest.mark.asyncio
@pytest.mark.parametrize("name", ["login", "idle", "session"])
async def test_time_limits(serve: Serve, name: str) -> None:
    async with serve(server={f"{name}_timeout": 0.3}) as running:
        if name == "login":
            caller = await call(running)
            await asyncio.wait_for(caller.reader.read(), PATIENCE)
            caller.close()
        else:
            async with running.connect() as connection:
                await asyncio.wait_for(connection.wait_closed(), PATIENCE)
        await left(running, 1)
        assert reached(running) == [f"server.{name}_timeout"]


@pytest.mark.asyncio
async def test_what_one_connection_may_write_to_the_journal(serve: Serve) -> None:
    async with serve(server={"max_requests": 100}) as running, running.connect() as connection:
        process = await connection.create_process(term_type="xterm", term_size=(80, 24))
        for number in range(200):
            process.change_terminal_size(80 + number, 24)
        process.stdin.write_eof()
        await process.wait()
        assert reached(running) == ["server.max_requests"]


@pytest.mark.asyncio
async def test_what_is_remembered_of_sources_has_an_end(serve: Serve) -> None:
    config = {"exempt": [], "max_sources": 1, "limit_interval": 0}
    async with serve(server=config, authentication={"remember": 1}) as running:
        for number, source in enumerate(("127.0.1.1", "127.0.2.1"), 1):
            async with running.connect(local_addr=(source, 0)):
                pass
            await left(running, number)
        assert sorted(reached(running)) == ["authentication.remember", "server.max_sources", "server.max_sources"]


@pytest.mark.asyncio
async def test_packets_that_wait_for_a_key_exchange(serve: Serve) -> None:
    async with serve(server={"max_deferred": 100}) as running:
        connection = await running.connect()
        (visitor,) = running.front.visitors
        server: Any = visitor._connection
        process = await connection.create_process("wait")
        await running.journal.wait_for(events.ChannelStarted)
        connection._send_kexinit = lambda: None  # it never answers
        server._send_kexinit()
        for _ in range(200):
            server.send_packet(MSG_CHANNEL_FAILURE, UInt32(0))
        await left(running, 1)
        assert reached(running) == ["server.max_deferred"]
        process.close()
        connection.abort()
        with contextlib.suppress(asyncssh.Error, OSError):
            await connection.wait_closed()


@pytest.mark.asyncio
async def test_who_waits_before_its_proxy_header_is_limited_too(serve: Serve) -> None:
    async with serve(server={"proxy_protocol": True, "max_connections": 2}) as running:
        waiting = [await asyncio.open_connection("127.0.0.1", running.port) for _ in range(2)]
        async with asyncio.timeout(PATIENCE):
            while len(running.front._lobby) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        turned_away = await call(running)
        assert turned_away.greeting == b""
        assert reached(running) == ["server.max_connections"]
        waiting[0][1].write(proxied("192.0.2.1"))
        assert (await waiting[0][0].readline()).startswith(b"SSH-2.0-")
        again = await call(running, header=proxied("192.0.2.2"))
        assert again.greeting.startswith(b"SSH-2.0-")
        for writer in (turned_away.writer, again.writer, *(it[1] for it in waiting)):
            writer.close()
    assert len(running.front._lobby) == 0


# ---- floods


@pytest.mark.asyncio
async def test_a_crowd_at_the_door_is_taken_in_turns(serve: Serve) -> None:
    async with serve(server={"max_startups": "1000"}) as running:
        crowd = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(200)]  # nobody is let in meanwhile
        most = 0
        async with asyncio.timeout(PATIENCE):
            while (before := len(running.front.visitors)) < 200:
                await asyncio.sleep(0)
                most = max(most, len(running.front.visitors) - before)
        assert most <= BURST
        for sock in crowd:
            sock.close()


@pytest.mark.asyncio
async def test_a_flood_is_told_in_a_few_events_and_counted_whole(serve: Serve) -> None:
    metrics = Metrics()
    async with serve(server={"exempt": [], "per_address": {**NONE, "startups": 1}}) as running:
        held = await call(running, "127.0.0.5")
        for _ in range(50):
            caller = await call(running, "127.0.0.5")
            assert caller.greeting == REFUSED
            caller.close()
        assert reached(running) == ["server.per_address.startups"]
        assert len(running.journal.of(events.ConnectionRefused)) == 1
        held.close()
    for event in running.journal.events:
        metrics.count(event)
    lines = metrics.text(State()).decode().splitlines()
    assert 'hermes_limit_reached_total{limit="server.per_address.startups"} 50.0' in lines
    assert "hermes_connections_refused_total 50.0" in lines
    assert len(running.journal.of(events.ConnectionRefused)) == 2


@pytest.mark.asyncio
async def test_what_was_suppressed_is_said_when_the_interval_is_over(serve: Serve) -> None:
    config = {"exempt": [], "per_address": {**NONE, "startups": 1}, "limit_interval": 0.2}
    async with serve(server=config) as running:
        callers = [await call(running, "127.0.0.5") for _ in range(5)]
        async with asyncio.timeout(PATIENCE):
            while sum(1 + event.suppressed for event in running.journal.of(events.LimitReached)) < 4:
                running.journal.news.clear()
                await running.journal.news.wait()
        for caller in callers:
            caller.close()


@pytest.mark.asyncio
async def test_a_flood_from_one_network_leaves_the_others_served(serve: Serve) -> None:
    """One network holds all it can and comes back for more without a pause, by the defaults; others log in meanwhile."""
    async with serve(server={"exempt": []}) as running:
        stop = asyncio.Event()
        turned_away = 0

        async def flood(source: str) -> None:
            nonlocal turned_away
            held = []
            while not stop.is_set():
                caller = await call(running, source)
                if caller.greeting.startswith(b"SSH-"):
                    held.append(caller)
                else:
                    turned_away += 1
                    caller.close()
            for caller in held:
                caller.close()

        async with asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(flood(f"127.0.66.{number + 1}"))
            async with asyncio.timeout(PATIENCE):
                while not turned_away:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            for number in range(10):
                async with running.connect(local_addr=(f"127.0.{number + 1}.1", 0)) as connection:
                    assert (await connection.run("x", stdin=asyncssh.DEVNULL)).exit_status == 7
                assert running.front.limits.startups <= 10
            stop.set()
        assert turned_away > 0
        refused = {event.source_ip.rpartition(".")[0] for event in running.journal.of(events.ConnectionRefused)}
        assert refused == {"127.0.66"}
        assert len(running.journal.of(events.SessionOpened)) == 10
