"""Attacks on what all boxes share: processes, memory, processors, disk, files, terminals, logs. Each takes a little more than the
configured limit, no more, so that nothing starves where that limit does not hold."""

import asyncio
import fcntl
import os
import signal
import struct
import termios
from contextlib import suppress
from pathlib import Path

from hermes.broker.oci import MAX_TERMINALS
from hermes.broker.verify import agent
from hermes.broker.verify.box import Agent, AgentDied, Out, Target, Untried, number_of
from hermes.broker.verify.host import within
from hermes.broker.verify.probe import AT_FDCWD, Attack, Breach, probe

CREATE = os.O_CREAT | os.O_RDWR | os.O_TRUNC
SPARE = 1.25
"""How much more than a limit is asked for."""
PLACE = "/var/tmp"
STOP_PATIENCE = 10.0
"""Seconds within which a box must end that takes too much, where it can only be watched."""


def _free(path: str, name: str) -> int:
    """A number of the kernel's, such as MemAvailable, in bytes."""
    for line in Path(path).read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    return 0


def pid_max() -> int:
    """Process numbers that the machine has."""
    return int(Path("/proc/sys/kernel/pid_max").read_text())


def _require_memory(size: int) -> None:
    """Untried if the machine has not twice that much free: the attack would starve it where it gets through."""
    if (free := _free("/proc/meminfo", "MemAvailable")) < 2 * size:
        raise Untried(f"it takes {size >> 20} MiB, and the machine has only {free >> 20} MiB free")


@probe("fork-bomb")
async def fork_bomb(it: Attack) -> str:
    """Start more processes than `limits.pids` allows."""
    limit = it.config.limits.pids
    if pid_max() < 2 * limit:
        raise Untried(f"the machine has not twice {limit} process numbers")
    async with it.another() as target, target.own() as own:
        reply = await own.call(
            "clone", signal.SIGCHLD, 0, 0, 0, 0, child=agent.SLEEP, repeat=int(limit * SPARE) + 16, patience=60
        )
        seen = len(within(target.box.pid)) if target.box.pid else reply.count
        await _neighbour(it.target)
        if reply.ok or max(seen, reply.count) > limit:
            raise Breach(f"{max(seen, reply.count)} processes run in a box that may have {limit}")
        return f"stopped after {reply.count} of at most {limit} ({reply.error}); another box starts processes"


async def _neighbour(target: Target) -> None:
    """Breach if another box does not answer."""
    try:
        ran = await target.run(b"sh", b"-c", b"echo well")
    except Untried as error:
        raise Breach(f"another box suffers: {error}") from None
    if b"well" not in ran.stdout:
        raise Breach(f"another box suffers: {ran.text}")


async def _resident(own: Agent) -> int:
    """Bytes of memory that the agent has, as /proc says inside the box."""
    opened = await own.call("openat", AT_FDCWD, "/proc/self/statm", os.O_RDONLY)
    reply = await own.call("read", opened.value, Out(128), 128)
    await own.call("close", opened.value)
    words = reply.out[0].split()
    return int(words[1]) * 4096 if reply.ok and len(words) > 1 else 0


@probe("memory-bomb")
async def memory_bomb(it: Attack) -> str:
    """Take more memory than `limits.memory` allows."""
    limit = it.config.limits.memory
    size = int(limit * SPARE)
    _require_memory(size)
    populate = 0x8000 | 0x20 | 0x02  # MAP_POPULATE, MAP_ANONYMOUS, MAP_PRIVATE
    async with it.another() as target, target.own() as own:
        try:
            reply = await own.call("mmap", 0, size, 3, populate, -1, 0, patience=60)
            taken = await _resident(own)
        except AgentDied as death:
            await _neighbour(it.target)
            return f"killed before it had {size >> 20} MiB (signal {death.exit.signal or death.exit.status}); another box goes on"
        except Untried as hung:
            if not it.own_kernel:
                raise
            await _neighbour(it.target)
            return f"{hung}; another box goes on"
        if reply.ok and taken >= size:
            raise Breach(f"a box that may have {limit >> 20} MiB takes {taken >> 20} MiB")
        return f"{taken >> 20} of {size >> 20} MiB ({reply.error})"


@probe("shared-memory")
async def shared_memory(it: Attack) -> str:
    """Take the same in files that lie in memory (memfd), which belong to no process."""
    limit = it.config.limits.memory
    size = min(int(limit * SPARE), it.config.limits.file_size)
    count = -(-int(limit * SPARE) // size)
    _require_memory(size * count)
    taken = 0
    async with it.another() as target, target.own() as own:
        try:
            for number in range(count):
                made = await own.call("memfd_create", f"verify{number}", 0)
                if made.ok and (await own.call("fallocate", made.value, 0, 0, size, patience=60)).ok:
                    taken += size
        except AgentDied:
            return f"killed before it had {size * count >> 20} MiB"
    if taken > limit:
        raise Breach(f"a box that may have {limit >> 20} MiB keeps {taken >> 20} MiB in files")
    return f"{taken >> 20} MiB of at most {limit >> 20}"


@probe("cpu-hog")
async def cpu_hog(it: Attack) -> str:
    """Take every processor, in one box, while another has work to do."""
    limit = it.config.limits.cpus
    spinners = min(4 * (os.cpu_count() or 1), 64)
    async with it.another() as target, target.own() as own:
        started = await own.call("clone", signal.SIGCHLD, 0, 0, 0, 0, child=agent.SPIN, repeat=spinners)
        if not started.count:
            raise Untried(f"no process can be started ({started.error})")
        loop = asyncio.get_running_loop()
        begun, before = loop.time(), _used(target)
        work = await (await it.agent()).call("getppid", repeat=200_000, patience=30)
        await _neighbour(it.target)
        await asyncio.sleep(max(0.0, 2.0 - (loop.time() - begun)))
        used, seconds = _used(target) - before, loop.time() - begun
    if not target.box.pid:
        return f"the other box made {work.count} calls meanwhile"
    share = used / seconds
    if share > max(limit * SPARE, limit + 0.01):
        raise Breach(f"a box that may have {limit:g} processors takes {share:.2f}")
    return f"{started.count} processes took {share:.2f} of at most {limit:g} processors; another box worked on"


def _used(target: Target) -> float:
    """Seconds of processor time that the box's processes have had."""
    total = 0
    for process in within(target.box.pid) if target.box.pid else ():
        with suppress(OSError, IndexError):
            fields = Path(f"/proc/{process.pid}/stat").read_bytes().rpartition(b")")[2].split()
            total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


async def _fill(own: Agent, directory: str, most: int, piece: int) -> int:
    """Allocate files of up to `piece` bytes until no more goes in, or `most` bytes are taken; return how many are."""
    taken = number = 0
    while taken < most and piece >= 1 << 16:
        opened = await own.call("openat", AT_FDCWD, f"{directory}/.fill{number}", CREATE, 0o600)
        if not opened.ok:
            break
        number += 1
        size = min(piece, most - taken)
        reply = await own.call("fallocate", opened.value, 0, 0, size, patience=60)
        await own.call("close", opened.value)
        if reply.ok:
            taken += size
        elif reply.error in ("EOPNOTSUPP", "ENOSYS"):
            raise Untried(f"nothing can be allocated in {directory} ({reply.error})")
        else:
            await own.call("unlinkat", AT_FDCWD, f"{directory}/.fill{number - 1}", 0)
            piece //= 2
    return taken


async def _stopped(it: Attack, target: Target) -> bool:
    """Whether the engine ends a box that has taken too much, as Docker's does where its disk cannot be limited."""
    if it.config.engine != "docker":
        return False
    with suppress(TimeoutError):
        async with asyncio.timeout(STOP_PATIENCE):
            await target.container.lost.wait()
    return target.container.lost.is_set()


@probe("disk-fill")
async def disk_fill(it: Attack) -> str:
    """Fill more of the disk than `limits.disk` allows."""
    limit = it.config.limits.disk
    most = int(limit * SPARE)
    if it.host.disk_free() < 2 * most:
        raise Untried(f"it takes {most >> 20} MiB, and data_dir has not twice that free")
    async with it.another() as target, target.own() as own:
        taken = await _fill(own, PLACE, most, it.config.limits.file_size - (1 << 16))
        stopped = taken > limit and await _stopped(it, target)
    if stopped:
        return f"stopped when {taken >> 20} MiB were taken, of at most {limit >> 20}"
    if taken > limit + limit // 50 + (1 << 20):  # a file system's own structures are not exact
        if it.config.engine == "docker":
            it.warn("this Docker daemon does not limit what a box writes to its disk (container_pool.limits.disk)")
            return f"{taken >> 20} MiB, as this Docker daemon limits no disk: see the warning"
        raise Breach(f"a box whose disk holds {limit >> 20} MiB takes {taken >> 20} MiB")
    return f"full after {taken >> 20} MiB, of at most {limit >> 20}"


@probe("inode-fill")
async def inode_fill(it: Attack) -> str:
    """Make more files than `limits.inodes` allows."""
    limit = it.config.limits.inodes
    rounding = max(limit // 50, 1024)  # a file system has them by groups
    most = limit + 2 * rounding
    script = b"mkdir -p $0 && cd $0 && i=0; while [ $i -lt $1 ] && true 2>/dev/null >$i; do i=$((i+1)); done; echo $i"
    async with it.another() as target:
        place = f"{PLACE}/many".encode()
        ran = await target.run(b"sh", b"-c", script, place, str(most).encode(), patience=100)
        if ran.exit.lost or (ran.stdout.strip().isdigit() and int(ran.stdout) > limit and await _stopped(it, target)):
            return f"stopped when more than {limit} files were made"
    if not ran.stdout.strip().isdigit():
        raise Untried(f"the files cannot be made: {ran.text}")
    made = int(ran.stdout)
    if made > limit + rounding:
        if it.config.engine == "docker":
            it.warn("this Docker daemon does not limit how many files a box makes (container_pool.limits.inodes)")
            return f"{made}, as this Docker daemon limits no inodes: see the warning"
        raise Breach(f"a box that may have {limit} files makes {made}")
    return f"stopped after {made} of at most {limit}"


@probe("tmpfs-fill")
async def tmpfs_fill(it: Attack) -> str:
    """Fill every file system in memory that the box can write."""
    limit = it.config.limits.memory
    most = int(limit * SPARE)
    _require_memory(most)
    taken: dict[str, int] = {}
    async with it.another() as target:
        ran = await target.run(b"sh", b"-c", b"cat /proc/self/mounts")
        places = [line.split()[1] for line in ran.stdout.decode(errors="replace").splitlines() if line.split()[2:3] == ["tmpfs"]]
        if not places:
            raise Untried("the box has no file system in memory")
        async with target.own() as own:
            try:
                for place in places:
                    taken[place] = await _fill(own, place, most - sum(taken.values()), min(most, it.config.limits.file_size))
            except AgentDied:
                return f"killed when {sum(taken.values()) >> 20} MiB were taken"
    if sum(taken.values()) > limit:
        raise Breach(
            f"a box that may have {limit >> 20} MiB of memory keeps {sum(taken.values()) >> 20} MiB in {', '.join(taken)}"
        )
    return ", ".join(f"{place}: {size >> 20} MiB" for place, size in taken.items())


@probe("many-descriptors")
async def many_descriptors(it: Attack) -> str:
    """Open more files in one process than `limits.open_files` allows."""
    limit = it.config.limits.open_files
    async with it.target.own() as own:
        reply = await own.call("dup", 0, repeat=limit + 16)
    if reply.ok or reply.count > limit:
        raise Breach(f"a process that may have {limit} files open has {reply.count}")
    return f"{reply.count} of at most {limit} ({reply.error})"


@probe("many-terminals")
async def many_terminals(it: Attack) -> str:
    """Open more terminals than a box may have: the machine has no more than 4096."""
    async with it.another() as target, target.own() as own:
        reply = await own.call("openat", AT_FDCWD, "/dev/ptmx", os.O_RDWR | os.O_NOCTTY, 0, repeat=it.host.max_terminals + 8)
        if not reply.ok and reply.count == 0:
            raise Untried(f"/dev/ptmx does not open ({reply.error})")
    if reply.count > it.host.max_terminals:
        if it.config.engine == "docker":
            it.warn("Docker does not limit the terminals of a box: one box can leave the others without")
            return f"{reply.count}, as Docker limits none: see the warning"
        raise Breach(f"a box that may have {MAX_TERMINALS} terminals opens {reply.count}")
    return f"{reply.count} of at most {MAX_TERMINALS}"


@probe("sparse-file")
async def sparse_file(it: Attack) -> str:
    """Make a file of a terabyte that takes no room, and one just larger than `limits.file_size`."""
    limit = it.config.limits.file_size
    for size in (limit + 1, 1 << 40):
        async with it.target.own() as own:
            opened = await own.call("openat", AT_FDCWD, f"{PLACE}/.sparse", CREATE, 0o600)
            if not opened.ok:
                raise Untried(f"no file can be made ({opened.error})")
            try:
                reply = await own.call("ftruncate", opened.value, size)
            except AgentDied as death:
                if (death.exit.signal or "") not in ("XFSZ", "25") and death.exit.status != 128 + 25:
                    raise
                continue
            if reply.ok:
                await own.call("unlinkat", AT_FDCWD, f"{PLACE}/.sparse", 0)
                raise Breach(f"a file of {size} bytes can be made, where {limit} are allowed")
    return f"no file is larger than {limit >> 20} MiB"


@probe("output-flood")
async def output_flood(it: Attack) -> str:
    """Write millions of single bytes to an output that nobody reads: the box must wait, not the host remember."""
    most = 4_000_000
    process = await it.target.spawn((await it.target.program()).encode())
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        if (number := number_of("write")) is None:
            raise Untried("there is no write")
        one = agent.request(number, (1, agent.BUFFER, 1), b"x", out=0, repeat=most)
        os.write(process.stdin, one)
        unread = rounds = 0
        for _ in range(100):
            last, unread = unread, struct.unpack("i", fcntl.ioctl(process.stdout, termios.FIONREAD, bytes(4)))[0]
            rounds = rounds + 1 if unread == last else 0
            if rounds >= (2 if unread else 10):
                break
            await asyncio.sleep(0.2)
        if process.exit is not None or unread == 0 or unread >= most:
            raise Breach(f"the host takes what nobody reads ({unread} bytes wait)")
    finally:
        process.signal("KILL")
        process.close()
    return f"the writer waits after {unread} bytes"


@probe("log-flood")
async def log_flood(it: Attack) -> str:
    """Fill the kernel's log, by writing to it and by crashing processes."""
    try:
        log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Untried(f"the host's kernel log cannot be read: {error.strerror}") from None
    try:
        os.lseek(log, 0, os.SEEK_END)
        line = f"verify {it.host.canaries.token}".encode()
        async with it.another() as target, target.own() as own:
            opened = await own.call("openat", AT_FDCWD, "/dev/kmsg", os.O_WRONLY)
            if opened.ok:
                await own.call("write", opened.value, line, len(line), repeat=20)
            crash = b"i=0; while [ $i -lt 100 ]; do sh -c 'kill -SEGV $$' 2>/dev/null; i=$((i+1)); done"
            await target.run(b"sh", b"-c", crash, patience=60)
        seen = []
        with suppress(BlockingIOError):
            while True:
                with suppress(BrokenPipeError):  # the log was written faster than read
                    seen.append(os.read(log, 8192))
    finally:
        os.close(log)
    if any(it.host.canaries.token.encode() in entry for entry in seen):
        raise Breach("a box can write to the kernel's log")
    mine = [entry for entry in seen if b"segfault" in entry or b"general protection" in entry]
    if len(mine) > 50:
        raise Breach(f"100 crashes left {len(mine)} lines in the kernel's log")
    return f"100 crashes left {len(mine)} lines in the kernel's log"
