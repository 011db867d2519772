"""What was seen in boxes comes into the journal once, whoever dies."""

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from hermes import events
from hermes.broker.spools import Spool, Spools
from hermes.container import spool
from hermes.container.spool import Decided, End, Fact, Given, Record, fact, framed
from hermes.errors import JournalError
from hermes.evidence import intake as intake_module
from hermes.evidence.intake import Intake, Reading
from hermes.store import Journal
from tests.unit.container.test_spool import started


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - a journal sets no event of ours
            await asyncio.sleep(0.01)


class House:
    """A journal, a broker's spools, and the intake of a front that can die."""

    def __init__(self, root: Path) -> None:
        self.spools = Spools(root / "watched")
        self.path = root / "journal.db"
        self.taken: list[str] = []
        self.settled: list[str] = []
        self.begin()

    def begin(self) -> None:
        self.journal = Journal(self.path, sensor="s", on_event=self._saw)
        self.journal.open()
        self.intake = Intake(self.journal, on_taken=self.taken.append, on_settled=self.settled.append)

    def _saw(self, event: events.Event) -> None:
        if hasattr(self, "intake"):
            self.intake.saw(event)

    def open(self, session_id: str) -> Spool:
        """A session gets a box that is watched."""
        self.journal.emit(
            events.SessionOpened(
                session_id=session_id, connection_id=f"c-{session_id}", username="root",
                source_ip="192.0.2.1", source_port=1, client_version="x",
            )
        )  # fmt: skip
        one = self.spools.make(f"box-{session_id}")
        self.hand_over(one, session_id)
        return one

    def hand_over(self, one: Spool, session_id: str) -> None:
        self.intake.add(one.container_id, session_id, *one.give(session_id))

    def close_session(self, session_id: str) -> None:
        self.journal.emit(
            events.SessionClosed(
                session_id=session_id,
                connection_id=f"c-{session_id}",
                cause="client",
                duration=1,
                channels=1,
                bytes_in=0,
                bytes_out=0,
            )
        )

    async def die(self) -> None:
        await self.intake.close()
        self.journal.close()

    def rows(
        self, query: str = "SELECT json_extract(body, '$.pid') FROM events WHERE event = 'process.started' ORDER BY id"
    ) -> list[Any]:
        db = sqlite3.connect(self.path)
        try:
            return [row[0] if len(row) == 1 else row for row in db.execute(query)]
        finally:
            db.close()


@pytest_asyncio.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    house = House(tmp_path)
    yield house
    await house.die()
    house.spools.close()


@pytest.mark.asyncio
async def test_facts_come_with_their_time_session_and_connection(house: House) -> None:
    one = house.spools.make("box-s1")
    one.emit(started(9), 1)  # before any session had it
    house.journal.emit(
        events.SessionOpened(
            session_id="s1", connection_id="c1", username="root", source_ip="192.0.2.1", source_port=1, client_version="x"
        )
    )
    house.hand_over(one, "s1")
    one.emit(started(1), 111)
    one.emit(started(2), 222)
    await eventually(lambda: house.rows() == [1, 2])
    query = "SELECT time, session_id, connection_id, sensor FROM events WHERE event = 'process.started' ORDER BY id"
    assert house.rows(query) == [(111, "s1", "c1", "s"), (222, "s1", "c1", "s")]
    assert house.taken == []
    assert house.intake.waiting == 0


@pytest.mark.asyncio
async def test_a_session_is_settled_when_it_is_closed_and_its_spool_is_taken(house: House) -> None:
    one = house.open("s1")
    house.close_session("s1")
    await house.journal.wait_written()
    one.emit(started(1))
    await eventually(lambda: house.rows() == [1])
    assert (house.taken, house.settled) == ([], [])
    house.spools.end("box-s1")
    await eventually(lambda: house.settled == ["s1"])
    assert house.taken == ["box-s1"]
    assert house.spools.taken("box-s1")
    house.intake.dropped("box-s1")
    await eventually(lambda: house.rows("SELECT * FROM spools") == [])


@pytest.mark.asyncio
async def test_a_session_whose_box_was_lost_is_settled_when_it_is_closed(house: House) -> None:
    one = house.open("s1")
    house.spools.end(one.container_id)
    await eventually(lambda: house.taken == ["box-s1"])
    assert house.settled == []
    house.close_session("s1")
    await eventually(lambda: house.settled == ["s1"])


@pytest.mark.asyncio
async def test_a_session_without_a_watched_box_is_settled_at_once(house: House) -> None:
    house.journal.emit(
        events.SessionOpened(session_id="s1", username="root", source_ip="192.0.2.1", source_port=1, client_version="x")
    )
    house.close_session("s1")
    await eventually(lambda: house.settled == ["s1"])


@pytest.mark.asyncio
@pytest.mark.parametrize("kill_after", [0, 1, 3])
async def test_the_next_front_goes_on_where_the_one_before_died(house: House, kill_after: int) -> None:
    one = house.open("s1")
    for pid in range(kill_after):
        one.emit(started(pid))
    await eventually(lambda: house.rows() == list(range(kill_after)))
    await house.die()
    for pid in range(kill_after, 5):
        one.emit(started(pid))
    house.spools.end(one.container_id)
    house.begin()
    for left in house.spools.waiting():
        house.intake.add(left.container_id, left.session_id or "", *left.reading())
    await eventually(lambda: house.settled == ["s1"])
    assert house.rows() == [0, 1, 2, 3, 4]
    assert house.rows("SELECT DISTINCT connection_id FROM events WHERE event = 'process.started'") == ["c-s1"]


@pytest.mark.asyncio
async def test_nothing_is_doubled_when_the_broker_was_not_told(house: House) -> None:
    one = house.open("s1")
    one.emit(started(1))
    house.spools.end(one.container_id)
    await eventually(lambda: house.taken == ["box-s1"])
    await house.die()
    house.begin()
    house.intake.add(one.container_id, "s1", *one.reading())
    await eventually(lambda: house.taken == ["box-s1", "box-s1"])
    assert house.rows() == [1]
    house.intake.add(one.container_id, "s1", *one.reading())  # another broker, the same front
    assert house.taken == ["box-s1"] * 3


@pytest.mark.asyncio
async def test_the_next_broker_hands_it_over_again(house: House) -> None:
    one = house.open("s1")
    one.emit(started(1))
    await eventually(lambda: house.rows() == [1])
    one.close()  # the broker died
    again = Spools(house.spools.directory)
    again.start()
    house.spools = again
    (left,) = again.waiting()
    house.intake.add(left.container_id, "s1", *left.reading())
    await eventually(lambda: house.taken == ["box-s1"])
    assert house.rows() == [1]


@pytest.mark.asyncio
async def test_a_journal_that_cannot_be_written_is_waited_for(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake_module, "RETRY_SECONDS", (0.01, 0.02))
    real, tries = house.journal.work, 0

    async def work(what: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise JournalError("the disk is full")
        return await real(what)

    monkeypatch.setattr(house.journal, "work", work)
    one = house.open("s1")
    one.emit(started(1))
    await eventually(lambda: house.rows() == [1])
    assert tries >= 4


@pytest.mark.asyncio
async def test_a_record_cut_short_makes_nobody_read_again_and_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    one = house.open("s1")
    reads = 0
    real = spool.read

    def read(*arguments: Any) -> Any:
        nonlocal reads
        reads += 1
        return real(*arguments)

    monkeypatch.setattr(spool, "read", read)
    whole = framed(fact(started(1), 5))
    os.write(one.fd, whole[:10])
    os.eventfd_write(one.news, 1)
    await eventually(lambda: house.intake.waiting == 10)
    before = reads
    for _ in range(20):
        await asyncio.sleep(0)
    assert reads <= before + 2
    os.write(one.fd, whole[10:])
    os.eventfd_write(one.news, 1)
    await eventually(lambda: house.rows() == [1])


@pytest.mark.asyncio
async def test_a_damaged_spool_is_never_said_to_be_taken(house: House) -> None:
    one = house.open("s1")
    os.write(one.fd, b"\xff" * 16)
    os.eventfd_write(one.news, 1)
    house.close_session("s1")
    await house.journal.wait_written()
    assert (house.taken, house.settled) == ([], [])


def facts(*records: Any) -> list[tuple[int, str | None]]:
    reading = Reading()
    found = []
    for record in records:
        for event, _ in reading.feed(record):
            assert isinstance(event, events.ProcessStarted)
            found.append((event.pid, event.error))
    return found


def undecided(pid: int) -> Fact:
    return fact(started(pid), pid, pid)


def test_an_outcome_is_waited_for_and_found_again() -> None:
    given = Given("s1")
    assert facts(given, undecided(1)) == []
    assert facts(given, undecided(1), undecided(2), Decided({2: "EACCES"}), Decided({1: None})) == [(2, "EACCES"), (1, None)]
    assert facts(given, undecided(1), End()) == [(1, "unknown")]
    assert facts(undecided(1), given, undecided(2), Decided({1: None, 2: None, 7: None})) == [(2, None)]
    assert facts(fact(started(1), 1), given, fact(started(2), 2)) == [(2, None)]


def test_what_the_box_itself_had_begun_is_not_the_sessions() -> None:
    reading = Reading()
    ended = events.ProcessExited(container_id="box", pid=1, duration=1)
    records: list[Record] = [
        undecided(1),
        Given("s1"),
        Decided({1: None}),
        fact(ended, 3),
        fact(started(1), 4),
        fact(ended, 5),
        fact(ended, 6),
    ]
    stated = [(type(event).__name__, time) for record in records for event, time in reading.feed(record)]
    assert stated == [("ProcessStarted", 4), ("ProcessExited", 5)]
