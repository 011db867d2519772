"""What a connection may ask for besides a login, and how it ends."""

import asyncio
import contextlib
import socket
import struct

import asyncssh
import pytest

from hermes import events
from hermes.server.process import ChannelProcess
from hermes.server.visitor import Visitor
from tests.front.conftest import Serve, greet


async def talk(port: int, data: bytes) -> bytes:
    """Send bytes; return everything that comes back until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    answer = b""
    async with asyncio.timeout(20):
        with contextlib.suppress(ConnectionResetError):  # what it would not read any more
            while data := await reader.read(65536):
                answer += data
    writer.close()
    return answer


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"GET / HTTP/1.1\r\n", b"Invalid SSH identification string.\r\n"),
        (b"\x16\x03\x01\x02\x00\r\n", b"Invalid SSH identification string.\r\n"),
        (b"SSH-2.0-\xff\xfe\r\n", b"Invalid SSH identification string.\r\n"),
        (b"\n", b"Invalid SSH identification string.\r\n"),
        (b"SSH-1.5-old\r\n", b"Protocol major versions differ.\r\n"),
    ],
)
async def test_what_is_no_ssh_is_told_so_and_recorded(serve: Serve, line: bytes, words: bytes) -> None:
    async with serve() as running:
        answer = await talk(running.port, line)
        assert answer.endswith(words)
        (version,) = running.journal.of(events.ClientVersion)
        assert version.version == events.from_bytes(line.rstrip(b"\r\n"))
        (closed,) = await running.journal.wait_for(events.ConnectionClosed)
        assert closed.cause == "protocol-error"


@pytest.mark.asyncio
async def test_garbage_after_the_version_hurts_nobody_else(serve: Serve) -> None:
    async with serve() as running, running.connect() as connection:
        for garbage in (
            b"\0" * 4096,
            b"\xff" * 40000,
            struct.pack("!IB", 0xFFFFFFFF, 0) * 100,
            b"\x00\x00\x00\x0c\x0a\x14" * 500,
        ):
            await talk(running.port, b"SSH-2.0-x\r\n" + garbage)
        assert (await connection.run("still here", stdin=asyncssh.DEVNULL)).exit_status == 7


@pytest.mark.asyncio
async def test_x11_is_refused_and_the_agent_taken(serve: Serve) -> None:
    async with serve() as running:
        outcome = await running.ssh("-A", "-X", "id")
        assert outcome.status == 7
        kinds = {f.kind: f.accepted for f in running.journal.of(events.ForwardRequested)}
        assert kinds.get("x11", False) is False


@pytest.mark.asyncio
async def test_environment_as_debian_takes_it(serve: Serve) -> None:
    seen: list[dict[bytes, bytes]] = []

    async def handler(visitor: Visitor, process: ChannelProcess) -> None:
        seen.append(dict(process.env))
        process.exit(0)

    async with serve(handler) as running, running.connect() as connection:
        await connection.run("x", env={"LANG": "C", "LC_ALL": "de_DE", "LD_PRELOAD": "/tmp/x.so"}, stdin=asyncssh.DEVNULL)
        assert seen == [{b"LANG": b"C", b"LC_ALL": b"de_DE"}]
        assert {e.variable: e.accepted for e in running.journal.of(events.ChannelEnv)} == {
            "LANG": True, "LC_ALL": True, "LD_PRELOAD": False,
        }  # fmt: skip


@pytest.mark.asyncio
async def test_commands_that_are_not_utf8_arrive_as_they_are(serve: Serve) -> None:
    seen: list[bytes | None] = []

    async def handler(visitor: Visitor, process: ChannelProcess) -> None:
        seen.append(process.command)
        visitor.channel_running(process, recording=None)
        process.exit(0)

    async with serve(handler) as running:
        command = b"echo \xff\xfe \\x41"
        process = await asyncio.create_subprocess_exec(
            "sshpass", "-p", "root", "ssh", "-F", "none", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
            "-p", str(running.port), "root@127.0.0.1", command,
            stderr=asyncio.subprocess.DEVNULL, stdin=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        assert await asyncio.wait_for(process.wait(), 20) == 0
        assert seen == [command]
        (started,) = running.journal.of(events.ChannelStarted)
        assert started.command == "echo \\xff\\xfe \\\\x41"


@pytest.mark.asyncio
async def test_at_most_so_many_channels_at_once(serve: Serve) -> None:
    async with serve(server={"max_channels": 3}) as running, running.connect() as connection:
        held = [await connection.create_process("wait") for _ in range(3)]
        with pytest.raises(asyncssh.ChannelOpenError, match="open failed"):
            await connection.create_process("one too many")
        held[0].stdin.write_eof()
        await held[0].wait()
        again = await connection.create_process("now there is room")
        for process in (*held[1:], again):
            process.stdin.write_eof()
            await process.wait()


@pytest.mark.asyncio
async def test_an_unknown_subsystem_fails(serve: Serve) -> None:
    async with serve() as running, running.connect() as connection:
        with pytest.raises(asyncssh.ChannelOpenError):
            await connection.create_process(subsystem="netconf")
        assert [f.reason for f in running.journal.of(events.ChannelFailed)] == ["unknown subsystem netconf"]


@pytest.mark.asyncio
async def test_idle_session_ends(serve: Serve) -> None:
    async with serve(server={"idle_timeout": 0.2}) as running, running.connect() as connection:
        await asyncio.wait_for(connection.wait_closed(), 20)
        (timeout,) = running.journal.of(events.SessionTimeout)
        (closed,) = await running.journal.wait_for(events.SessionClosed)
        assert (timeout.limit, closed.cause) == ("idle", "idle-timeout")


@pytest.mark.asyncio
async def test_a_busy_session_ends_at_its_limit(serve: Serve) -> None:
    async def chatter(visitor: Visitor, process: ChannelProcess) -> None:
        while not process.closed:
            process.stdout.write(b"x")
            await asyncio.sleep(0.01)

    async with serve(chatter, server={"idle_timeout": 0.1, "session_timeout": 0.5}) as running, running.connect() as connection:
        await connection.create_process("talk")
        await asyncio.wait_for(connection.wait_closed(), 20)
        (timeout,) = running.journal.of(events.SessionTimeout)
        assert timeout.limit == "session"


@pytest.mark.asyncio
async def test_too_many_connections_are_turned_away_like_by_sshd(serve: Serve) -> None:
    async with serve(server={"max_connections": 1}) as running, running.connect() as connection:
        assert await talk(running.port, b"") == b"Exceeded MaxStartups\r\n"
        (refused,) = running.journal.of(events.ConnectionRefused)
        assert refused.reason == "server.max_connections reached"
        assert (await connection.run("x", stdin=asyncssh.DEVNULL)).exit_status == 7


@pytest.mark.asyncio
async def test_nobody_gets_in_while_events_cannot_be_kept(serve: Serve) -> None:
    async with serve() as running, running.connect() as connection:
        running.journal.healthy = False
        assert await talk(running.port, b"") == b"Exceeded MaxStartups\r\n"
        assert (await connection.run("x", stdin=asyncssh.DEVNULL)).exit_status == 7
        running.journal.healthy = True
        async with running.connect():
            pass


@pytest.mark.asyncio
async def test_a_million_window_changes_are_counted_and_bounded(serve: Serve) -> None:
    async with serve(server={"max_requests": 100, "max_channel_requests": 100_000}) as running, running.connect() as connection:
        process = await connection.create_process(term_type="xterm", term_size=(80, 24))
        for number in range(20_000):
            process.change_terminal_size(80 + number % 100, 24)
        process.stdin.write_eof()
        await process.wait()
    (closed,) = await running.journal.wait_for(events.ConnectionClosed)
    assert len(running.journal.of(events.ChannelResize)) <= 100
    assert closed.requests_dropped >= 19_900


@pytest.mark.asyncio
async def test_proxy_protocol_gives_the_real_address(serve: Serve) -> None:
    async with serve(server={"proxy_protocol": True}) as running:

        async def dial(header: bytes) -> socket.socket:
            sock = socket.socket()
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", running.port))
            await asyncio.get_running_loop().sock_sendall(sock, header)
            return sock

        sock = await dial(b"PROXY TCP4 192.0.2.9 198.51.100.1 4711 22\r\n")
        async with running.connect(sock=sock) as connection:
            assert (await connection.run("x", stdin=asyncssh.DEVNULL)).exit_status == 7
        (opened,) = running.journal.of(events.ConnectionOpened)
        assert (opened.source_ip, opened.source_port, opened.proxied) == ("192.0.2.9", 4711, True)
        (session,) = running.journal.of(events.SessionOpened)
        assert session.source_ip == "192.0.2.9"
        assert await talk(running.port, b"SSH-2.0-no-header\r\n") == b""
        assert len(running.journal.of(events.ConnectionOpened)) == 1


@pytest.mark.asyncio
async def test_where_a_client_is_from_is_stated_once_and_of_nobody_who_is_refused(serve: Serve) -> None:
    asked: list[str] = []

    def origin(address: str) -> events.ConnectionOrigin | None:
        asked.append(address)
        return events.ConnectionOrigin(country="AU", asn=13335, organization="x") if address == "1.1.1.1" else None

    async with serve(server={"proxy_protocol": True, "max_connections": 2}, origin=origin) as running:
        writers = []
        for number, address in enumerate(("1.1.1.1", "10.0.0.1", "8.8.8.8")):
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            writer.write(f"PROXY TCP4 {address} 198.51.100.1 {4711 + number} 22\r\n".encode())
            await reader.readline()
            writers.append(writer)
        for writer in writers:
            writer.close()
        await running.journal.wait_for(events.ConnectionClosed, 2)
        assert asked == ["1.1.1.1", "10.0.0.1"]
        opened = running.journal.of(events.ConnectionOpened)
        (stated,) = running.journal.of(events.ConnectionOrigin)
        assert (stated.connection_id, stated.country, stated.asn, stated.organization) == (
            opened[0].connection_id,
            "AU",
            13335,
            "x",
        )
        assert running.journal.events[:2] == [opened[0], stated]


@pytest.mark.asyncio
async def test_silence_before_a_proxy_header_is_bounded(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hermes.server.connection.PROXY_PATIENCE", 0.2)
    async with serve(server={"proxy_protocol": True}) as running:
        assert await talk(running.port, b"") == b""


@pytest.mark.asyncio
async def test_ipv6(serve: Serve) -> None:
    async with serve(family=socket.AF_INET6) as running:
        async with asyncssh.connect(
            "::1", running.port, username="root", password="root", known_hosts=None, client_keys=None, config=None
        ) as connection:  # fmt: skip
            assert (await connection.run("x", stdin=asyncssh.DEVNULL)).exit_status == 7
        (opened,) = running.journal.of(events.ConnectionOpened)
        assert opened.source_ip == "::1"


@pytest.mark.asyncio
async def test_closing_ends_every_session_with_its_cause(serve: Serve) -> None:
    async with serve() as running:
        connection = await running.connect()
        await connection.create_process("wait")
        await running.journal.wait_for(events.ChannelStarted)
        await running.front.close()
        await asyncio.wait_for(connection.wait_closed(), 20)
        (closed,) = running.journal.of(events.SessionClosed)
        assert closed.cause == "shutdown"
        assert running.journal.of(events.ChannelClosed)


@pytest.mark.asyncio
async def test_a_handler_that_fails_closes_its_channel_and_nothing_else(serve: Serve) -> None:
    async def handler(visitor: Visitor, process: ChannelProcess) -> None:
        if process.command == b"fail":
            raise RuntimeError("a bug")
        await greet(visitor, process)

    async with serve(handler) as running, running.connect() as connection:
        failed = await connection.run("fail", stdin=asyncssh.DEVNULL)
        assert failed.exit_status is None
        assert (await connection.run("go on", stdin=asyncssh.DEVNULL)).exit_status == 7


@pytest.mark.asyncio
async def test_no_packet_that_sshd_would_not_send(serve: Serve) -> None:
    seen: list[int] = []

    class Client(asyncssh.connection.SSHClientConnection):
        def log_received_packet(self, pkttype: int, *args: object, **options: object) -> None:
            seen.append(pkttype)

    async with serve() as running, running.connect() as connection:
        connection.__class__ = Client
        assert (await connection.run("x", stdin=asyncssh.DEVNULL)).exit_status == 7
    assert seen
    assert asyncssh.constants.MSG_IGNORE not in seen


@pytest.mark.asyncio
async def test_without_room_for_evidence_or_descriptors_clients_see_an_overloaded_sshd(serve: Serve) -> None:
    async with serve() as running:
        (listener,) = running.front._servers
        enough, listener._enough = listener._enough, 0
        assert (await running.ssh("true")).status == 255
        listener._enough = enough
        running.front._no_room = lambda: "evidence.min_free reached"
        assert (await running.ssh("true")).status == 255
        running.front._no_room = lambda: None
        assert (await running.ssh("true")).status == 7
        reasons = [refused.reason for refused in running.journal.of(events.ConnectionRefused)]
        assert reasons == ["open files are scarce", "evidence.min_free reached"]
