import sqlite3
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from hermes import events
from hermes.analysis.index import LAYOUT, SUSPICIOUS_STARTS, Index
from hermes.analysis.stage import Gone
from hermes.errors import AnalysisError
from hermes.store import StoredEvent
from hermes.store.follow import Position
from tests.unit.analysis.facts import Names, stored, visit


def opened(path: Path, *stages: Names) -> Index:
    index = Index(path, stages)
    index.open()
    return index


def take(index: Index, found: list[StoredEvent], journal: str = "j") -> None:
    index.take(Position(journal, found[-1].id), found)


def rows(path: Path, query: str = "SELECT id FROM names ORDER BY id") -> list[int]:
    db = sqlite3.connect(path)
    try:
        return [it[0] for it in db.execute(query)]
    finally:
        db.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index.db"


def test_rows_and_position_are_kept_together(path: Path) -> None:
    found = stored(*visit("a"))
    index = opened(path, Names())
    take(index, found[:2])
    index.close()
    index = opened(path, Names())
    assert index.position == Position("j", 2)
    take(index, found)  # the first two a second time: they are not given to the stage again
    assert rows(path) == [1, 2, 3, 4, 5, 6]
    index.close()


def test_a_batch_that_is_not_finished_leaves_nothing(path: Path) -> None:
    class Full(Names):
        def take(self, db: sqlite3.Connection, events: object) -> None:
            raise full

    full = sqlite3.OperationalError("database or disk is full")
    full.sqlite_errorcode = sqlite3.SQLITE_FULL
    second = Full()
    second.name, second.schema = "second", ""
    index = opened(path, Names(), second)
    with pytest.raises(AnalysisError, match="full"):
        take(index, stored(*visit("a")))
    assert index.position.id == 0
    assert rows(path) == []
    index.close()


def test_an_event_that_a_stage_fails_on_is_left_out_alone_and_counted(path: Path) -> None:
    with capture_logs() as logs:
        index = opened(path, Names(poison="192.0.2.66"))
        take(index, stored(*visit("a"), *visit("evil", address="192.0.2.66"), *visit("b")))
    assert rows(path) == [1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 13, 14, 15, 16, 17, 18]
    assert index.position.id == 18
    assert rows(path, "SELECT skipped FROM index_stages") == [2]
    assert [it["event_id"] for it in logs if it["log_level"] == "error"] == [7, 12]
    index.close()


def test_a_stage_of_another_version_is_made_anew_and_the_others_stay(path: Path) -> None:
    other = Names()
    other.name, other.schema = "others", "CREATE TABLE IF NOT EXISTS others (id INTEGER PRIMARY KEY, name TEXT)"
    other.take = lambda db, events: db.executemany("INSERT INTO others VALUES (?, ?)", [(it.id, "x") for it in events])  # type: ignore[method-assign]
    found = stored(*visit("a"))
    index = opened(path, Names(version=1), other)
    take(index, found)
    index.close()
    index = opened(path, Names(version=2), other)
    assert index.position == Position("j", 0)
    assert (rows(path), rows(path, "SELECT id FROM others")) == ([], [1, 2, 3, 4, 5, 6])
    take(index, found)
    assert (rows(path), rows(path, "SELECT id FROM others")) == ([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6])
    index.close()


def test_tables_of_a_stage_that_is_no_more_go(path: Path) -> None:
    text = Names()
    text.name = "words"
    text.schema = "CREATE TABLE IF NOT EXISTS words (id); CREATE VIRTUAL TABLE IF NOT EXISTS words_fts USING fts5 (text)"
    index = opened(path, text, Names())
    index.close()
    opened(path, Names()).close()
    assert rows(path, "SELECT count(*) FROM sqlite_schema WHERE name LIKE 'words%'") == [0]
    assert rows(path, "SELECT count(*) FROM sqlite_schema WHERE name LIKE 'names%'") == [1]


@pytest.mark.parametrize("damage", [b"", b"no database at all, and longer than a page" * 200])
def test_a_damaged_index_is_thrown_away_and_said_so(path: Path, damage: bytes) -> None:
    index = opened(path, Names())
    take(index, stored(*visit("a")))
    index.close()
    path.write_bytes(damage)
    with capture_logs() as logs:
        index = opened(path, Names())
    assert index.position == Position("", 0)
    assert bool(damage) == any("thrown away" in it["event"] for it in logs)
    take(index, stored(*visit("a")))
    assert len(rows(path)) == 6
    index.close()


def test_an_index_of_another_layout_and_a_database_of_others_are_thrown_away(path: Path) -> None:
    opened(path, Names()).close()
    for pragma in (f"user_version = {LAYOUT + 1}", "application_id = 5"):
        db = sqlite3.connect(path)
        db.execute(f"PRAGMA {pragma}")
        db.close()
        with capture_logs() as logs:
            opened(path, Names()).close()
        assert any("thrown away" in it["event"] for it in logs)


def test_the_index_of_a_journal_that_was_replaced_is_kept_beside(path: Path) -> None:
    index = opened(path, Names())
    take(index, stored(*visit("a")))
    take(index, stored(events.ClientVersion(connection_id="x", version="y")), journal="k")
    assert index.position == Position("k", 1)
    assert rows(path) == [1]
    assert rows(path.with_name("index.previous.db")) == [1, 2, 3, 4, 5, 6]
    take(index, stored(*visit("a")), journal="l")
    assert rows(path.with_name("index.previous.db")) == [1]
    index.close()


def die(index: Index) -> None:
    """End as by kill -9: nothing is said in good order."""
    index.db.close()
    index._db = None


def test_an_event_that_kills_the_process_is_found_and_left_out(path: Path) -> None:
    found = stored(*visit("a"), *visit("b"), *visit("c"))
    deadly = 9
    starts = 0
    while True:
        starts += 1
        assert starts < 20
        index = opened(path, Names())
        while index.position.id < len(found):
            rest = [it for it in found if it.id > index.position.id][: 1 if index.careful else None]
            if any(it.id == deadly for it in rest) and index._suspect != deadly:
                if index.careful:
                    index._state("trying", rest[0].id)
                die(index)
                break
            take(index, rest)
        else:
            break
    assert rows(path) == [it.id for it in found if it.id != deadly]
    assert starts == SUSPICIOUS_STARTS + 2
    assert rows(path, "SELECT skipped FROM index_stages") == [1]
    index.close()


def test_restarts_in_good_order_are_not_suspicious(path: Path) -> None:
    for _ in range(SUSPICIOUS_STARTS * 2):
        index = opened(path, Names())
        assert not index.careful
        index.close()


def test_what_is_gone_is_told_to_every_stage(path: Path) -> None:
    stage = Names()
    index = opened(path, stage)
    gone = Gone(["c"], ["s"], [1])
    index.forget(gone)
    assert stage.gone == [gone]
    index.close()


def test_a_directory_that_cannot_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(AnalysisError, match="cannot write the index"):
        opened(tmp_path / "none" / "index.db", Names())
