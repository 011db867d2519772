"""What holds for boxes as wholes, whatever engine made them: their lives, their walls, their limits."""

import asyncio
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from hermes.broker.engines.base import Box, Engine
from hermes.errors import HermesError, SpawnError
from hermes.testing.boxes import BoxClient, eventually
from tests.engine.conftest import LIMITS, Case, new_id

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(120, func_only=True),  # the first test that needs the image may wait for it to be built
]


@pytest.fixture
def isolated(case: Case) -> None:
    if not case.isolated:
        pytest.skip("it declares that it does not isolate")


@pytest.fixture
def durable(case: Case) -> None:
    if not case.durable:
        pytest.skip("its boxes end with it")


# ---- lives


async def test_boxes_are_listed_while_they_exist(engine: Engine) -> None:
    first, second = new_id(), new_id()
    boxes = await asyncio.gather(engine.create(first), engine.create(second))
    assert [box.id for box in boxes] == [first, second]
    assert {first, second} <= set(await engine.list_owned())
    await engine.destroy(boxes[0])
    left = await engine.list_owned()
    assert first not in left
    assert second in left
    await engine.destroy(boxes[1])
    assert second not in await engine.list_owned()


async def test_destroy_twice(engine: Engine) -> None:
    box = await engine.create(new_id())
    await engine.destroy(box)
    await engine.destroy(box)


async def test_destroy_at_the_same_time(engine: Engine) -> None:
    box = await engine.create(new_id())
    await asyncio.gather(*(engine.destroy(box) for _ in range(3)))
    assert box.id not in await engine.list_owned()


async def test_destroy_ends_every_process(engine: Engine) -> None:
    box = await engine.create(new_id())
    async with BoxClient(await engine.open(box)) as client:
        cat = await client.start("cat")
        ignorant = await client.start("trap '' TERM HUP INT PIPE; echo ready; while :; do sleep 1; done")
        await ignorant.read_until(b"ready\n")
        await engine.destroy(box)
        for process in (cat, ignorant):
            while await process.read():
                pass
            await process.wait()
            process.close()
        with pytest.raises(HermesError):
            await client.run("true")


async def test_cancelled_creation_leaves_nothing(engine: Engine) -> None:
    for patience in (0.0, 0.002, 0.01, 0.03, 0.06, 0.12, 0.2):
        id = new_id()
        try:
            async with asyncio.timeout(patience):
                box = await engine.create(id)
        except TimeoutError:
            assert id not in await engine.list_owned()
        else:
            await engine.destroy(box)
    after = new_id()
    box = await engine.create(after)
    await engine.destroy(box)
    assert after not in await engine.list_owned()


async def test_an_init_that_ends_is_told_once(engine: Engine, isolated: None) -> None:
    box = await engine.create(new_id())
    told: list[int] = []
    box.on_exit.append(lambda: told.append(1))
    async with BoxClient(await engine.open(box)) as client:
        cat = await client.start("cat")
        assert box.pid > 0
        os.kill(box.pid, 9)
        while await cat.read():
            pass
        await cat.wait()
        cat.close()

        async def known() -> bool:
            return bool(told)

        await eventually(known)
    await engine.destroy(box)
    assert told == [1]
    assert box.id not in await engine.list_owned()


async def test_the_box_socket_ends_with_the_box(engine: Engine, isolated: None) -> None:
    box = await engine.create(new_id())
    async with BoxClient(await engine.open(box)) as client:
        await client.run("true")
        await engine.destroy(box)
        async with asyncio.timeout(30):
            await client.container.lost.wait()


async def test_processes_do_not_end_with_the_box_socket(engine: Engine, box: Box) -> None:
    async with BoxClient(await engine.open(box)) as client:
        cat = await client.start("cat")
        client.close()
        await cat.write(b"still here\n")
        await cat.read_until(b"still here\n")
        cat.close()


async def test_what_a_killed_broker_left_is_found_and_cleaned(case: Case, durable: None) -> None:
    instance = f"left{os.getpid()}"
    before = case.make(instance)
    await before.start()
    box = await before.create(new_id())
    client = BoxClient(await before.open(box))
    cat = await client.start("cat")

    after = case.make(instance)
    try:
        assert await after.list_owned() == [box.id]
        await after.start()
        assert await after.list_owned() == []
        while await cat.read():
            pass
    finally:
        cat.close()
        client.close()
        await after.close()
        await before.close()


async def test_changes_of_a_box_that_a_killed_broker_left_are_kept(case: Case, durable: None, tmp_path: Path) -> None:
    instance = f"evidence{os.getpid()}"
    before = case.make(instance)
    await before.start()
    held, warm = await before.create(new_id()), await before.create(new_id())
    async with BoxClient(await before.open(held), held.id) as client:
        await client.output("echo loot > /root/loot; rm /etc/adduser.conf; ln -s /etc/shadow /root/link")
    after = case.make(instance)
    try:
        await after.start(spare=[held.id, "never-heard-of"])
        assert await after.list_owned() == [held.id]
        state = Path(f"/proc/{warm.pid}/status")
        assert not warm.pid or not state.exists() or "State:\tZ" in state.read_text()
        copied = await after.recover(held.id, keep=tmp_path / "kept")
        assert copied is not None
        assert copied.exceeded == set()
        assert (tmp_path / "kept/changes/root/loot").read_text() == "loot\n"
        assert (tmp_path / "kept").stat().st_mode & 0o7777 == 0o700
        assert await after.list_owned() == []
        assert await after.recover(held.id, keep=tmp_path / "again") is None
        assert not (tmp_path / "again").exists()
    finally:
        await after.close()
        await before.close()


async def test_a_box_that_was_spared_and_is_not_wanted_is_removed(case: Case, durable: None) -> None:
    instance = f"unwanted{os.getpid()}"
    before = case.make(instance)
    await before.start()
    first, second = await before.create(new_id()), await before.create(new_id())
    after = case.make(instance)
    try:
        await after.start(spare=[first.id, second.id])
        assert await after.recover(first.id, keep=None) is None
        assert await after.list_owned() == [second.id]
        await after.close()
        again = case.make(instance)
        await again.start(spare=[second.id])
        assert await again.list_owned() == [second.id], "what one start did not come to, the next does"
        await again.recover(second.id, keep=None)
        await again.close()
    finally:
        await before.close()


async def test_instances_leave_each_other_alone(case: Case, engine: Engine, box: Box, durable: None) -> None:
    other = case.make(f"other{os.getpid()}")
    await other.start()
    try:
        assert await other.list_owned() == []
        assert box.id in await engine.list_owned()
    finally:
        await other.close()
    assert box.id in await engine.list_owned()


async def test_close_leaves_nothing(case: Case, durable: None) -> None:
    instance = f"closed{os.getpid()}"
    engine = case.make(instance)
    await engine.start()
    await engine.create(new_id())
    await engine.close()
    after = case.make(instance)
    await after.start()
    assert await after.list_owned() == []
    await after.close()


# ---- freezing


async def test_freeze_and_thaw(engine: Engine, box: Box, client: BoxClient) -> None:
    process = await client.start("i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done")
    await process.read_until(b"5\n")
    await engine.freeze(box)
    with pytest.raises(TimeoutError):
        while True:
            async with asyncio.timeout(0.4):
                await process.read()
    await engine.thaw(box)
    await process.read_until(b"\n")
    await process.read_until(b"\n")
    process.process.signal("KILL")
    await process.wait()
    process.close()


async def test_a_frozen_box_can_be_destroyed(engine: Engine) -> None:
    box = await engine.create(new_id())
    await engine.freeze(box)
    await engine.destroy(box)
    assert box.id not in await engine.list_owned()


# ---- what is kept


async def test_changes_are_kept(engine: Engine, case: Case, tmp_path: Path, isolated: None) -> None:
    box = await engine.create(new_id())
    async with BoxClient(await engine.open(box)) as client:
        script = r"""
            mkdir -p /root/.cache/'odd name'; printf 'evil \377' > /root/.cache/'odd name'/evil.bin; echo more >> /etc/passwd
            ln -s /etc/shadow /root/link; ln -s / /root/slash; mkfifo /root/fifo; : > /root/$(printf '\377\033[31m')
            chmod 0 /root/.cache/'odd name'; cp /bin/true /root/setuid; chmod 4755 /root/setuid
            rm /etc/adduser.conf
        """
        await client.output(script)
    kept = tmp_path / "deep" / "kept"
    kept.parent.mkdir()
    await engine.destroy(box, keep=kept)
    assert box.id not in await engine.list_owned()
    info = kept.stat()
    assert (info.st_uid, info.st_mode & 0o7777) == (0, 0o700)
    assert (kept / "changes/root/.cache/odd name/evil.bin").read_bytes() == b"evil \xff"
    assert (kept / "changes/etc/passwd").read_bytes().endswith(b"more\n")
    if (kept / "manifest.jsonl").exists():
        noted = {line["path"]: line for line in map(json.loads, (kept / "manifest.jsonl").read_bytes().splitlines())}
        assert not case.linux or noted["root/fifo"]["kind"] == "fifo"
        assert (noted["root/setuid"]["mode"], noted["root/setuid"]["uid"]) == ("4755", 0)
        assert noted["root/link"]["target"] == "/etc/shadow"
        assert noted["root/\\xff\x1b[31m"]["raw"] == "cm9vdC//G1szMW0="
        assert noted["etc/adduser.conf"]["kind"] == "deleted"
    assert not (kept / "changes/root/fifo").exists()
    assert (kept / "changes/root/setuid").stat().st_mode & 0o6111 == 0
    link = kept / "changes/root/link"
    assert not link.exists() or link.is_symlink()
    assert not (kept / "changes/root/slash/etc").is_file()


# ---- walls


def namespace(pid: str, name: str) -> str:
    return str(Path(f"/proc/{pid}/ns/{name}").readlink())


def uids(pid: int) -> list[int]:
    """Real, effective, saved and file system user id of a process, as the host sees them."""
    status = Path(f"/proc/{pid}/status").read_text()
    return [int(uid) for line in status.splitlines() if line.startswith("Uid:") for uid in line.split()[1:]]


async def test_two_boxes_are_apart(engine: Engine, case: Case, isolated: None) -> None:
    boxes = await asyncio.gather(engine.create(new_id()), engine.create(new_id()))
    first, second = [BoxClient(await engine.open(box)) for box in boxes]
    sleeper = await first.start("echo secret > /root/mine; echo secret > /tmp/mine; echo ready; exec sleep 4567")
    await sleeper.read_until(b"ready\n")
    assert (await second.run("cat /root/mine /tmp/mine")).stdout == b""
    assert (await second.run("grep -al 'sleep.456[7]' /proc/[0-9]*/cmdline")).stdout == b""
    kinds = ("pid", "mnt", "net", "uts", "ipc", "cgroup") if case.linux else ("mnt", "net", "uts", "ipc")
    of_host = {namespace("self", name) for name in kinds}
    if case.linux:
        spaces = f"for n in {' '.join(kinds)}; do readlink /proc/self/ns/$n; done"
        of_first, of_second = [set((await box.output(spaces)).split("\n")) for box in (first, second)]
    else:
        of_first, of_second = [{namespace(str(box.pid), name) for name in kinds} for box in boxes]
    assert len(of_first) == len(of_second) == len(kinds)
    assert not of_first & of_second
    assert not of_first & of_host
    for client, box in zip((first, second), boxes, strict=True):
        client.close()
        await engine.destroy(box)
    sleeper.close()


async def test_hostname(client: BoxClient, isolated: None) -> None:
    assert await client.output("cat /proc/sys/kernel/hostname") == "srv07"
    assert (await client.run("hostname evil")).status != 0


async def test_host_processes_are_not_seen(client: BoxClient, isolated: None) -> None:
    seen = await client.output("for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done")
    assert "pytest" not in seen
    assert "dockerd" not in seen
    assert int(await client.output("ls -d /proc/[0-9]* | wc -l")) < LIMITS.pids


async def test_host_files_are_not_seen(client: BoxClient, tmp_path: Path, isolated: None) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    result = await client.run(None, b"cat", bytes(secret), b"/proc/1/root" + bytes(secret), b"/proc/self/root" + bytes(secret))
    assert result.stdout == b""
    assert str(Path(__file__).parent) not in await client.output("cat /proc/self/mountinfo /proc/mounts")


@pytest.fixture
def host_listener() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


async def test_host_network_is_not_reached(client: BoxClient, host_listener: int, isolated: None) -> None:
    with socket.create_connection(("127.0.0.1", host_listener)):
        pass
    result = await client.run(f"bash -c 'exec 3<>/dev/tcp/127.0.0.1/{host_listener}' && echo reached")
    assert result.stdout == b""
    links = await client.output("sed -n 's/^ *\\([^ ]*\\):.*/\\1/p' /proc/net/dev")
    assert set(links.split()) <= {"lo", "eth0"}
    assert (await client.run("bash -c 'exec 3<>/dev/tcp/1.1.1.1/53' && echo reached")).stdout == b""


ITS_OWN = ("unshare -U true", "dmesg", "mkdir /sys/fs/cgroup")


@pytest.mark.parametrize(
    "attempt",
    [
        "mount -t tmpfs none /mnt",
        "mount --bind / /mnt",
        "umount /proc",
        "mount -o remount,rw /sys",
        "unshare -m true",
        "unshare -U true",
        "unshare -p true",
        "nsenter -t 1 -m true",
        "chroot /proc/1/root/../.. true && test -e /proc/1/root/../../no-such",
        "mknod /tmp/disk b 254 0 && head -c1 /tmp/disk",
        "mknod /tmp/disk b 8 0 && head -c1 /tmp/disk",
        "head -c1 /dev/mem",
        "head -c1 /dev/kmsg",
        "head -c1 /proc/kcore | grep -q .",
        "echo 1 > /proc/sys/vm/overcommit_memory",
        "echo core > /proc/sys/kernel/core_pattern",
        "echo 1 > /sys/kernel/mm/ksm/run",
        "mkdir /sys/fs/cgroup/memory/evil || { grep -q ' /sys/fs/cgroup cgroup2 ' /proc/mounts && mkdir /sys/fs/cgroup/evil; }",
        "date -s 2001-01-01",
        "dmesg",
        "swapoff -a && swapon /dev/vda",
        "ulimit -H -n 1000000",
        "nice -n -5 true 2>&1 | grep -q . && false",
    ],
)
async def test_root_cannot(client: BoxClient, case: Case, attempt: str, isolated: None) -> None:
    if attempt.startswith(ITS_OWN) and not case.linux:
        pytest.skip("it is its own kernel's, which is no one else's")
    result = await client.run(attempt)
    assert result.status != 0, result


async def test_no_new_privileges_and_seccomp(client: BoxClient, case: Case, box: Box, isolated: None) -> None:
    if case.linux:
        status = await client.output("cat /proc/self/status")
    else:
        status = Path(f"/proc/{box.pid}/status").read_text()
    assert "NoNewPrivs:\t1" in status
    assert "Seccomp:\t2" in status


async def test_a_setuid_file_means_nothing(client: BoxClient, isolated: None) -> None:
    await client.output("cp /usr/bin/id /tmp/id; chmod 4755 /tmp/id")
    assert int(await client.output("/tmp/id -u", user="mallory")) >= 1000


async def test_root_is_nobody_outside(case: Case, box: Box) -> None:
    if not case.own_users:
        pytest.skip("it does not promise that")
    outside = uids(box.pid)
    assert len(outside) == 4
    assert min(outside) >= 65536


# ---- limits


async def test_a_fork_bomb_is_bounded(client: BoxClient, isolated: None) -> None:
    bomb = await client.start(
        "bomb() { sleep 30 & bomb; }; for i in 1 2 3; do bomb & done; i=0; while :; do sleep 60 & i=$((i+1)); done 2>&1"
    )
    seen = b""
    while b"fork" not in seen.lower():
        data = await bomb.read()
        if not data:
            break
        seen += data
    try:
        result = await client.run("true")
        assert result.status in {0, 1, 2, 126, 127, 128, 254}
    except SpawnError:
        pass
    bomb.process.signal("KILL")
    bomb.close()
    await bomb.wait()


async def test_a_memory_hog_dies_alone(client: BoxClient, case: Case, isolated: None) -> None:
    cat = await client.start("cat")
    hog = await client.run("head -c 1000000000 /dev/zero | tail; echo ended ${PIPESTATUS[1]}")
    if not case.linux:
        async with asyncio.timeout(30):
            await client.container.lost.wait()
        end = (await cat.result()).exit
        assert end.signal == "KILL" or (not case.exact_signals and end.status in {128, 137})
        return
    assert b"ended" not in hog.stdout or b"ended 0" not in hog.stdout
    assert (await cat.result(b"still here")).stdout == b"still here"
    assert (await client.run("echo fine")).stdout == b"fine\n"


async def test_open_files_are_limited(client: BoxClient, isolated: None) -> None:
    assert await client.output("ulimit -n; ulimit -Hn") == f"{LIMITS.open_files}\n{LIMITS.open_files}"
    assert await client.output("bash -c 'i=0; while exec {fd}</dev/null; do i=$((i+1)); done 2>/dev/null; echo $i' || :") != ""


async def test_file_size_is_limited(client: BoxClient, isolated: None) -> None:
    over = LIMITS.file_size + 1
    result = await client.run(f"head -c {over} /dev/zero > /root/big; stat -c %s /root/big; rm /root/big")
    assert int(result.stdout) == LIMITS.file_size
    assert await client.output("ulimit -c") == "0"


async def test_limits_that_were_reached_are_told(engine: Engine, case: Case, isolated: None) -> None:
    if not case.linux:
        pytest.skip("its kernel ends the whole box at its limits")
    box = await engine.create(new_id())
    async with BoxClient(await engine.open(box), box.id) as client:
        engine.look(box)
        assert box.reached == {}
        await client.run("head -c 1000000000 /dev/zero | tail")
        engine.look(box)
        if box.pid:
            assert box.reached["memory"] >= 1
        bomb = "import os, time\ntry:\n while os.fork(): pass\nexcept OSError: print('full', flush=True)\ntime.sleep(999)"
        full = await client.start(None, b"python3", b"-c", bomb.encode())
        await full.read_until(b"full\n")
        await engine.destroy(box)
        full.close()
    if box.pid:
        assert box.reached["pids"] >= 1
    engine.look(box)


@pytest.fixture
def limited(case: Case) -> None:
    if not case.disk:
        pytest.skip("it declares that a box's disk is not limited by the kernel")


FILL = r"""
import os
def full(step):
    done = 0
    try:
        while True:
            done += step(done)
    except OSError as error:
        assert error.errno == 28, error
    return done
def write(done):
    with open(f"/root/{done}", "wb") as file:
        return file.write(b"x" * 1000000)
def touch(done):
    open(f"/tmp/many/{done}", "w").close()
    return 1
print(full(write))
for name in os.listdir("/root"):
    if name.isdecimal():
        os.unlink(f"/root/{name}")
os.mkdir("/tmp/many")
print(full(touch))
"""


async def test_a_full_disk(engine: Engine, box: Box, client: BoxClient, limited: None) -> None:
    other = await engine.create(new_id())
    result = await client.run(None, b"python3", b"-", stdin=FILL.encode())
    assert result.stderr == b""
    written, made = map(int, result.stdout.split())
    assert 0.9 * LIMITS.disk < written < 1.02 * LIMITS.disk
    assert 0.8 * LIMITS.inodes < made < 1.2 * LIMITS.inodes
    assert b"No space left on device" in (await client.run("touch /tmp/many/another")).stderr
    engine.look(box)
    assert box.reached["inodes"] == 1
    async with BoxClient(await engine.open(other)) as neighbour:
        assert await neighbour.output("head -c 1000000 /dev/zero > /root/mine && echo room") == "room"
    await engine.destroy(other)


async def test_the_disk_looks_like_a_servers(client: BoxClient, case: Case, limited: None) -> None:
    if not case.linux:
        pytest.skip("its mounts are of its own making")
    lines = (await client.output("df -Pk /; df -Pi /; grep ' / ' /proc/mounts")).splitlines()
    _, blocks, _, inodes, mount = lines
    device, size, used, free, _, place = blocks.split()
    assert (device, place) == ("/dev/vda1", "/")
    assert int(size) > 7 << 20
    assert int(used) > 0.8 * int(size)
    assert 0.9 * LIMITS.disk < int(free) * 1024 < 1.02 * LIMITS.disk
    assert int(inodes.split()[3]) < 1.2 * LIMITS.inodes
    assert mount.startswith("/dev/vda1 / overlay rw")
    assert "loop" not in await client.output("cat /proc/mounts /proc/self/mountinfo")


async def test_no_disk_of_the_host_or_of_another_box_is_seen(client: BoxClient, isolated: None) -> None:
    seen = await client.output(
        "cat /proc/partitions /proc/diskstats; ls -R /sys/block /sys/class/block /sys/dev/block; lsblk -r || :"
    )
    assert "loop" not in seen
    found = await client.output("find /sys /proc/fs -path '*loop[0-9]*' -not -path '/sys/kernel/slab/*' 2>/dev/null || :")
    assert found == ""
    assert "disk.ext4" not in await client.output("grep -rs disk.ext4 /sys/devices/virtual /proc/self/mountinfo || :")
