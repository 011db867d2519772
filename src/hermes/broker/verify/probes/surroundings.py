"""Attacks on what Hermes leaves around a process of the box: open files, its environment, names of the host, and the spawner."""

import asyncio
import os

from hermes.broker.policy import MASKED_PATHS
from hermes.broker.verify.box import PATIENCE, Untried
from hermes.broker.verify.host import namespace, spawners, within
from hermes.broker.verify.probe import AT_FDCWD, USERS, Attack, Breach, probe
from hermes.broker.verify.probes.privilege import outside
from hermes.container import ContainerProcess, Terminal
from hermes.container.fds import read_fd

LOGIN = frozenset(
    {"USER", "LOGNAME", "HOME", "PATH", "SHELL", "MAIL", "TERM", "SSH_TTY", "PWD", "OLDPWD", "SHLVL", "_", "HOSTNAME"}
)  # fmt: skip
"""Variables of the environment that a login has."""


CGROUPS = ("/sys/fs/cgroup", *(f"/sys/fs/cgroup/{kind}" for kind in ("memory", "pids", "cpu", "devices", "rdma")))


@probe("open-files", quick=True)
async def open_files(it: Attack) -> str:
    """Use files that whatever started the process left open."""
    for user in USERS:
        async with it.target.own(user) as own:
            replies = await own.batch(*(("fcntl", fd, 1) for fd in range(3, 1024)))
            left = [fd for fd, reply in enumerate(replies, 3) if reply.ok]
            if left:
                raise Breach(f"a process of {user} starts with descriptors {left} open")
            if pid := await outside(it, own):
                links = {os.readlink(f"/proc/{pid}/fd/{fd}").partition(":")[0] for fd in range(3)}  # noqa: PTH115
                if links != {"pipe"}:
                    raise Breach(f"a process of {user} starts with {', '.join(sorted(links))} for its standard files")
    return "0, 1 and 2, and nothing else"


@probe("open-files-terminal", quick=True)
async def open_files_terminal(it: Attack) -> str:
    """Use files left open beside a terminal: the same for a process that has one."""
    argv = b"sh", b"-c", b"echo started; read waiting"
    process = await it.target.spawn(*argv, terminal=Terminal())
    try:
        if not it.target.box.pid:
            return "as far as it can be seen from here"
        await _said(process, b"started")  # before that, it has the libraries open that it is being loaded with
        fds: dict[str, str] = {}
        for found in within(it.target.box.pid):
            if _read(f"/proc/{found.pid}/cmdline") == b"\0".join(argv) + b"\0":
                fds = {fd: os.readlink(f"/proc/{found.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{found.pid}/fd")}  # noqa: PTH115, PTH208
    finally:
        process.signal("KILL")
        process.close()
    if not fds:
        raise Untried("a process with a terminal is not to be found")
    strange = {fd: link for fd, link in fds.items() if not link.startswith("/dev/pts/") and link != "/dev/tty"}
    if strange:
        raise Breach(f"a process with a terminal starts with {strange} open")
    return f"{len(fds)} descriptors, all of the terminal"


async def _said(process: ContainerProcess, what: bytes) -> None:
    """Wait until a process has written that."""
    written = b""
    async with asyncio.timeout(PATIENCE):
        while what not in written and process.stdout is not None:
            data = await read_fd(process.stdout)
            if not data:
                raise Untried(f"a process with a terminal ended: {written!a}")
            written += data


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            return file.read(1 << 16)
    except OSError:
        return b""


@probe("environment", quick=True)
async def environment(it: Attack) -> str:
    """Read the environment of Hermes, or anything in it that a login has not, in one's own and in the init's."""
    own = {name for name, value in os.environ.items() if value and name not in LOGIN}
    for user in USERS:
        ran = await it.target.run(b"sh", b"-c", b"cat /proc/self/environ", user=user)
        if ran.exit.status != 0 or not ran.stdout:
            raise Untried(f"/proc/self/environ cannot be read: {ran.text}")
        found = {entry.partition(b"=")[0].decode(errors="replace") for entry in ran.stdout.split(b"\0") if entry}
        if leaked := found & own:
            raise Breach(f"{', '.join(sorted(leaked))} of Hermes' environment is in the box")
    init = await it.target.run(b"sh", b"-c", b"cat /proc/1/environ")
    names = {entry.partition(b"=")[0].decode(errors="replace") for entry in init.stdout.split(b"\0") if entry}
    if leaked := names & own:
        raise Breach(f"{', '.join(sorted(leaked))} of Hermes' environment is in the box's init")
    return f"only {', '.join(sorted(found))}"


@probe("host-paths", quick=True)
async def host_paths(it: Attack) -> str:
    """Learn where things lie on the host, from the box's list of mounts."""
    ran = await it.target.run(b"sh", b"-c", b"cat /proc/self/mountinfo /proc/self/mounts")
    if ran.exit.status != 0 or not ran.stdout:
        raise Untried(f"the mounts cannot be read: {ran.text}")
    for path in it.host.secret_paths:
        if path.encode() in ran.stdout:
            raise Breach(f"the box's mounts name {path}")
    return f"{len(ran.stdout.splitlines())} lines name nothing of Hermes'"


@probe("processes", quick=True)
async def processes(it: Attack) -> str:
    """See processes that are not the box's own in /proc."""
    seen = await _listed(it)
    if not it.target.box.pid:
        return f"{len(seen)} processes are seen"
    own = namespace(it.target.box.pid, "pid")
    known = {process.inner[-1] for process in within(it.target.box.pid) if namespace(process.pid, "pid") == own}
    if strange := (seen - known) & await _listed(it):
        raise Breach(f"processes {sorted(strange)[:5]} are seen, which are not the box's")
    return f"{len(seen)} processes are seen, all the box's own"


async def _listed(it: Attack) -> set[int]:
    ran = await it.target.run(b"sh", b"-c", b"for d in /proc/[0-9]*; do echo ${d#/proc/}; done")
    if not (seen := {int(word) for word in ran.stdout.split() if word.isdigit()}):
        raise Untried(f"/proc cannot be listed: {ran.text}")
    return seen


@probe("spawner", quick=True)
async def spawner(it: Attack) -> str:
    """Find the process that starts the box's processes: it must stand outside of the box's process ids, without power."""
    if not it.target.box.pid:
        return "no process of Hermes stands in the box"
    found = spawners(it.target.box.pid)
    own = namespace(it.target.box.pid, "pid")
    one = await it.agent()
    for process in found:
        if namespace(process.pid, "pid") == own or len(process.status().get("NSpid", "").split()) > 1:
            raise Breach("the spawner has a number in the box")
        if process.status().get("Seccomp") != "2":
            raise Breach("the spawner has no filter of system calls")
    parent = (await one.call("getppid")).value
    if found and parent != 0:
        raise Breach(f"the agent's parent is process {parent} of the box, not the spawner outside")
    return f"{len(found)} outside of the box's process ids" if found else "no process of Hermes stands in the box"


@probe("masked-files", quick=True)
async def masked_files(it: Attack) -> str:
    """Read what is hidden: kernel memory, keys, timers, firmware."""
    one = await it.agent()
    for path in MASKED_PATHS:
        opened = await one.call("openat", AT_FDCWD, path, os.O_RDONLY)
        if not opened.ok:
            continue
        got = await one.call("read", opened.value, bytes(64), 64)
        if got.error == "EISDIR":
            got = await one.call("getdents64", opened.value, bytes(512), 512)
            entries = 2 * 24
        else:
            entries = 0
        await one.call("close", opened.value)
        if got.value > entries:
            raise Breach(f"{path} can be read")
    return f"{len(MASKED_PATHS)} files and directories are empty"


@probe("control-groups", quick=True)
async def control_groups(it: Attack) -> str:
    """Raise the box's own limits, or have a program of the host's run when a group is empty (release_agent)."""
    one = await it.agent()
    ran = await it.target.run(b"sh", b"-c", b"cat /proc/self/mounts")
    places = [
        line.split()[1]
        for line in ran.stdout.decode(errors="replace").splitlines()
        if line.split()[2:3] in (["cgroup"], ["cgroup2"])
    ]
    files = [
        f"{place}/{name}"
        for place in dict.fromkeys((*places, *CGROUPS))
        for name in (
            "release_agent", "notify_on_release", "cgroup.procs", "memory.max", "memory.limit_in_bytes", "pids.max",
            "cpu.max", "cpu.cfs_quota_us", "devices.allow", "freezer.state", "cgroup.freeze",
        )
    ]  # fmt: skip
    for file in files:
        opened = await one.call("openat", AT_FDCWD, file, os.O_WRONLY)
        if opened.ok:
            await one.call("close", opened.value)
            raise Breach(f"root can open {file} for writing")
    return f"none of {len(files)} files opens for writing"
