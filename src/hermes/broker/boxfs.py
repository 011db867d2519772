"""The files of one box: its mounts while it lives, what the attacker changed after. Blocking: call it from a worker thread.

    <runtime_dir>/boxes/<id>/   config.json, pid, lower (idmapped image), rootfs (overlay), u (the box's disk)
    <data_dir>/boxes/<id>/      disk.ext4, unless the disk is a tmpfs

The disk holds up (the changes) and wk (overlay's own).

The mount options show in the box's /proc/mounts, so they name nothing of the host: the overlay is mounted from within its
own directory with relative names, and claims to be a disk.
"""

import errno
import os
import shutil
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hermes.broker import linux, trees
from hermes.broker.disks import Disks, mount_image, wait_until_released
from hermes.broker.manifest import UNKNOWN, Origin
from hermes.broker.oci import forget

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


def origin(image: Path, hostname: str) -> Origin:
    """What a box begins as: its image, and files of /etc that name it."""
    texts = (("hostname", f"{hostname}\n"), ("hosts", HOSTS.format(hostname=hostname)), ("resolv.conf", RESOLV))
    return Origin((image,), tuple((f"etc/{name}", text.encode()) for name, text in texts))


THREAD_NICE = 10
"""Nice value of threads that lay out and take down boxes."""


def own_working_directory() -> None:
    """Give the calling thread a working directory of its own (`BoxFiles.mount` changes it), and let sessions come before it."""
    linux.unshare(linux.CLONE_FS)
    os.setpriority(os.PRIO_PROCESS, 0, THREAD_NICE)


IDS = 65536
"""User ids of one box; its first is a multiple of that."""


TO_BLAME = 4 << 20
"""Bytes of a box's disk on the host from which on it can be what fills the host's: a fresh one takes a tenth."""


@dataclass(frozen=True, slots=True)
class BoxFiles:
    """Where the files of one box lie: `bundle` while it lives, `store` until its changes were kept."""

    bundle: Path
    store: Path

    @property
    def rootfs(self) -> Path:
        """The box's root file system, mounted."""
        return self.bundle / "rootfs"

    @property
    def lower(self) -> Path:
        """The image, its owners shifted to the box's."""
        return self.bundle / "lower"

    @property
    def disk(self) -> Path:
        """The box's disk, mounted."""
        return self.bundle / "u"

    @property
    def image(self) -> Path:
        """The file that the disk is in."""
        return self.store / "disk.ext4"

    def mount(self, disks: Disks, image: Path, user_namespace: int, base: int, hostname: str) -> None:
        """Make the directories and mounts. `base` is the host's uid and gid of the box's root."""
        for directory in (self.bundle, self.lower, self.rootfs, self.disk, self.store):
            directory.mkdir(mode=0o700)
        os.chown(self.bundle, base, base)
        disks.mount_new(self.image, self.disk)
        for name in ("up", "wk"):
            (self.disk / name).mkdir(mode=0o755)
            os.chown(self.disk / name, base, base)
        self._write_identity(image, base, hostname)
        linux.idmapped_clone(str(image), str(self.lower), user_namespace)
        os.chdir(self.bundle)
        linux.mount(DISK, "rootfs", "overlay", linux.MS_NODEV, "lowerdir=lower,upperdir=u/up,workdir=u/wk,volatile")

    def remount(self) -> bool:
        """Mount the disk of a box whose mounts are gone again, read-only; False if it is gone too. OSError if it is damaged."""
        if self.disk.is_mount():
            return True
        if not self.image.exists():
            return False
        self.disk.mkdir(mode=0o700, parents=True, exist_ok=True)
        wait_until_released(self.image)
        mount_image(self.image, self.disk, read_only=True)
        return True

    def _write_identity(self, image: Path, base: int, hostname: str) -> None:
        etc = self.disk / "up" / "etc"
        etc.mkdir(mode=0o755)
        built = image.joinpath("etc").stat().st_mtime
        for name, content in origin(image, hostname).given:
            path = self.disk / "up" / name
            path.write_bytes(content)
            path.chmod(0o644)
            os.chown(path, base, base)
            os.utime(path, (built, built))
        etc.chmod(0o755)
        os.chown(etc, base, base)
        os.utime(etc, (built, built))
        (self.disk / "up").chmod(0o755)

    def unmount(self) -> None:
        """Detach whatever is mounted in the bundle, however often."""
        unmount_below(self.bundle)

    def keep(self, directory: Path, budget: trees.Budget, origin: Origin) -> trees.Copied:
        """Copy the changes to `directory`/changes, which becomes root's alone, with `directory`/manifest.jsonl."""
        return keep(self.disk / "up", directory, budget, ids=IDS, origin=origin)

    def discard(self, trash: Path) -> Path | None:
        """Move what is left of the store into `trash` and remove the bundle. Return a pit (see `trees.remove`) to be removed."""
        shutil.rmtree(self.bundle, ignore_errors=True)
        return throw_away(self.store, trash) if os.path.lexists(self.store) else None


@dataclass(frozen=True, slots=True)
class Places:
    """Where the files of all boxes of one instance lie."""

    runtime_dir: Path
    data_dir: Path

    @property
    def bundles(self) -> Path:
        """A directory for each box, while it lives."""
        return self.runtime_dir / "boxes"

    @property
    def runtime(self) -> Path:
        """The OCI runtime's state."""
        return self.runtime_dir / "runtime"

    @property
    def stores(self) -> Path:
        """A directory for each box, until its changes were kept."""
        return self.data_dir / "boxes"

    @property
    def trash(self) -> Path:
        """What is being deleted."""
        return self.data_dir / "trash"

    def prepare(self) -> None:
        """Make the directories. `OSError` if a box's root could not reach its root file system."""
        for directory in (self.stores, self.trash):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.chmod(0o700)
        # The runtime looks for a box's root file system as the box's root, a stranger to the host: it must get through.
        for directory in (self.runtime_dir.parent, self.runtime_dir, self.bundles):
            directory.mkdir(mode=0o711, parents=True, exist_ok=True)
            directory.chmod(stat.S_IMODE(directory.stat().st_mode) | 0o711)
        for directory in self.runtime_dir.parents:
            if not directory.stat().st_mode & stat.S_IXOTH:
                raise PermissionError(
                    errno.EACCES, "others may not enter it, so no box can be made below (chmod o+x)", str(directory)
                )

    def files(self, container_id: str) -> BoxFiles:
        """Those of one box."""
        return BoxFiles(self.bundles / container_id, self.stores / container_id)

    def names(self) -> set[str]:
        """The boxes of which there is anything."""
        found: set[str] = set()
        for directory in (self.bundles, self.stores):
            with suppress(FileNotFoundError):
                found.update(entry.name for entry in directory.iterdir())
        return found

    def must_go(self, files: BoxFiles, reserve: int) -> bool:
        """Whether less than `reserve` bytes are free where boxes' disks lie, and this one takes most of it. Does not block.

        One that takes less than `TO_BLAME` stays: to end it would free nothing.
        """
        try:
            seen = os.statvfs(self.stores)
            if seen.f_bavail * seen.f_frsize >= reserve:
                return False
            taken = {entry.name: self.files(entry.name).image.stat().st_blocks for entry in self.stores.iterdir()}
        except OSError:
            return False
        largest = max(taken, key=lambda name: taken[name], default="")
        return largest == files.store.name and taken[largest] * 512 >= TO_BLAME

    def take_down(self, files: BoxFiles) -> Path | None:
        """Unmount and remove all of a box that has ended. Return a pit (see `trees.remove`) to be removed."""
        files.unmount()
        forget(self.runtime, files.store.name)
        return files.discard(self.trash)

    def recover(self, files: BoxFiles, directory: Path | None, budget: trees.Budget, origin: Origin) -> trees.Copied | None:
        """Keep the changes of a box that has ended, if there are its disk and a `directory` for them, and remove all of it."""
        try:
            return files.keep(directory, budget, origin) if directory is not None and files.remount() else None
        finally:
            if (pit := self.take_down(files)) is not None:
                trees.remove(pit)


def keep(upper: Path, directory: Path, budget: trees.Budget, *, ids: int = 0, origin: Origin = UNKNOWN) -> trees.Copied:
    """Copy the changes in `upper`, of what began as `origin`, to `directory`/changes, which becomes root's alone, with
    `directory`/manifest.jsonl."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)
    os.chown(directory, 0, 0)
    copied = trees.copy(upper, directory / "changes", directory / "manifest.jsonl", budget, ids=ids)
    copied.origin = origin
    return copied


def throw_away(doomed: Path, trash: Path) -> Path:
    """Move a directory into a new pit in `trash`; return that pit (see `trees.remove`)."""
    attempt = 0
    while True:
        pit = trash / f"{doomed.name}.{attempt}"
        attempt += 1
        try:
            pit.mkdir(mode=0o700)
        except FileExistsError:
            continue
        doomed.rename(pit / "1")
        return pit


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
