"""What processes cost, read from /proc: CPU time of a tree, private memory, and which processes stand in a box."""

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
TICKS = os.sysconf("SC_CLK_TCK")


class Stat(NamedTuple):
    """The part of /proc/PID/stat that is used. Times in seconds; `reaped` is that of children that ended and were waited for."""

    name: str
    parent: int
    own: float
    reaped: float


def parse_stat(text: str) -> Stat:
    """Read a /proc/PID/stat line. The name may hold anything, parentheses and spaces too."""
    head, _, rest = text.rpartition(")")
    fields = rest.split()
    user, system, reaped_user, reaped_system = (int(field) / TICKS for field in fields[11:15])
    return Stat(head.partition("(")[2], int(fields[1]), user + system, reaped_user + reaped_system)


def parse_rollup(text: str) -> dict[str, int]:
    """Read /proc/PID/smaps_rollup: bytes by field name."""
    sizes = {}
    for line in text.splitlines()[1:]:
        name, _, rest = line.partition(":")
        sizes[name] = int(rest.split()[0]) * 1024
    return sizes


def private_of(sizes: dict[str, int]) -> int:
    """Bytes that would be free if the process ended."""
    return sum(size for name, size in sizes.items() if name.startswith("Private_"))


def written_of(sizes: dict[str, int]) -> int:
    """Private bytes that the process wrote itself: without file pages, which turn private when another user of the file ends."""
    return sizes.get("Private_Dirty", 0)


def descend(parents: dict[int, int], roots: Iterable[int]) -> set[int]:
    """The roots that exist and everything below them, given each process's parent."""
    children: dict[int, list[int]] = {}
    for pid, parent in parents.items():
        children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    todo = [pid for pid in roots if pid in parents]
    while todo:
        pid = todo.pop()
        if pid not in found:
            found.add(pid)
            todo.extend(children.get(pid, ()))
    return found


def stats() -> dict[int, Stat]:
    """Every process there is now."""
    found = {}
    for entry in PROC.iterdir():
        if entry.name.isdecimal():
            try:
                found[int(entry.name)] = parse_stat((entry / "stat").read_text(errors="replace"))
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


def tree(roots: Iterable[int]) -> set[int]:
    """The roots and all their descendants, now."""
    return descend({pid: stat.parent for pid, stat in stats().items()}, roots)


def _own_cpu(pid: int, fallback: float) -> float:
    """CPU seconds of a live process, to the nanosecond where its clock can be read (ticks are 10 ms, too coarse here)."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return fallback


def cpu(roots: Iterable[int]) -> float:
    """CPU seconds used so far by the roots, their descendants, and the descendants that ended and were waited for."""
    now = stats()
    members = descend({pid: stat.parent for pid, stat in now.items()}, roots)
    return sum(_own_cpu(pid, now[pid].own) + now[pid].reaped for pid in members)


def memory(pids: Iterable[int], count: Callable[[dict[str, int]], int] = private_of) -> int:
    """Bytes of these processes together, as `count` adds them up; one that has ended counts nothing."""
    total = 0
    for pid in pids:
        try:
            total += count(parse_rollup((PROC / str(pid) / "smaps_rollup").read_text()))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total


def resident(pids: Iterable[int]) -> int:
    """Resident bytes of these processes together (pages they share are counted in each)."""
    total = 0
    page = os.sysconf("SC_PAGE_SIZE")
    for pid in pids:
        try:
            total += int((PROC / str(pid) / "statm").read_text().split()[1]) * page
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total


def user_of(pid: int) -> int | None:
    """Real user id of a process, None if it has ended."""
    try:
        return (PROC / str(pid)).stat().st_uid
    except FileNotFoundError:
        return None


def _children_namespace(pid: int) -> str | None:
    """The pid namespace that the process's children are born in: of a box, also for the spawner that stands outside it."""
    try:
        return str((PROC / str(pid) / "ns" / "pid_for_children").readlink())
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None


def boxes(roots: Iterable[int]) -> list[set[int]]:
    """The processes of each box that the trees below the roots made: those inside it and its spawner."""
    here = _children_namespace(os.getpid())
    everyone = {pid: _children_namespace(pid) for pid in stats()}
    made = {everyone[pid] for pid in tree(roots) if pid in everyone} - {here, None}
    found: dict[str, set[int]] = {}
    for pid, namespace in everyone.items():
        if namespace is not None and namespace in made:
            found.setdefault(namespace, set()).add(pid)
    return list(found.values())
