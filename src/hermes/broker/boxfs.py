"""The files of one box: its mounts while it lives, what the attacker changed after. Blocking: call it from a worker thread.

    <runtime_dir>/boxes/<id>/   config.json, pid, lower (idmapped image), rootfs (overlay), u -> <data_dir>/boxes/<id>
    <data_dir>/boxes/<id>/      up (the changes), wk (overlay's own)

The mount options show in the box's /proc/mounts, so they name nothing of the host: the overlay is mounted from within its
own directory with relative names, and claims to be a disk.
"""

import errno
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from hermes.broker import linux

DISK = "/dev/vda1"
"""What the root file system claims to be mounted from."""

HOSTS = """\
127.0.0.1\tlocalhost
127.0.1.1\t{hostname}

# The following lines are desirable for IPv6 capable hosts
::1     localhost ip6-localhost ip6-loopback
ff02::1 ip6-allnodes
ff02::2 ip6-allrouters
"""
RESOLV = "nameserver 1.1.1.1\nnameserver 8.8.8.8\n"


THREAD_NICE = 10
"""Nice value of threads that lay out and take down boxes."""


def own_working_directory() -> None:
    """Give the calling thread a working directory of its own (`BoxFiles.mount` changes it), and let sessions come before it."""
    linux.unshare(linux.CLONE_FS)
    os.setpriority(os.PRIO_PROCESS, 0, THREAD_NICE)


@dataclass(frozen=True, slots=True)
class BoxFiles:
    """Where the files of one box lie. `upper` is kept or removed at the end, `bundle` always removed."""

    bundle: Path
    upper: Path

    @property
    def rootfs(self) -> Path:
        """The box's root file system, mounted."""
        return self.bundle / "rootfs"

    @property
    def lower(self) -> Path:
        """The image, its owners shifted to the box's."""
        return self.bundle / "lower"

    def mount(self, image: Path, user_namespace: int, base: int, hostname: str) -> None:
        """Make the directories and mounts. `base` is the host's uid and gid of the box's root."""
        for directory in (self.bundle, self.lower, self.rootfs, self.upper):
            directory.mkdir(mode=0o700)
        for name in ("up", "wk"):
            (self.upper / name).mkdir(mode=0o755)
            os.chown(self.upper / name, base, base)
        os.chown(self.bundle, base, base)
        (self.bundle / "u").symlink_to(self.upper)
        self._write_identity(image, base, hostname)
        linux.idmapped_clone(str(image), str(self.lower), user_namespace)
        os.chdir(self.bundle)
        linux.mount(DISK, "rootfs", "overlay", linux.MS_NODEV, "lowerdir=lower,upperdir=u/up,workdir=u/wk,volatile")

    def _write_identity(self, image: Path, base: int, hostname: str) -> None:
        etc = self.upper / "up" / "etc"
        etc.mkdir(mode=0o755)
        built = image.joinpath("etc").stat().st_mtime
        for name, text in (("hostname", f"{hostname}\n"), ("hosts", HOSTS.format(hostname=hostname)), ("resolv.conf", RESOLV)):
            path = etc / name
            path.write_text(text)
            path.chmod(0o644)
            os.chown(path, base, base)
            os.utime(path, (built, built))
        etc.chmod(0o755)
        os.chown(etc, base, base)
        os.utime(etc, (built, built))
        (self.upper / "up").chmod(0o755)

    def unmount(self) -> None:
        """Detach whatever is mounted in the bundle, however often."""
        unmount_below(self.bundle)

    def keep(self, directory: Path) -> None:
        """Move the changes to `directory`/changes, which becomes root's alone."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        os.chown(directory, 0, 0)
        try:
            (self.upper / "up").rename(directory / "changes")
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            _move_across(self.upper / "up", directory / "changes")

    def discard(self, trash: Path) -> Path | None:
        """Move what is left of the upper into `trash` and remove the bundle. Return what must still be deleted."""
        shutil.rmtree(self.bundle, ignore_errors=True)
        if not os.path.lexists(self.upper):
            return None
        doomed = trash / self.upper.name
        attempt = 0
        while os.path.lexists(doomed):
            attempt += 1
            doomed = trash / f"{self.upper.name}.{attempt}"
        self.upper.rename(doomed)
        return doomed


def _move_across(source: Path, target: Path) -> None:
    """Move a tree to another file system; mv takes FIFOs, devices and any depth, which Python's copying does not."""
    done = subprocess.run(["mv", "-T", "--", source, target], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode != 0:
        raise OSError(errno.EIO, done.stderr.decode(errors="backslashreplace").strip()[:500], str(target))


def unmount_below(directory: Path) -> None:
    """Detach every mount at or below `directory`, innermost first."""
    inside = f"{directory}/"
    for mount in reversed(mounts()):
        if mount == str(directory) or mount.startswith(inside):
            linux.umount(mount)


def mounts() -> list[str]:
    """Mount points in this mount namespace, oldest first."""
    text = Path("/proc/self/mountinfo").read_text()
    return [line.split(" ")[4].encode().decode("unicode_escape") for line in text.splitlines()]
