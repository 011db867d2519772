"""Tries, in a process and a mount namespace of its own, what a local box needs: an overlay on an idmapped directory, or a disk.

`python -m hermes.broker.machine_probe overlay|disk DIRECTORY`, as root: prints nothing and exits 0 when the kernel does it, else
prints what it refused and exits 1. Leaves nothing in DIRECTORY.
"""

import contextlib
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from hermes.broker import disks, linux

_BASE = 0x100000


def _user_namespace() -> int:
    """Return an fd of a new user namespace that maps root to `_BASE`."""
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(OSError):
            linux.unshare(linux.CLONE_NEWUSER)
            os.write(told, b"x")
            signal.pause()
        os._exit(1)
    os.close(told)
    try:
        if os.read(ready, 1) != b"x":
            raise OSError("no user namespace can be made")
        for kind in ("uid_map", "gid_map"):
            Path(f"/proc/{pid}/{kind}").write_text(f"0 {_BASE} 65536")
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(ready)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def probe_disk(directory: Path) -> None:
    """Make and mount the disk of a box. Raise `OSError` when that cannot be done. Ends up in a mount namespace of its own."""
    scratch = Path(tempfile.mkdtemp(prefix=".probe-", dir=directory))
    try:
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount("none", "/", "none", linux.MS_REC | linux.MS_PRIVATE)
        disks.make_ext4(scratch / "image", 16 << 20, 1024)
        (scratch / "disk").mkdir()
        disks.mount_image(scratch / "image", scratch / "disk")
        linux.umount(str(scratch / "disk"))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def probe_overlay(directory: Path) -> None:
    """Raise `OSError` when the kernel refuses. The calling process ends up in a mount namespace of its own."""
    scratch = Path(tempfile.mkdtemp(prefix=".probe-", dir=directory))
    try:
        for name in ("image", "image/etc", "lower", "up", "wk", "rootfs"):
            (scratch / name).mkdir()
        for name in ("up", "wk"):
            os.chown(scratch / name, _BASE, _BASE)
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount("none", "/", "none", linux.MS_REC | linux.MS_PRIVATE)
        namespace = _user_namespace()
        try:
            linux.idmapped_clone(str(scratch / "image"), str(scratch / "lower"), namespace)
        finally:
            os.close(namespace)
        try:
            options = f"lowerdir={scratch}/lower,upperdir={scratch}/up,workdir={scratch}/wk"
            linux.mount("overlay", str(scratch / "rootfs"), "overlay", 0, options)
            try:
                if (scratch / "rootfs/etc").stat().st_uid != _BASE:
                    raise OSError("the owners of an overlay's files are not shifted (needs Linux 5.19)")
            finally:
                linux.umount(str(scratch / "rootfs"))
        finally:
            linux.umount(str(scratch / "lower"))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    try:
        {"overlay": probe_overlay, "disk": probe_disk}[sys.argv[1]](Path(sys.argv[2]))
    except OSError as error:
        sys.exit(f"{error.filename or ''}: {error.strerror or error}".lstrip(": "))
