"""Work for the journal's one writer."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio

from hermes.errors import JournalError
from hermes.events import Event
from hermes.store import Journal, waiting
from tests.unit.store.facts import fact, stored


@pytest_asyncio.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    journal = Journal(tmp_path / "journal.db", sensor="s1", lines=tmp_path / "events.jsonl")
    journal.open()
    yield journal
    journal.close()


@pytest.mark.asyncio
async def test_work_is_done_after_what_was_emitted_before_and_its_events_come_with_it(journal: Journal) -> None:
    journal.emit(fact(1))

    def work(db: sqlite3.Connection) -> tuple[int, Sequence[Event]]:
        (count,) = db.execute("SELECT count(*) FROM events").fetchone()
        db.execute("DELETE FROM events")
        return count, [fact(2), fact(3)]

    done = asyncio.gather(journal.work(work))
    await asyncio.sleep(0)
    journal.emit(fact(4))
    assert list(await done) == [1]
    await journal.wait_written()
    assert stored(journal.path) == ["2", "3", "4"]
    assert stored(journal.path, "SELECT id FROM events") == [2, 3, 4]
    journal.close()
    assert journal.path.with_name("events.jsonl").read_text().count("\n") == 4


@pytest.mark.parametrize("failing", ["the work", "its event"])
@pytest.mark.asyncio
async def test_work_that_fails_changes_nothing_and_the_writer_goes_on(
    journal: Journal, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.emit(fact(1))
    await journal.wait_written()

    def work(db: sqlite3.Connection) -> tuple[None, Sequence[Event]]:
        db.execute("DELETE FROM events")
        if failing == "the work":
            db.execute("SELECT nonsense")
        else:
            db.execute("DROP TABLE events")
        return None, [fact(2)]

    with pytest.raises(JournalError, match="no such"):
        await journal.work(work)
    journal.emit(fact(3))
    await journal.wait_written()
    assert journal.healthy
    assert stored(journal.path) == ["1", "3"]


@pytest.mark.asyncio
async def test_who_gives_up_waiting_does_not_keep_it_from_being_done(journal: Journal) -> None:
    blocker = sqlite3.connect(journal.path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    journal.emit(fact(1))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await journal.work(lambda db: (None, [fact(2)]))
    blocker.execute("ROLLBACK")
    blocker.close()
    await journal.wait_written()
    assert stored(journal.path) == ["1", "2"]


def test_the_time_is_that_of_stating_it_and_text_can_be_written() -> None:
    from hermes import events

    one = waiting.stated(events.ClientVersion(version="a\udc80b"))
    assert b"a\\\\udc80b" in one.body
    assert one.time > 1_700_000_000_000_000
