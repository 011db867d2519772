import asyncio
import sqlite3
import threading
from pathlib import Path

import pytest

from hermes.errors import JournalError
from hermes.store import Journal
from hermes.store.follow import Follower, Position
from hermes.store.queries import StoredEvent
from tests.unit.store.facts import fact, write


def versions(found: list[StoredEvent]) -> list[str]:
    return [event.body["version"] for event in found]


def test_events_come_in_their_order_each_once(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    write(path, *(fact(n) for n in range(10)))
    follower = Follower(path)
    assert versions(follower.read(4)) == ["0", "1", "2", "3"]
    assert follower.position.id == 4
    assert follower.lag == 6
    assert versions(follower.read()) == [str(n) for n in range(4, 10)]
    assert follower.read() == []
    assert follower.missed == 0
    follower.close()


def test_another_goes_on_after_the_position(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    write(path, *(fact(n) for n in range(5)))
    first = Follower(path)
    first.read(3)
    assert versions(Follower(path, after=first.position).read()) == ["3", "4"]
    assert Follower(path, after=first.last()).read() == []


@pytest.mark.asyncio
async def test_it_waits_for_what_is_not_there_yet(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db", sensor="s")
    journal.open()
    follower = Follower(journal.path)
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        waiting = group.create_task(follower.next())
        await asyncio.sleep(0)
        journal.emit(fact(1))
    assert versions(waiting.result()) == ["1"]
    follower.close()
    journal.close()


@pytest.mark.asyncio
async def test_it_waits_for_a_journal_that_is_not_there_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hermes.store.follow.RETRY_SECONDS", 0.01)
    path = tmp_path / "journal.db"
    follower = Follower(path)
    with pytest.raises(JournalError, match="No such file"):
        follower.read()
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        waiting = group.create_task(follower.next())
        await asyncio.to_thread(write, path, fact(7))
    assert versions(waiting.result()) == ["7"]


def test_a_journal_that_was_replaced_is_read_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    write(path, fact(1), fact(2))
    follower = Follower(path)
    follower.read()
    old = follower.position
    for one in tmp_path.glob("journal.db*"):
        one.unlink()
    write(path, fact(3))
    assert versions(follower.read()) == ["3"]
    assert follower.position.journal != old.journal
    assert versions(Follower(path, after=old).read()) == ["3"]


def test_what_was_removed_before_it_was_read_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    write(path, *(fact(n) for n in range(10)))
    follower = Follower(path)
    follower.read(2)
    db = sqlite3.connect(path)
    db.execute("DELETE FROM events WHERE id IN (1, 3, 4, 7)")
    db.commit()
    db.close()
    assert versions(follower.read()) == ["4", "5", "7", "8", "9"]
    assert follower.missed == 3
    beginner = Follower(path)
    beginner.read()
    assert beginner.missed == 3, "events 3, 4 and 7; what went before the first is not missed"
    follower.close()
    beginner.close()


@pytest.mark.asyncio
async def test_what_is_being_read_is_not_closed_before_that_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal.db"
    write(path, fact(1))
    follower = Follower(path)
    begun, go_on, closed = threading.Event(), threading.Event(), threading.Event()
    real = follower._opened

    def slow() -> sqlite3.Connection:
        begun.set()
        assert go_on.wait(30)
        assert not closed.is_set()
        return real()

    def close() -> None:
        follower.close()
        closed.set()

    monkeypatch.setattr(follower, "_opened", slow)
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        reading = group.create_task(asyncio.to_thread(follower.read))
        await asyncio.to_thread(begun.wait, 30)
        closing = group.create_task(asyncio.to_thread(close))
        assert not await asyncio.to_thread(closed.wait, 0.2)
        go_on.set()
    assert versions(reading.result()) == ["1"]
    assert closing.done()
    assert closed.is_set()


def test_an_event_has_a_name_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    write(path, fact(1), fact(2))
    follower = Follower(path)
    names = {follower.position.event_id(event) for event in follower.read()}
    assert names == {f"{follower.position.journal}:1", f"{follower.position.journal}:2"}
    assert Position().id == 0
    follower.close()
