"""The box socket of one box that no spawner can enter, served over an exec API: what all such APIs have in common.

A subclass says how a process is started and seen through to its end; here requests are taken in, bounded and answered.
"""

import asyncio
import signal
import socket
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, ClassVar, Generic, TypeVar

import structlog

from hermes.broker.engines import exec_scripts as scripts
from hermes.container.messages import (
    SIGNALS,
    BoxReply,
    BoxRequest,
    Exited,
    Failed,
    Resize,
    Signal,
    Spawn,
    decode_box_request,
    encode,
)
from hermes.container.packets import PacketSocket, refuse_descriptors
from hermes.tasks import TaskOwner

log = structlog.get_logger(__name__)

MAX_PROCESSES = 64
"""Processes of one box that run or are being started over its socket at once."""
START_TIMEOUT = 20.0
"""Seconds a process has to start."""
CALL_TIMEOUT = 20.0
"""Seconds for a signal, a change of size, or the question how a process ended."""
MAX_EARLY = 1 << 18
"""Bytes that may come before the greeting is complete: whoever says more is no script of ours."""
_NUMBERS = {name: signal.Signals[f"SIG{name}"].value for name in SIGNALS}


class Refused(Exception):
    """The process could not be started; the text says why."""


class ExecProcess:
    """One process, from its start to its end. `pid` is the session it leads, in the box."""

    def __init__(self, id: int, pid: int, *, tty: bool) -> None:
        self.id = id
        self.pid = pid
        self.tty = tty
        self.asked = asyncio.Event()
        self.signals: dict[str, None] = {}
        """Still to be sent, in order; each at most once at a time."""
        self.sent: set[str] = set()
        self.size: tuple[int, int] | None = None
        """Still to be set: rows and columns."""

    def signal(self, *names: str) -> None:
        """Have these sent to its session."""
        self.signals.update(dict.fromkeys(names))
        self.asked.set()


P = TypeVar("P", bound=ExecProcess)


class ExecServer(ABC, Generic[P]):
    """Serve `sock`, a `SOCK_SEQPACKET` socket it takes over, for the box `name`. Processes outlive its other end."""

    faults: ClassVar[tuple[type[Exception], ...]] = (OSError, TimeoutError)
    """What the API raises when it is gone, refuses, or answers nonsense."""

    def __init__(self, name: str, sock: socket.socket) -> None:
        self._name = name
        self._processes: dict[int, P | None] = {}
        self._accounts: dict[str, asyncio.Task[None]] = {}
        self._tasks = TaskOwner(f"exec {name}")
        refuse_descriptors(sock)
        self._packets = PacketSocket[BoxRequest](sock, decode_box_request, self._received, self._closed)
        self._gone = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._packets.start()

    async def box_ended(self) -> None:
        """The box has ended: let every process's end be told, then close the socket."""
        self._gone.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(CALL_TIMEOUT):
                await self._idle.wait()
        await self.close()

    async def close(self) -> None:
        """Let go of the socket and of all processes, at once."""
        await self._tasks.close()
        self._packets.close()

    # ---- how the API does it

    @abstractmethod
    async def _start(self, spawn: Spawn) -> P:
        """Start it. Refused, Impossible or one of `faults` when that cannot be; then nothing is left open."""

    @abstractmethod
    async def _see_through(self, process: P) -> BoxReply:
        """Hand a running process out, serve it to its end, and return that."""

    @abstractmethod
    async def _resize(self, process: P, rows: int, columns: int) -> None:
        """Set the size of its terminal."""

    @abstractmethod
    async def _run_as_root(self, command: list[str]) -> None:
        """Run a command as root in the box and return when it has ended. What it writes is nobody's business."""

    # ---- requests

    def _received(self, request: BoxRequest, fds: list[int]) -> None:
        process = self._processes.get(request.id)
        match request:
            case Spawn() if request.id in self._processes:
                self._say(Failed(id=request.id, error="id is in use"))
            case Spawn() if len(self._processes) >= MAX_PROCESSES or self._gone.is_set():
                self._say(Failed(id=request.id, error="Resource temporarily unavailable"))
            case Spawn():
                self._processes[request.id] = None
                self._idle.clear()
                self._tasks.spawn(self._serve(request), name=f"process {request.id}")
            case Signal() if process is not None and request.signal in SIGNALS:
                process.signal(request.signal)
            case Resize() if process is not None and process.tty:
                process.size = scripts.limit(request.height), scripts.limit(request.width)
                process.asked.set()

    def _closed(self, reason: str) -> None:
        log.debug("box socket closed", box=self._name, reason=reason)

    def _say(self, reply: BoxReply, fds: tuple[int, ...] = ()) -> None:
        self._packets.send(encode(reply), fds)

    # ---- one process

    async def _serve(self, spawn: Spawn) -> None:
        outcome: BoxReply
        try:
            async with asyncio.timeout(START_TIMEOUT):
                process = await self._start(spawn)
            outcome = await self._see_through(process)
        except (Refused, scripts.Impossible) as error:
            outcome = Failed(id=spawn.id, error=one_line(error))
        except self.faults as error:
            outcome = Failed(id=spawn.id, error=one_line(error))
        del self._processes[spawn.id]
        self._say(outcome)
        if not self._processes:
            self._idle.set()

    async def _make_account(self, name: str) -> None:
        """Make a user's account, once, however many processes ask for it at the same time. Refused if it cannot be made."""
        if not scripts.may_be_made(name):
            raise Refused("no such user")
        task = self._accounts.get(name)
        if task is None:
            task = self._accounts[name] = self._tasks.spawn(self._as_root(scripts.account(name)), name=f"account {name}")
            task.add_done_callback(lambda _: self._accounts.pop(name, None))
        await asyncio.shield(task)

    async def _as_root(self, command: list[str]) -> None:
        await self._quietly(self._run_as_root(command))

    async def _control(self, process: P) -> None:
        """Send signals and set sizes, one after the other; of what comes in between only the latest counts."""
        while True:
            await process.asked.wait()
            process.asked.clear()
            if (size := process.size) is not None:
                process.size = None
                await self._quietly(self._resize(process, *size))
            if names := tuple(process.signals):
                process.signals.clear()
                process.sent.update(names)
                await self._as_root(scripts.signal(process.pid, names))

    async def _quietly(self, call: Coroutine[Any, Any, None]) -> None:
        """Make a call whose failure changes nothing."""
        with suppress(*self.faults):
            async with asyncio.timeout(CALL_TIMEOUT):
                await call

    def _exit(self, process: P, status: int) -> Exited:
        """How it ended. 128+n stands for signal n as well as for such a status: it counts as a signal if we know of one."""
        known = process.sent | ({"KILL"} if self._gone.is_set() else set())
        for name in known:
            if status == 128 + _NUMBERS.get(name, -1):
                return Exited(id=process.id, signal=name)
        return Exited(id=process.id, status=status & 0xFF)


def one_line(error: BaseException) -> str:
    """What a fault says, fit for one line of an operator's terminal."""
    text = str(getattr(error, "message", error))  # aiodocker's errors are not what they say
    line = text.strip().partition("\n")[0] or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line[:300])
