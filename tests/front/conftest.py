"""A front on a loopback port, with a journal in memory and real clients."""

import asyncio
import functools
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import asyncssh
import pytest

from hermes.config import AuthenticationConfig, ServerConfig, Settings
from hermes.config.forwards import ForwardsConfig
from hermes.events import ConnectionOrigin, Event
from hermes.server.hostkeys import load_or_make
from hermes.server.process import ChannelProcess
from hermes.server.ssh import Front
from hermes.server.visitor import Visitor

E = TypeVar("E", bound=Event)
PATIENCE = 20.0


@dataclass
class MemoryJournal:
    """A journal that keeps its events in a list."""

    healthy: bool = True
    events: list[Event] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def emit(self, event: Event) -> None:
        self.events.append(event)
        self.news.set()

    def of(self, kind: type[E]) -> list[E]:
        """The events of one kind, in order."""
        return [event for event in self.events if isinstance(event, kind)]

    async def wait_for(self, kind: type[E], count: int = 1) -> list[E]:
        """The events of one kind, once there are `count` of them."""
        async with asyncio.timeout(PATIENCE):
            while len(found := self.of(kind)) < count:
                self.news.clear()
                await self.news.wait()
        return found


@dataclass
class Running:
    """A front that listens."""

    front: Front
    journal: MemoryJournal
    port: int
    over: list[Visitor]

    def connect(self, **options: Any) -> Any:
        """Connect with asyncssh's client as root/root."""
        settings = {"username": "root", "password": "root", "known_hosts": None, "client_keys": None, "config": None, **options}
        return asyncssh.connect("127.0.0.1", self.port, **settings)

    async def ssh(self, *arguments: str, stdin: bytes = b"", password: str = "root", login: str = "root") -> "Outcome":
        """Run the real OpenSSH client."""
        options = [
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
            "PreferredAuthentications=password",
        ]
        command = ["sshpass", "-p", password, "ssh", "-F", "none", *(part for option in options for part in ("-o", option))]
        return await run(*command, "-p", str(self.port), f"{login}@127.0.0.1", *arguments, stdin=stdin)


@dataclass(frozen=True)
class Outcome:
    """What a program printed and how it ended."""

    status: int
    stdout: bytes
    stderr: bytes


async def run(*command: str, stdin: bytes = b"", cwd: Path | None = None) -> Outcome:
    """Run a program to its end."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=cwd
    )
    async with asyncio.timeout(PATIENCE):
        stdout, stderr = await process.communicate(stdin)
    assert process.returncode is not None
    return Outcome(process.returncode, stdout, stderr)


async def greet(visitor: Visitor, process: ChannelProcess) -> None:
    """A handler that says what it was asked for, repeats its input, and exits 7."""
    visitor.channel_running(process, recording=None)
    process.stdout.write(f"{process.kind} {process.command!r}\n".encode())
    while data := await process.stdin.read():
        process.stdout.write(data)
        await process.stdout.drain()
    process.exit(7)


def open_fds() -> int:
    """How many descriptors this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


@functools.cache
def _host_keys(directory: Path) -> list[asyncssh.SSHKey]:
    return load_or_make(directory)


@pytest.fixture(scope="session")
def keys_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Host keys, made once."""
    return tmp_path_factory.mktemp("keys")


Serve = Callable[..., Any]


@pytest.fixture
def serve(keys_dir: Path) -> Serve:
    """`async with serve(handler, server={…}, authentication={…}) as running`."""

    @asynccontextmanager
    async def start(
        handler: Callable[[Visitor, ChannelProcess], Awaitable[None]] = greet,
        *,
        family: int = socket.AF_INET,
        origin: Callable[[str], ConnectionOrigin | None] = lambda address: None,
        **sections: dict[str, Any],
    ) -> AsyncIterator[Running]:
        settings = Settings(
            server=ServerConfig(**sections.get("server", {})),
            authentication=AuthenticationConfig(**sections.get("authentication", {})),
            forwards=ForwardsConfig(**sections.get("forwards", {})),
        )
        journal = MemoryJournal()
        over: list[Visitor] = []
        front = Front(
            settings, journal, _host_keys(keys_dir), handler=handler, on_session_over=over.append, origin=origin
        )  # fmt: skip
        sock = socket.socket(family)
        sock.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
        sock.listen()
        await front.listen([sock])
        before = open_fds()
        try:
            yield Running(front, journal, sock.getsockname()[1], over)
        finally:
            await front.close()
            async with asyncio.timeout(PATIENCE):
                while open_fds() > before:  # noqa: ASYNC110  nobody announces a closed descriptor
                    await asyncio.sleep(0.01)
            assert not front.visitors

    return start
