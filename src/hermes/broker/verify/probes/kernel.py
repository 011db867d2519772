"""Attacks on the kernel that all boxes share: calls that load code into it, change it, stop it, or read its memory."""

import os
import struct

from hermes.broker.verify.box import AgentDied, Out, Untried, number_of
from hermes.broker.verify.probe import AT_FDCWD, REFUSED, USERS, Attack, Breach, probe

SYSCTLS = (
    "kernel/core_pattern", "kernel/modprobe", "kernel/hotplug", "kernel/poweroff_cmd", "kernel/sysrq", "kernel/panic",
    "kernel/randomize_va_space", "kernel/kptr_restrict", "kernel/pid_max", "kernel/threads-max", "kernel/ns_last_pid",
    "kernel/usermodehelper/bset", "kernel/yama/ptrace_scope", "kernel/unprivileged_bpf_disabled", "kernel/shmmax",
    "fs/file-max", "fs/suid_dumpable", "fs/protected_symlinks", "fs/binfmt_misc/register", "fs/mqueue/queues_max",
    "vm/drop_caches", "vm/overcommit_memory", "vm/panic_on_oom", "net/ipv4/ip_forward", "net/core/somaxconn",
    "user/max_user_namespaces",
)  # fmt: skip


@probe("kernel-modules", quick=True)
async def kernel_modules(it: Attack) -> str:
    """Load and remove kernel modules (an empty one, and one that does not exist)."""
    return await it.all_refused(
        ("init_module", b"\x7fELF", 4, ""),
        ("finit_module", 0, "", 0),
        ("delete_module", "hermes_verify_no_such_module", os.O_NONBLOCK),
    )


@probe("kexec", quick=True)
async def kexec(it: Attack) -> str:
    """Load another kernel: for no architecture there is, without segments or files, which does nothing where it is allowed."""
    return await it.all_refused(("kexec_load", 0, 0, 0, 0xFFFFFFFF), ("kexec_file_load", -1, -1, 0, 0, 0))


@probe("reboot", quick=True)
async def reboot(it: Attack) -> str:
    """Call reboot with magic numbers that no kernel accepts: where it is allowed it says EINVAL, and does nothing."""
    return await it.refused("reboot", 0xFEE1DEAD, 0x0BAD0BAD, 0, 0)


@probe("swap", quick=True)
async def swap(it: Attack) -> str:
    """Use a file that does not exist as swap, and stop using it."""
    return await it.all_refused(("swapon", "/tmp/.no-such-swap", 0), ("swapoff", "/tmp/.no-such-swap"))


@probe("bpf", quick=True)
async def bpf(it: Attack) -> str:
    """Make a map and load a program for the kernel's own machine."""
    array = struct.pack("<5I", 2, 4, 8, 1, 0)
    program = struct.pack("<IIQQ", 1, 2, 0, 0)  # of two instructions that lie nowhere: whether it may is looked at first
    return await it.all_refused(("bpf", 0, array.ljust(72, b"\0"), 72), ("bpf", 5, program.ljust(72, b"\0"), 72))


@probe("perf", quick=True)
async def perf(it: Attack) -> str:
    """Count and sample what the processors do."""
    software_clock = struct.pack("<IIQ", 1, 128, 0).ljust(128, b"\0")
    return await it.refused("perf_event_open", software_clock, 0, -1, -1, 0)


@probe("io-uring", quick=True)
async def io_uring(it: Attack) -> str:
    """Set up an io_uring, past which no filter sees what is done."""
    return await it.all_refused(
        ("io_uring_setup", 1, Out(120)), ("io_uring_enter", -1, 0, 0, 0, 0, 0), ("io_uring_register", -1, 0, 0, 0)
    )


@probe("userfaultfd", quick=True)
async def userfaultfd(it: Attack) -> str:
    """Handle page faults of the kernel's, with which exploits win their races."""
    await it.unopened("/dev/userfaultfd", flags=os.O_RDWR)
    user_mode_only = 1
    return await it.all_refused(("userfaultfd", os.O_NONBLOCK), ("userfaultfd", user_mode_only))


@probe("keyrings", quick=True)
async def keyrings(it: Attack) -> str:
    """Use the kernel's keyrings, which no namespace keeps apart for root."""
    thread, get_keyring = -1, 0  # a keyring that goes with the agent
    return await it.all_refused(
        ("add_key", "user", "hermes-verify", b"canary", 6, thread),
        ("request_key", "user", "hermes-verify", 0, thread),
        ("keyctl", get_keyring, thread, 1, 0, 0),
    )


@probe("sysrq", quick=True)
async def sysrq(it: Attack) -> str:
    """Ask sysrq for its help text."""
    for user in USERS:
        one = await it.agent(user)
        opened = await one.call("openat", AT_FDCWD, "/proc/sysrq-trigger", os.O_WRONLY)
        if opened.ok:
            written = await one.call("write", opened.value, b"h", 1)
            raise Breach(f"{user} can use /proc/sysrq-trigger ({'it took a command' if written.ok else written.error})")
    return "/proc/sysrq-trigger does not open"


@probe("proc-sys", quick=True)
async def proc_sys(it: Attack) -> str:
    """Open the kernel's settings for writing, core_pattern and modprobe among them."""
    return await it.unopened(*(f"/proc/sys/{name}" for name in SYSCTLS), flags=os.O_WRONLY)


@probe("sys", quick=True)
async def sys(it: Attack) -> str:
    """Open what controls the machine in /sys for writing."""
    paths = (
        "/sys/power/state", "/sys/power/disk", "/sys/kernel/uevent_helper", "/sys/kernel/mm/transparent_hugepage/enabled",
        "/sys/kernel/kexec_crash_size", "/sys/kernel/profiling", "/sys/module/kernel/parameters/panic",
        "/sys/devices/system/cpu/cpu1/online", "/sys/bus/pci/rescan", "/sys/block/vda/uevent",
    )  # fmt: skip
    await it.unopened(
        "/sys/kernel/debug/tracing/trace", "/sys/kernel/tracing/trace", "/sys/firmware/dmi/tables/DMI", flags=os.O_RDONLY
    )
    return await it.unopened(*paths, flags=os.O_WRONLY)


@probe("kernel-log", quick=True)
async def kernel_log(it: Attack) -> str:
    """Read and write the kernel's log: /dev/kmsg, /proc/kmsg, syslog."""
    await it.unopened("/dev/kmsg", "/proc/kmsg", flags=os.O_RDONLY | os.O_NONBLOCK)
    await it.unopened("/dev/kmsg", flags=os.O_WRONLY)
    read_all = 3
    return await it.refused("syslog", read_all, Out(1024), 1024)


@probe("kernel-memory", quick=True)
async def kernel_memory(it: Attack) -> str:
    """Read the memory of the kernel and of the machine: /proc/kcore, /dev/mem, symbols' addresses."""
    for path in ("/proc/kcore", "/dev/mem", "/dev/kmem", "/dev/port"):
        one = await it.agent()
        opened = await one.call("openat", AT_FDCWD, path, os.O_RDONLY)
        if opened.ok:
            got = await one.call("read", opened.value, Out(64), 64)
            await one.call("close", opened.value)
            if got.value > 0:
                raise Breach(f"root can read {path}")
    symbols = await it.target.run(b"sh", b"-c", b"read -r first rest </proc/kallsyms && echo $first")
    address = symbols.stdout.strip()
    if symbols.exit.status == 0 and address.strip(b"0"):
        raise Breach("root sees the addresses of the kernel's symbols")
    return "nothing of it is read"


@probe("clock", quick=True)
async def clock(it: Attack) -> str:
    """Set the machine's clock, to the time it shows, and its rate, to the rate it has."""
    for user in USERS:
        one = await it.agent(user)
        now = (await one.call("clock_gettime", 0, Out(16))).out[0]
        seconds, nanoseconds = struct.unpack("<qq", now)
        timex = await one.call("adjtimex", Out(208))
        adjust_tick = struct.pack("<I", 0x4000) + timex.out[0][4:]
        for call, *arguments in (
            ("clock_settime", 0, now),
            ("settimeofday", struct.pack("<qq", seconds, nanoseconds // 1000), 0),
            ("adjtimex", adjust_tick),
            ("clock_adjtime", 0, adjust_tick),
        ):
            reply = await one.call(str(call), *arguments)
            if reply.error not in REFUSED:
                raise Breach(f"{user} can set the clock with {call} ({reply.error})")
    if it.host.clock_was_set():
        raise Breach("the machine's clock was set")
    return "the clock goes on as it did"


@probe("ports", quick=True)
async def ports(it: Attack) -> str:
    """Reach the hardware's ports, and the processor's registers."""
    await it.unopened("/dev/port", "/dev/cpu/0/msr", "/dev/nvram", flags=os.O_RDWR)
    if number_of("iopl") is None:
        return "the devices do not open; there are no ports on this architecture"
    return await it.all_refused(("iopl", 3), ("ioperm", 0x80, 1, 1))


@probe("administration", quick=True)
async def administration(it: Attack) -> str:
    """Use what only administrators use: accounting, quotas, hanging up terminals, watching whole file systems, comparing
    kernel objects, moving pages."""
    return await it.all_refused(
        ("acct", "/tmp/.no-such-file"),
        ("quotactl", 0x80000100, "/dev/vda", 0, 0),
        ("quotactl_fd", -1, 0x80000100, 0, 0),
        ("vhangup",),
        ("fanotify_init", 0, 0),
        ("lookup_dcookie", 0, Out(64), 64),
        ("kcmp", 1, 1, 0, 0, 0),
        ("move_pages", 0, 0, 0, 0, 0, 0),
        ("migrate_pages", 0, 0, 0, 0),
        ("nfsservctl", 0, 0, 0),
    )


@probe("other-architectures", quick=True)
async def other_architectures(it: Attack) -> str:
    """Make system calls by the numbers of another architecture (x32 on x86_64, ones that do not exist elsewhere), which a
    filter may not know."""
    x32 = 0x40000000
    for user in USERS:
        async with it.target.own(user) as own:
            try:
                reply = await own.call_number(x32 + 39)
            except AgentDied as death:
                if death.exit.signal not in ("SYS", "31") and death.exit.status != 128 + 31:
                    raise Untried(str(death)) from None
            else:
                if reply.ok:
                    raise Breach(f"{user} can make system calls of another architecture")
                if reply.error != "ENOSYS":
                    raise Breach(f"the filter takes another architecture's calls for its own ({reply.error})")
    return "killed, or unknown to the kernel"


@probe("future-calls", quick=True)
async def future_calls(it: Attack) -> str:
    """Make system calls that this Hermes has never heard of: everything not allowed by name must not exist."""
    allowed = {
        number_of(name)
        for rule in it.policy.oci_seccomp()["syscalls"]
        if rule["action"] == "SCMP_ACT_ALLOW"
        for name in rule["names"]
    }
    for user in USERS:
        one = await it.agent(user)
        numbers = sorted(set(range(463, 520)) - allowed)
        replies = await one.batch(*((number, -1, -1, -1, -1, -1, -1) for number in numbers))
        for number, reply in zip(numbers, replies, strict=True):
            if reply.error not in REFUSED:
                raise Breach(f"system call {number} as {user} reaches the kernel ({reply.error})")
    return "none exists"


@probe("terminal-injection", quick=True)
async def terminal_injection(it: Attack) -> str:
    """Type into a terminal (TIOCSTI), use the console's (TIOCLINUX), and have the kernel load a line discipline (TIOCSETD)."""
    sti, linux, setd = 0x5412, 0x541C, 0x5423
    for user in USERS:
        one = await it.agent(user)
        opened = await one.call("openat", AT_FDCWD, "/dev/ptmx", os.O_RDWR | os.O_NOCTTY)
        if not opened.ok:
            raise Untried(f"no terminal can be opened ({opened.error})")
        try:
            for high in (0, 1 << 40):
                replies = {
                    "TIOCSTI": await one.call("ioctl", opened.value, sti | high, b"x"),
                    "TIOCLINUX": await one.call("ioctl", opened.value, linux | high, b"\x06"),
                    "TIOCSETD": await one.call("ioctl", opened.value, setd | high, struct.pack("<i", 0)),
                }
                for name, reply in replies.items():
                    if reply.ok:
                        raise Breach(f"{user} can use {name}")
        finally:
            await one.call("close", opened.value)
    return "refused, also with other bits set"


@probe("personality", quick=True)
async def personality(it: Attack) -> str:
    """Switch off the randomisation of addresses for programs, and take on another system's behaviour."""
    no_randomize, linux32 = 0x0040000, 0x0008
    return await it.all_refused(("personality", no_randomize), ("personality", linux32))
