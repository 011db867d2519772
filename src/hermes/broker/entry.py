"""How a process enters a box, in order, and gives up all power on the way. Imported by the zygote.

Works for any container on this machine, with a user namespace of its own or not: it enters those namespaces of the
container's init that differ from its own.
"""

import os
import resource
import select
import signal
import socket
from contextlib import suppress
from pathlib import Path

from hermes.broker import cgroups, linux
from hermes.broker.confinement import Confinement
from hermes.broker.watcher import notify

_NAMESPACES = {
    "user": linux.CLONE_NEWUSER,
    "mnt": linux.CLONE_NEWNS,
    "net": linux.CLONE_NEWNET,
    "uts": linux.CLONE_NEWUTS,
    "ipc": linux.CLONE_NEWIPC,
    "cgroup": linux.CLONE_NEWCGROUP,
    "pid": linux.CLONE_NEWPID,
}
_MUST_DIFFER = ("mnt", "pid", "net")
_PTMX = os.makedev(5, 2)


class Refused(Exception):
    """The target is no box that may be entered."""


def enter(
    pid: int,
    pidfd: int,
    confinement: Confinement,
    trees: list[cgroups.Hierarchy],
    parent: int,
    watcher: socket.socket | None = None,
) -> int:
    """Move this process into the container whose init is `pid`; return an fd of its /dev/pts.

    The process stays outside of the container's pid namespace: its children are born inside, itself cannot be seen.
    `parent` is its parent's pid; should that die, this process dies too. `watcher` is the socket to the box's watcher, which from
    then on is asked before this process or any it starts executes a program or uses an address.
    """
    # 1. Everything that needs the host's files or powers.
    flags = _differing(pid, parent)
    joined = cgroups.of_process(pid, trees)
    label = _apparmor_label(pid)
    if select.select([pidfd], [], [], 0)[0]:
        raise Refused("the container's init has ended")
    cgroups.join(joined)
    _be_ordinary()
    linux.set_undumpable()
    if label is not None:
        Path("/proc/self/attr/apparmor/current").write_text(f"changeprofile {label}")
    # 2. The namespaces.
    linux.setns(pidfd, flags)
    if watcher is not None:
        _submit_to(watcher)
    # 3. Give up all power; the order matters: seccomp while it may still be set without no_new_privs, capabilities last.
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    for number, value in confinement.rlimits.items():
        allowed = min(value, hard) if (hard := resource.getrlimit(number)[1]) != resource.RLIM_INFINITY else value
        resource.setrlimit(number, (allowed, allowed))
    linux.limit_bounding_set(confinement.capabilities)
    if confinement.no_new_privileges:
        linux.set_no_new_privileges()
    pts = _open_pts()
    linux.set_seccomp_filter(confinement.seccomp)
    linux.set_capabilities(confinement.capabilities)
    # 4. What a change of credentials undid.
    linux.set_undumpable()
    linux.set_parent_death_signal(signal.SIGKILL)
    if os.getppid() != parent:
        raise Refused("the zygote has died")
    os.chdir("/")
    return pts


def _submit_to(watcher: socket.socket) -> None:
    """Hand the listener over. Its first call would wait for ever, so not by a message that carries it: the watcher takes it."""
    listener = notify.install()
    try:
        watcher.send(notify.LISTENER.pack(os.getpid(), listener))
        if watcher.recv(64) != notify.READY:
            raise Refused("its watcher has died")
    finally:
        os.close(listener)


def _differing(pid: int, zygote: int) -> int:
    """The namespaces of the process that are not our own. Refused for one that shares with us, or with the broker, which has
    other mounts, what no box may."""
    broker = Path(f"/proc/{zygote}/stat").read_bytes().rpartition(b")")[2].split()[1].decode()
    flags = 0
    for name, flag in _NAMESPACES.items():
        ours, brokers, theirs = (os.stat(f"/proc/{it}/ns/{name}").st_ino for it in ("self", broker, pid))  # noqa: PTH116
        if name in _MUST_DIFFER and theirs in (ours, brokers):
            raise Refused(f"it shares its {name} namespace with the host")
        if theirs != ours:
            flags |= flag
    return flags


def _apparmor_label(pid: int) -> str | None:
    """The AppArmor profile that confines the container's init, if any does."""
    try:
        label, _, mode = Path(f"/proc/{pid}/attr/apparmor/current").read_text().strip().partition(" ")
    except OSError:
        return None
    return label if mode == "(enforce)" else None


def _be_ordinary() -> None:
    """Shed what the broker may have been favoured with: an attacker's processes inherit it."""
    os.umask(0o022)
    with suppress(PermissionError):  # it is nicer than usual already, and may not be less so
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    try:
        Path("/proc/self/oom_score_adj").write_text("0")
    except OSError:
        return  # it is above 0 already, and may not be lowered


def _open_pts() -> int:
    pts = os.open("/dev/pts", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    if os.stat("ptmx", dir_fd=pts).st_rdev != _PTMX:
        raise Refused("it has no /dev/pts of its own")
    return pts
