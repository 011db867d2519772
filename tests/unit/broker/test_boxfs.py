"""What becomes of a box's files at its end. How they are mounted is tested with real boxes."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from hermes.broker.boxfs import IDS, TO_BLAME, BoxFiles, Places, mounts, unmount_below
from hermes.broker.manifest import UNKNOWN
from hermes.broker.trees import Budget

BUDGET = Budget(bytes=1 << 20, entries=1000, depth=10, seconds=60)


@pytest.fixture
def files(tmp_path: Path) -> BoxFiles:
    files = BoxFiles(tmp_path / "run" / "one", tmp_path / "data" / "one")
    for directory in (files.rootfs, files.lower, files.disk / "up", files.disk / "wk", files.store, tmp_path / "trash"):
        directory.mkdir(parents=True)
    (files.disk / "up" / "loot").write_text("loot")
    files.image.touch()
    return files


def test_discard_moves_the_disk_away_and_removes_the_bundle(files: BoxFiles, tmp_path: Path) -> None:
    pit = files.discard(tmp_path / "trash")
    assert pit == tmp_path / "trash" / "one.0"
    assert (pit / "1" / "disk.ext4").exists()
    assert not files.bundle.exists()
    assert not files.store.exists()
    assert files.discard(tmp_path / "trash") is None


def test_what_is_still_being_deleted_is_not_mixed_up(files: BoxFiles, tmp_path: Path) -> None:
    (tmp_path / "trash" / "one.0").mkdir()
    (tmp_path / "trash" / "one.1").mkdir()
    assert files.discard(tmp_path / "trash") == tmp_path / "trash" / "one.2"


@pytest.mark.skipif(os.getuid() != 0, reason="gives files to root")
def test_keep(files: BoxFiles, tmp_path: Path) -> None:
    os.chown(files.disk / "up" / "loot", 5 * IDS + 7, 5 * IDS + 8)
    kept = tmp_path / "stopped" / "one"
    assert files.keep(kept, BUDGET, UNKNOWN).exceeded == set()
    assert (kept / "changes" / "loot").read_text() == "loot"
    assert (kept.stat().st_mode & 0o7777, kept.stat().st_uid) == (0o700, 0)
    (line,) = (kept / "manifest.jsonl").read_bytes().splitlines()
    assert {"path": "loot", "uid": 7, "gid": 8}.items() <= json.loads(line).items()


def test_without_a_disk_there_is_none_to_mount_again(files: BoxFiles) -> None:
    files.image.unlink()
    assert files.remount() is False


def test_where_the_hosts_disk_is_nearly_full_the_largest_must_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = Places(tmp_path / "run", tmp_path / "data")
    for name, size in (("small", TO_BLAME // 2), ("large", TO_BLAME + 4096)):
        places.files(name).store.mkdir(parents=True)
        places.files(name).image.write_bytes(b"x" * size)
        with places.files(name).image.open("rb") as file:
            os.fsync(file.fileno())
    seen = SimpleNamespace(f_bavail=100, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda _: seen)
    assert [name for name in ("small", "large") if places.must_go(places.files(name), 1 << 20)] == ["large"]
    assert not places.must_go(places.files("large"), 100 * 4096)
    assert not Places(tmp_path, tmp_path / "none").must_go(places.files("large"), 1 << 20)
    places.files("large").image.unlink()
    assert not places.must_go(places.files("small"), 1 << 20), "it takes too little to be to blame"


def test_mounts_are_read() -> None:
    assert "/" in mounts()


def test_nothing_mounted_nothing_unmounted(tmp_path: Path) -> None:
    before = mounts()
    unmount_below(tmp_path)
    assert mounts() == before
