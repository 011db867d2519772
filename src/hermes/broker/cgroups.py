"""Control groups, version 1, 2, or both at once (hybrid): find a box's, join, freeze, kill and remove them.

Imported by the zygote, so it imports little. A *box cgroup* is the same path in every hierarchy, such as
`/hermes-1a2b3c4d/<box id>`.
"""

import os
import signal
from contextlib import suppress
from pathlib import Path

from hermes.broker import linux

_ROUNDS = 8
"""How often processes that were forked meanwhile are looked for. A box that still boots ends forking soon; one that does not may
keep what it has."""


class Hierarchy:
    """One mounted cgroup tree. `controllers` is empty for version 2; `root` is the cgroup that is
    mounted; `shared`: what is unmounted here is unmounted elsewhere too."""

    __slots__ = ("controllers", "mount", "root", "shared")

    def __init__(self, controllers: frozenset[str], mount: str, root: str, shared: bool = False) -> None:
        self.controllers = controllers
        self.shared = shared
        self.mount = Path(mount)
        self.root = root

    def path(self, cgroup: str) -> Path:
        """Where the cgroup (as /proc/<pid>/cgroup names it) is found in the file system."""
        relative = cgroup.removeprefix(self.root) if self.root != "/" else cgroup
        return self.mount / relative.lstrip("/")


def _unescaped(field: str) -> str:
    return field.encode().decode("unicode_escape")


def hierarchies(mountinfo: str | None = None) -> list[Hierarchy]:
    """Every cgroup tree mounted in this mount namespace, one entry a tree."""
    text = Path("/proc/self/mountinfo").read_text() if mountinfo is None else mountinfo
    found: dict[frozenset[str], Hierarchy] = {}
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        fstype, _, options = right.split(" ", 2)
        if fstype not in ("cgroup", "cgroup2"):
            continue
        root, mount = map(_unescaped, left.split(" ")[3:5])
        generic = {"rw", "ro", "xattr", "clone_children", "noprefix", "nsdelegate"}
        controllers = frozenset() if fstype == "cgroup2" else frozenset(options.split(",")) - generic
        found[controllers] = Hierarchy(controllers, mount, root, " shared:" in left)
    return list(found.values())


def is_unified(trees: list[Hierarchy]) -> bool:
    """Whether version 2 has all controllers (no version 1 tree is mounted)."""
    return all(not tree.controllers for tree in trees)


def hide_unified(trees: list[Hierarchy]) -> bool:
    """Unmount the version 2 tree of a hybrid machine, which crun does not understand. Return whether it was.

    Only in a mount namespace of our own, where the host does not notice.
    """
    hybrid = [tree for tree in trees if not tree.controllers] if not is_unified(trees) else []
    if not hybrid or any(tree.shared for tree in hybrid) or not _have_own_mounts():
        return False
    for tree in hybrid:
        linux.umount(str(tree.mount))
    return True


def _have_own_mounts() -> bool:
    """Whether an ancestor of this process lives in another mount namespace."""
    own = Path("/proc/self/ns/mnt").readlink()
    pid = os.getppid()
    try:
        while pid > 0:
            if Path(f"/proc/{pid}/ns/mnt").readlink() != own:
                return True
            pid = int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
    except OSError:
        return False
    return False


def counts_swap(trees: list[Hierarchy]) -> bool:
    """Whether the kernel can limit swap. Version 2 shows it only once a cgroup right below the root has the memory controller."""
    for tree in trees:
        if "memory" in tree.controllers:
            return (tree.mount / "memory.memsw.limit_in_bytes").exists()
    return any(any(tree.mount.glob("*/memory.swap.max")) for tree in trees)


def of_process(pid: int, trees: list[Hierarchy]) -> list[Path]:
    """The directories of the process's cgroups, one a tree."""
    paths = []
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, names, cgroup = line.split(":", 2)
        controllers = frozenset(names.split(",")) if names else frozenset()
        paths += [tree.path(cgroup) for tree in trees if tree.controllers == controllers]
    return paths


def join(paths: list[Path]) -> None:
    """Move the calling process into the cgroups."""
    for path in paths:
        (path / "cgroup.procs").write_text("0")


class BoxCgroup:
    """The cgroup of one box, in every tree."""

    def __init__(self, name: str, trees: list[Hierarchy]) -> None:
        self.name = name
        self._trees = trees
        self._paths = [tree.path(name) for tree in trees]

    def exists(self) -> bool:
        """Whether any tree has it."""
        return any(path.exists() for path in self._paths)

    def pids(self) -> set[int]:
        """Processes in it or below it."""
        found: set[int] = set()
        for path in self._paths:
            for directory, _, _ in os.walk(path):
                try:
                    found.update(map(int, Path(directory, "cgroup.procs").read_text().split()))
                except OSError:
                    continue
        return found

    def holds(self, pid: int) -> bool:
        """Whether the process is in it or below it."""
        try:
            lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        except OSError:
            return False
        suffixes = (line.split(":", 2)[2] + "/" for line in lines)
        return any(self.name + "/" in suffix for suffix in suffixes)

    def kill(self) -> None:
        """Send SIGKILL to every process in it, however many are forked meanwhile (repeat until `pids` is empty)."""
        for path in self._paths:
            try:
                (path / "cgroup.kill").write_text("1")
            except OSError:
                continue
        for pid in self.pids():
            self._kill(pid)

    def _kill(self, pid: int) -> None:
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return
        try:
            if self.holds(pid):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass
        finally:
            os.close(pidfd)

    def freeze(self, frozen: bool) -> None:
        """Ask for every process to be stopped, or to go on. `OSError` if there is no freezer."""
        path, text = self._freezer()
        path.write_text(text[frozen])

    def is_frozen(self) -> bool:
        """Whether all are stopped."""
        path, _ = self._freezer()
        if path.name == "cgroup.freeze":
            return "frozen 1" in (path.parent / "cgroup.events").read_text().splitlines()
        return path.read_text().strip() == "FROZEN"

    def _freezer(self) -> tuple[Path, tuple[str, str]]:
        for tree, path in zip(self._trees, self._paths, strict=True):
            if "freezer" in tree.controllers:
                return path / "freezer.state", ("THAWED", "FROZEN")
        for tree, path in zip(self._trees, self._paths, strict=True):
            if not tree.controllers:
                return path / "cgroup.freeze", ("0", "1")
        raise FileNotFoundError(f"no cgroup freezer for {self.name}")

    @property
    def paths(self) -> list[Path]:
        """Where it is, in each tree."""
        return self._paths

    def end_boot(self, weight: int, burst: int) -> None:
        """Give it its CPU weight and burst (see `set_cpu`), and its processes the usual nice value. `OSError` if it is gone."""
        set_cpu(self._paths, weight, burst)
        seen: set[int] = set()
        for _ in range(_ROUNDS):
            if not (fresh := self.pids() - seen):
                return
            for pid in fresh:
                with suppress(ProcessLookupError, PermissionError):
                    os.setpriority(os.PRIO_PROCESS, pid, 0)
            seen |= fresh

    def remove(self) -> bool:
        """Remove it where it is empty. Return whether it is gone everywhere."""
        for path in self._paths:
            for directory, _, _ in os.walk(path, topdown=False):
                try:
                    Path(directory).rmdir()
                except FileNotFoundError:
                    continue
                except OSError:
                    return False
        return True


def children(name: str, trees: list[Hierarchy]) -> set[str]:
    """Names of the cgroups right below `name`, in any tree."""
    found: set[str] = set()
    for tree in trees:
        try:
            found.update(entry.name for entry in tree.path(name).iterdir() if entry.is_dir())
        except OSError:
            continue
    return found


def set_cpu(paths: list[Path], weight: int, burst: int) -> None:
    """Set CPU weight (100 being usual) and burst (microseconds) of a cgroup, given by its directory in each tree."""
    values = {"cpu.shares": max(2, weight * 1024 // 100), "cpu.weight": weight, "cpu.cfs_burst_us": burst, "cpu.max.burst": burst}
    for path in paths:
        for name, value in values.items():
            if (path / name).exists():
                (path / name).write_text(str(value))
