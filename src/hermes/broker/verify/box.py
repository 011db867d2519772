"""A box as its attacker sees it: the agent and ordinary programs in it, as root and as anybody else.

Works over any box socket, so on every engine and by every way in. Nothing in here waits for good, or reads without a limit.
"""

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import cache

from hermes.broker import seccomp
from hermes.broker.engines.base import Box
from hermes.broker.verify import agent
from hermes.container import Container, ContainerProcess, Exit, Terminal
from hermes.container.fds import read_fd, write_fd
from hermes.errors import HermesError, SpawnError

PATIENCE = 10.0
"""Seconds that one system call, or one program, may take."""
MAX_OUTPUT = 1 << 20
"""Bytes of a program's output that are read."""
ANYBODY = "nobody"
"""A user without power that every image has."""

_NEW_CALLS = {
    "mount_setattr": 442, "quotactl_fd": 443, "statmount": 457, "listmount": 458, "open_tree_attr": 467,
}  # fmt: skip
"""Calls that an older libseccomp does not know; they have the same number everywhere."""


class Untried(HermesError):
    """The attempt itself could not be made, so that nothing is known."""


class NoSuchCall(Untried):
    """This machine has no such system call."""


@cache
def number_of(call: str) -> int | None:
    """The number of a system call on this machine; None where there is none."""
    found = seccomp.number(call)
    return _NEW_CALLS.get(call) if found is None else found


@dataclass(frozen=True, slots=True)
class Out:
    """An argument: a buffer of so many bytes, whose content comes back; `data` is what it holds before."""

    size: int
    data: bytes = b""


Argument = int | str | bytes | Out


@dataclass(frozen=True, slots=True)
class Reply:
    """How a system call ended: what it returned (an error as a negative number), how often it succeeded, the buffers' content."""

    value: int
    count: int
    out: tuple[bytes, ...] = ()

    @property
    def ok(self) -> bool:
        """It succeeded."""
        return not -4096 < self.value < 0

    @property
    def error(self) -> str:
        """The name of the error, or `success`."""
        return "success" if self.ok else errno.errorcode.get(-self.value, str(-self.value))


class Agent:
    """One running agent. Calls go one after the other."""

    def __init__(self, process: ContainerProcess, user: str) -> None:
        self.user = user
        self._process = process
        self._busy = asyncio.Lock()

    @property
    def alive(self) -> bool:
        """It has not ended."""
        return self._process.exit is None and self._process.stdin is not None

    async def call(
        self, name: str, *arguments: Argument, scratch: bytes = b"", child: int = 0, repeat: int = 1, patience: float = PATIENCE
    ) -> Reply:
        """Make a system call. A number is passed as it is; text (as a C string), bytes and `Out` as the address of a copy.

        `scratch` lies at `SCRATCH`, for what arguments point to. Raises Untried when there is no such call or the agent is dead.
        """
        number = number_of(name)
        if number is None:
            raise NoSuchCall(f"this machine has no system call {name}")
        return await self.call_number(number, *arguments, scratch=scratch, child=child, repeat=repeat, patience=patience)

    async def call_number(
        self, number: int, *arguments: Argument, scratch: bytes = b"", child: int = 0, repeat: int = 1, patience: float = PATIENCE
    ) -> Reply:
        """The same by number."""
        message, places = _encoded(number, arguments, scratch=scratch, child=child, repeat=repeat)
        out = max((start + size for start, size in places), default=0)
        answer = await self._answered(message, agent.ANSWER.size + out, f"system call {number}", patience)
        value, count = agent.ANSWER.unpack_from(answer)
        data = answer[agent.ANSWER.size :]
        return Reply(value, count, tuple(data[start : start + size] for start, size in places))

    async def send(self, name: str, *arguments: Argument, repeat: int = 1) -> None:
        """Ask for a call and do not wait for its end. The agent is of no use for anything else then."""
        number, stdin = number_of(name), self._process.stdin
        if number is None or stdin is None:
            raise Untried(f"{name} cannot be asked for")
        await write_fd(stdin, _encoded(number, arguments, repeat=repeat)[0])

    async def batch(self, *calls: tuple[Argument, ...]) -> list[Reply]:
        """Make many calls (number or name, then arguments without `Out`) in one go, for what would take long one by one."""
        message = bytearray()
        for call, *arguments in calls:
            number = number_of(call) if isinstance(call, str) else call
            if not isinstance(number, int):
                raise NoSuchCall(f"this machine has no system call {call!r}")
            message += _encoded(number, tuple(arguments))[0]
        answer = await self._answered(bytes(message), len(calls) * agent.ANSWER.size, f"one of {len(calls)} calls", PATIENCE)
        return [Reply(value, count) for value, count in agent.ANSWER.iter_unpack(answer)]

    async def _answered(self, message: bytes, size: int, what: str, patience: float) -> bytes:
        async with self._busy:
            try:
                async with asyncio.timeout(patience):
                    return await self._exchange(message, size)
            except TimeoutError:
                self.close()
                raise Untried(f"{what} did not return within {patience:g} s") from None

    async def _exchange(self, message: bytes, size: int) -> bytes:
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise Untried("the agent was ended")
        with suppress(BrokenPipeError):
            await write_fd(stdin, message)
        answer = b""
        while len(answer) < size:
            data = await read_fd(stdout, size - len(answer))
            if not data:
                raise AgentDied(await self.end())
            answer += data
        return answer

    async def end(self) -> Exit:
        """How it ended; waits a moment for that."""
        async with asyncio.timeout(PATIENCE):
            return await self._process.wait()

    def close(self) -> None:
        """End it."""
        self._process.signal("KILL")
        self._process.close()


class AgentDied(Untried):
    """The agent ended in the middle of a call."""

    def __init__(self, exit: Exit) -> None:
        super().__init__(f"the agent died ({'signal ' + exit.signal if exit.signal else f'status {exit.status}'})")
        self.exit = exit


SCRATCH = agent.BUFFER + 0x8000
"""Where `scratch` lies."""


def _encoded(
    number: int, arguments: tuple[Argument, ...], *, scratch: bytes = b"", child: int = 0, repeat: int = 1
) -> tuple[bytes, list[tuple[int, int]]]:
    """A request, and where in the buffer its `Out` arguments lie."""
    buffer = bytearray()
    words: list[int] = []
    places: list[tuple[int, int]] = []
    for argument in arguments:
        if isinstance(argument, int):
            words.append(argument)
            continue
        words.append(agent.BUFFER + len(buffer))
        if isinstance(argument, Out):
            places.append((len(buffer), argument.size))
            content = argument.data.ljust(argument.size, b"\0")
        else:
            content = os.fsencode(argument) + b"\0" if isinstance(argument, str) else argument
        buffer += content + bytes(-len(content) % 16)
    if scratch:
        buffer = buffer.ljust(SCRATCH - agent.BUFFER, b"\0") + scratch
    out = max((start + size for start, size in places), default=0)
    return agent.request(number, tuple(words), bytes(buffer), out=out, child=child, repeat=repeat), places


@dataclass(frozen=True, slots=True)
class Ran:
    """What a program wrote and how it ended."""

    exit: Exit
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """What it wrote, both streams, as one line."""
        return (self.stdout + self.stderr).decode(errors="backslashreplace").strip().replace("\n", "; ")[:300]


@dataclass(slots=True, eq=False)
class Target:
    """One box under attack. `box` is what its engine knows of it."""

    box: Box
    container: Container
    _agents: dict[str, Agent] = field(default_factory=dict)
    _program: str = ""

    @classmethod
    def over(cls, box: Box, sock: socket.socket) -> "Target":
        """The box behind a box socket, which stays the caller's."""
        return cls(box, Container(box.id, sock.dup()))

    async def agent(self, user: str = "root") -> Agent:
        """An agent that serves every probe, started where there is none."""
        found = self._agents.get(user)
        if found is None or not found.alive:
            found = self._agents[user] = await self.fresh(user)
        return found

    async def fresh(self, user: str = "root") -> Agent:
        """An agent of the caller's own, who closes it."""
        return Agent(await self.spawn((await self.program()).encode(), user=user), user)

    @asynccontextmanager
    async def own(self, user: str = "root") -> AsyncIterator[Agent]:
        """An agent of the caller's own, ended after."""
        own = await self.fresh(user)
        try:
            yield own
        finally:
            own.close()

    async def program(self) -> str:
        """Where the agent lies in the box; it is put there first."""
        if not self._program:
            for place in (b"/tmp/.probe", b"/.probe", b"/dev/shm/.probe"):
                ran = await self.run(b"sh", b"-c", b'cat >"$0" && chmod 755 "$0"', place, stdin=agent.program())
                if ran.exit.status == 0:
                    self._program = place.decode()
                    break
            else:
                raise Untried(f"no program can be put into the box: {ran.text}")
        return self._program

    async def spawn(self, *argv: bytes, user: str = "root", terminal: Terminal | None = None) -> ContainerProcess:
        """Start a program in `/`, as whoever sits at the box socket can."""
        try:
            async with asyncio.timeout(PATIENCE):
                return await self.container.spawn(user=user, argv=argv, cwd=b"/", terminal=terminal)
        except TimeoutError:
            raise Untried(f"the box does not start {argv[0]!a} within {PATIENCE:g} s") from None
        except SpawnError as error:
            raise Untried(f"{argv[0]!a} cannot be started as {user}: {error}") from None

    async def run(self, *argv: bytes, user: str = "root", stdin: bytes = b"", patience: float = PATIENCE) -> Ran:
        """Run a program to its end. It is killed, and Untried raised, when that takes too long."""
        process = await self.spawn(*argv, user=user)
        try:
            async with asyncio.timeout(patience), asyncio.TaskGroup() as group:
                group.create_task(_feed(process, stdin))
                out = group.create_task(_read_all(process.stdout))
                error = group.create_task(_read_all(process.stderr))
                ended = group.create_task(process.wait())
            return Ran(ended.result(), out.result(), error.result())
        except TimeoutError:
            process.signal("KILL")
            raise Untried(f"{argv[0]!a} did not end within {patience:g} s") from None
        finally:
            process.close()

    def close(self) -> None:
        """Let go of it."""
        for one in self._agents.values():
            one.close()
        self._agents.clear()
        self.container.stop()


async def _feed(process: ContainerProcess, data: bytes) -> None:
    if process.stdin is not None:
        with suppress(BrokenPipeError, ConnectionResetError):
            await write_fd(process.stdin, data)
    process.close_stdin()


async def _read_all(fd: int | None) -> bytes:
    """What comes, up to MAX_OUTPUT; the rest is thrown away."""
    taken = bytearray()
    while fd is not None and (data := await read_fd(fd)):
        taken += data[: MAX_OUTPUT - len(taken)]
    return bytes(taken)
