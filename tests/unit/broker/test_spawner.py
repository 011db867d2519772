"""The spawner's side of the box socket, without a box: it serves a forked process of this machine."""

import os
import signal
import socket
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import suppress

import pytest

from hermes.broker import linux
from hermes.broker.spawner import Spawner
from hermes.container.messages import (
    MAX_MESSAGE,
    BoxReply,
    BoxRequest,
    Exited,
    Failed,
    Resize,
    Signal,
    Spawn,
    Spawned,
    Terminal,
    decode_box_reply,
    encode,
)

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="the spawner changes users")


class Client:
    """The front's end of the box socket; `spawner` is the pid of the other end, `init` stands for the box's init."""

    def __init__(self) -> None:
        self.init = subprocess.Popen(["sleep", "infinity"])
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(20)
        self.fds: list[int] = []
        with warnings.catch_warnings():  # Python 3.12 warns where threads of earlier tests may still be
            warnings.simplefilter("ignore", DeprecationWarning)
            self.spawner = os.fork()
        if self.spawner == 0:
            with suppress(BaseException):
                self.sock.close()
                pts = os.open("/dev/pts", os.O_RDONLY)
                Spawner(theirs, os.pidfd_open(self.init.pid), pts, linux.ProcessTitle()).serve()
            os._exit(0)
        theirs.close()

    def say(self, request: BoxRequest) -> None:
        self.sock.send(encode(request))

    def hear(self) -> BoxReply:
        packet, fds = linux.receive_fds(self.sock, MAX_MESSAGE, 3)
        self.fds += fds
        reply: BoxReply = decode_box_reply(packet)
        return reply

    def ask(self, request: BoxRequest) -> BoxReply:
        self.say(request)
        return self.hear()

    def ended(self) -> bool:
        """Wait for the spawner's end; whether it ended by itself."""
        signal.alarm(20)
        try:
            return os.waitstatus_to_exitcode(os.waitpid(self.spawner, 0)[1]) == 0
        finally:
            signal.alarm(0)
            self.spawner = 0

    def close(self) -> None:
        self.sock.close()
        for fd in self.fds:
            os.close(fd)
        if self.spawner:
            assert self.ended()
        self.init.kill()
        self.init.wait()


@pytest.fixture
def client() -> Iterator[Client]:
    client = Client()
    yield client
    client.close()


def test_a_process_from_start_to_end(client: Client) -> None:
    reply = client.ask(Spawn(id=7, argv=(b"/bin/sh", b"-c", b"read line; echo $line; echo oops >&2; exit 3")))
    assert reply == Spawned(id=7, pid=0, tty=False)
    stdin, stdout, stderr = client.fds
    os.write(stdin, b"hello\n")
    assert (os.read(stdout, 100), os.read(stderr, 100)) == (b"hello\n", b"oops\n")
    assert client.hear() == Exited(id=7, status=3)
    assert os.read(stdout, 100) == b""


def test_a_terminal(client: Client) -> None:
    assert client.ask(Spawn(id=1, argv=(b"tty",), terminal=Terminal())) == Spawned(id=1, pid=0, tty=True)
    assert os.read(client.fds[0], 100).startswith(b"/dev/pts/")
    assert client.hear() == Exited(id=1, status=0)


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (Spawn(id=1, argv=(b"/no/such/program",)), "No such file or directory"),
        (Spawn(id=1, argv=(b"no-such-program",)), "No such file or directory"),
        (Spawn(id=1, argv=(b"/etc",)), "Permission denied"),
        (Spawn(id=1, argv=(b"/bin/true", b"x" * 140_000)), "Argument list too long"),
        (Spawn(id=1, argv=(b"/bin/true", b"nul\0")), "embedded null byte"),
        (Spawn(id=1, argv=(b"/bin/true",), env={b"A=B": b""}), "illegal environment variable name"),
        (Spawn(id=1, argv=(b"/bin/true",), user="No Such"), "no such user"),
    ],
)
def test_what_cannot_be_started(client: Client, request_: Spawn, error: str) -> None:
    assert client.ask(request_) == Failed(id=1, error=error)
    assert client.fds == []
    assert isinstance(client.ask(Spawn(id=1, argv=(b"/bin/true",))), Spawned), "the id is free again"
    assert client.hear() == Exited(id=1, status=0)


def test_an_id_in_use(client: Client) -> None:
    client.ask(Spawn(id=1, argv=(b"sleep", b"999")))
    assert client.ask(Spawn(id=1, argv=(b"true",))) == Failed(id=1, error="id is in use")
    client.say(Signal(id=1, signal="KILL"))
    assert client.hear() == Exited(id=1, signal="KILL")


def test_signals_reach_the_process_group(client: Client) -> None:
    client.ask(Spawn(id=1, argv=(b"sleep", b"999")))
    for request in (
        Signal(id=2, signal="KILL"),
        Signal(id=1, signal="NOPE"),
        Signal(id=1, signal="STOP"),
        Resize(id=1, width=1, height=1),
    ):
        client.say(request)
    client.say(Signal(id=1, signal="TERM"))
    assert client.hear() == Exited(id=1, signal="TERM")
    client.say(Signal(id=1, signal="TERM"))
    assert isinstance(client.ask(Spawn(id=1, argv=(b"true",))), Spawned)


NO_TEXT = encode(Spawn(id=1, user="no text")).replace(b"no text", b"\xe3\x28text")


@pytest.mark.parametrize(
    "packet", [NO_TEXT, b"\xff", b"\x80", b"not msgpack", encode(Failed(id=1, error="a reply")), b"\x00" * 60_000]
)
def test_what_is_no_request_is_passed_over(client: Client, packet: bytes) -> None:
    client.sock.send(packet)
    assert isinstance(client.ask(Spawn(id=1, argv=(b"true",))), Spawned)


def test_it_takes_no_request_while_nobody_reads(client: Client) -> None:
    client.sock.setblocking(False)
    sent = 0
    with pytest.raises(BlockingIOError):
        for sent in range(100_000):
            client.say(Spawn(id=sent, argv=(b"/no/such/program",)))
    client.sock.settimeout(20)
    assert [client.hear() for _ in range(sent)] == [
        Failed(id=number, error="No such file or directory") for number in range(sent)
    ]


def test_it_ends_with_its_socket(client: Client) -> None:
    client.sock.close()
    assert client.ended()


def test_it_ends_with_the_box(client: Client) -> None:
    client.init.kill()
    assert client.sock.recv(100) == b""
    assert client.ended()
