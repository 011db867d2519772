import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from hermes.errors import JournalError
from hermes.store import schema
from tests.unit.store.facts import login, stored, write


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(tmp_path / "journal.db", isolation_level=None)
    yield connection
    connection.close()


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def test_an_empty_database_becomes_a_journal(db: sqlite3.Connection) -> None:
    schema.migrate(db)
    assert _version(db) == len(schema.MIGRATIONS)
    assert db.execute("PRAGMA application_id").fetchone() == (schema.APPLICATION_ID,)
    assert {name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")} == {
        "events", "sessions", "commands", "journal", "spools",
    }  # fmt: skip


def test_migrating_twice_changes_nothing(db: sqlite3.Connection) -> None:
    schema.migrate(db)
    before = list(db.iterdump())
    schema.migrate(db)
    assert list(db.iterdump()) == before


def test_a_journal_of_each_version_comes_to_the_newest_with_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    write(path, *login("s"))
    later = (*schema.MIGRATIONS, "ALTER TABLE sessions ADD COLUMN country TEXT", "UPDATE sessions SET country = 'nowhere'")
    db = sqlite3.connect(path, isolation_level=None)
    schema.migrate(db, later)
    assert _version(db) == len(schema.MIGRATIONS) + 2
    db.close()
    assert stored(path, "SELECT country FROM sessions") == ["nowhere"]
    assert stored(path, "SELECT count(*) FROM events") == [len(login("s"))]


def test_a_step_that_fails_leaves_no_trace(db: sqlite3.Connection) -> None:
    schema.migrate(db)
    before = list(db.iterdump())
    with pytest.raises(sqlite3.OperationalError):
        schema.migrate(db, (*schema.MIGRATIONS, "CREATE TABLE half (x); INSERT INTO nowhere VALUES (1)"))
    assert list(db.iterdump()) == before
    assert _version(db) == len(schema.MIGRATIONS)
    assert not db.in_transaction


def test_steps_before_the_one_that_fails_stay(db: sqlite3.Connection) -> None:
    with pytest.raises(sqlite3.OperationalError):
        schema.migrate(db, (*schema.MIGRATIONS, "CREATE TABLE more (x)", "nonsense"))
    assert _version(db) == len(schema.MIGRATIONS) + 1


def test_a_newer_journal_is_refused(db: sqlite3.Connection) -> None:
    schema.migrate(db)
    db.execute(f"PRAGMA user_version = {len(schema.MIGRATIONS) + 1}")
    with pytest.raises(JournalError, match=r"journal\.db was written by a newer Hermes"):
        schema.version(db)


@pytest.mark.parametrize(
    ("query", "index"),
    [
        ("SELECT * FROM events WHERE session_id = ?", "events_session"),
        ("SELECT * FROM events WHERE connection_id = ?", "events_connection"),
        ("SELECT command FROM commands WHERE session_id = ? ORDER BY id", "commands_session"),
        ("SELECT * FROM sessions WHERE username = ? ORDER BY started DESC, id DESC", "sessions_username"),
        ("SELECT * FROM sessions WHERE source_ip = ? ORDER BY started DESC, id DESC", "sessions_source"),
        ("SELECT * FROM sessions WHERE started >= ? ORDER BY started DESC, id DESC", "sessions_started"),
        ("SELECT * FROM sessions WHERE ended IS NULL AND started > ? ORDER BY started DESC, id DESC", "sessions_active"),
    ],
)
def test_queries_use_an_index_and_need_no_sorting(db: sqlite3.Connection, query: str, index: str) -> None:
    schema.migrate(db)
    plan = " ".join(row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {query}", ("x",)))
    assert index in plan
    assert "TEMP B-TREE" not in plan
