"""What becomes of a box's files at its end. How they are mounted is tested with real boxes."""

import os
import tempfile
from pathlib import Path

import pytest

from hermes.broker.boxfs import BoxFiles, mounts, unmount_below


@pytest.fixture
def files(tmp_path: Path) -> BoxFiles:
    files = BoxFiles(tmp_path / "run" / "one", tmp_path / "data" / "one")
    for directory in (files.rootfs, files.lower, files.upper / "up", files.upper / "wk", tmp_path / "trash"):
        directory.mkdir(parents=True)
    (files.upper / "up" / "loot").write_text("loot")
    return files


def test_discard_moves_the_changes_away_and_removes_the_bundle(files: BoxFiles, tmp_path: Path) -> None:
    doomed = files.discard(tmp_path / "trash")
    assert doomed == tmp_path / "trash" / "one"
    assert (doomed / "up" / "loot").read_text() == "loot"
    assert not files.bundle.exists()
    assert not files.upper.exists()
    assert files.discard(tmp_path / "trash") is None


def test_what_is_still_being_deleted_is_not_overwritten(files: BoxFiles, tmp_path: Path) -> None:
    (tmp_path / "trash" / "one").mkdir()
    (tmp_path / "trash" / "one.1").mkdir()
    assert files.discard(tmp_path / "trash") == tmp_path / "trash" / "one.2"


@pytest.mark.skipif(os.getuid() != 0, reason="gives files to root")
def test_keep(files: BoxFiles, tmp_path: Path) -> None:
    kept = tmp_path / "stopped" / "one"
    files.keep(kept)
    assert (kept / "changes" / "loot").read_text() == "loot"
    assert (kept.stat().st_mode & 0o7777, kept.stat().st_uid) == (0o700, 0)
    assert files.discard(tmp_path / "trash") is not None, "overlay's own directory is left"


@pytest.mark.skipif(os.getuid() != 0, reason="gives files to root")
def test_keep_on_another_file_system(files: BoxFiles) -> None:
    os.mkfifo(files.upper / "up" / "fifo")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        assert Path(other).stat().st_dev != files.upper.stat().st_dev
        files.keep(Path(other, "kept"))
        assert sorted(entry.name for entry in Path(other, "kept", "changes").iterdir()) == ["fifo", "loot"]
    assert not (files.upper / "up").exists()


def test_mounts_are_read() -> None:
    assert "/" in mounts()


def test_nothing_mounted_nothing_unmounted(tmp_path: Path) -> None:
    before = mounts()
    unmount_below(tmp_path)
    assert mounts() == before
