import os
import socket
from pathlib import Path

import pytest

from hermes.evidence.shelves import REMOVING, Item, Removal, Shelves


def record(root: Path, day: str, session_id: str, size: int = 5000, channels: int = 1) -> Path:
    """Make what a recorder makes."""
    place = root / day / session_id
    place.mkdir(parents=True)
    for number in range(1, channels + 1):
        (place / f"{number}.rec").write_bytes(b"r" * size)
        (place / f"{number}.cast").write_bytes(b"c" * size)
    return place


def on_disk(place: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in (place, *place.iterdir()))


def test_what_lies_there(tmp_path: Path) -> None:
    one = record(tmp_path, "2026-01-02", "b", channels=3)
    record(tmp_path, "2026-01-01", "a")
    shelves = Shelves(tmp_path)
    assert list(shelves.days()) == ["2026-01-01", "2026-01-02"]
    assert list(shelves.items("2026-01-02")) == [Item("2026-01-02", "b", on_disk(one))]
    before = shelves.days()["2026-01-01"]
    record(tmp_path, "2026-01-01", "c")
    assert shelves.days()["2026-01-01"] != before


def test_removal_step_by_step(tmp_path: Path) -> None:
    record(tmp_path, "2026-01-01", "a", channels=3)
    shelves = Shelves(tmp_path)
    (item,) = shelves.items("2026-01-01")
    removal = shelves.take(item, "evidence.max_age")
    assert list(shelves.items("2026-01-01")) == []
    assert shelves.unfinished() == [removal]
    assert not shelves.empty(removal, limit=2)
    assert shelves.empty(removal)
    assert Shelves(tmp_path).unfinished() == [Removal(item, "evidence.max_age")], "known after a kill"
    shelves.forget(removal)
    shelves.forget(removal)
    assert shelves.unfinished() == []
    shelves.tidy("2026-01-01")
    assert shelves.days() == {}


def test_a_day_that_is_not_empty_stays(tmp_path: Path) -> None:
    record(tmp_path, "2026-01-01", "a")
    Shelves(tmp_path).tidy("2026-01-01")
    assert (tmp_path / "2026-01-01" / "a" / "1.rec").exists()


def test_planted_things_are_neither_followed_nor_entered_nor_counted(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "recordings", tmp_path / "elsewhere"
    precious = record(elsewhere, "2026-01-01", "precious")
    root.mkdir()
    (root / "2026-01-01").symlink_to(elsewhere / "2026-01-01")
    record(root, "2026-01-02", "real")
    (root / "2026-01-02" / "link").symlink_to(precious)
    (root / "2026-01-02" / "..odd name\n").mkdir()
    (root / "2026-01-02" / "file").write_bytes(b"x")
    os.mkfifo(root / "2026-01-03")
    shelves = Shelves(root)
    assert list(shelves.days()) == ["2026-01-02"]
    assert [item.session_id for item in shelves.items("2026-01-02")] == ["real"]
    with pytest.raises(NotADirectoryError):
        shelves.take(Item("2026-01-01", "precious", 1), "evidence.max_age")
    with pytest.raises(OSError):
        list(shelves.items("2026-01-01"))
    (root / REMOVING).symlink_to(elsewhere)
    with pytest.raises(OSError):
        shelves.unfinished()
    assert (precious / "1.rec").exists()


def test_whatever_a_session_s_directory_holds_is_unlinked_and_not_opened(tmp_path: Path) -> None:
    place = record(tmp_path, "2026-01-01", "a")
    (tmp_path / "outside").write_bytes(b"stays")
    (place / "link").symlink_to(tmp_path / "outside")
    os.link(tmp_path / "outside", place / "hard")
    os.mkfifo(place / "fifo")
    (place / os.fsdecode(b"\xff\n")).write_bytes(b"x")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(place / "sock"))
    shelves = Shelves(tmp_path)
    (item,) = shelves.items("2026-01-01")
    removal = shelves.take(item, "evidence.max_bytes")
    assert shelves.empty(removal)
    shelves.forget(removal)
    assert (tmp_path / "outside").read_bytes() == b"stays"


def test_a_directory_where_none_belongs_stays_and_is_told(tmp_path: Path) -> None:
    place = record(tmp_path, "2026-01-01", "a")
    (place / "deep").mkdir()
    shelves = Shelves(tmp_path)
    (item,) = shelves.items("2026-01-01")
    removal = shelves.take(item, "evidence.max_bytes")
    with pytest.raises(IsADirectoryError):
        while True:
            shelves.empty(removal)


def test_the_longest_names_fit(tmp_path: Path) -> None:
    record(tmp_path, "2026-01-01", "x" * 128)
    shelves = Shelves(tmp_path)
    (item,) = shelves.items("2026-01-01")
    shelves.take(item._replace(bytes=2**59), "evidence.max_bytes")
    assert shelves.unfinished()[0].item.bytes == 2**59
