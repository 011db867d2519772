"""What is fuzzed, seen from outside: is it whole after each case?"""

import asyncio
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any, Protocol

import asyncssh

from tests.sensors import Sensor

PATIENCE = 60.0
MIB = 1024 * 1024
GROWTH = 48 * MIB
"""Memory that a front may take beyond what it had when it was warm."""
SLACK_FILES = 2


class Broken(AssertionError):
    """An invariant does not hold."""


class Target(Protocol):
    """A server under fuzz."""

    port: int

    async def check(self) -> None:
        """Return when all is as before the case. Raises Broken."""


class Neighbour:
    """Another session, whose bytes must arrive."""

    def __init__(self, connection: asyncssh.SSHClientConnection, process: "asyncssh.SSHClientProcess[bytes]") -> None:
        self._connection = connection
        self._process = process
        self._count = 0

    @classmethod
    async def moved_in(cls, port: int) -> "Neighbour":
        """Log in and stay."""
        connection = await asyncssh.connect(
            "127.0.0.1", port, username="root", password="root", known_hosts=None, client_keys=None, config=None
        )  # fmt: skip
        return cls(connection, await connection.create_process("cat", encoding=None))

    async def skip(self, size: int) -> None:
        """Read past what comes first."""
        await asyncio.wait_for(self._process.stdout.readexactly(size), PATIENCE)

    async def is_heard(self) -> None:
        """Send something; return when it has come back."""
        self._count += 1
        said = b"still here, %d\n" % self._count
        self._process.stdin.write(said)
        try:
            heard = await asyncio.wait_for(self._process.stdout.readexactly(len(said)), PATIENCE)
        except (TimeoutError, asyncio.IncompleteReadError, OSError, asyncssh.Error) as error:
            raise Broken(f"another session was harmed: {error!r}") from error
        if heard != said:
            raise Broken(f"another session got {heard!r} for {said!r}")

    async def move_out(self) -> None:
        """Log out."""
        self._connection.abort()
        await self._connection.wait_closed()


class FrontTarget:
    """A confined front without boxes, in a process of its own: fast, and open about what it holds."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, neighbour: Neighbour) -> None:
        self.port = port
        self.pid = process.pid
        self._process = process
        self._neighbour = neighbour
        self._calm: dict[str, Any] = {}
        self._warm_pages = 0
        self._checks = 0

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls) -> AsyncIterator["FrontTarget"]:
        """Start one; end it afterwards."""
        place = tempfile.mkdtemp(prefix="hermes-fuzz-", dir="/var/tmp")
        with socket.create_server(("127.0.0.1", 0)) as listening:
            port = listening.getsockname()[1]
            process = await asyncio.create_subprocess_exec(
                sys.executable, str(Path(__file__).with_name("target_process.py")), str(listening.fileno()), place,
                pass_fds=(listening.fileno(),), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
        try:
            assert process.stdout is not None
            assert (await asyncio.wait_for(process.stdout.readline(), PATIENCE)).strip() == b"ready"
            neighbour = await Neighbour.moved_in(port)
            await neighbour.skip(16 * 32768)
            target = cls(process, port, neighbour)
            target._calm = await target.state()
            yield target
            await neighbour.move_out()
            assert process.stdin is not None
            process.stdin.close()
            assert await asyncio.wait_for(process.wait(), PATIENCE) == 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            shutil.rmtree(place)

    async def state(self) -> dict[str, Any]:
        """What it says of itself."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(b"?\n")
            line = await asyncio.wait_for(self._process.stdout.readline(), PATIENCE)
            found: dict[str, Any] = json.loads(line)
        except (TimeoutError, OSError, ValueError) as error:
            raise Broken(f"the front does not answer (exit status {self._process.returncode}): {error!r}") from error
        if found["errors"]:
            raise Broken("the front logged " + "; ".join(found["errors"]))
        return found

    async def memory(self) -> int:
        """Its resident memory in bytes, once nothing of the last client is left."""
        await self.check()
        return int((await self.state())["pages"]) * os.sysconf("SC_PAGE_SIZE")

    async def watched(self, work: Awaitable[None]) -> int:
        """Have work done while another session goes on; return how often that was heard meanwhile."""
        async with asyncio.TaskGroup() as group:
            task = group.create_task(_awaited(work))
            heard = 0
            while not task.done():
                await self._neighbour.is_heard()
                heard += 1
                await asyncio.sleep(0.01)
        return heard

    async def check(self) -> None:
        await self._neighbour.is_heard()
        deadline = asyncio.get_running_loop().time() + PATIENCE
        while wrong := self._leaks(found := await self.state()):
            if asyncio.get_running_loop().time() > deadline:
                raise Broken(f"left behind: {wrong}")
            await asyncio.sleep(0.005)
        self._checks += 1
        if self._checks == 200:
            self._warm_pages = found["pages"]
        if self._warm_pages and (found["pages"] - self._warm_pages) * os.sysconf("SC_PAGE_SIZE") > GROWTH:
            raise Broken(f"memory grew from {self._warm_pages} to {found['pages']} pages")

    def _leaks(self, found: dict[str, Any]) -> dict[str, tuple[int, int]]:
        names = ("visitors", "channels", "tasks", "unclosed", "unended", "hanging")
        return {name: (self._calm[name], found[name]) for name in names if found[name] > self._calm[name]}


async def _awaited(work: Awaitable[None]) -> None:
    await work


class SensorTarget:
    """A whole sensor: real boxes, a confined front, looked at from the host."""

    MISTAKES = re.compile(r".*(?:Traceback|task failed|mistake of ours|too late|\[error|\[critical).*")

    def __init__(self, sensor: Sensor, neighbour: Neighbour) -> None:
        self.port = sensor.port
        self._sensor = sensor
        self._neighbour = neighbour
        self._pids = sensor.pids()
        self._read = 0
        self._files = self._open_files()
        self._memory = 0
        self._checks = 0

    @classmethod
    @contextlib.asynccontextmanager
    async def on(cls, sensor: Sensor) -> AsyncIterator["SensorTarget"]:
        """Watch a sensor that runs, by a neighbour's eyes too."""
        neighbour = await Neighbour.moved_in(sensor.port)
        await neighbour.is_heard()
        try:
            yield cls(sensor, neighbour)
        finally:
            await neighbour.move_out()

    async def check(self) -> None:
        await self._neighbour.is_heard()
        if self._sensor.pids() != self._pids:
            raise Broken(f"processes were {self._pids}, and are {self._sensor.pids()}")
        said = self._sensor.said()[self._read :]
        self._read += len(said)
        if mistakes := self.MISTAKES.findall(said):
            raise Broken("the sensor said " + "; ".join(mistakes[:5]))
        deadline = asyncio.get_running_loop().time() + PATIENCE
        while (files := self._open_files()) > self._files + SLACK_FILES:
            if asyncio.get_running_loop().time() > deadline:
                raise Broken(f"the front had {self._files} files open, and has {files}")
            await asyncio.sleep(0.01)
        self._checks += 1
        memory = int(Path(f"/proc/{self._pids['front']}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        if self._checks == 50:
            self._memory = memory
        if self._memory and memory - self._memory > GROWTH:
            raise Broken(f"memory grew from {self._memory} to {memory} bytes")

    def _open_files(self) -> int:
        return len(list(Path(f"/proc/{self._pids['front']}/fd").iterdir()))
