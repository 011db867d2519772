"""Attacks on the box's namespaces: making new ones, joining others, leaving the root directory."""

import os
import signal
import struct

from hermes.broker.linux import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
)
from hermes.broker.verify import agent
from hermes.broker.verify.box import Agent, NoSuchCall, Out, Untried
from hermes.broker.verify.host import namespace, status_of, within
from hermes.broker.verify.probe import AT_FDCWD, REFUSED, USERS, Attack, Breach, probe

KINDS = {
    "user": CLONE_NEWUSER, "mnt": CLONE_NEWNS, "net": CLONE_NEWNET, "uts": CLONE_NEWUTS, "ipc": CLONE_NEWIPC,
    "pid": CLONE_NEWPID, "cgroup": CLONE_NEWCGROUP, "time": 0x80,
}  # fmt: skip


@probe("unshare", quick=True)
async def unshare(it: Attack) -> str:
    """Leave the box's namespaces for new ones, one kind after the other, and all at once with a user namespace."""
    for user in USERS:
        async with it.target.own(user) as own:
            for kind, flag in KINDS.items():
                for flags in {flag, flag | CLONE_NEWUSER}:
                    reply = await own.call("unshare", flags)
                    if reply.ok or reply.error not in REFUSED:
                        raise Breach(f"{user} can make a {kind} namespace ({reply.error})")
    return f"no namespace of {len(KINDS)} kinds can be made"


@probe("clone-namespaces", quick=True)
async def clone_namespaces(it: Attack) -> str:
    """Start a process in new namespaces, with clone and clone3."""
    for user in USERS:
        one = await it.agent(user)
        for kind, flag in KINDS.items():
            if kind == "time":  # clone has no such flag: it is part of the signal's number
                continue
            for flags in (flag, flag | CLONE_NEWUSER):
                reply = await one.call("clone", flags | signal.SIGCHLD, 0, 0, 0, 0, child=agent.LEAVE)
                if reply.ok or reply.error not in REFUSED:
                    raise Breach(f"{user} can start a process in a {kind} namespace of its own ({reply.error})")
        for flag in KINDS.values():
            wanted = struct.pack("<8Q", flag, 0, 0, 0, signal.SIGCHLD, 0, 0, 0)
            reply = await one.call("clone3", wanted, len(wanted), child=agent.LEAVE)
            if reply.ok or reply.error not in REFUSED:
                raise Breach(f"{user} can use clone3 with flags {flag:#x} ({reply.error})")
    return "refused by clone and clone3"


@probe("nested-user-namespace", quick=True)
async def nested_user_namespace(it: Attack) -> str:
    """Become root of a user namespace in the box as an ordinary user, which opens most of the kernel to attack."""
    async with it.target.own("nobody") as own:
        await own.call("unshare", CLONE_NEWUSER)
        pid = (await own.call("getpid")).value
        outside = next((it.pid for it in within(it.target.box.pid) if it.inner[-1] == pid), 0) if it.target.box.pid else 0
        mask = int(status_of(outside).get("CapEff", "0"), 16) if outside else await _effective(own)
        if mask:
            raise Breach(f"nobody has capabilities {mask:#x} in a user namespace of its own")
    return "an ordinary user stays one"


async def _effective(own: Agent) -> int:
    reply = await own.call("capget", struct.pack("<Ii", 0x20080522, 0), Out(24))
    low, _, _, high, _, _ = map(int, struct.unpack("<6I", reply.out[0]))
    return low | high << 32


@probe("setns", quick=True)
async def setns(it: Attack) -> str:
    """Join namespaces: by their files in /proc, and by a pidfd."""
    tried = 0
    for user in USERS:
        one = await it.agent(user)
        for kind in KINDS:
            opened = await one.call("openat", AT_FDCWD, f"/proc/self/ns/{kind}", os.O_RDONLY)
            reply = await one.call("setns", opened.value if opened.ok else -1, 0)
            tried += opened.ok
            if opened.ok:
                await one.call("close", opened.value)
            if reply.error not in REFUSED:
                raise Breach(f"setns to a {kind} namespace as {user} is not refused ({reply.error})")
        pidfd = await one.call("pidfd_open", 1, 0)
        reply = await one.call("setns", pidfd.value if pidfd.ok else -1, KINDS["uts"])
        if pidfd.ok:
            await one.call("close", pidfd.value)
        if reply.error not in REFUSED:
            raise Breach(f"setns by a pidfd as {user} is not refused ({reply.error})")
    if not tried:
        raise Untried("no namespace's file opens in the box")
    return f"refused {tried} times"


@probe("own-namespaces", quick=True)
async def own_namespaces(it: Attack) -> str:
    """Share a namespace with the host: each kind must be the box's own."""
    pid = it.target.box.pid
    kinds = [kind for kind in KINDS if kind != "time" and namespace("self", kind)]
    if not pid:
        inside = await it.agent()
        for kind in kinds:
            reply = await inside.call("readlinkat", AT_FDCWD, f"/proc/self/ns/{kind}", Out(64), 64)
            if reply.ok and str(namespace("self", kind)) in reply.out[0].decode(errors="replace"):
                raise Breach(f"the box shares the {kind} namespace of this machine")
        return "as far as it can be seen from inside"
    shared = [kind for kind in kinds if namespace(pid, kind) == namespace("self", kind)]
    if "user" in shared and it.config.engine == "docker":
        shared.remove("user")
        it.warn(
            "the Docker daemon has no userns-remap: root in a box is the host's root, held back by capabilities and seccomp only"
        )
    if shared:
        raise Breach(f"the box shares the host's {', '.join(shared)} namespace")
    return f"{', '.join(kinds)} are the box's own"


@probe("host-name", quick=True)
async def host_name(it: Attack) -> str:
    """Change the host's name and domain, by system call and through /proc/sys."""
    before = os.uname().nodename
    name = f"verify-{it.host.canaries.token}".encode()
    said = []
    for user in USERS:
        one = await it.agent(user)
        for call in ("sethostname", "setdomainname"):
            reply = await one.call(call, name, len(name))
            if os.uname().nodename != before:
                raise Breach(f"{user} changed the host's name")
            if reply.error not in REFUSED:
                raise Breach(f"{call} as {user} is not refused ({reply.error})")
            said.append(reply.error)
    await it.unopened("/proc/sys/kernel/hostname", "/proc/sys/kernel/domainname", flags=os.O_WRONLY)
    return f"the host is still {before}; {', '.join(sorted(set(said)))}"


@probe("chroot-escape", quick=True)
async def chroot_escape(it: Attack) -> str:
    """Climb out of a second chroot with a directory kept open, and look for a file of the host's there."""
    async with it.target.own() as own:
        root = await own.call("openat", AT_FDCWD, "/", os.O_RDONLY | os.O_DIRECTORY)
        if not root.ok:
            raise Untried(f"/ does not open ({root.error})")
        home = await _identity(own)
        await own.call("mkdirat", AT_FDCWD, "/tmp/.jail", 0o700)
        jailed = await own.call("chroot", "/tmp/.jail")
        climbed = await own.call("fchdir", root.value)
        if not climbed.ok:
            raise Untried(f"the directory kept open cannot be entered ({climbed.error})")
        await own.call("chdir", "../" * 64)
        await own.call("chroot", ".")
        outside = await own.call("openat", AT_FDCWD, str(it.host.canaries.file), os.O_RDONLY)
        if outside.ok:
            raise Breach("a file of the host's can be opened after a chroot")
        if not it.own_kernel and await _identity(own) != home:
            raise Breach("the box's root directory can be left")
    return f"there is nothing above / (chroot: {jailed.error})"


async def _identity(own: Agent) -> bytes:
    """Device and inode of `/`."""
    reply = await own.call("newfstatat", AT_FDCWD, "/", Out(144), 0)
    if not reply.ok:
        raise Untried(f"/ cannot be looked at ({reply.error})")
    return reply.out[0][:16]


@probe("host-files", quick=True)
async def host_files(it: Attack) -> str:
    """Reach a file of the host's by every path that could lead there: its own, and through /proc/PID/root and cwd."""
    file = str(it.host.canaries.file)
    paths = [file, "/.." * 32 + file]
    paths += [f"/proc/{pid}/{link}{up}{file}" for pid in ("self", "1") for link in ("root", "cwd") for up in ("", "/../../..")]
    return await it.unopened(*paths, flags=os.O_RDONLY)


@probe("pidfd-getfd", quick=True)
async def pidfd_getfd(it: Attack) -> str:
    """Take open files out of other processes with pidfd_getfd."""
    said = []
    for user in USERS:
        one = await it.agent(user)
        pidfd = await one.call("pidfd_open", 1, 0)
        try:
            reply = await one.call("pidfd_getfd", pidfd.value if pidfd.ok else -1, 0, 0)
        except NoSuchCall as error:
            raise Untried(str(error)) from None
        if reply.error not in REFUSED:
            raise Breach(f"pidfd_getfd as {user} is not refused ({reply.error})")
        said.append(reply.error)
    return ", ".join(sorted(set(said)))
