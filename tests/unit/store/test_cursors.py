"""Cursors: what was saved is there whatever happens, and what cannot be read is no beginning."""

import os
from pathlib import Path

import pytest

from hermes.errors import JournalError
from hermes.store import cursors
from hermes.store.cursors import Cursor, standing
from hermes.store.follow import Position
from tests.unit.store.facts import fact, stored, write

HERE = Cursor(journal="j", id=7, delivered=5, missed=1, failing_since=1.5, error="no", memory={"rule": {"key": [[1.0], None, 0]}})


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    assert cursors.load(tmp_path, "siem") is None
    cursors.save(tmp_path, "siem", HERE)
    assert cursors.load(tmp_path, "siem") == HERE
    assert HERE.position == Position("j", 7)
    assert [it.name for it in tmp_path.iterdir()] == ["siem.cursor"]
    assert (tmp_path / "siem.cursor").stat().st_mode & 0o777 == 0o640


def test_one_that_cannot_be_saved_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cursors.save(tmp_path, "siem", HERE)

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        cursors.save(tmp_path, "siem", Cursor(id=8))
    monkeypatch.undo()
    assert cursors.load(tmp_path, "siem") == HERE
    cursors.save(tmp_path, "siem", Cursor(id=9))
    assert cursors.load(tmp_path, "siem") == Cursor(id=9)


@pytest.mark.parametrize("content", [b"", b"{", b'{"id":"x"}', b"\xff"])
def test_one_that_cannot_be_read_says_so(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "siem.cursor").write_bytes(content)
    with pytest.raises(JournalError, match=r"siem\.cursor cannot be read .*remove it"):
        cursors.load(tmp_path, "siem")


def test_how_outputs_do_seen_from_outside(tmp_path: Path) -> None:
    journal = tmp_path / "journal.db"
    (nothing,) = standing(journal, tmp_path, ["siem"])
    assert (nothing.cursor, nothing.lag) == (None, None)
    assert "cannot read" in nothing.trouble
    write(journal, *(fact(it) for it in range(5)))
    (identity,) = stored(journal, "SELECT identity FROM journal")
    cursors.save(tmp_path, "well", Cursor(journal=identity, id=5))
    cursors.save(tmp_path, "late", Cursor(journal=identity, id=3))
    cursors.save(tmp_path, "elsewhere", Cursor(journal="another", id=3))
    (tmp_path / "broken.cursor").write_text("{")
    found = standing(journal, tmp_path, ["well", "late", "elsewhere", "none", "broken"])
    assert [it.lag for it in found] == [0, 2, 5, None, None]
    assert [bool(it.trouble) for it in found] == [False, False, False, False, True]
