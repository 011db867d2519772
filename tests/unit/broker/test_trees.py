"""Trees as an attacker who was root would leave them, copied, measured and removed by one who is root outside."""

import errno
import json
import os
import socket
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hermes.broker import linux, trees
from hermes.broker.trees import Budget, copy, measure, remove

AMPLE = Budget(bytes=64 << 20, entries=100_000, depth=64, seconds=60)
PRECIOUS = b"p" * 100_000


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def deep(top: Path, levels: int) -> None:
    """A chain of directories longer than any path may be, with a file at its end."""
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(levels):
        os.mkdir("a" * 200, dir_fd=fd)
        inner = os.open("a" * 200, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)


@pytest.fixture
def hostile(tmp_path: Path) -> Iterator[Path]:
    """A pit with one tree of all that an attacker may leave; beside it, what must survive."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(PRECIOUS)
    tree = tmp_path / "pit" / "1"
    tree.mkdir(parents=True)
    deep(tree, 2000)
    (tree / "to-dir").symlink_to(outside)
    (tree / "to-file").symlink_to(outside / "precious")
    (tree / "loop").symlink_to("loop")
    (tree / "7").mkdir()
    (tree / "7" / "7").mkdir()
    os.mkfifo(tree / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        here = os.open(tree, os.O_RDONLY)
        sock.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)
    (tree / os.fsdecode(b"\xff\xfe\n\x1b[2J")).mkdir()
    (tree / "locked").mkdir(mode=0)
    sparse = os.open(tree / "sparse", os.O_CREAT | os.O_RDWR)
    os.truncate(sparse, 1 << 40)
    os.pwrite(sparse, b"needle", 1 << 39)
    os.close(sparse)
    (tree / "linked").write_bytes(b"l" * 40_960)
    for n in range(50):
        os.link(tree / "linked", tree / f"link{n}")
    (tree / "setuid").write_bytes(b"#!/bin/sh\n")
    (tree / "setuid").chmod(0o6755)
    yield tmp_path / "pit"
    # pytest's own removal gives up on such a tree, in this run or a later one.
    subprocess.run(["rm", "-rf", tmp_path / "pit"], check=True)


def take(source: Path, place: Path, budget: Budget = AMPLE) -> tuple[trees.Copied, Path, dict[str, dict[str, Any]]]:
    """Copy; return what came of it, where the copy is, and the manifest by path."""
    place.mkdir()
    copied = copy(source, place / "changes", place / "manifest.jsonl", budget)
    entries = [json.loads(line) for line in (place / "manifest.jsonl").read_bytes().splitlines()]
    assert len({entry["path"] for entry in entries}) == len(entries)
    return copied, place / "changes", {entry["path"]: entry for entry in entries}


# ---- copying


def test_a_hostile_tree_is_copied_without_its_teeth(hostile: Path, tmp_path: Path) -> None:
    before = descriptors()
    copied, copy, entries = take(hostile / "1", tmp_path / "kept")
    assert descriptors() == before
    assert copied.exceeded == {"depth"}
    kinds = {entry["kind"] for entry in entries.values()}
    assert kinds == {"file", "directory", "link", "fifo", "socket"}
    made = {name: os.lstat(copy / name).st_mode for name in os.listdir(copy)}  # noqa: PTH208
    assert "fifo" not in made
    assert "socket" not in made
    assert entries["fifo"]["kind"] == "fifo"
    assert {stat.S_IMODE(mode) for mode in made.values() if stat.S_ISREG(mode)} == {0o600}
    assert {stat.S_IMODE(mode) for mode in made.values() if stat.S_ISDIR(mode)} == {0o700}
    assert entries["setuid"]["mode"] == "6755"
    assert entries["to-file"]["target"] == str(hostile.parent / "outside" / "precious")
    assert os.readlink(copy / "to-file") == entries["to-file"]["target"]  # noqa: PTH115
    assert entries["locked"]["mode"] == "0000"


def test_names_of_any_bytes_are_noted_and_kept(hostile: Path, tmp_path: Path) -> None:
    _, copy, entries = take(hostile / "1", tmp_path / "kept")
    name = b"\xff\xfe\n\x1b[2J"
    assert name in os.listdir(os.fsencode(copy))  # noqa: PTH208
    entry = entries["\\xff\\xfe\n\x1b[2J"]
    assert entry["raw"] == "//4KG1sySg=="
    assert "raw" not in entries["fifo"]


def test_holes_stay_holes(hostile: Path, tmp_path: Path) -> None:
    copied, copy, entries = take(hostile / "1", tmp_path / "kept")
    status = (copy / "sparse").stat()
    assert status.st_size == entries["sparse"]["size"] == 1 << 40
    assert status.st_blocks * 512 < 1 << 20
    with (copy / "sparse").open("rb") as file:
        file.seek(1 << 39)
        assert file.read(7) == b"needle\0"
    assert copied.bytes < 1 << 20


def test_another_name_of_a_file_is_noted_once_copied(hostile: Path, tmp_path: Path) -> None:
    copied, copy, entries = take(hostile / "1", tmp_path / "kept", AMPLE._replace(depth=2))
    names = ["linked", *(f"link{n}" for n in range(50))]
    (first,) = [name for name in names if (copy / name).exists()]
    assert (copy / first).read_bytes() == b"l" * 40_960
    line = list(entries).index(first) + 1
    assert [entries[name]["same_as"] for name in names if name != first] == [line] * 50
    assert copied.bytes < 40_960 + 64_000


def test_what_lies_deeper_than_the_budget_is_left_out(hostile: Path, tmp_path: Path) -> None:
    budget = AMPLE._replace(depth=10)
    _, _, entries = take(hostile / "1", tmp_path / "kept", budget)
    path = "/".join(["a" * 200] * 10)
    assert entries[path]["left_out"] == "depth"
    assert max(name.count("/") for name in entries) == 9


@pytest.mark.parametrize(
    ("budget", "exceeded"),
    [
        (AMPLE._replace(entries=20), "entries"),
        (AMPLE._replace(seconds=0), "seconds"),
    ],
)
def test_a_budget_ends_it(tmp_path: Path, budget: Budget, exceeded: str) -> None:
    wide = tmp_path / "wide"
    wide.mkdir()
    for n in range(1000):
        (wide / str(n)).touch()
    copied, copy, entries = take(wide, tmp_path / "kept", budget)
    assert copied.exceeded == {exceeded}
    assert len(list(copy.iterdir())) == len(entries) == copied.entries <= 20


def test_bytes_are_cut_and_the_rest_is_noted(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for n in range(5):
        (tree / str(n)).write_bytes(b"x" * 300_000)
    copied, copy, entries = take(tree, tmp_path / "kept", AMPLE._replace(bytes=1_000_000))
    assert (copied.bytes, copied.exceeded, len(entries)) == (1_000_000, {"bytes"}, 5)
    assert sum(path.stat().st_size for path in copy.iterdir()) == 1_000_000
    assert sorted(entry.get("left_out", "") for entry in entries.values()) == ["", "", "", "bytes", "bytes"]


def test_long_paths_cost_bytes(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    deep(tree, 60)
    fd = os.open(tree, os.O_RDONLY)
    for _ in range(60):
        fd, old = os.open("a" * 200, os.O_RDONLY, dir_fd=fd), fd
        os.close(old)
    for n in range(2000):
        os.close(os.open(f"{n}", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    copied, copy, _ = take(tree, tmp_path / "kept", AMPLE._replace(bytes=1 << 20))
    assert "bytes" in copied.exceeded
    assert (copy.parent / "manifest.jsonl").stat().st_size < 2 << 20


@pytest.mark.skipif(os.getuid() != 0, reason="makes devices")
def test_devices_are_noted_and_what_was_removed_too(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    os.mknod(tree / "disk", stat.S_IFBLK | 0o666, os.makedev(254, 0))
    os.mknod(tree / "kmsg", stat.S_IFCHR | 0o666, os.makedev(1, 11))
    os.mknod(tree / "passwd", stat.S_IFCHR, 0)
    (tree / "etc").mkdir()
    os.setxattr(tree / "etc", "trusted.overlay.opaque", b"y")
    (tree / "owned").touch()
    os.chown(tree / "owned", 65536 * 7 + 12, 65536 * 7 + 34)
    (tmp_path / "kept").mkdir()
    copy(tree, tmp_path / "kept" / "changes", tmp_path / "kept" / "manifest.jsonl", AMPLE, ids=65536)
    lines = [json.loads(line) for line in (tmp_path / "kept" / "manifest.jsonl").read_bytes().splitlines()]
    entries = {line["path"]: line for line in lines}
    assert (entries["disk"]["kind"], entries["disk"]["device"]) == ("block device", "254:0")
    assert entries["kmsg"]["kind"] == "character device"
    assert entries["passwd"]["kind"] == "deleted"
    assert entries["etc"]["opaque"] is True
    assert (entries["owned"]["uid"], entries["owned"]["gid"]) == (12, 34)
    assert sorted(path.name for path in (tmp_path / "kept" / "changes").iterdir()) == ["etc", "owned"]


def test_a_mount_in_the_tree_is_not_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel refuses it: no file system can be mounted here without leaving it to others."""
    tree = tmp_path / "tree"
    (tree / "mounted").mkdir(parents=True)
    (tree / "mounted" / "theirs").touch()
    (tree / "file").write_text("x")
    real = linux.open_beneath

    def refusing(directory: int, name: str, flags: int) -> int:
        if name == "mounted":
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return real(directory, name, flags)

    monkeypatch.setattr(trees, "open_beneath", refusing)
    copied, copy, entries = take(tree, tmp_path / "kept")
    assert set(entries) == {"file"} == {path.name for path in copy.iterdir()}
    assert copied.unreadable == 1


def test_nothing_is_read_through_links_that_come_and_go(tmp_path: Path) -> None:
    """A tree that is changed while it is copied: names are files, directories, links and FIFOs in turn."""
    outside = tmp_path / "outside"
    (outside / "inner").mkdir(parents=True)
    (outside / "inner" / "precious").write_bytes(PRECIOUS)
    tree = tmp_path / "tree"
    tree.mkdir()
    over = threading.Event()

    def change() -> None:
        spare = tree / "spare"
        while not over.is_set():
            for n in range(20):
                name = tree / f"n{n}"
                for kind in ("dir", "link", "file", "fifo", "directory link"):
                    if kind == "dir":
                        spare.mkdir()
                        (spare / "inner").mkdir()
                        (spare / "inner" / "precious").write_bytes(b"theirs")
                    elif kind == "link":
                        spare.symlink_to(outside / "inner" / "precious")
                    elif kind == "file":
                        spare.write_bytes(b"theirs")
                    elif kind == "fifo":
                        os.mkfifo(spare)
                    else:
                        spare.symlink_to(outside)
                    if name.is_dir() and not name.is_symlink():
                        subprocess.run(["rm", "-rf", name], check=True)
                    elif os.path.lexists(name):
                        name.unlink()
                    spare.rename(name)

    changer = threading.Thread(target=change)
    changer.start()
    try:
        for n in range(20):
            _, copied, _ = take(tree, tmp_path / f"kept{n}")
            for directory, _, names in os.walk(copied):
                for name in names:
                    path = Path(directory, name)
                    assert path.is_symlink() or PRECIOUS[:100] not in path.read_bytes()
    finally:
        over.set()
        changer.join()


def test_a_full_disk_is_no_fault_of_the_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(b"x" * 1000)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "sendfile", full)
    before = descriptors()
    with pytest.raises(OSError, match="No space left"):
        take(tree, tmp_path / "kept")
    assert descriptors() == before


def test_a_file_that_cannot_be_read_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(b"x" * 1000)

    def damaged(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "sendfile", damaged)
    copied, _, entries = take(tree, tmp_path / "kept")
    assert (copied.unreadable, entries["file"]["left_out"]) == (1, "Input/output error")


# ---- measuring


def test_a_hostile_tree_is_measured_as_what_it_holds(hostile: Path) -> None:
    size, entries, complete = measure(hostile, 100_000)
    assert entries > 2000
    assert complete
    directories = 2000 * 4096
    assert 40_960 <= size <= 40_960 + directories + 100 * 4096


def test_measuring_stops_at_its_budget(hostile: Path) -> None:
    assert measure(hostile, 1000)[1:] == (1001, False)


def test_measuring_does_not_follow_a_directory_that_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tree" / "a" / "b").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    real = linux.open_beneath

    def moving(directory: int, name: str, flags: int) -> int:
        fd = real(directory, name, flags)
        if name == "b":
            (tmp_path / "tree" / "a" / "b").rename(tmp_path / "outside" / "b")
        return fd

    monkeypatch.setattr(trees, "open_beneath", moving)
    before = descriptors()
    assert measure(tmp_path / "tree", 1000).whole is False
    assert descriptors() == before


def test_measuring_goes_on_where_something_has_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / "tree" / name).mkdir(parents=True)
        (tmp_path / "tree" / name / "file").write_bytes(b"x" * 5000)
    real = linux.open_beneath

    def gone(directory: int, name: str, flags: int) -> int:
        if name == "b":
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return real(directory, name, flags)

    monkeypatch.setattr(trees, "open_beneath", gone)
    assert measure(tmp_path / "tree", 1000)[1:] == (5, True)


# ---- removing


def test_a_hostile_tree_is_removed_and_nothing_else(hostile: Path) -> None:
    before = descriptors()
    remove(hostile)
    assert not hostile.exists()
    assert (hostile.parent / "outside" / "precious").read_bytes() == PRECIOUS
    assert descriptors() == before


def test_a_removal_that_was_cut_short_goes_on(hostile: Path) -> None:
    (hostile / "1" / "7").rename(hostile / "9")
    remove(hostile)
    assert not hostile.exists()
