import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hermes import events
from hermes.events import Event
from hermes.store import JournalReader, database, pruning
from tests.unit.store.facts import login, logout, stored, write


def knock(connection_id: str, *, closed: bool = True) -> list[Event]:
    """Return a connection that tries a password and is not let in."""
    ids: dict[str, Any] = {"connection_id": connection_id}
    end = events.ConnectionClosed(cause="client", duration=1, auth_attempts=1, channels=0, **ids)
    return [
        events.ConnectionOpened(source_ip="192.0.2.1", source_port=1, local_ip="192.0.2.2", local_port=22, **ids),
        events.AuthAttempt(method="password", username="root", password="x", accepted=False, rule="denied", **ids),
        *([end] if closed else []),
    ]


def refused(connection_id: str) -> Event:
    return events.ConnectionRefused(connection_id=connection_id, source_ip="192.0.2.1", source_port=1, reason="full")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture
def db(path: Path) -> Iterator[sqlite3.Connection]:
    """A journal with connections of every kind, oldest first; the last event is of none."""
    write(
        path,
        *knock("k1"), *login("s1"), *knock("open", closed=False), *logout("s1"), refused("r1"), *knock("k2"), *login("active"),
        events.PoolReady(size=1, seconds=1), *login("s2"), *logout("s2"),
        events.EvidenceRemoved(session_id="long-gone", what="recording", path="d/s", reason="evidence.max_age", bytes=1),
        events.SensorStopped(reason="asked to"),
    )  # fmt: skip
    connection = database.connect(path, mode="rw", busy_timeout=1)
    yield connection
    connection.close()


def connections(db: sqlite3.Connection) -> set[str | None]:
    return {row[0] for row in db.execute("SELECT DISTINCT connection_id FROM events")}


def sweep_all(db: sqlite3.Connection, step: int, **options: Any) -> list[pruning.Swept]:
    steps = [pruning.sweep(db, 0, step, **options)]
    while steps[-1].more:
        steps.append(pruning.sweep(db, steps[-1].cursor, step, **options))
    return steps


@pytest.mark.parametrize("step", [1, 3, 100])
def test_who_was_not_let_in_goes_and_everybody_else_stays(db: sqlite3.Connection, path: Path, step: int) -> None:
    total = len(stored(path, "SELECT id FROM events"))
    steps = sweep_all(db, step, run=1)
    assert connections(db) == {"c-s1", "open", "c-active", "c-s2", None}
    assert stored(path, "SELECT event FROM events WHERE connection_id IS NULL") == ["evidence.removed"]
    assert sum(each.removed.connections for each in steps) == 3
    assert sum(each.removed.events for each in steps) == total - len(stored(path, "SELECT id FROM events"))
    first_open = stored(path, "SELECT min(id) FROM events WHERE connection_id = 'open'")[0]
    assert next(each.open for each in steps if each.open is not None) == first_open
    with JournalReader(path) as reader:
        assert len(reader.session_events("s1")) == len(login("s")) + len(logout("s"))


def test_what_an_earlier_run_left_open_is_over(db: sqlite3.Connection) -> None:
    sweep_all(db, 100, run=10**6)
    assert "open" not in connections(db)
    assert "c-s1" in connections(db)


def test_by_age_sessions_go_too_and_never_those_under_way(db: sqlite3.Connection, path: Path) -> None:
    db.execute("UPDATE events SET time = id")
    before = stored(path, "SELECT max(id) FROM events WHERE connection_id = 'c-s1'")[0]
    pruning.sweep(db, 0, 1000, run=1, before=before, sessions=True)
    assert connections(db) == {"open", "r1", "k2", "c-active", "c-s2", None}
    assert stored(path, "SELECT session_id FROM sessions ORDER BY id") == ["active", "s2"]
    assert stored(path, "SELECT DISTINCT session_id FROM commands ORDER BY id") == ["active", "s2"]
    first_open = stored(path, "SELECT min(id) FROM events WHERE connection_id = 'open'")[0]
    swept = pruning.sweep(db, 0, 1, run=1, before=before, sessions=True)
    assert (swept.cursor, swept.ripe, swept.removed.events) == (first_open, True, 0), "old, but not over"
    assert not pruning.sweep(db, before, 1000, run=1, before=before).ripe
    sweep_all(db, 100, run=10**6, before=2**62, sessions=True)
    assert connections(db) == {"c-active"}, "and no removal is told of any more"


def test_sessions_go_with_all_that_is_of_them_but_not_while_they_go_on(db: sqlite3.Connection, path: Path) -> None:
    whole = [*login("s2"), *logout("s2")]
    count, removed, size, ids = pruning.remove_sessions(db, ["s2", "active", "unknown"])
    assert (count, removed) == (1, len(whole))
    assert size > 500
    assert len(ids) == len(whole)
    assert str(ids) == f"{next(iter(ids))[0]}-{next(iter(ids))[0] + len(whole) - 1}"
    assert stored(path, "SELECT session_id FROM sessions ORDER BY id") == ["s1", "active"]
    assert "c-s2" not in connections(db)


def test_every_id_that_is_gone_is_told_also_when_what_told_of_it_goes(path: Path) -> None:
    said = events.EvidenceRemoved(what="journal", reason="r", bytes=1, events=3, ids="1-3")
    of_s2 = events.EvidenceRemoved(session_id="s2", what="recording", path="d/s2", reason="r", bytes=1)
    write(path, *knock("k1"), said, of_s2, *login("s2"), *logout("s2"), *login("on"))
    db = database.connect(path, mode="rw", busy_timeout=1)
    db.execute("DELETE FROM events WHERE id <= 3")
    removed = pruning.remove_sessions(db, ["s2"])
    assert stored(path, "SELECT event FROM events WHERE event = 'evidence.removed'") == ["evidence.removed"] * 2, "it stays"
    told = removed.ids
    for step in sweep_all(db, 3, run=1, before=2**62, sessions=True):
        told |= step.removed.ids
    db.close()
    left = stored(path, "SELECT id FROM events ORDER BY id")
    assert len(left) == len(login("on"))
    assert str(told) == f"1-{left[0] - 1}"


def test_what_the_value_of_a_session_is_told_by(db: sqlite3.Connection) -> None:
    first, second = pruning.ended_sessions(db, 0, 10)
    assert (first.session_id, first.commands, first.bytes_in, first.bytes_out, first.unknown) == ("s1", 1, 10, 200, 0)
    assert [each.session_id for each in pruning.ended_sessions(db, first.id, 10)] == ["s2"]
    named = pruning.sessions_named(db, ["active", "s2", "nobody"])
    assert set(named) == {"active", "s2"}
    assert named["active"].unknown
    assert second == named["s2"]


def test_what_was_stated_of_a_removal_is_found(db: sqlite3.Connection) -> None:
    assert pruning.is_stated(db, "long-gone", "evidence.removed", "path", "d/s")
    assert not pruning.is_stated(db, "long-gone", "evidence.removed", "path", "d/other")
    assert not pruning.is_stated(db, "s1", "evidence.removed", "path", "d/s")


def test_the_file_gives_back_what_no_row_needs(path: Path) -> None:
    write(path, *(event for number in range(3000) for event in knock(f"k{number}")))
    before = path.stat().st_size
    db = database.connect(path, mode="rw", busy_timeout=1)
    full = pruning.extent(db)
    sweep_all(db, 500, run=10**6)
    swept = pruning.extent(db)
    assert swept.used < full.used / 20
    assert swept.free > full.used / 2
    pruning.shrink(db, 10)
    assert pruning.extent(db).free == swept.free - 10 * 4096
    pruning.shrink(db, 10**6)
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    db.close()
    assert path.stat().st_size < before / 10


def test_a_journal_that_could_not_shrink_can_once_it_was_opened(path: Path) -> None:
    write(path, *knock("k"))
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = DELETE")
    db.execute("PRAGMA auto_vacuum = NONE")
    db.execute("VACUUM")
    assert db.execute("PRAGMA auto_vacuum").fetchone() == (0,)
    db.close()
    write(path, *knock("k2"))
    assert stored(path, "PRAGMA auto_vacuum") == [2]
    assert len(stored(path, "SELECT id FROM events")) == 6


def test_looking_for_the_oldest_needs_no_walk_through_the_table(db: sqlite3.Connection) -> None:
    assert pruning.oldest(db, 0, 10) == db.execute("SELECT min(time) FROM events WHERE id <= 10").fetchone()[0]
    assert pruning.oldest(db, 10**6, 10) is None
    plan = " ".join(row[3] for row in db.execute("EXPLAIN QUERY PLAN SELECT ended FROM sessions WHERE connection_id = ?", ("x",)))
    assert "sessions_connection" in plan
