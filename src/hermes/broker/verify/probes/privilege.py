"""Attacks on what limits a process of the box: its capabilities, its identity, its priority, what may trace and signal it."""

import os
import signal
import struct

from hermes.broker.linux import CAPABILITIES, capability_mask
from hermes.broker.policy import CORE_LIMIT
from hermes.broker.verify.box import ANYBODY, SCRATCH, Agent, AgentDied, Out, Untried
from hermes.broker.verify.host import limits_of, status_of, within
from hermes.broker.verify.probe import AT_FDCWD, USERS, Attack, Breach, probe

PTRACE_SEIZE = 0x4206
LINKERS = ("/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1")
"""What the kernel starts a program with that is not static, in the box's own files."""
PR_CAPBSET_READ, PR_GET_NO_NEW_PRIVS, PR_GET_SECCOMP, PR_CAP_AMBIENT = 23, 39, 21, 47

_CAPABILITIES = struct.pack("<Ii", 0x20080522, 0)
"""capget's and capset's header: version 3, for the caller itself."""


async def outside(it: Attack, agent: Agent) -> int:
    """The agent's pid on the host; 0 where the box's processes are not in our /proc."""
    if not it.target.box.pid:
        return 0
    pid = (await agent.call("getpid")).value
    return next((process.pid for process in within(it.target.box.pid) if process.inner[-1] == pid), 0)


def names(mask: int) -> str:
    """The capabilities in a mask."""
    known = [name for number, name in enumerate(CAPABILITIES) if mask >> number & 1]
    return ", ".join(known) or f"{mask:#x}"


@probe("capabilities", quick=True)
async def capabilities(it: Attack) -> str:
    """Look for capabilities beyond the configured ones: held, or in the bounding set where a file's could be taken up."""
    allowed = capability_mask(it.policy.security.capabilities)
    for user in USERS:
        one = await it.agent(user)
        reply = await one.call("capget", _CAPABILITIES, Out(24))
        words = struct.unpack("<6I", reply.out[0])
        held = words[0] | words[1] | (words[3] | words[4]) << 32
        asked = await one.batch(*(("prctl", PR_CAPBSET_READ, number) for number in range(64)))
        bounding = sum((reply.value == 1) << number for number, reply in enumerate(asked))
        if pid := await outside(it, one):
            status = status_of(pid)
            held |= int(status["CapEff"], 16) | int(status["CapPrm"], 16) | int(status["CapInh"], 16)
            bounding |= int(status["CapBnd"], 16)
        if extra := (held | bounding) & ~allowed:
            raise Breach(f"{user} has or can get {names(extra)}")
        if user == ANYBODY and held:
            raise Breach(f"{user} has {names(held)}")
    return f"root has {len(it.policy.security.capabilities)}, as configured, and {ANYBODY} none"


@probe("gain-capabilities", quick=True)
async def gain_capabilities(it: Attack) -> str:
    """Take up every capability: by capset, as ambient ones, by becoming root again."""
    forbidden = [number for number in range(41) if not capability_mask(it.policy.security.capabilities) >> number & 1]
    for user in USERS:
        async with it.target.own(user) as own:
            reply = await own.call("capget", _CAPABILITIES, Out(24))
            held = struct.unpack("<6I", reply.out[0])
            for number in forbidden:
                low, high = (1 << number) & 0xFFFFFFFF, 1 << number >> 32
                wanted = struct.pack("<6I", *(word | (low if place < 3 else high) for place, word in enumerate(held)))
                if (await own.call("capset", _CAPABILITIES, wanted)).ok:
                    raise Breach(f"{user} can take up {names(1 << number)}")
            raised = await own.batch(*(("prctl", PR_CAP_AMBIENT, 2, number, 0, 0) for number in forbidden))
            if gained := sum(reply.ok << number for number, reply in zip(forbidden, raised, strict=True)):
                raise Breach(f"{user} can hand on {names(gained)} as ambient capabilities")
            if user == ANYBODY:
                for call, *ids in (("setuid", 0), ("setresuid", 0, 0, 0), ("setgid", 0), ("setgroups", 0, 0)):
                    if (await own.call(str(call), *map(int, ids))).ok:
                        raise Breach(f"{user} can become root by {call}")
    return "nothing can be gained"


@probe("identity", quick=True)
async def identity(it: Attack) -> str:
    """Be root on the host too: the box's ids must be nobody's there."""
    one = await it.agent()
    pid = await outside(it, one)
    if not pid:
        mapped = await it.target.run(b"sh", b"-c", b"read -r inner outer count </proc/self/uid_map && echo $outer")
        uids = [int(mapped.stdout or b"0")]
    else:
        uids = [int(word) for name in ("Uid", "Gid") for word in status_of(pid).get(name, "0").split()]
    if min(uids) >= 65536:
        return f"root in the box is user {uids[0]} on the host"
    if it.config.engine == "docker":
        it.warn(
            "the Docker daemon has no userns-remap: root in a box is the host's root, held back by capabilities and seccomp only"
        )
        return "root in the box is root on the host, as this Docker daemon has no userns-remap: see the warning"
    raise Breach(f"root in the box is user {min(uids)} on the host")


@probe("no-new-privileges", quick=True)
async def no_new_privileges(it: Attack) -> str:
    """Look whether setuid programs could give privileges."""
    if not it.policy.security.no_new_privileges:
        it.warn(
            "container_pool.security.no_new_privileges is off: ordinary users of a box can become its root by setuid programs"
        )
        return "off, as configured"
    for user in USERS:
        if (await (await it.agent(user)).call("prctl", PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)).value != 1:
            raise Breach(f"processes of {user} run without no_new_privs")
    return "set for every process"


@probe("setuid-file")
async def setuid_file(it: Attack) -> str:
    """Run a setuid-root program, made by root in the box, as an ordinary user; and one with file capabilities."""
    root = await it.agent()
    program = await it.target.program()
    copied = await it.target.run(b"sh", b"-c", b'cp "$0" /tmp/.suid && chmod 4755 /tmp/.suid', program.encode())
    if copied.exit.status != 0:
        raise Untried(f"no setuid program can be made: {copied.text}")
    sys_admin = struct.pack("<5I", 0x02000001, 1 << CAPABILITIES.index("SYS_ADMIN"), 0, 0, 0)
    await root.call("setxattr", "/tmp/.suid", "security.capability", sys_admin, len(sys_admin), 0)
    process = Agent(await it.target.spawn(b"/tmp/.suid", user=ANYBODY), ANYBODY)
    try:
        uid = (await process.call("geteuid")).value
        reply = await process.call("capget", _CAPABILITIES, Out(24))
        held = struct.unpack("<6I", reply.out[0])[0]
        pid = await outside(it, process)
        real = int(status_of(pid)["Uid"].split()[1]) if pid else -1
    finally:
        process.close()
        await root.call("unlinkat", AT_FDCWD, "/tmp/.suid", 0)
    if real == 0 and it.config.engine != "docker":
        raise Breach("a setuid program is root on the host")
    if it.policy.security.no_new_privileges and (uid == 0 or held):
        raise Breach(f"a setuid program gave an ordinary user {'root' if uid == 0 else names(held)}")
    return f"it runs as user {uid}, without capabilities" if uid else "it runs as root of the box only, as configured"


@probe("seccomp", quick=True)
async def seccomp(it: Attack) -> str:
    """Find a process without a filter of system calls: one that was just started, and the box's init."""
    for user in USERS:
        one = await it.agent(user)
        status = status_of(await outside(it, one))
        mode = status.get("Seccomp") or str((await one.call("prctl", PR_GET_SECCOMP)).value)
        if mode != "2":
            raise Breach(f"processes of {user} run without a filter of system calls")
    init = status_of(it.target.box.pid).get("Seccomp", "2") if it.target.box.pid else "2"
    if init != "2":
        raise Breach("the box's init runs without a filter of system calls")
    return "every process has one"


@probe("ptrace", quick=True)
async def ptrace(it: Attack) -> str:
    """Trace processes outside of the box, each by its number: Hermes itself, what started the agent, the agent's parent."""
    outsiders = it.outsiders()
    for user in USERS:
        async with it.target.own(user) as own:
            parent = (await own.call("getppid")).value
            for number in sorted({parent, *outsiders} - {0}):
                if (await own.call("ptrace", PTRACE_SEIZE, number, 0, 0)).ok:
                    raise Breach(f"{user} can trace process {number} outside of the box")
    if traced := [pid for pid in outsiders.values() if status_of(pid).get("TracerPid", "0") != "0"]:
        raise Breach(f"processes {traced} are traced")
    return f"none of {len(outsiders)} processes outside can be traced"


@probe("foreign-memory", quick=True)
async def foreign_memory(it: Attack) -> str:
    """Read and write the memory of processes outside, through /proc and by system calls, and write any other process's."""
    outsiders = it.outsiders()
    for user in USERS:
        one = await it.agent(user)
        for number in outsiders:
            vectors = struct.pack("<4Q", SCRATCH + 64, 8, 0x400000, 8)
            reply = await one.call("process_vm_readv", number, SCRATCH, 1, SCRATCH + 16, 1, 0, scratch=vectors)
            if reply.ok or reply.error == "EFAULT":
                raise Breach(f"{user} can read the memory of process {number} outside of the box")
        paths = [f"/proc/{number}/{name}" for number in outsiders for name in ("mem", "environ", "maps", "fd/0", "root")]
        await it.unopened(*paths, flags=os.O_RDONLY, users=(user,))
    return await it.all_refused(("process_vm_writev", 1, 0, 0, 0, 0, 0), ("process_madvise", -1, 0, 0, 0, 0))


@probe("signals", quick=True)
async def signals(it: Attack) -> str:
    """Signal processes outside of the box: Hermes itself, and what started the agent (with signal 0, which harms nobody)."""
    outsiders = it.outsiders()
    for user in USERS:
        one = await it.agent(user)
        for number in outsiders:
            for call, *rest in (("kill", 0), ("pidfd_open", 0), ("tkill", 0)):
                reply = await one.call(str(call), number, *map(int, rest))
                if reply.error != "ESRCH":
                    raise Breach(f"{user} finds process {number}, which is outside of the box, by {call} ({reply.error})")
    return f"none of {len(outsiders)} processes outside is found"


@probe("priority", quick=True)
async def priority(it: Attack) -> str:
    """Come before others: a negative nice value, real-time scheduling, real-time input and output, to be killed last."""
    for user in USERS:
        async with it.target.own(user) as own:
            for what, reply in (
                ("a nice value of -20", await own.call("setpriority", 0, 0, -20)),
                ("real-time scheduling", await own.call("sched_setscheduler", 0, 1, struct.pack("<i", 1))),
                ("deadline scheduling", await own.call("sched_setattr", 0, _deadline(), 0)),
                ("real-time input and output", await own.call("ioprio_set", 1, 0, 1 << 13)),
            ):
                if reply.ok:
                    raise Breach(f"{user} can get {what}")
            opened = await own.call("openat", AT_FDCWD, "/proc/self/oom_score_adj", os.O_WRONLY)
            if opened.ok and (await own.call("write", opened.value, b"-1000", 5)).ok:
                raise Breach(f"{user} can make itself unkillable when memory runs out")
    return "nothing above the usual"


def _deadline() -> bytes:
    return struct.pack("<IIQiIQQQ", 48, 6, 0, 0, 0, 10_000_000, 30_000_000, 30_000_000)


@probe("resource-limits", quick=True)
async def resource_limits(it: Attack) -> str:
    """Find a process with higher limits than configured, or raise them."""
    configured = {
        7: "RLIMIT_NOFILE",
        1: "RLIMIT_FSIZE",
        4: "RLIMIT_CORE",
        8: "RLIMIT_MEMLOCK",
        14: "RLIMIT_RTPRIO",
        13: "RLIMIT_NICE",
    }
    for user in USERS:
        async with it.target.own(user) as own:
            for number, name in configured.items():
                reply = await own.call("prlimit64", 0, number, 0, Out(16))
                soft, hard = struct.unpack("<QQ", reply.out[0])
                if max(soft, hard) > it.policy.rlimits[name]:
                    raise Breach(f"{name} of {user} is {hard}, not {it.policy.rlimits[name]}")
                higher = await own.call("prlimit64", 0, number, struct.pack("<QQ", hard + 1, hard + 1), 0)
                if higher.ok:
                    raise Breach(f"{user} can raise {name}")
    return "as configured, and cannot be raised"


@probe("core-dumps")
async def core_dumps(it: Attack) -> str:
    """Have the host handle a core dump: crash a process, and look at what the kernel may do with it."""
    async with it.target.own() as own:
        pid = await outside(it, own)
        if pid:
            core = limits_of(pid).get("Max core file size", ("unlimited", "unlimited"))
            if any(value == "unlimited" or int(value) > CORE_LIMIT for value in core):
                raise Breach(f"the host's handler gets cores of up to {core[1]} bytes")
        me = (await own.call("getpid")).value
        try:
            await own.call("kill", me, signal.SIGSEGV)
        except Untried:
            exit = await own.end()
            if exit.core_dumped:
                raise Breach("a core was dumped") from None
    return f"no core of more than {CORE_LIMIT} byte"


@probe("executable-of-hermes", quick=True)
async def executable_of_hermes(it: Attack) -> str:
    """Open for writing what runs the box's processes, through every /proc/PID/exe there is."""
    ran = await it.target.run(b"sh", b"-c", b"for d in /proc/[0-9]*; do echo ${d#/proc/}; done")
    pids = [int(word) for word in ran.stdout.split() if word.isdigit()]
    if not pids:
        raise Untried("/proc cannot be listed")
    if it.own_kernel:
        return f"{len(pids)} processes run in a kernel of the box's own, and none of the host's"
    one = await it.agent()
    if not (home := await _mount(one, "/")):
        raise Untried("/ cannot be looked at")
    for pid in pids:
        place = await _mount(one, f"/proc/{pid}/exe")
        if place and place != home:
            opened = await one.call("openat", AT_FDCWD, f"/proc/{pid}/exe", os.O_WRONLY)
            if opened.ok or opened.error == "ETXTBSY":
                raise Breach(f"process {pid} runs a program of the host's that can be opened for writing")
    return f"{len(pids)} processes run programs of the box"


async def _mount(one: Agent, path: str) -> int:
    """The mount that a file lies on, by its number; 0 where there is no such file."""
    mount_id = 0x1000
    reply = await one.call("statx", AT_FDCWD, path, 0, mount_id, Out(256))
    return int.from_bytes(reply.out[0][144:152], "little") if reply.ok else 0


@probe("executable-overwrite")
async def executable_overwrite(it: Attack) -> str:
    """Have a process of the box started as `/proc/self/exe`, which is the host's program that starts it, stay alive in it by a
    dynamic linker of the box's own, and open that program for writing, as runc once could be overwritten."""
    async with it.another() as target:
        program = (await target.program()).encode()
        prepare = b"cp $0 /tmp/.ld && printf '#!/proc/self/exe\\n' >/tmp/.self && chmod 755 /tmp/.self"
        prepared = await target.run(b"sh", b"-c", prepare, program)
        if prepared.exit.status != 0:
            raise Untried(f"nothing can be prepared: {prepared.text}")
        one = await target.agent()
        home = await _mount(one, "/")
        for linker in LINKERS:
            if await _mount(one, linker):
                await one.call("renameat2", AT_FDCWD, "/tmp/.ld", AT_FDCWD, linker, 0)
        try:
            process = await target.spawn(b"/tmp/.self")
        except Untried as error:
            return f"it does not start: {error}"
        host = Agent(process, "root")
        try:
            place = await _mount(host, "/proc/self/exe")
            if not place or place == home:
                return "it is a program of the box"
            why = await _sealed(host)
            for own in (host, one):
                pid = (await host.call("getpid")).value
                reply = await own.call("openat", AT_FDCWD, f"/proc/{pid}/exe", os.O_WRONLY)
                if (reply.ok and why != "sealed") or (reply.error == "ETXTBSY" and not why):
                    raise Breach(f"a process of the box runs a program of the host's that it may overwrite ({reply.error})")
        except AgentDied as death:
            return f"the host's program does not run in the box ({death})"
        finally:
            host.close()
    return f"the host's program runs in the box, but cannot be written ({why or reply.error})"


async def _sealed(own: Agent) -> str:
    """What keeps the program that this process runs from being written whoever may write it; empty if nothing does.

    The kernel says that it is in use (ETXTBSY) before it looks at that, so it cannot be learnt by opening it.
    """
    get_seals, seal_write, read_only = 1034, 8, 1
    opened = await own.call("openat", AT_FDCWD, "/proc/self/exe", os.O_RDONLY)
    seals = await own.call("fcntl", opened.value, get_seals)
    if seals.ok and seals.value & seal_write:
        return "sealed"
    mounted = await own.call("statfs", "/proc/self/exe", Out(120))
    flags = int.from_bytes(mounted.out[0][80:88], "little") if mounted.ok else 0
    return "on a read-only mount" if flags & read_only else ""
