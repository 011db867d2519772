"""What the host sees while a box is attacked: its processes as they are outside, and what must not change.

Everything here only reads. Where the box's init is not in our /proc (a remote daemon), there is nothing to see.
"""

import hashlib
import os
import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from hermes.broker import linux, programs
from hermes.broker.oci import MAX_TERMINALS
from hermes.broker.verify.canaries import Canaries

_SETTINGS = (
    "kernel/core_pattern", "kernel/hostname", "kernel/domainname", "kernel/modprobe", "kernel/sysrq", "kernel/panic",
    "kernel/panic_on_oops", "kernel/randomize_va_space", "kernel/kptr_restrict", "kernel/dmesg_restrict", "kernel/pid_max",
    "kernel/yama/ptrace_scope", "kernel/kexec_load_disabled", "kernel/unprivileged_bpf_disabled", "fs/suid_dumpable",
    "fs/file-max", "fs/protected_symlinks", "fs/protected_hardlinks", "vm/overcommit_memory", "vm/drop_caches",
    "net/ipv4/ip_forward", "user/max_user_namespaces",
)  # fmt: skip
_STATE = ("/proc/swaps", "/sys/kernel/kexec_loaded", "/sys/kernel/kexec_crash_loaded", "/sys/kernel/uevent_helper")
_MODULES = Path("/proc/modules")


@dataclass(frozen=True, slots=True)
class Process:
    """A process as the host sees it."""

    pid: int
    inner: tuple[int, ...]
    """Its pids, from the outermost namespace (ours) to its own."""

    def status(self) -> dict[str, str]:
        """What /proc/PID/status says, by name; empty when it has ended."""
        return status_of(self.pid)


def status_of(pid: int) -> dict[str, str]:
    """What /proc/PID/status says, by name; empty when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


def namespace(pid: int | str, kind: str) -> int:
    """The identity of a process's namespace; 0 when it has ended."""
    with suppress(OSError):
        return os.stat(f"/proc/{pid}/ns/{kind}").st_ino  # noqa: PTH116
    return 0


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208


def within(init: int) -> list[Process]:
    """The processes in the pid namespace of that init, or below it."""
    depth = len(status_of(init).get("NSpid", "").split())
    own = namespace(init, "pid")
    found = []
    for pid in _processes():
        pids = tuple(map(int, status_of(pid).get("NSpid", "").split()))
        if len(pids) >= depth > 0 and (namespace(pid, "pid") == own or (len(pids) > depth and _descends(pid, init))):
            found.append(Process(pid, pids))
    return found


def _descends(pid: int, ancestor: int) -> bool:
    while pid > 1 and pid != ancestor:
        pid = int(status_of(pid).get("PPid", "0") or 0)
    return pid == ancestor


def numbers(pids: Iterable[int], init: int) -> dict[int, int]:
    """The numbers by which an attacker in the box of `init` could mean these processes outside of it: number to pid.

    Those that are another process's there, one of the box's own, are left out.
    """
    own = set(pids)
    inside = {process.inner[-1]: process.pid for process in within(init)} if init else {}
    found = {}
    for pid in own:
        for number in map(int, status_of(pid).get("NSpid", "").split()):
            if inside.get(number, pid) == pid:
                found[number] = pid
    return found


def spawners(init: int) -> list[Process]:
    """Processes that stand in the box's mount namespace, but outside of its pid namespace."""
    mounts, pids = namespace(init, "mnt"), namespace(init, "pid")
    return [
        Process(pid, (pid,))
        for pid in _processes()
        if mounts and namespace(pid, "mnt") == mounts and namespace(pid, "pid") != pids
    ]


@dataclass(slots=True)
class Host:
    """The host, observed from the start of a run: canaries that nobody may touch, and a state that nothing may change."""

    canaries: Canaries
    secret_paths: tuple[str, ...] = ()
    """What of the host's file system must not be named in a box."""
    processes: tuple[int, ...] = field(default_factory=lambda: (os.getpid(), os.getppid()))
    """Processes of Hermes', besides the spawners."""
    full: bool = False
    """Look at the programs of the host too, which takes longer."""
    directory: Path = Path("/")
    """Where boxes' disks lie."""
    patience: float = 90.0
    """Seconds that taking down a box may take, whatever it left."""
    max_terminals: int = MAX_TERMINALS
    """What one box may have."""
    before: dict[str, str] = field(default_factory=dict)
    _clock: int = -1

    def __post_init__(self) -> None:
        self._clock = linux.clock_watch()
        self.before = self.state()

    def disk_free(self) -> int:
        """Bytes that are free where boxes' disks lie."""
        found = os.statvfs(self.directory)
        return found.f_bavail * found.f_frsize

    def clock_was_set(self) -> bool:
        """Somebody set the machine's clock since the start."""
        return linux.clock_was_set(self._clock)

    def state(self) -> dict[str, str]:
        """What no box may change, by name."""
        found = {"host name": os.uname().nodename}
        for name in _SETTINGS:
            with suppress(OSError):
                found[name] = Path("/proc/sys", name).read_text().strip()
        for path in _STATE:
            with suppress(OSError):
                found[path] = Path(path).read_text().strip()
        if self.full:
            for program in {sys.executable, *filter(None, map(programs.which, ("crun", "runc", "runsc")))}:
                with Path(program).open("rb") as file:
                    found[program] = hashlib.file_digest(file, "sha256").hexdigest()
        return found

    def changes(self) -> list[str]:
        """What of the state is another since the start."""
        now = self.state()
        changed = [f"{name} was {was!a}, is {now.get(name)!a}" for name, was in self.before.items() if now.get(name) != was]
        return [*changed, *(["the clock was set"] if self.clock_was_set() else [])]

    def mounts(self) -> str:
        """The host's mounts, as /proc/self/mountinfo has them."""
        return Path("/proc/self/mountinfo").read_text()

    def close(self) -> None:
        """Take the canaries away."""
        if self._clock >= 0:
            os.close(self._clock)
            self._clock = -1
        self.canaries.close()


def interfaces(pid: int) -> dict[str, tuple[int, int]]:
    """Packets received and sent by each interface of the process's network."""
    found = {}
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]:
            name, _, numbers = line.partition(":")
            words = numbers.split()
            found[name.strip()] = int(words[1]), int(words[9])
    return found


def routes(pid: int) -> list[str]:
    """Destinations that the process's network has a route to, other than itself."""
    found = []
    with suppress(OSError):
        found += [line.split()[1] for line in Path(f"/proc/{pid}/net/route").read_text().splitlines()[1:]]
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/net/ipv6_route").read_text().splitlines():
            words = line.split()
            if words[-1] != "lo":
                found.append(f"{words[0]}/{int(words[1], 16)}")
    return found


def limits_of(pid: int) -> dict[str, tuple[str, str]]:
    """Soft and hard limit of a process by name, as /proc/PID/limits has them."""
    found = {}
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/limits").read_text().splitlines()[1:]:
            if match := re.match(r"(\S+(?: \S+)*) {2,}(\S+) +(\S+)", line):
                found[match[1]] = match[2], match[3]
    return found
