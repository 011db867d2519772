import sqlite3
from pathlib import Path

import pytest

from hermes.analysis.reader import IndexReader
from hermes.errors import AnalysisError
from hermes.store.follow import Position
from tests.unit.analysis.facts import indexed, settings, visit


def test_how_far_it_came_is_told(tmp_path: Path) -> None:
    with indexed(tmp_path, *visit("one")) as index:
        assert index.position == Position("j", 6)
        assert index.skipped == {"visits": 0, "documents": 0, "commands": 0, "stats": 0}


def test_where_there_is_none_it_says_so_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(AnalysisError, match="there is no index at"):
        IndexReader(tmp_path / "index.db")


def test_what_is_no_index_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "index.db"
    sqlite3.connect(path).execute("CREATE TABLE x (y)").connection.close()
    with pytest.raises(AnalysisError, match="no index of this Hermes"):
        IndexReader(path)
    path.write_bytes(b"x" * 5000)
    with pytest.raises(AnalysisError, match="is damaged"):
        IndexReader(path)


def test_a_table_that_is_not_made_yet_is_told_apart_from_damage(tmp_path: Path) -> None:
    with indexed(tmp_path, *visit("one")) as index, pytest.raises(AnalysisError, match="not made yet"):
        index.query("SELECT * FROM campaigns")


def test_nothing_can_be_written(tmp_path: Path) -> None:
    with indexed(tmp_path, *visit("one")) as index, pytest.raises(AnalysisError, match="readonly"):
        index.query("DELETE FROM visits")
    assert settings(tmp_path).index_path.exists()
