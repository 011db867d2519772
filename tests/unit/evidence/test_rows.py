import sqlite3
from pathlib import Path

import pytest

from hermes import events
from hermes.events import Event
from hermes.evidence.rows import Rows, shrink
from hermes.store import Journal, pruning
from tests.unit.store.facts import eventually, login, logout, stored, write
from tests.unit.store.test_pruning import knock

YEAR = 365 * 86400.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def idle(session_id: str) -> list[Event]:
    """Return a session in which nobody did anything."""
    end = events.SessionClosed(
        connection_id=f"c-{session_id}", session_id=session_id, cause="client", duration=1, channels=0, bytes_in=0, bytes_out=9
    )
    told = [each for each in (*login(session_id), *logout(session_id)) if each.tag() != "channel.started"]
    return [end if each.tag() == "session.closed" else each for each in told]


async def hold(path: Path, *, removals: int = 1000, before: int | None = None) -> list[str]:
    """Remove step by step, as long as there is something; return after each step what is left of sessions and connections."""
    journal = Journal(path, sensor="s1")
    journal.open()
    rows = Rows(path)
    rows.begin_turn()
    left: list[str] = []
    for _ in range(removals):
        work = (
            rows.read(lambda db: rows.plan(db, YEAR, journal.first_id, "evidence.max_journal_bytes"))
            if before is None
            else rows.read(lambda db: rows.age(db, before, journal.first_id, "evidence.max_age"))
        )
        if work is None:
            break
        await journal.work(work)
        left.append(" ".join(str(each) for each in stored(path, "SELECT DISTINCT connection_id FROM events ORDER BY id") if each))
    journal.close()
    return left


@pytest.mark.asyncio
async def test_who_was_not_let_in_goes_first_then_who_did_nothing_then_the_rest(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hermes.evidence.rows.SESSIONS", 1)
    write(
        path, *login("acted1"), *logout("acted1"), *idle("idle1"), *knock("k1"), *knock("k2"), *login("acted2"), *logout("acted2")
    )  # fmt: skip
    left = await hold(path)
    assert left[0] == "c-acted1 c-idle1 c-acted2"
    assert left[-3:] == ["c-acted1 c-acted2", "c-acted2", ""]
    assert stored(path, "SELECT sum(body ->> '$.connections') FROM events WHERE event = 'evidence.removed'")[0] == 5
    assert stored(path, "SELECT DISTINCT body ->> '$.what' FROM events WHERE event = 'evidence.removed'") == ["journal"]


@pytest.mark.asyncio
async def test_by_age(path: Path) -> None:
    write(path, *login("old"), *logout("old"), *knock("k"), *login("new"), *logout("new"), *knock("k3"))
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("UPDATE events SET time = id")
    (first,) = db.execute("SELECT min(id) FROM events WHERE connection_id = 'c-new'").fetchone()
    db.close()
    assert (await hold(path, before=first))[-1] == "c-new k3"
    assert await hold(path, before=first) == []


@pytest.mark.asyncio
async def test_ids_go_on_though_everything_is_gone(path: Path) -> None:
    write(path, *login("s"), *logout("s"))
    (last,) = stored(path, "SELECT max(id) FROM events")
    await hold(path)
    assert stored(path, "SELECT DISTINCT event FROM events") == ["evidence.removed"]
    write(path, *knock("k"))
    assert stored(path, "SELECT min(id) FROM events WHERE connection_id = 'k'")[0] > last


@pytest.mark.asyncio
async def test_a_connection_that_was_open_when_the_sweep_came_by_goes_once_it_is_over(path: Path) -> None:
    journal = Journal(path, sensor="s1")
    journal.open()
    rows = Rows(path)

    async def turn() -> None:
        rows.begin_turn()
        while (work := rows.read(lambda db: rows.plan(db, YEAR, journal.first_id, "evidence.max_journal_bytes"))) is not None:
            await journal.work(work)

    late = knock("late")
    for event in (*knock("a"), *late[:-1], *knock("b"), *knock("c")):
        journal.emit(event)
    await journal.wait_written()
    await turn()
    assert stored(path, "SELECT DISTINCT connection_id FROM events WHERE connection_id IS NOT NULL") == ["late"]
    await turn()
    journal.emit(late[-1])
    for event in knock("d"):
        journal.emit(event)
    await journal.wait_written()
    await turn()
    assert stored(path, "SELECT connection_id FROM events WHERE connection_id IS NOT NULL") == []
    journal.close()


@pytest.mark.asyncio
async def test_the_file_shrinks_while_it_is_written(path: Path) -> None:
    write(path, *(event for number in range(3000) for event in knock(f"k{number}")))
    before = path.stat().st_size
    await hold(path)
    journal = Journal(path, sensor="s1")
    journal.open()
    rows = Rows(path)
    while rows.read(pruning.extent).free:
        await journal.work(shrink)
    for event in knock("new"):
        journal.emit(event)
    await eventually(lambda: path.stat().st_size < before / 5)
    journal.close()
    assert stored(path, "PRAGMA integrity_check") == ["ok"]
