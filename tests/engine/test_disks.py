"""Real disks of boxes: limited as told, of ordinary looks, and gone when they are unmounted."""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hermes.broker import disks, linux, programs
from hermes.broker.boxfs import unmount_below
from hermes.broker.disks import Disks, copy_sparse, make_ext4, mount_image
from hermes.config.models import LimitsConfig

pytestmark = pytest.mark.root

ROOM, INODES = 32 << 20, 2000


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "mounted"
    place.mkdir()
    yield place
    unmount_below(tmp_path)


def make(tmp_path: Path, **changes: object) -> Disks:
    limits = LimitsConfig.model_validate({"disk": ROOM, "inodes": INODES, **changes})
    return Disks(tmp_path / "templates", limits)


def filled(place: Path, step: Callable[[Path], int]) -> int:
    """Do it, each time for a file of another name, until the disk is full; return the sum of what it returns."""
    total = number = 0
    with pytest.raises(OSError, match="No space left"):
        while total < 1 << 30:
            number += 1
            total += step(place / str(number))
    return total


def write_64k(path: Path) -> int:
    with path.open("wb", buffering=0) as file:
        return file.write(b"x" * 65536)


def touch(path: Path) -> int:
    path.touch()
    return 1


@pytest.mark.parametrize("backing", ["ext4", "tmpfs"])
def test_bytes_and_inodes_are_limited(tmp_path: Path, place: Path, backing: str) -> None:
    made = make(tmp_path, disk_backing=backing)
    made.prepare()
    made.mount_new(tmp_path / "image", place)
    assert 0.95 * ROOM <= filled(place, write_64k) <= ROOM + (1 << 20)
    for path in place.iterdir():
        if path.name.isdecimal():
            path.unlink()
    assert 0.95 * INODES <= filled(place, touch) <= INODES * 1.1
    if backing == "ext4":
        unmount_below(tmp_path)
        assert (tmp_path / "image").stat().st_blocks * 512 < ROOM + (8 << 20)


@pytest.mark.parametrize(("room", "inodes"), [(16 << 20, 1024), (1 << 30, 65536), (100 << 30, 16_000_000)])
def test_it_looks_like_a_servers_disk(tmp_path: Path, place: Path, room: int, inodes: int) -> None:
    make_ext4(tmp_path / "image", room, inodes)
    assert (tmp_path / "image").stat().st_blocks * 512 < 32 << 20
    mount_image(tmp_path / "image", place)
    seen = os.statvfs(place)
    size, free = seen.f_blocks * seen.f_frsize, seen.f_bavail * seen.f_frsize
    assert size > 7 << 30
    assert room <= free <= room + (1 << 20)
    assert seen.f_bfree - seen.f_bavail <= 4096, "nothing is set aside for root, whom an overlay writes as"
    assert 0.8 < 1 - free / size < 1
    assert inodes <= seen.f_favail <= 1.1 * inodes + 512
    assert seen.f_favail < seen.f_files


def test_a_template_is_made_once_and_others_go(tmp_path: Path) -> None:
    first, second = make(tmp_path), make(tmp_path, disk=ROOM * 2)
    first.prepare()
    (template,) = (tmp_path / "templates").iterdir()
    before = template.stat()
    first.prepare()
    assert template.stat().st_ino == before.st_ino
    (tmp_path / "templates" / "half.new").touch()
    second.prepare()
    (other,) = (tmp_path / "templates").iterdir()
    assert other.name != template.name


def test_a_program_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "which", lambda _: None)
    with pytest.raises(FileNotFoundError, match="apt-get install e2fsprogs"):
        make(tmp_path).prepare()
    assert list((tmp_path / "templates").iterdir()) == []


@pytest.mark.parametrize("script", ["#!/bin/sh\necho no luck >&2; exit 1\n", "#!/bin/sh\nexec sleep 999\n"])
def test_a_program_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = tmp_path / "mkfs.ext4"
    program.write_text(script)
    program.chmod(0o755)
    monkeypatch.setattr(programs, "which", lambda _: str(program))
    monkeypatch.setattr(disks, "_PATIENCE", 0.5)
    with pytest.raises(OSError, match=r"no luck|does not end"):
        make(tmp_path).prepare()


def test_a_copy_has_the_holes_of_its_source(tmp_path: Path) -> None:
    with (tmp_path / "old").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"middle" * 1000)
        file.truncate(1 << 40)
    copy_sparse(tmp_path / "old", tmp_path / "new")
    status = (tmp_path / "new").stat()
    assert (status.st_size, status.st_mode & 0o777) == (1 << 40, 0o600)
    assert status.st_blocks * 512 < 1 << 20
    with (tmp_path / "new").open("rb") as file:
        file.seek(1 << 20)
        assert file.read(6000) == b"middle" * 1000


def test_nothing_on_it_is_a_device_or_raises_privileges(tmp_path: Path, place: Path) -> None:
    made = make(tmp_path)
    made.prepare()
    made.mount_new(tmp_path / "image", place)
    os.mknod(place / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with pytest.raises(PermissionError):
        (place / "null").open()
    assert os.statvfs(place).f_flag & (os.ST_NOSUID | os.ST_NODEV) == os.ST_NOSUID | os.ST_NODEV


def test_a_disk_that_is_still_mounted_is_waited_for(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(tmp_path)
    made.prepare()
    made.mount_new(tmp_path / "image", place)
    monkeypatch.setattr(disks, "_RELEASE", 0.05)
    with pytest.raises(OSError, match="still mounted"):
        disks.wait_until_released(tmp_path / "image")
    monkeypatch.undo()
    unmount_below(tmp_path)
    disks.wait_until_released(tmp_path / "image")


def test_mounted_again_it_can_only_be_read(tmp_path: Path, place: Path) -> None:
    made = make(tmp_path)
    made.prepare()
    made.mount_new(tmp_path / "image", place)
    (place / "evidence").write_text("whole")
    linux.umount(str(place))
    mount_image(tmp_path / "image", place, read_only=True)
    assert (place / "evidence").read_text() == "whole"
    with pytest.raises(OSError, match="Read-only"):
        (place / "more").touch()
