"""Images built from real packages, and what the default one is like from inside."""

import os
import shutil
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hermes.broker import image
from hermes.broker.image_build import inside
from hermes.broker.image_definition import Definition, find
from hermes.errors import ImageError

if TYPE_CHECKING:
    from hermes.broker.image import Image

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

PATIENCE = 60.0

SMALL = """\
suite: bookworm
description: as little as can be
exclude: [/usr/share/man/*, /usr/share/locale/*, /usr/share/doc/*]
init: [/bin/sh]
timezone: Europe/Paris
age_days: 100
users:
  - {name: root, password: '$6$x$y'}
  - {name: eva, uid: 1234, groups: [adm, painters], comment: Eva}
permissions:
  /etc/secret: {mode: '0640', group: adm}
  /usr/local/bin/tool: {owner: eva}
"""
SETUP = """\
#!/bin/sh
set -e
test "$AGE_DAYS" = 100
test "$(id -u)" = 0
! ip link show eth0 2>/dev/null
echo "@HOSTNAME@ set up" > /var/log/setup.log
"""


@pytest.fixture
def small(tmp_path: Path) -> Definition:
    """A definition with everything in it, of the fewest packages."""
    folder = tmp_path / "definitions" / "small"
    files = {
        "etc/secret": "hidden\n",
        "usr/local/bin/tool": "#!/bin/sh\n",
        "home/eva/notes/today": "paint\n",
        "var/run/through-a-link": "x\n",
        "bin/through-another": "x\n",
    }
    for name, text in files.items():
        path = folder / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "files/usr/local/bin/tool").chmod(0o755)
    (folder / "files/etc/linked").symlink_to("secret")
    (folder / "image.yaml").write_text(SMALL)
    (folder / "setup").write_text(SETUP)
    return find("small", [folder.parent])


def left_over(data_dir: Path) -> list[str]:
    """What a failed build left, besides the lock and the log."""
    return sorted(path.name for path in (data_dir / "images").iterdir() if path.name not in (".lock", "small.log"))


def test_two_builds_at_once_make_one_image_as_defined(small: Definition, tmp_path: Path) -> None:
    steps: list[str] = []
    built: list[Image] = []
    builders = [threading.Thread(target=lambda: built.append(image.build(small, tmp_path, steps.append))) for _ in range(2)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert len(built) == 2
    assert built[0] == built[1]
    assert sum(step.startswith("fetching") for step in steps) == 1
    assert sum(step.startswith("another build") for step in steps) == 1
    assert left_over(tmp_path) == [built[0].rootfs.parent.name]
    assert not (tmp_path / "images/small.log").exists()

    root = built[0].rootfs
    assert stat.S_IMODE((tmp_path / "images").stat().st_mode) == stat.S_IMODE(root.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(root.stat().st_mode) == 0o755

    def owned(path: str) -> tuple[int, int, int]:
        status = (root / path).lstat()
        return status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)

    groups = dict(line.split(":")[0:3:2] for line in (root / "etc/group").read_text().splitlines())
    assert owned("etc/secret") == (0, int(groups["adm"]), 0o640)
    assert owned("usr/local/bin/tool") == (1234, 0, 0o755)
    assert owned("home/eva") == (1234, 1234, 0o700)
    assert owned("home/eva/notes") == (1234, 1234, 0o755)
    assert owned("home/eva/notes/today") == (1234, 1234, 0o644)
    assert (root / "etc/linked").readlink() == Path("secret")
    assert (root / "usr/bin/through-another").exists()
    assert (root / "bin").is_symlink(), "a file laid through a link must not replace it"
    assert not Path("/run/through-a-link").exists(), "a link in the image must not lead out of it"
    assert "eva" in next(line for line in (root / "etc/group").read_text().splitlines() if line.startswith("painters:"))
    assert "root:$6$x$y:" in (root / "etc/shadow").read_text()
    assert (root / "etc/localtime").readlink() == Path("/usr/share/zoneinfo/Europe/Paris")
    assert time.time() - (root / "etc/passwd").stat().st_mtime > 99 * 86400
    for folder in ("dev", "run", "tmp", "proc", "sys"):
        assert list((root / folder).iterdir()) == [], folder

    named = image.set_hostname(built[0], "box7")
    assert (root / "var/log/setup.log").read_text() == "box7 set up\n"
    assert inside(root, ["cat", "/etc/hostname"]) == b"box7\n"
    assert image.get("small", tmp_path, definition=small) == named
    assert not carries(root / "etc", os.uname().nodename.encode() + b"\n"), "the builder's host name is nowhere"

    with image.hold(built[0]), pytest.raises(ImageError, match="in use"):
        image.build(small, tmp_path, steps.append, force=True)


def carries(folder: Path, needle: bytes) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in files if path.read_bytes() == needle]


def test_a_package_that_does_not_exist_is_said_and_leaves_nothing(small: Definition, tmp_path: Path) -> None:
    (small.folder / "image.yaml").write_text("suite: bookworm\npackages: [no-such-package]\n")
    with pytest.raises(ImageError, match="no-such-package") as caught:
        image.build(find("small", [small.folder.parent]), tmp_path, lambda step: None)
    assert "small.log" in str(caught.value)
    assert "no-such-package" in (tmp_path / "images/small.log").read_text()
    assert left_over(tmp_path) == []


def test_an_interrupted_build_leaves_no_file_and_no_process(small: Definition, tmp_path: Path) -> None:
    def interrupt(step: str) -> None:
        if "apt-get update" in step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        image.build(small, tmp_path, interrupt)
    assert left_over(tmp_path) == []
    assert processes(str(tmp_path)) == []


def test_a_killed_build_is_cleaned_up_by_the_next(small: Definition, tmp_path: Path) -> None:
    stale = tmp_path / "images/.build-dead"
    (stale / "rootfs/etc").mkdir(parents=True)
    (small.folder / "image.yaml").write_text("suite: bookworm\npackages: [no-such-package]\n")
    with pytest.raises(ImageError):
        image.build(find("small", [small.folder.parent]), tmp_path, lambda step: None)
    assert not stale.exists()


def processes(word: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if word in line and path.parent.name != str(os.getpid()):
            found.append(line)
    return found


def test_a_disk_that_fills_up_is_said(small: Definition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", disk], check=True)
    try:
        monkeypatch.setattr(image, "_NEEDED", 0)
        with pytest.raises(ImageError, match="the disk is full; free about 1 GB"):
            image.build(small, disk, lambda step: None)
        assert left_over(disk) == []
    finally:
        subprocess.run(["umount", disk], check=True)


def test_setup_that_fails_fails_the_build(target_image: "Image") -> None:
    with pytest.raises(ImageError, match="sh failed inside the image with status 3: no luck"):
        inside(target_image.rootfs, ["sh", "-c", "echo no luck >&2; exit 3"])
    with pytest.raises(ImageError, match="failed inside the image"):
        inside(target_image.rootfs, ["/no/such/program"])


# ---- the default image


@pytest.fixture(scope="module")
def booted(target_image: "Image", tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The pid of the default image's init, running in namespaces of its own on an overlay."""
    scratch = tmp_path_factory.mktemp("boot")
    for name in ("up", "wk", "root"):
        (scratch / name).mkdir()
    script = (
        'mount -t overlay -o "lowerdir=$1,upperdir=$2/up,workdir=$2/wk" overlay "$2/root" && cd "$2/root" '
        "&& mount -t proc proc proc && mount -t tmpfs tmpfs run && mount -t tmpfs tmpfs dev "
        "&& mknod -m 666 dev/null c 1 3 && mknod -m 666 dev/urandom c 1 9 && exec chroot . /sbin/init"
    )
    argv = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--net", "--uts", "--ipc"]
    process = subprocess.Popen(
        [*argv, "sh", "-c", script, "sh", target_image.rootfs, scratch],
        stdin=subprocess.DEVNULL,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    )
    try:
        yield wait_for(lambda: next(iter(children(process.pid)), 0))
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(scratch, ignore_errors=True)


def wait_for(found: Callable[[], int]) -> int:
    deadline = time.monotonic() + PATIENCE
    while not (value := found()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return value


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def commands(init: int) -> dict[str, int]:
    found = {}
    for child in children(init):
        try:
            found[Path(f"/proc/{child}/comm").read_text().strip()] = child
        except OSError:
            continue
    return found


def test_init_keeps_cron_and_sshd_running_and_reaps_orphans(booted: int) -> None:
    wait_for(lambda: {"cron", "sshd"} <= set(commands(booted)))
    assert Path(f"/proc/{booted}/comm").read_text().strip() == "init"
    first = commands(booted)["sshd"]
    os.kill(first, 9)
    wait_for(lambda: commands(booted).get("sshd", first) != first)
    subprocess.run(["nsenter", "-t", str(booted), "-p", "-m", "sh", "-c", "(sleep 0.05 &) ; exit"], check=True)
    wait_for(lambda: set(commands(booted)) == {"cron", "sshd"})
    zombies = [pid for pid in children(booted) if "State:\tZ" in Path(f"/proc/{pid}/status").read_text()]
    assert zombies == []


def test_init_cron_and_sshd_share_two_megabytes(booted: int) -> None:
    wait_for(lambda: {"cron", "sshd"} <= set(commands(booted)))
    dirty = 0
    for pid in (booted, *commands(booted).values()):
        fields = dict(line.split(":")[:2] for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
        dirty += int(fields["Private_Dirty"].split()[0])
    assert dirty < 2048, f"{dirty} KiB"


@pytest.mark.parametrize(
    "program",
    [
        "busybox", "bzip2", "crontab", "curl", "dig", "file", "ftp", "ifconfig", "ip", "less", "lsof", "nano", "nc", "netstat",
        "openssl", "perl", "ping", "pkill", "ps", "python3", "rsync", "scp", "screen", "sftp", "ssh", "sudo", "telnet", "tftp",
        "top", "traceroute", "unzip", "uptime", "vim", "w", "wget", "xz",
    ],
)  # fmt: skip
def test_what_attackers_look_for_is_there(target_image: "Image", program: str) -> None:
    assert inside(target_image.rootfs, ["sh", "-c", 'command -v "$1"', "sh", program]).strip()


def test_the_default_image_is_somebodys_server(target_image: "Image") -> None:
    root = target_image.rootfs
    assert (root / "usr/lib/openssh/sftp-server").exists()
    users = {line.split(":")[0]: line.split(":") for line in (root / "etc/passwd").read_text().splitlines()}
    assert users["anna"][5:] == ["/home/anna", "/bin/bash"]
    assert {"root", "deploy", "www-data", "sshd"} <= set(users)
    assert stat.S_IMODE((root / "home/anna").stat().st_mode) == 0o700
    assert stat.S_IMODE((root / "root/.bash_history").stat().st_mode) == 0o600
    for log in ("auth.log", "auth.log.1", "syslog", "dpkg.log", "wtmp", "lastlog"):
        assert (root / "var/log" / log).stat().st_size > 500, log
    assert "anna" in inside(root, ["last"]).decode()
    assert f" {target_image.hostname} sshd[" in (root / "var/log/auth.log").read_text()
    assert not list((root / "etc/apt/sources.list.d").iterdir())
    assert (root / "etc/apt/sources.list").read_text().startswith("deb http://deb.debian.org/debian bookworm main\n")


def test_nothing_tells_of_the_build(target_image: "Image") -> None:
    root = target_image.rootfs
    words = (b"mmdebstrap", b"@HOSTNAME@", str(root).encode(), b"hermes")
    told = []
    for top in ("etc", "var/log", "root", "home", "opt", "srv", "var/cache/apt", "var/lib/apt"):
        files = [path for path in (root / top).rglob("*") if path.is_file() and not path.is_symlink()]
        told += [str(path.relative_to(root)) for path in files if any(word in path.read_bytes() for word in words)]
    assert told == []
    assert not (root / ".dockerenv").exists()
    assert (root / "etc/resolv.conf").read_text() != Path("/etc/resolv.conf").read_text()
    keys = b"".join(path.read_bytes() for path in (root / "etc/ssh").glob("*.pub"))
    assert os.uname().nodename.encode() not in keys


def test_root_is_at_the_prompt_without_starting_another_program(target_image: "Image") -> None:
    said = inside(target_image.rootfs, ["bash", "-lic", "echo $$; (echo $BASHPID); :"]).split()
    shell, next_process = map(int, said)
    assert next_process == shell + 1
