"""The keeper on real directories and a real journal; time passes by the day, and the disk is as large as the test says."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from hermes import events
from hermes.config import Settings
from hermes.evidence import Keeper, keeper
from hermes.evidence.clock import AgeClock
from hermes.store import Journal, lines
from tests.unit.evidence.test_recordings import NOW
from tests.unit.evidence.test_shelves import on_disk, record
from tests.unit.store.facts import eventually, fact, login, logout, stored, write
from tests.unit.store.test_pruning import knock

MIB = 2**20
DAY = 86400.0


class Bench:
    """A sensor's evidence, its keeper, and whom it takes for active."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.recordings = root / "recordings"
        self.active: set[str] = set()
        self.free = 100 * MIB
        self.wall = NOW
        for name in ("recordings", "journal"):
            (root / name).mkdir(exist_ok=True)
        monkeypatch.setattr(keeper, "AgeClock", lambda newest: AgeClock(newest, wall=lambda: self.wall, steady=lambda: self.wall))
        monkeypatch.setattr(
            os, "statvfs", lambda _: SimpleNamespace(f_bavail=self.free // 4096, f_frsize=4096, f_files=10**6, f_favail=10**5)
        )
        monkeypatch.setattr(keeper, "LOOK_SECONDS", 0.01)
        monkeypatch.setattr(keeper, "TURN_SECONDS", 0.02)

    @asynccontextmanager
    async def running(self, **evidence: Any) -> AsyncIterator[Keeper]:
        settings = Settings.model_validate({"data_dir": str(self.root), "evidence": {"min_free": 0, **evidence}})
        self.journal = Journal(
            settings.journal_path, sensor="s1", lines=self.root / "journal" / "events.jsonl",
            rotate_lines=settings.evidence.max_lines_bytes // 4,
        )  # fmt: skip
        self.journal.open()
        kept = Keeper(settings, self.journal, active=lambda: self.active, lines=self.root / "journal" / "events.jsonl")
        await kept.start()
        async with asyncio.TaskGroup() as group:
            task = group.create_task(kept.run())
            try:
                yield kept
            finally:
                task.cancel()
        await self.journal.wait_written()
        self.journal.close()

    def removed(self, what: str = "recording", show: str = "path") -> list[Any]:
        wanted = f"event = 'evidence.removed' AND body ->> '$.what' = '{what}'"
        return stored(self.journal.path, f"SELECT body ->> '$.{show}' FROM events WHERE {wanted} ORDER BY id")


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def nothing_left(bench: Bench) -> Callable[[], bool]:
    return lambda: not list((bench.recordings / ".removing").glob("*"))


@pytest.mark.asyncio
async def test_recordings_over_the_limit_go_with_an_event_each(bench: Bench) -> None:
    places = [record(bench.recordings, "2026-01-10", f"s{number:02}", size=100_000) for number in range(20)]
    size = on_disk(places[0])
    async with bench.running(max_bytes=MIB):
        left = MIB // size
        await eventually(lambda: len(list(bench.recordings.glob("2026-01-10/*"))) == left)
        await eventually(lambda: len(bench.removed()) == 20 - left)
        await eventually(nothing_left(bench))
    assert bench.removed() == [f"2026-01-10/s{number:02}" for number in range(20 - left)]
    assert set(bench.removed(show="reason")) == {"evidence.max_bytes"}
    assert set(bench.removed(show="bytes")) == {size}
    assert bench.removed(show="session_id") == [f"s{number:02}" for number in range(20 - left)]


@pytest.mark.asyncio
async def test_what_is_under_way_stays_and_that_is_said_once(bench: Bench) -> None:
    record(bench.recordings, "2026-01-10", "active", size=2 * MIB)
    bench.active.add("active")
    record(bench.recordings, "2026-01-20", "newer", size=1000)
    async with bench.running(max_bytes=MIB):
        query = "SELECT body ->> '$.limit' FROM events WHERE event = 'limit.reached'"
        await eventually(lambda: stored(bench.journal.path, query) == ["evidence.max_bytes"])
        assert bench.removed() == ["2026-01-20/newer"]
        bench.active.clear()
        os.utime(bench.recordings / "2026-01-10")
        await eventually(lambda: len(bench.removed()) == 2)
    assert stored(bench.journal.path, query) == ["evidence.max_bytes"]


@pytest.mark.asyncio
async def test_age_takes_recordings_rows_and_lines(bench: Bench) -> None:
    record(bench.recordings, "2026-01-01", "old")
    record(bench.recordings, "2026-01-19", "new")
    old_lines = lines.put_aside_name(bench.root / "journal" / "events.jsonl", 1)
    old_lines.write_text("old")
    os.utime(old_lines, (NOW - 30 * DAY, NOW - 30 * DAY))
    async with bench.running(max_age=10 * DAY):
        await eventually(lambda: len(bench.removed()) == 1)
        await eventually(lambda: bench.removed("lines") == [old_lines.name])
        for event in knock("k"):
            bench.journal.emit(event)
        await bench.journal.wait_written()
    assert bench.removed() == ["2026-01-01/old"]
    assert not old_lines.exists()
    bench.wall += 365 * 86400 * 10  # the journal's own times are of today
    async with bench.running(max_age=10 * DAY) as kept:
        kept._clock = AgeClock(None, wall=lambda: bench.wall, steady=lambda: bench.wall)
        await eventually(lambda: bool(bench.removed("journal")))
    assert stored(bench.journal.path, "SELECT id FROM events WHERE connection_id = 'k'") == []
    assert set(bench.removed("journal", "reason")) == {"evidence.max_age"}


@pytest.mark.asyncio
async def test_a_clock_set_forward_by_years_removes_nothing_and_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    record(bench.recordings, "2026-01-19", "new")
    steady = [0.0]
    monkeypatch.setattr(
        keeper, "AgeClock", lambda newest: AgeClock(newest, wall=lambda: bench.wall + steady[0], steady=lambda: steady[0])
    )
    async with bench.running(max_age=10 * DAY):
        bench.wall += 20 * 365 * DAY
        with capture_logs() as logs:
            await eventually(lambda: [it["seconds"] for it in logs if "clock was set" in it["event"]] == [20 * 365 * DAY])
        for _ in range(20):
            await asyncio.sleep(0.01)
        assert bench.removed() == []
        assert (bench.recordings / "2026-01-19" / "new").exists()
        steady[0] += 2 * DAY  # from now on the event of a removal is itself twenty years old, and may be gone at once
        await eventually(lambda: not (bench.recordings / "2026-01-19" / "new").exists())


@pytest.mark.asyncio
async def test_the_journal_is_held_to_its_bytes_and_goes_on(bench: Bench) -> None:
    async with bench.running(max_journal_bytes=MIB, max_lines_bytes=0):
        for number in range(4000):
            for event in knock(f"k{number}"):
                bench.journal.emit(event)
            if number % 500 == 0:
                await bench.journal.wait_written()
        for event in (*login("s"), *logout("s")):
            bench.journal.emit(event)
        await bench.journal.wait_written()
        await eventually(lambda: kept_bytes(bench.journal.path) <= MIB)
        bench.journal.emit(fact(1))
        await bench.journal.wait_written()
        assert bench.journal.healthy
    assert stored(bench.journal.path, "SELECT session_id FROM sessions") == ["s"]
    assert stored(bench.journal.path) == ["1"]
    assert set(bench.removed("journal", "reason")) == {"evidence.max_journal_bytes"}
    gone = sum(bench.removed("journal", "events"))
    rest = stored(bench.journal.path, "SELECT count(*) FROM events WHERE connection_id GLOB 'k*'")[0]
    assert gone + rest == 12_000


def kept_bytes(path: Path) -> int:
    (pages,), (free,) = (stored(path, f"PRAGMA {what}") for what in ("page_count", "freelist_count"))
    return int(pages - free) * 4096


@pytest.mark.asyncio
async def test_lines_are_held_to_their_bytes(bench: Bench) -> None:
    target = bench.root / "journal" / "events.jsonl"
    async with bench.running(max_lines_bytes=40_000):
        for number in range(1000):
            bench.journal.emit(fact(number, size=100))
            await bench.journal.wait_written()
        await eventually(lambda: len(bench.removed("lines")) > 5)
        await eventually(lambda: sum(each.stat().st_size for each in lines.put_aside(target)) <= 40_000)
    assert bench.removed("lines") == sorted(bench.removed("lines"))


@pytest.mark.asyncio
async def test_without_room_evidence_goes_first_then_nobody_is_taken_then_it_recovers(bench: Bench) -> None:
    record(bench.recordings, "2026-01-01", "old", size=MIB)
    record(bench.recordings, "2026-01-20", "today", size=MIB)
    async with bench.running(min_free=50 * MIB) as kept:
        assert kept.refusal is None
        bench.free = 49 * MIB
        await eventually(lambda: bench.removed() == ["2026-01-01/old"])
        await eventually(lambda: kept.refusal == "evidence.min_free reached")
        bench.free = 51 * MIB
        for _ in range(20):
            await asyncio.sleep(0.01)
        assert kept.refusal is not None, "an eighth more, or the door would flap"
        bench.free = 60 * MIB
        await eventually(lambda: kept.refusal is None)
    assert (bench.recordings / "2026-01-20" / "today").exists(), "what was done today is not lost to whatever fills the disk"
    found = stored(
        bench.journal.path, "SELECT event FROM events WHERE event IN ('limit.reached', 'evidence.resumed') ORDER BY id"
    )
    assert found == ["limit.reached", "evidence.resumed"]
    assert bench.removed(show="reason") == ["evidence.min_free"]


@pytest.mark.asyncio
async def test_it_starts_closed_where_there_is_no_room(bench: Bench) -> None:
    bench.free = MIB
    async with bench.running(min_free=50 * MIB) as kept:
        assert kept.refusal is not None


@pytest.mark.parametrize("stated", [True, False])
@pytest.mark.asyncio
async def test_what_a_killed_run_was_removing_is_finished_and_stated_once(bench: Bench, stated: bool) -> None:
    left = bench.recordings / ".removing" / "2026-01-01,s,evidence.max_age,4096"
    left.mkdir(parents=True)
    (left / "1.rec").write_bytes(b"half gone")
    if stated:
        said = events.EvidenceRemoved(
            session_id="s", what="recording", path="2026-01-01/s", reason="evidence.max_age", bytes=4096
        )
        write(bench.root / "journal" / "journal.db", said)
    async with bench.running():
        await eventually(nothing_left(bench))
    assert bench.removed() == ["2026-01-01/s"]
    assert bench.removed(show="bytes") == [4096]


@pytest.mark.asyncio
async def test_trouble_is_logged_and_the_rest_goes_on(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    (bench.recordings / ".removing").symlink_to("/")
    async with bench.running(max_lines_bytes=4000) as kept:
        for number in range(100):
            bench.journal.emit(fact(number, size=100))
            await bench.journal.wait_written()
        await eventually(lambda: bool(bench.removed("lines")))
        assert kept.refusal is None
