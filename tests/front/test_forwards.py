"""Forwards as real clients use them: connections lead to a sink that answers, keeps the first bytes, and holds its limits."""

import asyncio
import contextlib
import http.client
import imaplib
import poplib
import smtplib
import socket
import ssl
from collections.abc import AsyncIterator
from email.message import EmailMessage
from pathlib import Path

import asyncssh
import pytest

from hermes import events
from hermes.server.visitor import Visitor
from tests.front.conftest import PATIENCE, MemoryJournal, Running, Serve


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


async def listening(port: int) -> None:
    """Return when somebody listens there."""
    async with asyncio.timeout(PATIENCE):
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def client(running: Running, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The real OpenSSH client, which only forwards, for as long as the block takes."""
    process = await asyncio.create_subprocess_exec(
        "sshpass", "-p", "root", "ssh", "-F", "none", "-N", "-o", "StrictHostKeyChecking=no",
        "-o", "UserKnownHostsFile=/dev/null", "-o", "PreferredAuthentications=password",
        *arguments, "-p", str(running.port), "root@127.0.0.1",
        stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.communicate()


def said(journal: MemoryJournal, forward: int, direction: str) -> str:
    """What was kept of one direction, put together."""
    pieces = [it for it in journal.of(events.ForwardData) if (it.forward, it.direction) == (forward, direction)]
    assert [it.offset for it in pieces] == [sum(one.size for one in pieces[:number]) for number in range(len(pieces))]
    return "".join(it.data for it in pieces)


@pytest.mark.asyncio
async def test_a_mail_client_sends_its_message_through_a_local_forward(serve: Serve) -> None:
    def send(port: int) -> None:
        message = EmailMessage()
        message["From"], message["To"], message["Subject"] = "a@example.org", "b@example.net", "check"
        message.set_content("it works\n.\nand goes on\n")
        with smtplib.SMTP("127.0.0.1", port, timeout=PATIENCE) as smtp:
            assert smtp.ehlo()[0] == 250
            smtp.login("postmaster", "s3cret")
            assert smtp.send_message(message) == {}

    port = free_port()
    async with serve() as running:
        async with client(running, "-L", f"{port}:mx.example.net:25"):
            await listening(port)
            await running.journal.wait_for(events.ForwardClosed)  # of the one that only looked whether there is one
            await asyncio.to_thread(send, port)
            await running.journal.wait_for(events.ForwardClosed, 2)
        journal = running.journal
        requested = journal.of(events.ForwardRequested)
        assert [(it.kind, it.host, it.port, it.accepted, it.forward) for it in requested] == [
            ("direct-tcpip", "mx.example.net", 25, True, 1), ("direct-tcpip", "mx.example.net", 25, True, 2),
        ]  # fmt: skip
        assert said(journal, 2, "out").startswith("220 mx.example.net ESMTP")
        kept = said(journal, 2, "in")
        assert "mail FROM:<a@example.org>" in kept
        assert "Subject: check" in kept
        assert kept.endswith("..\r\nand goes on\r\n.\r\nQUIT\r\n")
        (login,) = journal.of(events.ForwardLogin)
        assert (login.forward, login.protocol, login.method) == (2, "smtp", "PLAIN")
        assert (login.username, login.password) == ("postmaster", "s3cret")
        closed = journal.of(events.ForwardClosed)[1]
        assert (closed.forward, closed.protocol, closed.bytes_in) == (2, "smtp", len(kept))
        assert all(it.session_id for it in journal.of(events.ForwardData))


@pytest.mark.asyncio
async def test_a_web_client_and_a_proxy_user_get_answers(serve: Serve) -> None:
    def ask(port: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        connection.request("GET", "/ip", headers={"Host": "check.example"})
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("Server"), answer.getheader("Connection")) == (200, "nginx/1.22.1", "keep-alive")
        assert b"<html>" in answer.read()
        connection.request("POST", "/login", body=b"user=a&pass=b")
        answer = connection.getresponse()
        assert answer.status == 200
        answer.read()
        connection.request("HEAD", "/")
        assert connection.getresponse().read() == b""
        connection.close()
        context = ssl._create_unverified_context()
        tunnel = http.client.HTTPSConnection("127.0.0.1", port, timeout=PATIENCE, context=context)
        tunnel.set_tunnel("bank.example", 443, headers={"Proxy-Authorization": "Basic dTpw"})
        with pytest.raises(ssl.SSLError, match=r"(?i)handshake.failure"):
            tunnel.request("GET", "/")

    port = free_port()
    async with serve() as running:
        async with client(running, "-L", f"{port}:198.51.100.7:80"):
            await listening(port)
            await asyncio.to_thread(ask, port)
            await running.journal.wait_for(events.ForwardClosed, 3)
        journal = running.journal
        assert "GET /ip HTTP/1.1" in said(journal, 2, "in")
        assert "user=a&pass=b" in said(journal, 2, "in")
        assert said(journal, 3, "in").startswith("CONNECT bank.example:443")
        (login,) = journal.of(events.ForwardLogin)
        assert (login.method, login.username, login.password) == ("Proxy-Basic", "u", "p")
        (hello,) = journal.of(events.ForwardTLS)
        assert (hello.forward, hello.server_name) == (3, "bank.example")
        assert [it.protocol for it in journal.of(events.ForwardClosed)] == ["", "http", "tls"]


@pytest.mark.asyncio
async def test_readers_of_mail_are_let_in(serve: Serve) -> None:
    def fetch(pop: int, imap: int) -> None:
        box = poplib.POP3("127.0.0.1", pop, timeout=PATIENCE)
        box.user("victim@example.org")
        box.pass_("s p a c e")
        assert box.stat() == (0, 0)
        assert box.list()[1] == []
        box.quit()
        client = imaplib.IMAP4("127.0.0.1", imap, timeout=PATIENCE)
        assert client.login("victim", 'qu"ote\\')[0] == "OK"
        assert client.select("INBOX") == ("OK", [b"0"])
        assert client.search(None, "ALL") == ("OK", [b""])
        client.logout()
        client = imaplib.IMAP4("127.0.0.1", imap, timeout=PATIENCE)
        client.authenticate("PLAIN", lambda challenge: b"\0other\0secret")
        client.logout()

    pop, imap = free_port(), free_port()
    async with serve() as running:
        async with client(running, "-L", f"{pop}:mail.example.org:110", "-L", f"{imap}:mail.example.org:143"):
            await listening(imap)
            await asyncio.to_thread(fetch, pop, imap)
            await running.journal.wait_for(events.ForwardClosed, 4)
        logins = running.journal.of(events.ForwardLogin)
        assert [(it.protocol, it.method, it.username, it.password) for it in logins] == [
            ("pop3", "USER", "victim@example.org", "s p a c e"), ("imap", "LOGIN", "victim", 'qu"ote\\'),
            ("imap", "PLAIN", "other", "secret"),
        ]  # fmt: skip


@pytest.mark.asyncio
async def test_a_tls_client_says_hello_through_a_socks_proxy_and_gets_an_alert(serve: Serve) -> None:
    def shake(port: int) -> None:
        sock = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        sock.sendall(b"\x05\x01\x00")
        assert sock.recv(2) == b"\x05\x00"
        name = b"api.example.com"
        sock.sendall(b"\x05\x01\x00\x03" + bytes([len(name)]) + name + (443).to_bytes(2, "big"))
        assert sock.recv(10)[:2] == b"\x05\x00"
        context = ssl.create_default_context()
        context.set_alpn_protocols(["h2", "http/1.1"])
        with pytest.raises(ssl.SSLError, match=r"(?i)handshake.failure"):
            context.wrap_socket(sock, server_hostname="api.example.com")
        sock.close()

    port = free_port()
    async with serve() as running:
        async with client(running, "-D", str(port)):
            await listening(port)
            await asyncio.to_thread(shake, port)
            await running.journal.wait_for(events.ForwardClosed)
        (requested,) = running.journal.of(events.ForwardRequested)
        assert (requested.host, requested.port) == ("api.example.com", 443)
        (hello,) = running.journal.of(events.ForwardTLS)
        assert (hello.server_name, hello.alpn) == ("api.example.com", ["h2", "http/1.1"])
        assert hello.ja4.startswith("t13d")
        assert hello.ja4[8:10] == "h2"
        assert {it.protocol for it in running.journal.of(events.ForwardData)} == {"tls"}


@pytest.mark.asyncio
async def test_standard_streams_through_the_server(serve: Serve) -> None:
    async with serve() as running:
        outcome = await running.ssh("-W", "198.51.100.9:25", stdin=b"EHLO x\r\nQUIT\r\n")
        assert outcome.stdout.startswith(b"220 mail ESMTP Postfix (Debian/GNU)\r\n250-mail\r\n")
        assert outcome.stdout.endswith(b"221 2.0.0 Bye\r\n")
        banner = await running.ssh("-W", "198.51.100.9:22", stdin=b"SSH-2.0-Go\r\n")
        assert banner.stdout.startswith(b"SSH-2.0-OpenSSH_")
        other = await running.ssh("-W", "198.51.100.9:6667", stdin=b"NICK bot\r\n\xff\xfe")
        assert other.stdout == b""
        await running.journal.wait_for(events.ForwardClosed, 3)
        assert [it.data for it in running.journal.of(events.ForwardData) if it.protocol == ""] == ["NICK bot\r\n\\xff\\xfe"]
        assert not running.journal.of(events.ChannelOpened)


@pytest.mark.asyncio
async def test_listening_is_granted_and_nothing_listens(serve: Serve, tmp_path: Path) -> None:
    port, path = free_port(), f"{tmp_path}/x.sock"
    async with serve() as running, client(running, "-R", f"{port}:127.0.0.1:9", "-R", f"{path}:127.0.0.1:9"):
        await running.journal.wait_for(events.ForwardRequested, 2)
        assert [(it.kind, it.port, it.path, it.accepted) for it in running.journal.of(events.ForwardRequested)] == [
            ("tcpip-forward", port, "", True), ("streamlocal-forward", 0, path, True),
        ]  # fmt: skip
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        assert not Path(path).exists()


@pytest.mark.asyncio
async def test_ports_below_1024_are_roots(serve: Serve) -> None:
    async with serve(authentication={"passwords": {"*": ("*",)}}) as running:
        async with running.connect(username="admin") as connection:
            with pytest.raises(asyncssh.ChannelListenError):
                await connection.forward_remote_port("", 80, "127.0.0.1", 9)
            assert 32768 <= (await connection.forward_remote_port("", 0, "127.0.0.1", 9)).get_port() < 61000
        async with running.connect() as connection:
            await connection.forward_remote_port("", 80, "127.0.0.1", 9)
        assert [it.accepted for it in running.journal.of(events.ForwardRequested)] == [False, True, True]


@pytest.mark.asyncio
async def test_what_is_refused_is_refused_as_by_sshd(serve: Serve) -> None:
    refused = {
        "direct_tcpip": "refuse", "direct_streamlocal": "refuse", "tcpip_forward": "refuse", "streamlocal_forward": "refuse"
    }  # fmt: skip
    async with serve(forwards=refused) as running:
        outcome = await running.ssh("-W", "198.51.100.7:25")
        assert (outcome.status, outcome.stderr) == (255, b"stdio forwarding failed\r\n")
        async with running.connect() as connection:
            with pytest.raises(asyncssh.ChannelOpenError) as caught:
                await connection.open_connection("198.51.100.7", 25)
            assert (caught.value.code, caught.value.reason) == (asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, "open failed")
            with pytest.raises(asyncssh.ChannelOpenError) as caught:
                await connection.open_unix_connection("/run/docker.sock")
            assert (caught.value.code, caught.value.reason) == (asyncssh.OPEN_CONNECT_FAILED, "open failed")
            with pytest.raises(asyncssh.ChannelListenError):
                await connection.forward_remote_port("", 0, "127.0.0.1", 9)
            with pytest.raises(asyncssh.ChannelListenError):
                await connection.forward_remote_path("/tmp/x", "/tmp/y")
        requested = running.journal.of(events.ForwardRequested)
        assert [(it.accepted, it.forward) for it in requested] == [(False, None)] * 5
        assert not running.journal.of(events.ForwardClosed)


@pytest.mark.asyncio
async def test_hosts_and_ports_can_refuse(serve: Serve) -> None:
    config = {"refused_hosts": ("*.Local", "10.*", "/run/*"), "refused_ports": (3306,), "direct_streamlocal": "accept"}
    async with serve(forwards=config) as running, running.connect() as connection:
        for host, port in (("db.local", 80), ("10.1.2.3", 80), ("198.51.100.7", 3306), ("198.51.100.7", 65536), ("x", 0)):
            with pytest.raises(asyncssh.ChannelOpenError) as caught:
                await connection.open_connection(host, port)
            assert (caught.value.code, caught.value.reason) == (asyncssh.OPEN_CONNECT_FAILED, "Connection refused")
        with pytest.raises(asyncssh.ChannelOpenError, match="open failed"):
            await connection.open_unix_connection("/run/docker.sock")
        reader, writer = await connection.open_unix_connection("/tmp/app.sock")
        writer.write(b"GET /containers/json HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readline()) == b"HTTP/1.1 200 OK\r\n"
        writer.close()
        await running.journal.wait_for(events.ForwardClosed)


def limits(running: Running) -> list[str]:
    return [it.limit for it in running.journal.of(events.LimitReached)]


@pytest.mark.asyncio
async def test_so_many_at_once_and_so_many_in_all(serve: Serve) -> None:
    async with serve(forwards={"max_open": 2, "max_total": 3}) as running, running.connect() as connection:
        held = [await connection.open_connection("198.51.100.7", 6667) for _ in range(2)]
        with pytest.raises(asyncssh.ChannelOpenError, match="open failed"):
            await connection.open_connection("198.51.100.7", 6667)
        assert limits(running) == ["forwards.max_open"]
        held[0][1].close()
        await running.journal.wait_for(events.ForwardClosed)
        await connection.open_connection("198.51.100.7", 6667)
        held[1][1].close()
        await running.journal.wait_for(events.ForwardClosed, 2)
        with pytest.raises(asyncssh.ChannelOpenError, match="open failed"):
            await connection.open_connection("198.51.100.7", 6667)
        assert limits(running) == ["forwards.max_open", "forwards.max_total"]


@pytest.mark.asyncio
async def test_the_first_bytes_are_kept_and_the_rest_is_counted(serve: Serve) -> None:
    config = {"max_kept": 20_000, "max_kept_connection": 30_000, "max_received": 100_000}
    async with serve(forwards=config, server={"limit_interval": 0}) as running, running.connect() as connection:
        for number in (1, 2):
            reader, writer = await connection.open_connection("198.51.100.7", 6667)
            writer.write(b"x" * 60_000)
            writer.write(b"y" * 60_000)
            assert await reader.read() == b""
            await running.journal.wait_for(events.ForwardClosed, number)
        kept = [len(said(running.journal, number, "in")) for number in (1, 2)]
        assert kept == [20_000, 10_000]
        assert limits(running) == [
            "forwards.max_kept", "forwards.max_received", "forwards.max_kept_connection", "forwards.max_received",
        ]  # fmt: skip
        assert all(100_000 <= it.bytes_in <= 120_000 for it in running.journal.of(events.ForwardClosed))


@pytest.mark.asyncio
async def test_time_is_up(serve: Serve) -> None:
    async with serve(forwards={"max_seconds": 0.1}) as running, running.connect() as connection:
        reader, writer = await connection.open_connection("198.51.100.7", 6667)
        writer.write(b"hello")
        assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
        await running.journal.wait_for(events.ForwardClosed)
        assert limits(running) == ["forwards.max_seconds"]
        assert said(running.journal, 1, "in") == "hello"


@pytest.mark.asyncio
async def test_time_is_up_also_for_who_never_reads(serve: Serve) -> None:
    async with serve(forwards={"max_seconds": 0.3, "max_open": 1}) as running, running.connect() as connection:
        reader, writer = await connection.open_connection("198.51.100.7", 25, window=65536)
        reader.channel.pause_reading()
        writer.write(b"NOOP\r\n" * 20_000 + b"QUIT\r\n")
        await running.journal.wait_for(events.ForwardClosed)
        await connection.open_connection("198.51.100.7", 25)
        assert limits(running) == ["forwards.max_kept", "forwards.max_seconds"]


@pytest.mark.asyncio
async def test_what_was_said_is_stated_while_it_goes_on_and_before_the_connection_ends(serve: Serve) -> None:
    async with serve() as running:
        connection = await running.connect()
        _, writer = await connection.open_connection("198.51.100.7", 6667)
        writer.write(b"first")
        await running.journal.wait_for(events.ForwardData)
        writer.write(b", then more")
        await writer.drain()
        await connection.run("x", stdin=asyncssh.DEVNULL)  # behind which the server has the bytes
        connection.abort()
        await running.journal.wait_for(events.ConnectionClosed)
        assert said(running.journal, 1, "in") == "first, then more"
        tags = [it.tag() for it in running.journal.events]
        assert tags.index("forward.closed") < tags.index("session.closed") < tags.index("connection.closed")


@pytest.mark.asyncio
async def test_a_client_that_reads_late_gets_all_its_answers(serve: Serve) -> None:
    async with serve() as running, running.connect() as connection:
        reader, writer = await connection.open_connection("198.51.100.7", 25, window=65536)
        reader.channel.pause_reading()
        writer.write(b"NOOP\r\n" * 20_000)
        writer.write(b"QUIT\r\n")
        await connection.run("x", stdin=asyncssh.DEVNULL)  # behind which the server has all of it
        reader.channel.resume_reading()
        said = await asyncio.wait_for(reader.read(), PATIENCE)
        assert said.count(b"250 2.0.0 Ok") == 20_000
        assert said.endswith(b"221 2.0.0 Bye\r\n")


@pytest.mark.asyncio
async def test_a_client_that_only_sends_is_cut(serve: Serve) -> None:
    config = {"max_unread": 50_000, "max_kept": 1024**2}
    async with serve(forwards=config) as running, running.connect() as connection:
        reader, writer = await connection.open_connection("198.51.100.7", 25, window=65536)
        reader.channel.pause_reading()
        writer.write(b"NOOP\r\n" * 100_000)
        await running.journal.wait_for(events.LimitReached)
        assert limits(running) == ["forwards.max_unread"]
        connection.abort()
        (closed,) = await running.journal.wait_for(events.ForwardClosed)
        assert closed.bytes_in < 300_000


@pytest.mark.asyncio
async def test_a_session_that_only_forwards_takes_no_box(serve: Serve) -> None:
    opened: list[Visitor] = []
    async with serve() as running:
        running.front.channel_opened = opened.append
        await running.ssh("-W", "198.51.100.9:25", stdin=b"QUIT\r\n")
        await running.journal.wait_for(events.SessionClosed)
    assert opened == []


@pytest.mark.asyncio
async def test_hostile_bytes_hurt_nobody(serve: Serve) -> None:
    starts = (b"", b"\x16\x03\x01", b"EHLO x\r\nAUTH PLAIN ", b"GET ", b"CONNECT x:1 HTTP/1.1\r\n\r\n", b"SSH-", b"DATA\r\n")
    async with serve() as running, running.connect() as connection:
        number = 0
        for port in (25, 22, 80, 443):
            for start in starts:
                reader, writer = await connection.open_connection("198.51.100.7", port)
                writer.write(start + bytes(range(256)) * 40)
                writer.write_eof()
                await asyncio.wait_for(reader.read(), PATIENCE)
                number += 1
                await running.journal.wait_for(events.ForwardClosed, number)
        assert (await connection.run("x", stdin=asyncssh.DEVNULL)).exit_status == 7
