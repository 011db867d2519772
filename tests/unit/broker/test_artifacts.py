"""Files are kept once by their content, within budgets, whatever happens to them meanwhile."""

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hermes import artifacts
from hermes.broker.artifacts import CHANGING, NO_ROOM, SESSION_FULL, SLICE, TOO_LARGE, Budgets, Content, Store, prepare


class Kept:
    """A store in a directory of its own, and the limits it told of."""

    def __init__(self, directory: Path, **changes: Any) -> None:
        self.directory = directory
        self.limits: list[tuple[str, int]] = []
        prepare(str(directory), os.getegid())
        known: dict[str, Any] = {
            "directory": str(directory), "group": os.getegid(), "file_bytes": 1 << 30, "session_bytes": 1 << 30,
            "session_entries": 100, "backlog": 1024, "min_free": 0, "end_seconds": 1,
        }  # fmt: skip
        self.store = Store(Budgets(**(known | changes)), "box", lambda name, value: self.limits.append((name, value)))

    def keep(self, path: Path) -> Content | str:
        fd = os.open(path, os.O_RDONLY)
        try:
            copying = self.store.copying(fd)
            while (outcome := copying.step()) is None:
                pass
            return outcome
        finally:
            os.close(fd)

    @property
    def files(self) -> list[Path]:
        return [it for it in self.directory.rglob("*") if it.is_file()]


pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="artifacts are root's")


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    kept = Kept(tmp_path / "artifacts")
    yield kept
    kept.store.close()


@pytest.mark.parametrize("size", [0, 1, SLICE - 1, SLICE, SLICE + 1, 3 * SLICE])
def test_content_is_kept_with_its_hashes(kept: Kept, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "x").write_bytes(data)
    found = kept.keep(tmp_path / "x")
    assert isinstance(found, Content)
    assert tuple(found) == (
        hashlib.sha256(data).hexdigest(),
        hashlib.sha1(data).hexdigest(),
        hashlib.md5(data).hexdigest(),
        size,
        None,
    )
    place = artifacts.path(kept.directory, found.sha256)
    assert place.read_bytes() == data
    assert stat.S_IMODE(place.stat().st_mode) == 0o640
    assert [stat.S_IMODE(it.stat().st_mode) for it in (place.parent, place.parent.parent)] == [0o750, 0o750]
    assert kept.files == [place]


@pytest.mark.parametrize("size", [3, 2 * SLICE])
def test_the_same_content_is_kept_once_and_seen_again(kept: Kept, tmp_path: Path, size: int) -> None:
    (tmp_path / "x").write_bytes(b"x" * size)
    first = kept.keep(tmp_path / "x")
    assert isinstance(first, Content)
    place = artifacts.path(kept.directory, first.sha256)
    os.utime(place, (1, 1))
    (tmp_path / "y").write_bytes(b"x" * size)
    second = kept.keep(tmp_path / "y")
    assert isinstance(second, Content)
    assert second == first._replace(seen=1.0)
    assert place.stat().st_mtime > 1
    assert kept.store.added == size


def test_what_a_crash_left_empty_is_kept_anew(kept: Kept, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"content")
    first = kept.keep(tmp_path / "x")
    assert isinstance(first, Content)
    os.truncate(artifacts.path(kept.directory, first.sha256), 0)
    assert kept.keep(tmp_path / "x") == first
    assert artifacts.path(kept.directory, first.sha256).read_bytes() == b"content"


def test_holes_stay_holes(kept: Kept, tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb") as file:
        file.write(b"begin")
        file.truncate(64 << 20)
    found = kept.keep(tmp_path / "x")
    assert isinstance(found, Content)
    place = artifacts.path(kept.directory, found.sha256)
    assert place.stat().st_size == 64 << 20
    assert place.stat().st_blocks * 512 <= 2 * SLICE


def test_a_file_that_changes_while_it_is_copied_is_copied_anew(kept: Kept, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"a" * 3 * SLICE)
    fd = os.open(path, os.O_RDONLY)
    copying = kept.store.copying(fd)
    assert copying.step() is None
    path.write_bytes(b"b" * 2 * SLICE)
    while (outcome := copying.step()) is None:
        pass
    assert isinstance(outcome, Content)
    assert artifacts.path(kept.directory, outcome.sha256).read_bytes() == b"b" * 2 * SLICE
    os.close(fd)
    assert len(kept.files) == 1


@pytest.mark.parametrize("change", [1, -1])
def test_a_file_that_changes_all_the_time_is_given_up(kept: Kept, tmp_path: Path, change: int) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"a" * 3 * SLICE)
    fd = os.open(path, os.O_RDONLY)
    copying = kept.store.copying(fd)
    outcome, size = None, 3 * SLICE
    while outcome is None:
        outcome = copying.step()
        size += change
        os.truncate(path, size)
    os.close(fd)
    assert outcome == CHANGING
    assert kept.files == []


@pytest.mark.parametrize(
    ("changes", "reason", "limits"),
    [
        ({"file_bytes": 9}, TOO_LARGE, []),
        ({"session_bytes": 12}, SESSION_FULL, [("session_bytes", 12)]),
        ({"min_free": 1 << 60}, NO_ROOM, [("min_free", 1 << 60)]),
    ],
)
def test_budgets(tmp_path: Path, changes: dict[str, int], reason: str, limits: list[tuple[str, int]]) -> None:
    kept = Kept(tmp_path / "artifacts", **changes)
    for size in (10, 2 * SLICE):
        (tmp_path / "x").write_bytes(b"x" * size)
        assert kept.keep(tmp_path / "x") == reason
    assert kept.files == []
    assert kept.limits == limits * 2
    kept.store.close()


def test_what_is_known_already_costs_no_budget(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "artifacts", session_bytes=6)
    (tmp_path / "x").write_bytes(b"xxxx")
    for known in (False, True, True):
        found = kept.keep(tmp_path / "x")
        assert isinstance(found, Content)
        assert found.known is known
    kept.store.close()


def test_a_share_is_set_aside_for_what_is_executed(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "artifacts", session_bytes=100)
    for name, size in (("a", 75), ("b", 25)):
        (tmp_path / name).write_bytes(name.encode() * size)
    assert isinstance(kept.keep(tmp_path / "a"), Content)
    assert kept.keep(tmp_path / "b") == SESSION_FULL
    with (tmp_path / "b").open("rb") as file:
        assert isinstance(kept.store.copying(file.fileno(), executed=True).step(), Content)
    kept.store.close()


def test_a_copy_that_is_abandoned_leaves_nothing(kept: Kept, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x" * 3 * SLICE)
    fd = os.open(tmp_path / "x", os.O_RDONLY)
    copying = kept.store.copying(fd)
    assert copying.step() is None
    assert len(kept.files) == 1
    copying.abandon()
    os.close(fd)
    assert kept.files == []


def test_what_was_left_unfinished_is_swept(tmp_path: Path) -> None:
    prepare(str(tmp_path / "a"), os.getegid())
    (tmp_path / "a" / ".incoming" / "half").write_text("half")
    prepare(str(tmp_path / "a"), os.getegid())
    assert list((tmp_path / "a").rglob("*")) == [tmp_path / "a" / ".incoming"]
