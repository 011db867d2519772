"""The disks of boxes: where what a box changes lies, limited in bytes and inodes. Blocking: call it from a worker thread.

By default each box has an ext4 in a sparse file, mounted over a loop device. It is copied from a template that is made once, with
so much of it taken that just the limit is left: a box sees a disk of ordinary size, most of it full, as on any server. Nothing is
written to the host's disk until the kernel finds the time, and what is removed before that never is.
"""

import errno
import fcntl
import os
import re
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hermes.broker import linux, loop, programs
from hermes.config.models import LimitsConfig

_BLOCK = 4096
_SIZES = (8, 10, 16, 20, 25, 30, 40, 50, 60, 80, 100, 120, 160, 200, 250, 320, 400, 500, 640, 800)
"""Sizes of disks that hosters sell, in GiB."""
_FULL = 0.86
"""How full a fresh disk looks at least, and the share of its inodes in use, about."""
_INODES_USED = 0.35
_RESERVED = (50, 4096)
"""Blocks that ext4 sets aside for itself: a fiftieth of all, but not more than that many."""
_SPARE = 64
_OPTIONS = "barrier=0,noinit_itable,errors=continue"
"""Nothing is flushed: no disk outlives its kernel. The kernel does not fill in what the template left out."""
_FICLONE = 0x40049409
_PATIENCE = 60
_RELEASE = 5.0
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Disks:
    """Makes the disks of one engine. `templates` is a directory of its own, on the file system that the images are on."""

    templates: Path
    limits: LimitsConfig

    @property
    def _template(self) -> Path:
        return self.templates / f"{_VERSION}-{self.limits.disk}-{self.limits.inodes}.ext4"

    def prepare(self) -> None:
        """Make what disks are made from, unless it is there. OSError says what cannot be done."""
        if self.limits.disk_backing != "ext4":
            return
        self.templates.mkdir(mode=0o700, parents=True, exist_ok=True)
        for entry in self.templates.iterdir():
            if entry != self._template:
                entry.unlink()
        if not self._template.exists():
            unfinished = self._template.with_suffix(".new")
            make_ext4(unfinished, self.limits.disk, self.limits.inodes)
            unfinished.rename(self._template)

    def mount_new(self, image: Path, place: Path) -> None:
        """Mount a fresh disk at `place`. `image` is the file it takes, if it takes one."""
        if self.limits.disk_backing == "tmpfs":
            options = f"size={self.limits.disk},nr_inodes={self.limits.inodes},mode=755"
            linux.mount("tmpfs", str(place), "tmpfs", linux.MS_NODEV | linux.MS_NOSUID, options)
            return
        copy_sparse(self._template, image)
        mount_image(image, place)


def mount_image(image: Path, place: Path, *, read_only: bool = False) -> None:
    """Mount the disk in a file. The loop device is gone when it is unmounted."""
    fd = os.open(image, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        with loop.attached(fd, read_only=read_only) as device:
            flags = linux.MS_NODEV | linux.MS_NOSUID | (linux.MS_RDONLY if read_only else 0)
            linux.mount(device, str(place), "ext4", flags, _OPTIONS)
    finally:
        os.close(fd)


def wait_until_released(image: Path) -> None:
    """Return when no loop device stands for the file any more: what mounted it may be gone, and its end still under way."""
    deadline = time.monotonic() + _RELEASE
    while any(_stands_for(image, device) for device in Path("/sys/block").glob("loop*/loop/backing_file")):
        if time.monotonic() > deadline:
            raise OSError(errno.EBUSY, "it is still mounted somewhere", str(image))
        time.sleep(0.01)


def _stands_for(image: Path, device: Path) -> bool:
    try:
        return device.read_text().rstrip("\n").endswith(f"/{image.parent.name}/{image.name}")
    except OSError:
        return False


def make_ext4(path: Path, room: int, inodes: int) -> None:
    """Make an ext4 in a sparse file with that many bytes and inodes free, and the rest of it taken."""
    size = next((it << 30 for it in _SIZES if room < (it << 30) * (1 - _FULL)), int(room / (1 - _FULL)) // _BLOCK * _BLOCK)
    path.unlink(missing_ok=True)
    total = int((inodes + 64) / (1 - _INODES_USED))
    features = ("-O", "^has_journal,^resize_inode", "-E", "lazy_itable_init=1,nodiscard,packed_meta_blocks=1,root_owner=0:0")
    shape = ("-b", str(_BLOCK), "-I", "256", "-m", "0", "-N", str(total))
    _run("mkfs.ext4", "-q", "-F", *shape, *features, str(path), f"{size >> 10}k")
    made = _superblock(path)
    divisor, most = _RESERVED
    ballast = made["Free blocks"] - min(made["Block count"] // divisor, most) - room // _BLOCK - _SPARE
    script = [f"fallocate ballast 0 {ballast - 1}"] if ballast > 0 else []
    groups = -(-made["Block count"] // made["Blocks per group"])
    taken = (made["Free inodes"] - inodes - _SPARE) // made["Inodes per group"]
    for group in range(groups - max(0, taken), groups):
        script += [f"set_bg {group} {what}" for what in ("free_inodes_count 0", "itable_unused 0", "checksum calc")]
    _run("debugfs", "-w", "-f", "-", str(path), script="\n".join(["write /dev/null ballast", *script, "rmdir lost+found", ""]))


def _superblock(path: Path) -> dict[str, int]:
    found = re.findall(r"^([A-Z][a-z ]+):\s+(\d+)$", _run("dumpe2fs", "-h", str(path)), re.MULTILINE)
    return {name: int(number) for name, number in found}


def _run(program: str, *arguments: str, script: str = "") -> str:
    path = programs.which(program)
    if path is None:
        raise FileNotFoundError(2, "it is not installed (apt-get install e2fsprogs)", program)
    environment = {"LC_ALL": "C", "PATH": programs.SYSTEM_PATH}
    try:
        done = subprocess.run(
            [path, *arguments], input=script, env=environment, capture_output=True, text=True, timeout=_PATIENCE, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(110, "it does not end", program) from error
    said = [line for line in done.stderr.splitlines() if not re.match(rf"{program} \d", line)]
    if done.returncode != 0 or (script and said):
        raise OSError(5, (said or ["it failed"])[0][:300], program)
    return done.stdout


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a file as a new one, sharing its blocks where the file system can, and with its holes where it cannot."""
    with (
        source.open("rb") as old,
        os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as new,
    ):
        with suppress(OSError):
            fcntl.ioctl(new, _FICLONE, old.fileno())
            return
        size = os.fstat(old.fileno()).st_size
        os.ftruncate(new.fileno(), size)
        end = 0
        while True:
            try:
                start = os.lseek(old.fileno(), end, os.SEEK_DATA)
            except OSError:  # only a hole is left
                return
            end = os.lseek(old.fileno(), start, os.SEEK_HOLE)
            while start < end:
                start += os.copy_file_range(old.fileno(), new.fileno(), end - start, start, start)
