"""What is the `local` engine's own: the spawner, the hardening, hostile boxes, and a runtime that fails."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from hermes.broker import cgroups, programs
from hermes.broker.cgroups import BoxCgroup, Hierarchy, hierarchies
from hermes.broker.engines.base import Box
from hermes.broker.engines.local import LocalEngine
from hermes.broker.image import Image
from hermes.broker.janitor import sweep
from hermes.broker.oci import BOOT_NICE, BOOT_SHARES, MAX_TERMINALS
from hermes.broker.policy import MEMLOCK_LIMIT
from hermes.config import ContainerPoolConfig
from hermes.container import Terminal
from hermes.errors import EngineError, SpawnError
from hermes.testing.boxes import BoxClient, eventually
from tests.engine.conftest import LIMITS, broker_umask, new_id

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]

PROBES = Path(__file__).with_name("probes.py").read_bytes()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("local")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(
    data_dir: Path, target_image: Image, pool_config: Callable[..., ContainerPoolConfig]
) -> AsyncIterator[LocalEngine]:
    engine = LocalEngine(pool_config(), data_dir=data_dir, image=target_image, instance="local-test")
    with broker_umask():
        await engine.start()
        yield engine
        await engine.close()


@pytest_asyncio.fixture(loop_scope="module")
async def box(engine: LocalEngine) -> AsyncIterator[Box]:
    box = await engine.create(new_id())
    yield box
    await engine.destroy(box)


@pytest_asyncio.fixture(loop_scope="module")
async def client(engine: LocalEngine, box: Box) -> AsyncIterator[BoxClient]:
    async with BoxClient(await engine.open(box)) as client:
        yield client


# ---- what the kernel refuses


async def test_system_calls(client: BoxClient) -> None:
    result = await client.run(None, b"python3", b"-", stdin=PROBES)
    assert result.stderr == b""
    found = json.loads(result.stdout)
    refused = (
        "unshare", "setns", "mount", "umount2", "keyctl", "bpf", "perf_event_open", "userfaultfd", "io_uring_setup",
        "process_vm_writev", "pidfd_getfd", "fsopen", "open_by_handle_at", "syslog", "reboot", "clone with a namespace",
    )  # fmt: skip
    assert {name: found[name] for name in refused} == dict.fromkeys(refused, "EPERM")
    assert found["clone3"] == found["a system call of the future"] == "ENOSYS"
    assert found["personality: PER_LINUX32"] != "ok"
    for family in ("AF_VSOCK", "AF_ALG", "AF_PACKET", "AF_KEY", "AF_XDP", "AF_TIPC", "AF_CAN", "AF_BLUETOOTH"):
        assert found[f"socket: {family}"] == "EAFNOSUPPORT"
    assert found["socket: NETLINK_NETFILTER"] == found["socket: NETLINK_AUDIT"] == "EPROTONOSUPPORT"
    for kind in ("SCTP", "DCCP", "L2TP", "MPTCP", "SOCK_PACKET"):
        assert found[f"socket: {kind}"] == "EPROTONOSUPPORT"
    for kind in ("AF_UNIX", "AF_INET", "AF_INET6", "TCP", "UDP", "raw ICMP", "raw ICMPv6", "NETLINK_ROUTE"):
        assert found[f"socket: {kind}"] == "ok"
    assert found["socketpair: AF_INET"] != "ok"
    assert found["socket: AF_NETLINK with a high bit"] != "ok"
    assert found["ioctl: TIOCSTI"] == found["ioctl: TIOCSTI with a high bit"] == "EIO"
    assert found["ioctl: TIOCLINUX"] == "ENOTTY"
    assert found["ioctl: TIOCSETD"] == "EINVAL"
    assert found["i386 getpid"] == found["x32 getpid"] == f"signal {signal.SIGSYS.value}"
    assert found["personality: query"] == found["sync"] == found["ioctl: FIONREAD"] == "ok"


@pytest.mark.parametrize(
    "command",
    [
        "bash -c 'echo $((6 * 7)) | cat'",
        "python3 -c 'import threading as t; thread = t.Thread(target=print); thread.start(); thread.join()'",
        "python3 -c 'import subprocess; subprocess.run([\"true\"], check=True)'",
        "perl -e 'fork; exit 0'",
        "apt-get --version",
        "ip address",
        "ps aux",
        "top -bn1",
        "tar -C / -cf /tmp/etc.tar etc && tar -tf /tmp/etc.tar",
        "useradd -m newcomer && su - newcomer -c true",
        "find / -xdev -newer /etc/passwd",
        "dpkg -l",
        "df -h /",
        "ping -c 1 127.0.0.1",
        "python3 -c 'import socket as s; u = s.socket(s.AF_INET, s.SOCK_DGRAM); u.bind((\"127.0.0.1\", 0)); u.getsockname()'",
        "python3 -m http.server -b 127.0.0.1 8123 >/dev/null 2>&1 & "
        "until nc -z 127.0.0.1 8123; do sleep 0.1; done; curl -sfo /dev/null http://127.0.0.1:8123/ && kill $!",
        "getent hosts localhost",
    ],
)
async def test_debian_works(client: BoxClient, command: str) -> None:
    result = await client.run(command)
    assert result.status == 0, result


# ---- what is seen from inside


@pytest.mark.parametrize("terminal", [None, Terminal()], ids=["pipes", "terminal"])
async def test_no_descriptor_leaks(client: BoxClient, terminal: Terminal | None) -> None:
    result = await client.run(None, b"/bin/ls", b"/proc/self/fd", terminal=terminal)
    assert result.stdout.split() == [b"0", b"1", b"2", b"3"], "3 is the directory that ls reads"


async def test_the_spawner_is_not_seen(client: BoxClient) -> None:
    lines = (await client.output("ps -eo ppid=,pid=,args=")).splitlines()
    assert all("python" not in line and "zygote" not in line for line in lines)
    assert len([line for line in lines if line.split()[0] == "0"]) == 2, "init and the shell; the kernel calls the spawner 0"


async def test_nothing_names_the_host(client: BoxClient, data_dir: Path) -> None:
    seen = await client.output(
        "cat /proc/self/mountinfo /proc/self/cgroup /proc/1/environ /proc/1/cmdline /proc/self/environ; env"
    )
    for word in ("hermes", str(data_dir), "/work", "pytest", "lab"):
        assert word not in seen


async def test_nothing_is_inherited_from_the_broker(client: BoxClient) -> None:
    masks = "grep -E '^Sig(Blk|Ign)' /proc/self/status | cut -f2"
    seen = await client.output(f"cat /proc/self/oom_score_adj; nice; umask; {masks}; ps -o sid=,pgid= $$")
    oom, nice, umask, blocked, ignored, session = seen.splitlines()
    assert (oom, nice, umask, int(blocked, 16)) == ("0", "0", "0022", 0)
    assert int(ignored, 16) in (0, 0b11 << 31), "glibc's posix_spawn ignores two signals that only glibc can send"
    assert len(set(session.split())) == 1
    limits = await client.output("ulimit -r; ulimit -e; ulimit -l")
    assert limits.split() == ["0", "0", str(MEMLOCK_LIMIT // 1024)]


async def test_init_inherits_nothing_from_the_broker_either(box: Box, client: BoxClient) -> None:
    status = Path(f"/proc/{box.pid}/status").read_text()
    assert "Umask:\t0022" in status
    assert Path(f"/proc/{box.pid}/oom_score_adj").read_text() == "0\n"
    limits = Path(f"/proc/{box.pid}/limits").read_text()
    for name, limit in (("nice priority", 0), ("realtime priority", 0), ("locked memory", MEMLOCK_LIMIT)):
        (line,) = (line for line in limits.splitlines() if line.startswith(f"Max {name} "))
        assert line.removeprefix(f"Max {name}").split()[:2] == [str(limit)] * 2
    modes = {
        "/": "755", "/dev": "755", "/dev/pts": "755", "/dev/shm": "1777", "/dev/mqueue": "1777", "/dev/null": "666",
        "/etc": "755", "/run": "755", "/tmp": "1777",
    }  # fmt: skip
    assert (await client.output(f"stat -c %a {' '.join(modes)}")).split() == list(modes.values())


async def test_a_box_runs_as_usual_once_it_is_opened(box: Box, engine: LocalEngine, client: BoxClient) -> None:
    assert await client.output("nice") == "0"
    cgroup = engine._cells[box.id].cgroup
    assert all(os.getpriority(os.PRIO_PROCESS, pid) == 0 for pid in cgroup.pids())
    weights = [path / name for path in cgroup._paths for name in ("cpu.shares", "cpu.weight") if (path / name).exists()]
    assert [(path.name, path.read_text().strip()) for path in weights] in ([("cpu.shares", "1024")], [("cpu.weight", "100")])
    bursts = [path / name for path in cgroup._paths for name in ("cpu.cfs_burst_us", "cpu.max.burst") if (path / name).exists()]
    assert [int(path.read_text()) for path in bursts] in ([], [engine.policy.cpu_burst])


async def test_a_box_that_boots_makes_way(engine: LocalEngine) -> None:
    box = await engine.create(new_id())
    try:
        cgroup = engine._cells[box.id].cgroup
        assert os.getpriority(os.PRIO_PROCESS, box.pid) == BOOT_NICE
        shares = [int((path / "cpu.shares").read_text()) for path in cgroup._paths if (path / "cpu.shares").exists()]
        weights = [int((path / "cpu.weight").read_text()) for path in cgroup._paths if (path / "cpu.weight").exists()]
        assert shares == [BOOT_SHARES] or (not shares and weights < [100])
    finally:
        await engine.destroy(box)


async def test_a_terminal_is_as_sshd_makes_it(client: BoxClient) -> None:
    modes = {53: 0, 3: 8, 42: 1, 41: 1, 8: 255, 128: 9600, 129: 9600, 200: 7}
    terminal = Terminal(term="vt220", width=132, height=50, modes=modes)
    command = 'stty -a; stat -c "%U %G %a" $(tty); [ $(tty) = $SSH_TTY ] && echo same; echo $TERM; echo ctty > /dev/tty'
    out = (await client.run(command, terminal=terminal)).stdout.decode()
    for text in ("speed 9600 baud", "rows 50; columns 132", "erase = ^H", "start = <undef>", "iutf8", "imaxbel", " -echo "):
        assert text in out
    assert "root tty 620" in out
    assert "same\r\nvt220\r\nctty\r\n" in out


async def test_terminals_of_a_box_are_limited(client: BoxClient) -> None:
    opened = (
        "import os, time; fds = [os.open('/dev/ptmx', os.O_RDWR) for _ in range(%d)]; print('ready', flush=True); time.sleep(999)"
    )
    hog = await client.start(None, b"python3", b"-c", (opened % MAX_TERMINALS).encode())
    await hog.read_until(b"ready\n")
    with pytest.raises(SpawnError):
        await client.start(terminal=Terminal())
    hog.process.signal("KILL")
    await hog.wait()
    assert (await client.run("tty", terminal=Terminal())).status == 0
    hog.close()


# ---- users


async def test_an_unknown_user_is_made(client: BoxClient) -> None:
    first = await client.output("id -un; id -u; pwd; ls -A | sort | head -1; stat -c '%U %a' .", user="visitor")
    assert first.splitlines()[0] == "visitor"
    assert first.splitlines()[2:] == ["/home/visitor", ".bash_logout", "visitor 700"]
    again = await asyncio.gather(*(client.output("id -u", user="visitor") for _ in range(5)))
    assert set(again) == {first.splitlines()[1]}
    assert (await client.output("grep -c ^visitor: /etc/passwd /etc/group /etc/shadow")).split("\n") == [
        "/etc/passwd:1",
        "/etc/group:1",
        "/etc/shadow:1",
    ]
    assert "CapEff:\t0000000000000000" in await client.output("cat /proc/self/status", user="visitor")


@pytest.mark.parametrize("name", ["", "Root", "a b", "../etc", "x" * 40, "root:x", "new\nline", "ünïcode"])
async def test_a_name_that_is_none_fails(client: BoxClient, name: str) -> None:
    with pytest.raises(SpawnError):
        await client.run("true", user=name)


@pytest.mark.parametrize(
    "damage",
    [
        "rm /etc/passwd",
        "rm /etc/passwd; mkfifo /etc/passwd",
        "rm /etc/passwd; mkdir /etc/passwd",
        "rm /etc/passwd; ln -s passwd /etc/passwd",
        "rm /etc/passwd; ln -s /dev/zero /etc/passwd",
        "rm /etc/passwd; ln -s /proc/kmsg /etc/passwd",
        "rm /etc/group; mkfifo /etc/group",
        "truncate -s 15M /etc/passwd",
        "head -c 15000000 /dev/zero | tr '\\0' : > /etc/passwd",
        "rm -r /etc/skel; mkfifo /etc/skel",
        "mkfifo /etc/skel/fifo; ln -s /dev/zero /etc/skel/zero",
        "rm -r /home; mkfifo /home",
        "rm -rf /etc /home",
    ],
)
async def test_damaged_user_files_block_nobody(client: BoxClient, damage: str) -> None:
    await client.run(damage)
    try:
        result = await client.run("id -un", user="visitor")
    except SpawnError:
        pass
    else:
        assert result.status in (0, 1, 127)
    assert (await client.run("echo well")).stdout == b"well\n"


@pytest.mark.parametrize("shell", ["/no/such/shell", "/etc", "/tmp/fifo", "/tmp/text"])
async def test_a_shell_that_cannot_run_fails(client: BoxClient, shell: str) -> None:
    await client.output(f"mkfifo -m 755 /tmp/fifo; echo text > /tmp/text; useradd -s {shell} odd")
    with pytest.raises(SpawnError):
        await client.run("true", user="odd")


async def test_a_home_that_cannot_be_entered(client: BoxClient) -> None:
    await client.output("useradd -d /no/such/home homeless; mkdir -m 0 /sealed; useradd -d /sealed shut")
    result = await client.run("pwd", user="homeless")
    assert (result.stdout, result.stderr) == (
        b"/\n",
        b"Could not chdir to home directory /no/such/home: No such file or directory\n",
    )
    result = await client.run("pwd", user="shut")
    assert (result.stdout, result.stderr) == (b"/\n", b"Could not chdir to home directory /sealed: Permission denied\n")


# ---- attacks on the spawner


async def test_killing_everything_leaves_the_spawner(client: BoxClient) -> None:
    bystander = await client.start("sleep 999")
    killer = await client.run("kill -9 -1")
    assert (await bystander.wait()).signal == "KILL"
    assert killer.exit.signal == "KILL" or killer.status is not None
    assert (await client.run("echo alive")).stdout == b"alive\n"
    bystander.close()


async def test_stopping_everything_leaves_the_spawner(client: BoxClient) -> None:
    sleeper = await client.start("sleep 999")
    stopper = await client.start("kill -STOP -1; echo stopped; kill -STOP $$")
    await stopper.read_until(b"stopped\n")
    assert (await client.run("echo alive")).stdout == b"alive\n"
    for stopped in (sleeper, stopper):
        stopped.process.signal("KILL")
        assert (await stopped.wait()).signal == "KILL"
        stopped.close()


async def test_at_the_limit_of_processes(client: BoxClient) -> None:
    bomb = "import os, time\ntry:\n while os.fork(): pass\nexcept OSError: print('full', flush=True)\ntime.sleep(999)"
    full = await client.start(None, b"python3", b"-c", bomb.encode())
    await full.read_until(b"full\n")
    with pytest.raises(SpawnError, match=r"temporarily unavailable"):
        for _ in range(LIMITS.pids):
            await client.start("sleep 999")
    full.process.signal("KILL")

    async def room() -> bool:
        try:
            return (await client.run("echo room")).stdout == b"room\n"
        except SpawnError:
            return False

    await eventually(room)
    full.close()


async def test_the_spawner_outlives_a_memory_hog(client: BoxClient) -> None:
    assert (await client.run(None, b"python3", b"-c", b"x = bytearray(1 << 30)")).status != 0
    assert (await client.run("echo alive")).stdout == b"alive\n"


async def test_the_spawner_cannot_be_reached_from_inside(client: BoxClient) -> None:
    attempt = "for p in /proc/[0-9]*; do ls $p/root/proc/1/fd $p/cwd >/dev/null 2>&1; done; ls /proc/self/root/proc/1/root/"
    assert "hermes" not in (await client.run(attempt)).stdout.decode()
    assert await client.output("readlink /proc/self/ns/user /proc/1/ns/user | sort -u | wc -l") == "1"


# ---- the engine


async def test_hostile_trees_are_removed(engine: LocalEngine, data_dir: Path) -> None:
    box = await engine.create(new_id())
    async with BoxClient(await engine.open(box)) as client:
        await client.output(
            'mkdir /x && cd /x && python3 -c \'import os\nfor _ in range(3000): os.mkdir("d" * 200); os.chdir("d" * 200)\''
        )
        await client.output("mkdir /y && cd /y && python3 -c 'for n in range(500): open(str(n), \"w\").close()'")
        await client.output("mkdir -m 0 /z; cd /z; touch -- -rf '*' \"$(printf 'a\\nb')\"; mkfifo f; chmod 0 /z; ln -s / slash")
    await engine.destroy(box)
    assert [entry.name for entry in (data_dir / "boxes").iterdir()] == []

    async def deleted() -> bool:
        return not list((data_dir / "trash").iterdir())

    await eventually(deleted)


async def test_a_dead_zygote_is_replaced(engine: LocalEngine, client: BoxClient) -> None:
    os.kill(engine.zygote.pid, signal.SIGKILL)
    with pytest.raises((SpawnError, EngineError)):
        while True:
            await client.run("true")
    await eventually(lambda: _true(engine.zygote.pid == 0))
    box = await engine.create(new_id())
    async with BoxClient(await engine.open(box)) as other:
        assert (await other.run("echo new")).stdout == b"new\n"
    await engine.destroy(box)


async def _true(value: bool) -> bool:
    return value


async def test_a_process_that_is_no_container_is_not_entered(engine: LocalEngine) -> None:
    with pytest.raises(EngineError, match="shares its"):
        await engine.zygote.enter(os.getpid(), policy=engine.policy)
    dead = subprocess.Popen(["true"])
    dead.wait()
    with pytest.raises(EngineError):
        await engine.zygote.enter(dead.pid, policy=engine.policy)


def _runtime(directory: Path, script: str) -> str:
    """A PATH in which runc is a script for all but the trial box."""
    directory.mkdir()
    real = subprocess.run(["which", "runc"], capture_output=True, text=True, check=True).stdout.strip()
    program = directory / "runc"
    program.write_text(f'#!/bin/sh\ncase "$*" in *trial*) exec {real} "$@";; esac\n{script}\n')
    program.chmod(0o755)
    return f"{directory}:{os.environ['PATH']}"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("sleep 999", "no box within"),
        ('while [ "$1" != --log ]; do shift; done; echo \'{"msg": "out of luck"}\' > "$2"; exit 1', "out of luck"),
        ("kill -9 $$", "run failed"),
        ("exit 0", "cannot create a box"),
    ],
    ids=["hangs", "fails", "dies", "lies"],
)
async def test_a_runtime_that_does_not_work(
    script: str,
    message: str,
    tmp_path: Path,
    target_image: Image,
    pool_config: Callable[..., ContainerPoolConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", _runtime(tmp_path / "bin", script))
    config = pool_config(runtime="runc", create_timeout=2)
    engine = LocalEngine(config, data_dir=tmp_path / "data", image=target_image, instance="bad-runtime")
    await engine.start()
    try:
        with pytest.raises(EngineError, match=message):
            await engine.create(new_id())
        assert await engine.list_owned() == []
        assert str(engine.runtime_dir / "boxes/") not in Path("/proc/self/mountinfo").read_text()
    finally:
        await engine.close()


async def test_no_runtime_at_all(
    tmp_path: Path, target_image: Image, pool_config: Callable[..., ContainerPoolConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mkfs.ext4", "debugfs", "dumpe2fs"):
        (tmp_path / name).symlink_to(programs.which(name) or "")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(programs, "SYSTEM_PATH", str(tmp_path))
    engine = LocalEngine(pool_config(), data_dir=tmp_path / "data", image=target_image, instance="no-runtime")
    with pytest.raises(EngineError, match=r"apt-get install crun.*apt-get install runc"):
        await engine.start()
    await engine.close()


async def test_a_runtime_outside_of_an_ordinary_path(
    tmp_path: Path, target_image: Image, pool_config: Callable[..., ContainerPoolConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/local/bin:/usr/bin:/bin")
    config = pool_config(runtime="runc")
    engine = LocalEngine(config, data_dir=tmp_path / "data", image=target_image, instance="sbin")
    await engine.start()
    await engine.destroy(await engine.create(new_id()))
    await engine.close()


async def test_swap_is_limited_where_only_the_trial_shows_that_it_can_be(
    tmp_path: Path, target_image: Image, pool_config: Callable[..., ContainerPoolConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = LocalEngine(pool_config(), data_dir=tmp_path / "data", image=target_image, instance="swap")
    parents: list[bool] = []

    def counts_swap(trees: list[Hierarchy]) -> bool:
        parents.append(BoxCgroup("/hermes-swap", trees).exists())
        return parents[-1] and real(trees)

    real = cgroups.counts_swap
    assert real(hierarchies()), "this kernel counts swap"
    monkeypatch.setattr(cgroups, "counts_swap", counts_swap)
    await engine.start()
    try:
        assert parents == [False, True]
        box = await engine.create(new_id())
        settings = json.loads((engine.runtime_dir / "boxes" / box.id / "config.json").read_text())
        assert settings["linux"]["resources"]["memory"] == {"limit": LIMITS.memory, "swap": LIMITS.memory}
        await engine.destroy(box)
    finally:
        await engine.close()


async def test_a_box_that_would_not_die_is_removed_once_it_does(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    box = await engine.create(new_id())
    told: list[int] = []
    box.on_exit.append(lambda: told.append(1))
    with monkeypatch.context() as patch:
        patch.setattr("hermes.broker.engines.local._END_TIMEOUT", 0.05)
        patch.setattr(signal, "pidfd_send_signal", lambda *_: None)
        patch.setattr(BoxCgroup, "kill", lambda _: None)
        with pytest.raises(EngineError, match="cannot be removed"):
            await engine.destroy(box)
    assert told == []
    assert box.id in await engine.list_owned()
    await engine.destroy(box)
    assert told == [1]
    assert box.id not in await engine.list_owned()


async def test_a_box_that_ends_while_it_is_opened(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    box = await engine.create(new_id())

    def gone(_: BoxCgroup, weight: int, burst: int) -> None:
        raise FileNotFoundError("cpu.shares")

    with monkeypatch.context() as patch:
        patch.setattr(BoxCgroup, "end_boot", gone)
        with pytest.raises(EngineError, match="cannot be opened"):
            await engine.open(box)
    await engine.destroy(box)


async def test_a_box_that_takes_what_the_host_needs_is_ended(
    tmp_path: Path, target_image: Image, pool_config: Callable[..., ContainerPoolConfig]
) -> None:
    limits = LIMITS.model_copy(update={"host_free": 1 << 60})
    engine = LocalEngine(pool_config(limits=limits), data_dir=tmp_path / "data", image=target_image, instance="pressed")
    await engine.start()
    try:
        small, large = await engine.create(new_id()), await engine.create(new_id())
        async with BoxClient(await engine.open(large)) as client:
            await client.output("head -c 8000000 /dev/urandom > /root/large; sync /root/large")
        ended = asyncio.Event()
        large.on_exit.append(ended.set)

        async def gone() -> bool:  # the kernel writes what is in its cache when it likes
            for box in (small, large):
                engine.look(box)
            return ended.is_set()

        disk = engine._cells[large.id].files.disk
        await asyncio.to_thread(lambda: subprocess.run(["sync", "-f", disk], check=True))
        await eventually(gone)
        assert large.reached["host_free"] == 1
        await engine.destroy(large)
    finally:
        await engine.close()


async def test_sweep_leaves_nothing(tmp_path: Path, target_image: Image, pool_config: Callable[..., ContainerPoolConfig]) -> None:
    engine = LocalEngine(pool_config(), data_dir=tmp_path / "data", image=target_image, instance="swept")
    await engine.start()
    boxes = await asyncio.gather(*(engine.create(new_id()) for _ in range(3)))
    await engine.freeze(boxes[0])
    await asyncio.to_thread(sweep, "swept", engine.runtime_dir)
    assert all(not Path(f"/proc/{box.pid}").exists() or _is_zombie(box.pid) for box in boxes)
    assert not BoxCgroup("/hermes-swept", hierarchies()).exists()
    assert str(engine.runtime_dir) not in Path("/proc/self/mountinfo").read_text()
    assert not (engine.runtime_dir / "boxes").exists()
    for box in boxes:
        await engine.destroy(box)
    assert await engine.list_owned() == []
    await engine.close()
    for call in (engine.list_owned(), engine.create(new_id()), engine.open(boxes[0])):
        with pytest.raises(EngineError):
            await call


def _is_zombie(pid: int) -> bool:
    return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()


CRUN = """
import asyncio, os, sys
from dataclasses import dataclass
from pathlib import Path
from hermes.broker import linux
from hermes.broker.engines.local import LocalEngine
from hermes.config import ContainerPoolConfig
from hermes.testing.boxes import BoxClient

@dataclass
class Image:
    rootfs: Path
    init: tuple[str, ...]

async def main(data, rootfs, *init):
    config = ContainerPoolConfig(runtime="crun")
    engine = LocalEngine(config, data_dir=Path(data), image=Image(Path(rootfs), init), instance="with-crun")
    await engine.start()
    box = await engine.create("one")
    async with BoxClient(await engine.open(box)) as client:
        print(await client.output("id -u; grep -c Seccomp_filters:.1 /proc/1/status; umask; grep Umask /proc/1/status | cut -f2"))
        print(await client.output("stat -c %a /dev /dev/pts /dev/shm /run /dev/null | xargs; nice"))
    await engine.close()

os.umask(0o077)
linux.private_mounts()
asyncio.run(main(*sys.argv[1:]))
"""


async def test_crun(tmp_path: Path, target_image: Image) -> None:
    command = [sys.executable, "-c", CRUN, str(tmp_path), str(target_image.rootfs), *target_image.init]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-6:] == ["0", "1", "0022", "0022", "755 755 1777 755 666", "0"], done.stdout
