import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench.load import Failed as FailedJob
from bench.load import Idle, Latency, Server, Stream, at_prompt, failed, latency, stream
from bench.measures import Client
from bench.ssh import Connection
from bench.targets import PROJECT, answers, free_port


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The plain server, for real."""
    home: Path = tmp_path_factory.mktemp("home")
    port = free_port()
    argv = [sys.executable, "-m", "bench.plain_server", str(port), str(home)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=PROJECT) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"listening\n"
            yield Server(port=port, user="root", password="root")
        finally:
            process.terminate()
        assert process.wait(20) == 0


def connect(server: Server) -> Connection:
    connection = Connection(("127.0.0.1", server.port), timeout=20)
    assert connection.authenticate(server.user, server.password)
    return connection


def test_the_server_greets(server: Server) -> None:
    assert answers(server.port)
    assert not answers(free_port())


def test_a_command_gives_its_output_and_status(server: Server) -> None:
    with connect(server) as connection:
        for text, status in (("one", 0), ("two", 7)):
            channel = connection.start(f"printf {text}; exit {status}")
            connection.wait_closed(channel)
            assert (channel.tail, channel.received, channel.status) == (text.encode(), 3, status)


def test_a_shell_stands_on_a_terminal_and_echoes(server: Server) -> None:
    with connect(server) as connection:
        channel = connection.start(None, pty=True)
        while not at_prompt(channel.tail):
            connection.pump()
        connection.type(channel, b"tty; stty size\n")
        while b"24 80" not in channel.tail:
            connection.pump()
        assert b"/dev/pts/" in channel.tail


def test_a_wrong_password_is_refused(server: Server) -> None:
    with Connection(("127.0.0.1", server.port), timeout=20) as connection:
        assert not connection.authenticate("root", "wrong")


@pytest.mark.parametrize("pty", [False, True])
def test_more_text_than_a_window_comes_whole(server: Server, pty: bool) -> None:
    size = 5_000_000
    answer = stream(Stream(server=server, size=size, pty=pty))
    assert answer["bytes"] == (size if not pty else size + size // 65)


def test_logins_are_timed_and_failures_counted(server: Server) -> None:
    answer = latency(Latency(server=server, count=3, gap=0, command="true", warmup=1))
    assert len(answer["ms"]) == len(answer["client_cpu_ms"]) == 3
    refused = Server(port=server.port, user="root", password="wrong")
    answer = latency(Latency(server=refused, count=2, gap=0, warmup=0))
    assert answer["ms"] == []
    assert answer["faults"] == {"SSHError: login refused": 2}
    assert failed(FailedJob(server=server, count=5, parallel=2)) == {"done": 5, "faults": {}}


def test_idle_sessions_stand_until_they_are_let_go(server: Server) -> None:
    with Client(Idle(server=server, count=3), 60) as client:
        assert client.answer() == {"standing": 3}
        assert not client.answered(0)
        client.let_go()
