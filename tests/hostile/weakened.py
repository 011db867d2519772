"""Boxes with a hole in them, on purpose: each probe of `hermes verify` must find the one it is meant for.

What a hole lets out is harmless: it leads to namespaces, canaries, programs and limits of the test's own.
"""

import asyncio
import contextlib
import os
import signal
import socket
import stat
import struct
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hermes.broker import linux, seccomp, trees
from hermes.broker.boxfs import BoxFiles
from hermes.broker.confinement import Confinement
from hermes.broker.engines import local
from hermes.broker.engines.base import Box
from hermes.broker.engines.local import LocalEngine
from hermes.broker.manifest import Origin
from hermes.broker.policy import Policy
from hermes.broker.verify import agent
from hermes.broker.verify.box import ANYBODY, Target, number_of
from hermes.broker.verify.canaries import Canaries
from hermes.broker.verify.host import Host, spawners
from hermes.broker.verify.probe import Attack
from hermes.config import ContainerPoolConfig
from hermes.container import ContainerProcess, Terminal

if TYPE_CHECKING:
    from hermes.broker.image import Image

EVERYTHING: seccomp.Profile = {"defaultAction": "SCMP_ACT_ALLOW", "architectures": [seccomp.machine()[1]], "syscalls": []}
Change = Callable[[dict[str, Any]], None]


def allow_all() -> bytes:
    """A filter that lets everything through."""
    return struct.pack("<HBBI", 0x06, 0, 0, 0x7FFF0000)


ANSWERED = ("init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load", "iopl", "ioperm")
"""Calls that the kernel of the machine that runs the tests may not have."""


def lying() -> bytes:
    """A filter that lets everything through, but answers these and another architecture's calls as if they had succeeded."""
    succeed = struct.pack("<HBBI", 0x06, 0, 0, 0x00050000)
    program = struct.pack("<HBBI", 0x20, 0, 0, 0) + struct.pack("<HBBI", 0x35, 0, 1, 0x40000000) + succeed
    for number in filter(None, map(number_of, ANSWERED)):
        program += struct.pack("<HBBI", 0x15, 0, 1, number) + succeed
    return program + allow_all()


class Weak(Policy):
    """A policy that forbids nothing."""

    bpf_program: bytes = b""

    @property
    def capabilities(self) -> list[str]:
        return [f"CAP_{name}" for name in linux.CAPABILITIES[: linux.last_capability() + 1] if _have(name)]

    @property
    def rlimits(self) -> dict[str, int]:
        return {"RLIMIT_NOFILE": 4096}

    def oci_seccomp(self) -> seccomp.Profile:
        return EVERYTHING

    def bpf(self) -> bytes:
        return self.bpf_program or allow_all()

    def confinement(self) -> Confinement:
        names = tuple(name.removeprefix("CAP_") for name in self.capabilities)
        return Confinement(capabilities=linux.capability_mask(names), rlimits={}, no_new_privileges=False, seccomp=self.bpf())


def _have(name: str) -> bool:
    bounding = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapBnd"))
    return bool(int(bounding.split()[1], 16) >> linux.CAPABILITIES.index(name) & 1)


def opened(config: dict[str, Any]) -> None:
    """No user namespace, every capability, no filter, nothing hidden or read-only, every device, the control groups writable."""
    config["process"]["noNewPrivileges"] = False
    names = config["process"]["capabilities"]["bounding"]
    config["process"]["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted", "inheritable"), names)
    linux_ = config["linux"]
    linux_["namespaces"] = [it for it in linux_["namespaces"] if it["type"] != "user"]
    for key in ("uidMappings", "gidMappings", "maskedPaths", "readonlyPaths", "seccomp"):
        linux_.pop(key, None)
    linux_["resources"]["devices"] = [{"allow": True, "access": "rwm"}]
    linux_["resources"].pop("pids")
    linux_["devices"] = [{"path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11, "fileMode": 0o666, "uid": 0, "gid": 0}]
    for mount in config["mounts"]:
        if mount["destination"] == "/sys":
            mount["options"].remove("ro")
    config["mounts"].append(
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "rw"]}
    )


@dataclass(slots=True)
class Holed:
    """A weakened box, and what is around it."""

    attack: Attack
    engine: LocalEngine
    box: Box
    sock: socket.socket
    victims: list[int] = field(default_factory=list)

    def victim(self, *namespaces: str) -> int:
        """A process of the test's own that stands in these namespaces of the box."""
        pid = _stand_in(self.box.pid, namespaces)
        self.victims.append(pid)
        return pid

    def end(self) -> None:
        """Let go of everything but the box."""
        self.attack.target.close()
        self.attack.host.close()
        self.sock.close()
        for pid in self.victims:
            os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _stand_in(init: int, namespaces: tuple[str, ...]) -> int:
    """Start a process that sleeps in namespaces of the box, and return its pid here."""
    flags = "".join({"pid": "p", "mnt": "m"}[name] for name in namespaces)
    process = subprocess.Popen(
        ["nsenter", "-t", str(init), f"-{flags}", "--", "sh", "-c", "echo; exec sleep 300"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    process.returncode = 0  # the caller ends it
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(children[0]) if children else process.pid


class Leaky(Target):
    """A box whose processes start with a file and a variable too many."""

    async def spawn(self, *argv: bytes, user: str = "root", terminal: Terminal | None = None) -> ContainerProcess:
        leak = b'exec 7</etc/hostname; export HERMES_TEST_SECRET=canary; exec "$@"'
        return await Target.spawn(self, b"sh", b"-c", leak, b"sh", *argv, user=user, terminal=terminal)


class Gulping(Target):
    """A box whose host takes in all that a process writes, whether anybody reads it or not."""

    async def spawn(self, *argv: bytes, user: str = "root", terminal: Terminal | None = None) -> ContainerProcess:
        process = await Target.spawn(self, *argv, user=user, terminal=terminal)
        if argv[0].endswith(b".probe"):
            assert process.stdout is not None
            os.set_blocking(process.stdout, True)
            threading.Thread(target=_swallow, args=(os.dup(process.stdout),), daemon=True).start()
        return process


def _swallow(fd: int) -> None:
    with open(fd, "rb", buffering=0) as file:
        while file.read(1 << 20):
            continue


@contextlib.contextmanager
def unprotected_python() -> Iterator[None]:
    """Let zygotes that start meanwhile run Python from where it lies: the program is told that it did the other already."""
    real = asyncio.create_subprocess_exec

    async def start(*command: str, **named: Any) -> asyncio.subprocess.Process:
        again = ("again",) if "hermes.broker.zygote_main" in command else ()
        return await real(*command, *again, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "create_subprocess_exec", start)
        yield


class Frail(Target):
    """A box whose spawner dies as soon as an agent of a probe's own is gone: as if the signal had reached it."""

    async def run(self, *argv: bytes, user: str = "root", stdin: bytes = b"", patience: float = 5.0) -> Any:
        if argv[-1] == b"echo alive":
            for process in spawners(self.box.pid):
                os.kill(process.pid, signal.SIGKILL)
        return await Target.run(self, *argv, user=user, stdin=stdin, patience=patience)


@contextlib.contextmanager
def network() -> Iterator[int]:
    """A network namespace of the test's own, with a way out that leads to a dead end; yields its fd."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        linux.unshare(linux.CLONE_NEWNET)
        ip = (
            ("link", "set", "lo", "up"),
            ("link", "add", "out", "type", "veth", "peer", "name", "end"),
            ("link", "set", "end", "up"), ("link", "set", "out", "up"),
            ("addr", "add", "10.99.0.1/24", "dev", "out"), ("route", "add", "default", "via", "10.99.0.2"),
            ("neigh", "add", "10.99.0.2", "lladdr", "02:00:00:00:00:02", "dev", "out"),
            ("-6", "addr", "add", "2001:db8:99::1/64", "dev", "out", "nodad"),
            ("-6", "route", "add", "default", "via", "2001:db8:99::2", "dev", "out"),
            ("-6", "neigh", "add", "2001:db8:99::2", "lladdr", "02:00:00:00:00:02", "dev", "out"),
        )  # fmt: skip
        for arguments in ip:
            subprocess.run(["ip", *arguments], check=True, stdin=subprocess.DEVNULL)
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except BaseException:
        linux.setns(before, linux.CLONE_NEWNET)
        os.close(before)
        raise
    linux.setns(before, linux.CLONE_NEWNET)
    os.close(before)
    try:
        yield own
    finally:
        os.close(own)


@contextlib.contextmanager
def within_network(namespace: int | None) -> Iterator[None]:
    """Be in that network for a moment."""
    if namespace is None:
        yield
        return
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        linux.setns(namespace, linux.CLONE_NEWNET)
        yield
    finally:
        linux.setns(before, linux.CLONE_NEWNET)
        os.close(before)


@contextlib.asynccontextmanager
async def holed(
    image: "Image",
    root: Path,
    *changes: Change,
    policy: Callable[[ContainerPoolConfig], Policy] | None = None,
    kind: type[Target] = Target,
    netns: int | None = None,
    config: ContainerPoolConfig | None = None,
    claims: ContainerPoolConfig | None = None,
) -> AsyncIterator[Holed]:
    """A box of the local engine, changed before it is made; the attack knows what the policy should have been (`claims`)."""
    config = config or ContainerPoolConfig()
    real: Callable[..., dict[str, Any]] = vars(local)["config"]
    with within_network(netns):
        canaries = Canaries.place()

    def changed(*arguments: Any, **named: Any) -> dict[str, Any]:
        made = real(*arguments, **named)
        for change in changes:
            change(made)
        return made

    def bind(made: dict[str, Any]) -> None:
        """Show the canaries in the box, where the host has them."""
        made["mounts"].append(
            {"destination": str(canaries.directory), "type": "bind", "source": str(canaries.directory), "options": ["bind", "rw"]}
        )

    if show_canaries in changes:
        changes = (*(it for it in changes if it is not show_canaries), bind)
    engine = LocalEngine(config, data_dir=root / "data", image=image, instance=f"weak{os.getpid()}-{next(_numbers)}")
    if policy is not None:
        engine.policy = policy(config)
    claimed = claims or config

    @contextlib.asynccontextmanager
    async def another() -> AsyncIterator[Target]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(local, "config", changed)
            box = await engine.create(f"weak{next(_numbers)}")
        try:
            with await engine.open(box) as sock:
                target = kind.over(box, sock)
                yield target
                target.close()
        finally:
            await engine.destroy(box)

    async def take_down(target: Target) -> Path:
        place = root / f"kept{next(_numbers)}" / target.box.id
        place.parent.mkdir()
        held.attack.host.directory = place.parent
        await engine.destroy(target.box, keep=place)
        return place

    async with contextlib.AsyncExitStack() as stack:
        stack.callback(canaries.close)
        stack.push_async_callback(engine.close)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(local, "config", changed)
            await engine.start()
            box = await engine.create("weak")
        sock = await engine.open(box)
        host = Host(canaries, (str(canaries.directory),), full=True)
        attack = Attack(kind.over(box, sock), host, claimed, Policy(claimed.security, claimed.limits), another, take_down)
        held = Holed(attack, engine, box, sock)
        stack.callback(held.end)
        yield held


ROOMY = {
    "memory": 512 << 20,
    "pids": 512,
    "cpus": 2.0,
    "open_files": 4096,
    "file_size": 64 << 20,
    "disk": 256 << 20,
    "inodes": 16384,
}
NARROW = {"memory": 32 << 20, "pids": 64, "cpus": 0.01, "open_files": 256, "file_size": 1 << 20, "disk": 32 << 20, "inodes": 1024}
"""What a box really may use, and what it is said to."""


def limits(values: dict[str, Any]) -> ContainerPoolConfig:
    """A configuration with these limits."""
    return ContainerPoolConfig.model_validate({"limits": values})


def naive(how: str) -> Callable[..., trees.Copied]:
    """Keeping what changed in a box as one might who thinks well of attackers. `how`: the mistake that is made."""

    def keep(self: BoxFiles, directory: Path, budget: trees.Budget, origin: Origin) -> trees.Copied:
        changes = directory / "changes"
        changes.mkdir(parents=True)
        directory.chmod(0o755 if how == "open" else 0o700)
        for number, (path, status) in enumerate(_entries(self.disk / "up")):
            place = changes / str(number)
            if stat.S_ISLNK(status.st_mode) and how == "follow":
                _read_through(path, place)
            elif stat.S_ISFIFO(status.st_mode) and how == "wait":
                subprocess.run(["timeout", "6", "cat", path], check=False)
            elif stat.S_ISCHR(status.st_mode) and how == "devices":
                os.mknod(place, stat.S_IFCHR | 0o600, os.makedev(1, 5))
            elif b"\n" in path.encode(errors="surrogateescape") and how == "lines":
                (directory.parent / path.split("\n")[1]).touch()
            elif status.st_size == 1_000_000 and number < 150 and how == "multiply":
                place.write_bytes(b"x" * status.st_size)
            elif path.endswith("sparse") and how == "expand":
                place.write_bytes(bytes(status.st_size))
            elif len(path) > 4000 and how == "paths":
                Path(path).lstat()
            else:
                place.touch()
        return trees.Copied()

    return keep


def _entries(top: Path) -> Iterator[tuple[str, os.stat_result]]:
    for directory, _, names, fd in os.fwalk(top):
        for name in (*names, *(it for it in os.listdir(fd) if it not in names)):  # noqa: PTH208
            yield f"{directory}/{name}", os.stat(name, dir_fd=fd, follow_symlinks=False)


def _read_through(path: str, place: Path) -> None:
    there = Path(path)
    with contextlib.suppress(OSError):
        if there.is_file() and there.stat().st_size < 4096:
            place.write_bytes(there.read_bytes())
        elif (there / "file").is_file():
            place.write_bytes((there / "file").read_bytes())


def show_canaries(config: dict[str, Any]) -> None:
    """Marks that the canaries' directory is to be mounted in the box."""


def weak(config: ContainerPoolConfig) -> Policy:
    """See `Weak`."""
    return Weak(config.security, config.limits)


def liar(config: ContainerPoolConfig) -> Policy:
    """See `lying`."""
    policy = Weak(config.security, config.limits)
    policy.bpf_program = lying()
    return policy


def host_processes(config: dict[str, Any]) -> None:
    """Show the host's processes in the box's /proc."""
    proc = next(mount for mount in config["mounts"] if mount["destination"] == "/proc")
    proc.update(type="bind", source="/proc", options=["rbind", "nosuid", "noexec", "nodev"])
    config["linux"]["maskedPaths"] = config["linux"]["readonlyPaths"] = []


def host_name(config: dict[str, Any]) -> None:
    """Share the host name of whoever makes the box: a namespace of the test's own."""
    config.pop("hostname")
    config["linux"]["namespaces"] = [it for it in config["linux"]["namespaces"] if it["type"] != "uts"]


def in_network(namespace: int) -> Change:
    """Put the box in that network."""

    def change(config: dict[str, Any]) -> None:
        for it in config["linux"]["namespaces"]:
            if it["type"] == "network":
                it["path"] = f"/proc/{os.getpid()}/fd/{namespace}"

    return change


def without_filter(config: dict[str, Any]) -> None:
    """No filter of system calls for the box's init."""
    config["linux"].pop("seccomp")
    config["annotations"] = {}


async def run_canary(holed: Holed) -> None:
    """Run a program of the host's, which lies beside the canaries, in the box."""
    program = holed.attack.host.canaries.directory / "program"
    program.write_bytes(agent.program())
    program.chmod(0o755)
    await holed.attack.target.spawn(str(program).encode())


async def fake_proc(holed: Holed) -> None:
    """Something that looks like /proc/sysrq-trigger, which not every kernel has, in the box."""
    one = await holed.attack.agent()
    await holed.attack.agent(ANYBODY)
    assert (await one.call("mount", "none", "/proc", "tmpfs", 0, "")).ok
    assert (await one.call("openat", -100, "/proc/sysrq-trigger", os.O_WRONLY | os.O_CREAT, 0o666)).ok


async def touch_canary(holed: Holed) -> None:
    """Send the token to a canary from inside."""
    one = await holed.attack.agent()
    canary = next(it for it in holed.attack.host.canaries.sockets if it.kind == socket.SOCK_DGRAM)
    made = await one.call("socket", canary.family, canary.kind, 0)
    token, address = holed.attack.host.canaries.token.encode(), canary.sockaddr
    assert (await one.call("sendto", made.value, token, len(token), 0, address, len(address))).ok
    await one.call("close", made.value)


_numbers = iter(range(1_000_000))
