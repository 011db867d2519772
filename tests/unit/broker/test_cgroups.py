"""Where cgroups lie, on machines with version 1, 2 and both."""

import os
import subprocess
from pathlib import Path

import pytest

from hermes.broker import cgroups
from hermes.broker.cgroups import BoxCgroup, Hierarchy

V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"
HYBRID = (
    "25 20 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
    "26 25 0:23 / /sys/fs/cgroup/cpu\\040all rw - cgroup cgroup rw,cpu,cpuacct\n"
    "27 25 0:24 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n"
    "28 25 0:25 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "29 25 0:26 / /sys/fs/cgroup/unified rw shared:3 - cgroup2 cgroup2 rw\n"
)


def test_version_2() -> None:
    trees = cgroups.hierarchies(V2)
    assert cgroups.is_unified(trees)
    assert [tree.path("/hermes-1/x") for tree in trees] == [Path("/sys/fs/cgroup/hermes-1/x")]


def test_hybrid() -> None:
    trees = cgroups.hierarchies(HYBRID)
    assert not cgroups.is_unified(trees)
    assert [tree.controllers for tree in trees] == [{"cpu", "cpuacct"}, {"name=systemd"}, {"memory"}, set()]
    assert [tree.shared for tree in trees] == [False, False, False, True]
    assert trees[0].path("/a") == Path("/sys/fs/cgroup/cpu all/a")
    assert trees[2].path("/docker/abc/a") == Path("/sys/fs/cgroup/memory/a"), "only a part of the tree is mounted"


def test_own_cgroups_are_found() -> None:
    paths = cgroups.of_process(os.getpid(), cgroups.hierarchies())
    assert paths
    assert all(str(os.getpid()) in (path / "cgroup.procs").read_text().split() for path in paths if path.exists())


def _box(tmp_path: Path, *files: str) -> BoxCgroup:
    directory = tmp_path / "h" / "box"
    directory.mkdir(parents=True)
    for name in files:
        (directory / name).touch()
    return BoxCgroup("/h/box", [Hierarchy(frozenset({"freezer"} if "freezer.state" in files else ()), str(tmp_path), "/")])


def test_freezing_by_version_2(tmp_path: Path) -> None:
    box = _box(tmp_path, "cgroup.freeze", "cgroup.events")
    box.freeze(True)
    assert (tmp_path / "h/box/cgroup.freeze").read_text() == "1"
    (tmp_path / "h/box/cgroup.events").write_text("populated 1\nfrozen 0\n")
    assert not box.is_frozen()
    (tmp_path / "h/box/cgroup.events").write_text("populated 1\nfrozen 1\n")
    assert box.is_frozen()


def test_freezing_by_version_1(tmp_path: Path) -> None:
    box = _box(tmp_path, "freezer.state")
    box.freeze(True)
    assert box.is_frozen()
    box.freeze(False)
    assert (tmp_path / "h/box/freezer.state").read_text() == "THAWED"
    (tmp_path / "h/box/freezer.state").write_text("FREEZING\n")
    assert not box.is_frozen()


def test_without_a_freezer(tmp_path: Path) -> None:
    box = BoxCgroup("/x", [Hierarchy(frozenset({"cpu"}), str(tmp_path), "/")])
    with pytest.raises(FileNotFoundError):
        box.freeze(True)


def test_remove_takes_what_is_below(tmp_path: Path) -> None:
    box = _box(tmp_path)
    (tmp_path / "h/box/inner/most").mkdir(parents=True)
    assert box.remove()
    assert not box.exists()
    assert box.remove(), "gone is gone"


def test_what_is_not_empty_stays(tmp_path: Path) -> None:
    assert not _box(tmp_path, "member").remove()


def test_a_stranger_is_not_held(tmp_path: Path) -> None:
    box = _box(tmp_path)
    assert not box.holds(os.getpid())
    assert not box.holds(2**22)


def test_swap_is_counted(tmp_path: Path) -> None:
    one = [Hierarchy(frozenset({"cpu"}), str(tmp_path / "cpu"), "/"), Hierarchy(frozenset({"memory"}), str(tmp_path), "/")]
    assert not cgroups.counts_swap(one)
    (tmp_path / "memory.memsw.limit_in_bytes").touch()
    assert cgroups.counts_swap(one)


def test_swap_is_seen_to_be_counted_by_version_2_once_a_group_has_memory(tmp_path: Path) -> None:
    two = [Hierarchy(frozenset(), str(tmp_path), "/")]
    (tmp_path / "system.slice").mkdir()
    assert not cgroups.counts_swap(two)
    (tmp_path / "system.slice/memory.swap.max").touch()
    assert cgroups.counts_swap(two)


@pytest.mark.parametrize(("name", "usual"), [("cpu.shares", "1024"), ("cpu.weight", "100")])
def test_the_end_of_the_boot_makes_a_box_and_its_processes_usual(tmp_path: Path, name: str, usual: str) -> None:
    box = _box(tmp_path, name, "cgroup.procs")
    inner = tmp_path / "h/box/inner"
    inner.mkdir()
    with subprocess.Popen(["sleep", "999"]) as first, subprocess.Popen(["sleep", "999"]) as second:
        try:
            for process in (first, second):
                os.setpriority(os.PRIO_PROCESS, process.pid, 10)
            (tmp_path / "h/box/cgroup.procs").write_text(f"{first.pid}\n{2**22}\n")
            (inner / "cgroup.procs").write_text(f"{second.pid}\n")
            box.end_boot(100, 0)
            assert [os.getpriority(os.PRIO_PROCESS, process.pid) for process in (first, second)] == [0, 0]
        finally:
            first.kill()
            second.kill()
    assert (tmp_path / "h/box" / name).read_text() == usual
    assert sorted(path.name for path in (tmp_path / "h/box").iterdir()) == sorted([name, "cgroup.procs", "inner"])


def test_processes_forked_meanwhile_become_usual_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    box = _box(tmp_path, "cgroup.procs")
    procs = tmp_path / "h/box/cgroup.procs"
    procs.write_text("11\n")
    made: list[int] = []

    def forks(which: int, pid: int, value: int) -> None:
        assert (which, value) == (os.PRIO_PROCESS, 0)
        made.append(pid)
        procs.write_text("".join(f"{pid}\n" for pid in range(11, min(pid + 2, 14))))

    monkeypatch.setattr(os, "setpriority", forks)
    box.end_boot(100, 0)
    assert made == [11, 12, 13]


def test_children(tmp_path: Path) -> None:
    _box(tmp_path, "file")
    trees = [Hierarchy(frozenset(), str(tmp_path), "/"), Hierarchy(frozenset({"cpu"}), str(tmp_path / "none"), "/")]
    assert cgroups.children("/h", trees) == {"box"}
    assert cgroups.children("/other", trees) == set()
