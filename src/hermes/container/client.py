"""A session's container: the client of one box socket."""

import asyncio
import itertools
import socket

from hermes.container.messages import (
    BoxReply,
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
from hermes.container.packets import PacketSocket
from hermes.container.process import ContainerProcess, Exit
from hermes.errors import EngineError, HermesError, SpawnError

MAX_SPAWNING = 64
"""Processes of one container that may be starting at once."""


def one_line(text: str, limit: int = 300) -> str:
    """Foreign text, fit for one line of an operator's terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:limit])


class Container:
    """A box of the session's own. `spawn()` starts processes in it, any number at once.

    `stop()` lets go of it; the box itself ends when the pool is told so (`release`). `lost` is set when the box went away by
    itself; its processes then end with an `Exit` that is `lost`.
    """

    def __init__(self, id: str, sock: socket.socket, *, engine: str = "", image: str = "", waited: float = 0.0) -> None:
        self.id = id
        self.engine = engine
        self.image = image
        self.waited = waited
        """Seconds the session waited for it."""
        self.lost = asyncio.Event()
        self._ids = itertools.count(1)
        self._spawning: dict[int, tuple[asyncio.Future[ContainerProcess | HermesError], bool]] = {}
        self._processes: dict[int, ContainerProcess] = {}
        self._controls: dict[tuple[int, str], Signal | Resize] = {}
        self._gone: str | None = None
        self._packets = PacketSocket(sock, decode_box_reply, self._received, self._closed, on_writable=self._send_controls)
        self._packets.start()

    @property
    def processes(self) -> int:
        """How many run or are starting."""
        return len(self._processes) + len(self._spawning)

    async def spawn(
        self,
        *,
        user: str = "root",
        argv: tuple[bytes, ...] = (),
        command: bytes | None = None,
        env: dict[bytes, bytes] | None = None,
        cwd: bytes | None = None,
        terminal: Terminal | None = None,
        channel: int | None = None,
    ) -> ContainerProcess:
        """Start a process (fields as in `messages.Spawn`) and return it. Cancelled, it leaves no process behind.

        Raises SpawnError if the box could not start it, EngineError if the container is gone or too busy.
        """
        if self._gone is not None:
            raise EngineError(f"container {self.id}: {self._gone}")
        if len(self._spawning) >= MAX_SPAWNING:
            raise EngineError(f"container {self.id}: {MAX_SPAWNING} processes are already starting")
        id = next(self._ids)
        message = Spawn(
            id=id, user=user, argv=argv, command=command, env=env or {}, cwd=cwd, terminal=terminal, channel=channel
        )  # fmt: skip
        if not self._packets.send(encode(message)):
            raise SpawnError("Argument list too long")
        reply: asyncio.Future[ContainerProcess | HermesError] = asyncio.get_running_loop().create_future()
        self._spawning[id] = (reply, terminal is not None)
        try:
            outcome = await reply
        except asyncio.CancelledError:
            if not reply.cancelled():
                self._abandon(reply.result())
            raise
        if isinstance(outcome, HermesError):
            raise outcome
        return outcome

    def stop(self) -> None:
        """Let go of the box: close its socket. Processes count as lost. Safe to call twice."""
        if self._gone is None:
            self._packets.close()
            self._end("stopped")

    def _abandon(self, outcome: ContainerProcess | HermesError) -> None:
        if isinstance(outcome, ContainerProcess):
            outcome.close()
            outcome.signal("KILL")

    # ---- from the box

    def _received(self, message: BoxReply, fds: list[int]) -> None:
        match message:
            case Spawned():
                self._spawned(message, fds)
            case Failed():
                reply, _ = self._spawning.pop(message.id, (None, False))
                if reply is not None and not reply.done():
                    reply.set_result(SpawnError(one_line(message.error)))
            case Exited():
                if (process := self._processes.pop(message.id, None)) is not None:
                    process.ended(Exit.of(message))
                    for key in [key for key in self._controls if key[0] == message.id]:
                        del self._controls[key]

    def _spawned(self, message: Spawned, fds: list[int]) -> None:
        reply, terminal = self._spawning.pop(message.id, (None, False))
        if reply is None:
            return
        if len(fds) != (1 if terminal else 3):
            self._control(message.id, "KILL", Signal(id=message.id, signal="KILL"))
            if not reply.done():
                reply.set_result(EngineError(f"container {self.id}: file descriptors were lost on the way (too many are open?)"))
            return
        process = ContainerProcess(message.id, message.pid, fds.copy(), tty=message.tty, control=self._control)
        fds.clear()
        self._processes[message.id] = process
        if reply.done():
            self._abandon(process)
        else:
            reply.set_result(process)

    def _closed(self, reason: str) -> None:
        self.lost.set()
        self._end(reason)

    def _end(self, reason: str) -> None:
        self._gone = reason
        for reply, _ in self._spawning.values():
            if not reply.done():
                reply.set_result(EngineError(f"container {self.id}: {reason}"))
        for process in self._processes.values():
            process.ended(Exit())
        self._spawning.clear()
        self._processes.clear()
        self._controls.clear()

    # ---- to the box: signals and sizes, of which only the latest of a kind counts

    def _control(self, id: int, kind: str, message: Signal | Resize) -> None:
        if self._gone is None:
            if not self._controls:
                asyncio.get_running_loop().call_soon(self._send_controls)
            self._controls[id, kind] = message

    def _send_controls(self) -> None:
        while self._controls and not self._packets.blocked and not self._packets.closed:
            key = next(iter(self._controls))
            self._packets.send(encode(self._controls.pop(key)))
