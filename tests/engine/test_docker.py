"""The Docker engine where it differs from others: remote daemons, foreign images, a daemon that is gone, dead or asleep."""

import asyncio
import io
import json
import os
import signal
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hermes.broker.engines import docker as docker_module
from hermes.broker.engines import docker_changes
from hermes.broker.engines.base import Box
from hermes.broker.engines.docker import DockerEngine
from hermes.broker.engines.docker_container import connect
from hermes.container import Terminal
from hermes.errors import EngineError, SpawnError
from hermes.testing.boxes import BoxClient, eventually
from tests.engine.conftest import Make, new_id
from tests.real import PrivateDockerd

if TYPE_CHECKING:
    from hermes.broker.image import Image

pytestmark = [pytest.mark.root, pytest.mark.timeout(120, func_only=True)]


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon's containers look as if they ran on another machine."""
    monkeypatch.setattr(docker_module, "pidfd_of", lambda pid, container: None)
    monkeypatch.setattr(docker_module, "upper_directory", lambda details: None)
    monkeypatch.setattr(docker_changes, "upper_directory", lambda details: None)


async def inspect(engine: DockerEngine, box: Box) -> dict[str, Any]:
    return await engine._docker.containers.container(f"hermes-{box.id}").show()


# ---- what a container is told to be


async def container_of(engine: DockerEngine) -> tuple[Box, dict[str, Any]]:
    await engine.start()
    box = await engine.create(new_id())
    return box, await inspect(engine, box)


@pytest.mark.asyncio
async def test_a_container_is_confined_as_the_daemon_sees_it(make: Make, target_image: "Image") -> None:
    box, told = await container_of(make(target_image))
    host = told["HostConfig"]
    assert (host["NetworkMode"], host["Privileged"], host["CapDrop"]) == ("none", False, ["ALL"])
    assert host["PidsLimit"] == 64
    assert host["Memory"] == host["MemorySwap"] == 128 << 20
    assert told["Mounts"] == []
    assert told["AppArmorProfile"] in {"", "docker-default"}
    assert host["LogConfig"]["Type"] == "none"
    assert box.pid == told["State"]["Pid"]
    assert Path(f"/proc/{box.pid}/cmdline").read_bytes().removeprefix(b"/sbin/").startswith(b"init")


@pytest.mark.asyncio
async def test_the_daemons_own_names_are_not_seen_inside(make: Make, target_image: "Image") -> None:
    engine = make(target_image, entry="api")
    box, told = await container_of(engine)
    async with BoxClient(await engine.open(box)) as client:
        seen = await client.output("env; hostname; cat /proc/self/cgroup; ls -A /sys/fs/cgroup; ps -eo args | grep -v grep")
    assert told["Id"][:12] not in seen
    assert "docker" not in seen.lower()
    assert "hermes" not in seen.lower()


@pytest.mark.asyncio
async def test_a_box_that_takes_too_much_disk_is_ended(make: Make, target_image: "Image") -> None:
    engine = make(target_image)
    await engine.start()
    assert not engine._enforced, "overlay2 is on a file system here that has no quotas for it"
    box = await engine.create(new_id())
    other = await engine.create(new_id())
    ended = asyncio.Event()
    box.on_exit.append(ended.set)
    async with BoxClient(await engine.open(box)) as client, BoxClient(await engine.open(other)) as neighbour:
        hog = await client.start("cd /root; for n in $(seq 20); do head -c 8000000 /dev/zero > $n; done; echo done; sleep 999")
        async with asyncio.timeout(60):
            await ended.wait()
        hog.close()
        assert box.reached["disk"] == 1
        assert await neighbour.output("echo fine") == "fine"
        assert other.reached == {}
    await engine.destroy(box)


# ---- a daemon on another machine


@pytest.mark.asyncio
async def test_remote_box_lives_by_the_api_alone(make: Make, target_image: "Image", remote: None, tmp_path: Path) -> None:
    engine = make(target_image)
    await engine.start()
    box = await engine.create(new_id())
    assert box.pid == 0
    async with BoxClient(await engine.open(box)) as client:
        script = r"""
            mkdir -p /root/new/deep; printf 'evil \377' > /root/new/deep/evil; echo more >> /etc/passwd; rm /etc/issue
            ln -s /etc/shadow /root/new/link; ln /etc/passwd /root/new/hard; mkfifo /root/new/fifo; chmod 700 /usr
            cp /bin/true /root/new/setuid; chmod 4755 /root/new/setuid; : > /root/$(printf '\377')
        """
        await client.output(script)
    kept = tmp_path / "kept"
    await engine.destroy(box, keep=kept)
    assert await engine.list_owned() == []
    changes = kept / "changes"
    assert kept.stat().st_mode & 0o7777 == 0o700
    assert (changes / "root/new/deep/evil").read_bytes() == b"evil \xff"
    assert (changes / "etc/passwd").read_bytes().endswith(b"more\n")
    assert (changes / "root/new/link").is_symlink()
    assert (changes / "root/new/setuid").stat().st_mode & 0o7000 == 0
    assert not (changes / "usr/bin").exists()
    assert not (changes / "root/new/fifo").exists()
    noted = {line["path"]: line for line in map(json.loads, (kept / "manifest.jsonl").read_bytes().splitlines())}
    assert noted["root/new/setuid"]["mode"] == "4755"
    assert noted["root/new/link"]["target"] == "/etc/shadow"
    assert noted["root/new/fifo"]["kind"] == "fifo"
    assert noted["etc/issue"]["kind"] == "deleted"


@pytest.mark.asyncio
async def test_changes_of_a_remote_box_are_bounded(make: Make, target_image: "Image", remote: None, tmp_path: Path) -> None:
    engine = make(target_image, forensics={"box_bytes": 3_000_000})
    await engine.start()
    box = await engine.create(new_id())
    async with BoxClient(await engine.open(box)) as client:
        await client.output("cd /root; for n in 1 2 3 4 5 6; do head -c 2000000 /dev/urandom > big$n; done")
    copied = await engine.destroy(box, keep=tmp_path / "kept")
    assert copied is not None
    assert copied.exceeded == {"bytes"}
    assert 0 < sum(path.stat().st_size for path in (tmp_path / "kept/changes/root").glob("big*")) < 8_000_000


@pytest.mark.asyncio
async def test_end_of_a_remote_init_is_told(make: Make, target_image: "Image", remote: None) -> None:
    engine = make(target_image)
    await engine.start()
    box = await engine.create(new_id())
    ended = asyncio.Event()
    box.on_exit.append(ended.set)
    async with BoxClient(await engine.open(box)) as client:
        cat = await client.start("cat")
        os.kill((await inspect(engine, box))["State"]["Pid"], 9)
        async with asyncio.timeout(30):
            await ended.wait()
            await client.container.lost.wait()
        await cat.wait()
        cat.close()


@pytest.mark.asyncio
async def test_no_spawner_on_another_machine(make: Make, target_image: "Image", remote: None) -> None:
    engine = make(target_image, entry="spawner")
    await engine.start()
    box = await engine.create(new_id())
    with pytest.raises(EngineError, match="entry"):
        await engine.open(box)


@pytest.mark.asyncio
async def test_auto_falls_back_to_the_api(make: Make, target_image: "Image", monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise EngineError("it shares its net namespace with the host")

    engine = make(target_image)
    await engine.start()
    monkeypatch.setattr(engine._zygote, "enter", refuse)
    box = await engine.create(new_id())
    async with BoxClient(await engine.open(box)) as client:
        assert await client.output("echo works") == "works"


# ---- images that are not ours


def import_image(host: str, name: str, files: dict[str, bytes | str]) -> str:
    """Make an image of these files (text: a link) under a name of the test's own."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for path, content in files.items():
            member = tarfile.TarInfo(path)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                tar.addfile(member)
            else:
                member.mode, member.size = 0o755, len(content)
                tar.addfile(member, io.BytesIO(content))
    reference = f"hermes-test/{name}:{os.getpid()}"
    subprocess.run(["docker", "-H", host, "import", "-", reference], input=archive.getvalue(), check=True, capture_output=True)
    return reference


@pytest.fixture
def foreign(docker_host: str, target_image: "Image") -> Iterator[Callable[[str, dict[str, bytes | str]], str]]:
    """Makes images; they are removed at the end."""
    made: list[str] = []

    def make(name: str, files: dict[str, bytes | str]) -> str:
        made.append(import_image(docker_host, name, files))
        return made[-1]

    yield make
    for reference in made:
        subprocess.run(["docker", "-H", docker_host, "rmi", "-f", reference], check=False, capture_output=True)


def busybox(image: "Image") -> dict[str, bytes | str]:
    """What Alpine is, in small: a busybox, its libraries and little else."""
    root = image.rootfs
    files: dict[str, bytes | str] = {"bin/busybox": (root / "usr/bin/busybox").resolve().read_bytes()}
    for applet in (
        "sh",
        "ash",
        "cat",
        "echo",
        "env",
        "sleep",
        "stty",
        "tty",
        "id",
        "mkdir",
        "cp",
        "chown",
        "chmod",
        "kill",
        "pwd",
        "true",
    ):
        files[f"bin/{applet}"] = "busybox"
    for library in (
        "usr/lib/x86_64-linux-gnu/libc.so.6",
        "usr/lib/x86_64-linux-gnu/libresolv.so.2",
        "lib64/ld-linux-x86-64.so.2",
    ):
        files[library.replace("usr/lib/x86_64-linux-gnu", "lib")] = (root / library).resolve().read_bytes()
    files["etc/passwd"] = b"root:x:0:0:root:/root:/bin/ash\n"
    files["etc/group"] = b"root:x:0:\n"
    files["root/.keep"] = b""
    files["tmp/.keep"] = b""
    return files


@pytest.mark.asyncio
@pytest.mark.parametrize("entry", ["spawner", "api"])
async def test_a_busybox_image(
    make: Make, target_image: "Image", foreign: Callable[[str, dict[str, bytes | str]], str], entry: str
) -> None:
    engine = make(foreign("busybox", busybox(target_image)), entry=entry)
    await engine.start()
    box = await engine.create(new_id())
    async with BoxClient(await engine.open(box)) as client:
        assert await client.output("echo $HOME $SHELL; pwd") == "/root /bin/ash\n/root"
        result = await client.run(stdin=b"echo $0\nexit 4\n")
        assert (result.status, result.stdout) == (4, b"-ash\n")
        assert (await client.run(None, b"echo", b"a\xff b\n\n")).stdout == b"a\xff b\n\n\n"
        result = await client.run("stty size; tty", terminal=Terminal(width=91, height=19))
        assert result.stdout.startswith(b"19 91\r\n/dev/pts/")
        assert (await client.run("cat", stdin=b"in and out")).stdout == b"in and out"
        process = await client.start("echo ready; exec sleep 1000")
        await process.read_until(b"ready\n")
        process.process.signal("TERM")
        assert (await process.result(None)).exit.signal == "TERM"
        # An orphan is buried by the image's init, which is ours.
        await client.output("(sleep 0.1 & ) ; sleep 0.3")
        assert "Z" not in await client.output("cat /proc/[0-9]*/stat 2>/dev/null | while read p c s x; do echo $s; done")


@pytest.mark.asyncio
async def test_an_unknown_user_of_a_busybox_image(
    make: Make, target_image: "Image", foreign: Callable[[str, dict[str, bytes | str]], str]
) -> None:
    engine = make(
        foreign(
            "users", {**busybox(target_image), "etc/passwd": b"root:x:0:0:root:/root:/bin/ash\neve:x:1000:1000::/:/bin/sh\n"}
        ),
        entry="api",
    )
    await engine.start()
    box = await engine.create(new_id())
    async with BoxClient(await engine.open(box)) as client:
        results = await asyncio.gather(*(client.run("id -u; pwd", user="mallory") for _ in range(5)))
        assert {result.stdout for result in results} == {b"1001\n/home/mallory\n"}
        assert (await client.output("cat /etc/passwd")).count("\nmallory:") == 1


@pytest.mark.asyncio
async def test_an_image_without_a_shell(make: Make, foreign: Callable[[str, dict[str, bytes | str]], str]) -> None:
    engine = make(foreign("empty", {"etc/passwd": b"root:x:0:0::/:/bin/sh\n"}))
    await engine.start()
    with pytest.raises(EngineError, match="/bin/sh"):
        await engine.create(new_id())
    assert await engine.list_owned() == []


@pytest.mark.asyncio
async def test_an_image_that_cannot_be_had(make: Make) -> None:
    with pytest.raises(EngineError, match=r"registry\.invalid/no/such:image"):
        await make("registry.invalid/no/such:image").start()


# ---- a daemon that is not well


@pytest.mark.asyncio
async def test_no_daemon(make: Make, tmp_path: Path) -> None:
    engine = make("any", host=f"unix://{tmp_path}/nothing.sock")
    box = Box("box-1")
    for call in (
        engine.start(),
        engine.list_owned(),
        engine.create("box-1"),
        engine.destroy(box),
        engine.open(box),
        engine.freeze(box),
    ):
        with pytest.raises(EngineError):
            await call
    with pytest.raises(EngineError, match="is dockerd running"):
        await engine.start()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[PrivateDockerd]:
    with PrivateDockerd(tmp_path / "own") as daemon:
        yield daemon


@pytest.mark.asyncio
async def test_a_daemon_that_is_killed(make: Make, daemon: PrivateDockerd, target_image: "Image") -> None:
    image = import_image(daemon.host, "busybox", busybox(target_image))
    engine = make(image, host=daemon.host, entry="api")
    await engine.start()
    box = await engine.create(new_id())
    ended = asyncio.Event()
    box.on_exit.append(ended.set)
    client = BoxClient(await engine.open(box))
    cat = await client.start("cat")
    daemon.kill()
    while await cat.read():
        pass
    await cat.wait()
    cat.close()
    with pytest.raises(SpawnError):
        await client.run("echo x")
    for call in (engine.list_owned(), engine.create(new_id()), engine.destroy(box), engine.freeze(box), engine.start()):
        with pytest.raises(EngineError, match="is dockerd running"):
            await call
    await asyncio.to_thread(daemon.start)
    await engine.start()
    assert await engine.list_owned() == []
    async with asyncio.timeout(30):
        await ended.wait()
    client.close()
    again = await engine.create(new_id())
    await engine.destroy(again)


@pytest.mark.asyncio
async def test_a_daemon_that_hangs(
    make: Make, daemon: PrivateDockerd, target_image: "Image", monkeypatch: pytest.MonkeyPatch
) -> None:
    image = import_image(daemon.host, "busybox", busybox(target_image))
    engine = make(image, host=daemon.host, entry="api", create_timeout=1)
    await engine.start()
    box = await engine.create(new_id())
    monkeypatch.setattr(docker_module, "CALL_TIMEOUT", 1.0)
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        late = new_id()
        for call in (engine.create(late), engine.list_owned(), engine.freeze(box), engine.destroy(box)):
            with pytest.raises(EngineError, match="no answer"):
                await call
    finally:
        daemon.process.send_signal(signal.SIGCONT)

    async def clean() -> bool:
        return late not in await engine.list_owned() and late not in await names(daemon.host)

    await engine.destroy(box)
    await eventually(clean, interval=0.3)
    assert box.id not in await engine.list_owned()


async def names(host: str) -> str:
    client = connect(host)
    try:
        return str([container._container["Names"] for container in await client.containers.list(all=1)])
    finally:
        await client.close()
        await client.connector.close()
        await asyncio.sleep(0)
