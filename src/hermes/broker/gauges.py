"""Which of its limits a box has reached, as the kernel counts it. Cheap: a few small files, nothing that waits for a disk."""

import os
from contextlib import suppress
from pathlib import Path

_COUNTERS = (
    ("memory", "memory.events", "oom_kill"),
    ("memory", "memory.oom_control", "oom_kill"),
    ("pids", "pids.events", "max"),
)
"""Setting of `container_pool.limits`, the cgroup's file (of either version), and the line in it."""
_FULL_BYTES = 65536
_FULL_SHARE = 1000
"""A disk with less than that much, or than that part of it, left is full."""


class Gauge:
    """The counters of one box: of its cgroups (directories), and of its disk, where it is mounted."""

    __slots__ = ("_cgroups", "_disk", "_full", "_limit")

    def __init__(self, cgroups: list[Path], disk: Path | None = None, limit: int = 0) -> None:
        self._cgroups = cgroups
        self._disk = disk
        self._limit = limit
        self._full: set[str] = set()

    def read(self, reached: dict[str, int]) -> None:
        """Bring `reached` up to date: how often each limit was, by its name in `container_pool.limits`. Never fails."""
        for name, file, word in _COUNTERS:
            for cgroup in self._cgroups:
                if times := _counter(cgroup / file, word):
                    reached[name] = max(times, reached.get(name, 0))
        if self._disk is not None:
            with suppress(OSError):
                self._read_disk(os.statvfs(self._disk), reached)

    def _read_disk(self, seen: os.statvfs_result, reached: dict[str, int]) -> None:
        full = {
            "disk": seen.f_bavail * seen.f_frsize < max(_FULL_BYTES, self._limit // _FULL_SHARE),
            "inodes": seen.f_files > 0 and seen.f_favail < max(8, seen.f_files // _FULL_SHARE),
        }
        for name, is_full in full.items():
            if is_full and name not in self._full:
                reached[name] = reached.get(name, 0) + 1
        self._full = {name for name, is_full in full.items() if is_full}


def _counter(path: Path, word: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(number) for name, _, number in (line.partition(" ") for line in lines) if name == word), 0)
