"""What a probe is: one attack, one verdict. Probes declare themselves; `ALL` has them in the order of their modules.

A probe returns a line that says what held. It raises Breach when something got through, and Untried when the attempt itself
could not be made, which counts as a failure too: no probe holds because nothing was tried.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from hermes.broker.policy import Policy
from hermes.broker.verify.box import ANYBODY, Agent, Argument, NoSuchCall, Target, Untried
from hermes.broker.verify.host import Host, namespace, numbers, spawners
from hermes.config.models import ContainerPoolConfig
from hermes.errors import EngineError, HermesError

USERS = ("root", ANYBODY)
"""Whom attacks are made as."""
REFUSED = frozenset({"EPERM", "EACCES", "ENOSYS"})
"""Errors with which the kernel turns a call away before it looks at what is asked for."""


class Breach(HermesError):
    """An attack got through. The text says what an attacker could do."""


@dataclass(slots=True)
class Attack:
    """What a probe works with: a box, the host that it must not reach, and what the box is allowed."""

    target: Target
    host: Host
    config: ContainerPoolConfig
    policy: Policy
    boxes: Callable[[], AbstractAsyncContextManager[Target]] | None = None
    """Gives another box of the same pool, for a while. None in the quick set."""
    take_down: Callable[[Target], Awaitable[Path]] | None = None
    """Ends a box and keeps what changed in it; returns where. None in the quick set."""
    own_kernel: bool = False
    """The box has a kernel of its own (gVisor): what that lets its processes do, it does not do to the host."""
    warnings: list[str] = field(default_factory=list)

    @property
    def may_kill_all(self) -> bool:
        """The box has process ids of its own, so that a signal to everybody stays in it."""
        init = self.target.box.pid
        return init != 0 and namespace(init, "pid") not in (0, namespace("self", "pid"))

    def another(self) -> AbstractAsyncContextManager[Target]:
        """Another box of the same pool, for what would spoil the first."""
        if self.boxes is None:
            raise Untried("there is no other box")
        return self.boxes()

    async def kept(self, target: Target) -> Path:
        """End a box, keep what changed in it, and return where; Breach if that hangs."""
        if self.take_down is None:
            raise Untried("there is nowhere to keep anything")
        try:
            async with asyncio.timeout(self.host.patience):
                return await self.take_down(target)
        except EngineError as error:
            raise Breach(f"the host cannot take the box down: {error}") from None
        except TimeoutError:
            raise Breach(f"the host hangs on what the box left ({self.host.patience:g} s)") from None

    def outsiders(self) -> dict[int, int]:
        """Hermes' processes: the numbers by which the box could mean them, and their pids. Untried if there are none."""
        init = self.target.box.pid
        pids = {*self.host.processes, *(process.pid for process in spawners(init))} if init else {*self.host.processes}
        found = numbers(pids, init)
        if not found:
            raise Untried("no process outside can be named")
        return found

    def warn(self, text: str) -> None:
        """State what an operator should know, though nothing got through."""
        if text not in self.warnings:
            self.warnings.append(text)

    async def agent(self, user: str = "root") -> Agent:
        """See `Target.agent`."""
        return await self.target.agent(user)

    async def refused(
        self, name: str, *arguments: Argument, users: tuple[str, ...] = USERS, errors: frozenset[str] = REFUSED
    ) -> str:
        """Make a call that must be turned away, whoever makes it. Return how it was."""
        said = set()
        for user in users:
            reply = await (await self.agent(user)).call(name, *arguments)
            if reply.error not in errors:
                raise Breach(f"{name} as {user} is not refused ({reply.error})")
            said.add(reply.error)
        return f"{name}: {', '.join(sorted(said))}"

    async def all_refused(self, *calls: tuple[Argument, ...], users: tuple[str, ...] = USERS) -> str:
        """Make calls (name, then arguments), all of which must be turned away; those that this machine lacks are passed over."""
        lines = []
        for name, *arguments in calls:
            if not isinstance(name, str):
                raise TypeError(name)
            try:
                lines.append(await self.refused(name, *arguments, users=users))
            except NoSuchCall:
                continue
        if not lines:
            raise Untried("this machine has none of these system calls")
        return "; ".join(dict.fromkeys(lines))

    async def unopened(self, *paths: str, flags: int, users: tuple[str, ...] = USERS) -> str:
        """Open files that must not open. Return how many were tried. They are only opened, never written."""
        for user in users:
            agent = await self.agent(user)
            replies = await agent.batch(*(("openat", AT_FDCWD, path, flags | O_CLOEXEC) for path in paths))
            for path, reply in zip(paths, replies, strict=True):
                if reply.ok:
                    raise Breach(f"{user} can open {path} {'for writing' if flags & 3 else 'to read'}")
        return f"none of {len(paths)} files opens"


AT_FDCWD = -100
O_CLOEXEC = 0o2000000

KERNELS_OWN = frozenset({"namespaces", "mounts", "kernel", "privilege"})
"""Groups of attacks that ask the box's kernel for something."""
KERNELS_TOO = frozenset({
    "processes", "spawner", "masked-files", "control-groups", "raw-sockets", "packet-sockets", "netlink", "socket-families",
    "network-setup", "fork-bomb", "many-terminals",
})  # fmt: skip
"""Attacks of other groups that do."""
NEVERTHELESS = frozenset({"chroot-escape", "host-files", "executable-overwrite"})
"""Attacks of those groups in which something of the host's would come into the box."""

Attempt: TypeAlias = Callable[[Attack], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Probe:
    """One attack: its name, the group it belongs to, what it tries (a sentence), and whether it is made at every start."""

    name: str
    group: str
    tries: str
    quick: bool
    attempt: Attempt


def asks_kernel(probe: Probe) -> bool:
    """Whether the attack only asks the box's kernel for something: where that is not the host's, the host must see it to mind."""
    return probe.name in KERNELS_TOO or (probe.group in KERNELS_OWN and probe.name not in NEVERTHELESS)


ALL: dict[str, Probe] = {}
"""Every probe by its name."""


def probe(name: str, *, quick: bool = False) -> Callable[[Attempt], Attempt]:
    """Declare a probe. The first paragraph of its docstring says what it tries, its module is its group."""

    def declare(attempt: Attempt) -> Attempt:
        if name in ALL:
            raise ValueError(f"two probes are called {name}")
        tries = " ".join((attempt.__doc__ or "").split("\n\n")[0].split())
        group = attempt.__module__.rpartition(".")[2]
        ALL[name] = Probe(name, group, tries, quick, attempt)
        return attempt

    return declare
