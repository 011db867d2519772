"""Sessions are sealed once, in one unbroken chain, whenever the sensor is killed."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from structlog.testing import capture_logs

from hermes.config import Settings
from hermes.evidence import chain, manifest, sealer
from hermes.evidence.findings import State
from hermes.evidence.manifest import Manifest
from hermes.evidence.sealer import Sealer
from hermes.evidence.verification import Verification
from hermes.store import Journal, pruning
from tests.unit.evidence.test_sealing import record
from tests.unit.store.facts import eventually, login, logout, stored, write

SEALED = "SELECT body ->> '$.sequence' || ' ' || session_id FROM events WHERE event = 'session.sealed' ORDER BY id"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(sealer, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(sealer, "LEFT_SECONDS", 0.01)
    (tmp_path / "journal").mkdir()
    return Settings(data_dir=tmp_path)


@asynccontextmanager
async def sealing(settings: Settings, *, gather: float = 0.01, **more: Any) -> AsyncIterator[tuple[Journal, Sealer]]:
    """A journal, and its sealer at work."""
    with patch.object(sealer, "GATHER_SECONDS", gather):
        async with _sealing(settings, **more) as both:
            yield both


@asynccontextmanager
async def _sealing(settings: Settings, **more: Any) -> AsyncIterator[tuple[Journal, Sealer]]:
    journal = Journal(settings.journal_path, sensor="s1")
    journal.open()
    one = Sealer(settings, journal, **more)
    await one.start()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(one.run())
        try:
            yield journal, one
        finally:
            await one.close()
            task.cancel()
    journal.close()


def chained(settings: Settings) -> list[Manifest]:
    """The manifests there are; each follows the one before."""
    found: list[Manifest] = []
    before = ""
    for _, line in chain.lines(settings.journal_dir / chain.NAME):
        one = manifest.decode(line)
        assert one is not None
        assert (one.sequence, one.previous) == (len(found) + 1, before)
        before = manifest.digest(line)
        found.append(one)
    return found


def play(journal: Journal, settings: Settings, session_id: str) -> None:
    record(settings.recordings_dir, session_id)
    for one in (*login(session_id), *logout(session_id)):
        journal.emit(one)


@pytest.mark.asyncio
async def test_each_session_gets_a_manifest_that_names_the_one_before(settings: Settings) -> None:
    async with sealing(settings) as (journal, one):
        for session_id in ("a", "b", "c"):
            play(journal, settings, session_id)
            one.settled(session_id)
            one.settled(session_id)
            assert session_id in one.pending
        await eventually(lambda: not one.pending)
    found = chained(settings)
    assert [it.session_id for it in found] == ["a", "b", "c"]
    assert [len(it.recordings) for it in found] == [2, 2, 2]
    assert stored(settings.journal_path, SEALED) == ["1 a", "2 b", "3 c"]
    hashes = stored(settings.journal_path, "SELECT body ->> '$.manifest' FROM events WHERE event = 'session.sealed' ORDER BY id")
    assert hashes == [manifest.digest(manifest.encode(it)) for it in found]
    assert stored(settings.journal_path, "SELECT sealed FROM sessions ORDER BY id") == [1, 2, 3]


@pytest.mark.asyncio
async def test_what_is_left_is_sealed_when_the_sensor_stops(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealer, "BATCH", 2)
    async with sealing(settings, gather=1000) as (journal, one):
        for number in range(5):
            play(journal, settings, f"s{number}")
            one.settled(f"s{number}")
    assert [it.session_id for it in chained(settings)] == [f"s{number}" for number in range(5)]


@pytest.mark.asyncio
async def test_what_a_killed_sensor_left_is_sealed_at_the_next_start_and_never_twice(settings: Settings) -> None:
    write(settings.journal_path, *login("closed"), *logout("closed"), *login("lost"), *login("unsettled"), *logout("unsettled"))
    async with sealing(settings, unsettled=lambda: {"unsettled"}) as (_, one):
        await eventually(lambda: one.pending == {"unsettled"})
    assert [it.session_id for it in chained(settings)] == ["closed", "lost"]
    async with sealing(settings, unsettled=lambda: {"unsettled"}) as (_, one):
        assert one.pending == {"unsettled"}
        one.settled("unsettled")
        one.settled("lost")
        await eventually(lambda: not one.pending)
    async with sealing(settings) as (_, one):
        assert not one.pending
    assert [it.session_id for it in chained(settings)] == ["closed", "lost", "unsettled"]
    assert stored(settings.journal_path, SEALED) == ["1 closed", "2 lost", "3 unsettled"]


@pytest.mark.parametrize("torn", [False, True])
@pytest.mark.asyncio
async def test_killed_between_the_chain_and_the_journal(settings: Settings, torn: bool) -> None:
    async with sealing(settings) as (journal, one):
        for session_id in ("a", "b", "c"):
            play(journal, settings, session_id)
            one.settled(session_id)
    with sqlite3.connect(settings.journal_path) as db:  # as if only the first had been stated
        db.execute("DELETE FROM events WHERE event = 'session.sealed' AND session_id != 'a'")
        db.execute("UPDATE sessions SET sealed = NULL WHERE session_id != 'a'")
    db.close()
    path = settings.journal_dir / chain.NAME
    if torn:
        path.write_bytes(path.read_bytes()[:-20])
    async with sealing(settings) as (_, one):
        await eventually(lambda: not one.pending)
    assert [it.session_id for it in chained(settings)] == ["a", "b", "c"]
    assert stored(settings.journal_path, SEALED) == ["1 a", "2 b", "3 c"]


@pytest.mark.asyncio
async def test_a_chain_that_was_cut_goes_on_where_it_had_been(settings: Settings) -> None:
    async with sealing(settings) as (journal, one):
        for session_id in ("a", "b"):
            play(journal, settings, session_id)
            one.settled(session_id)
    path = settings.journal_dir / chain.NAME
    before = chained(settings)
    path.write_bytes(b"".join(line + b"\n" for _, line in list(chain.lines(path))[:1]))
    with capture_logs() as logs:
        async with sealing(settings) as (journal, one):
            play(journal, settings, "c")
            one.settled("c")
    assert any("missing" in it["event"] for it in logs)
    (_, last) = [manifest.decode(line) for _, line in chain.lines(path)]
    assert last is not None
    assert (last.sequence, last.previous) == (3, manifest.digest(manifest.encode(before[1])))
    assert last.after == before[1].through


@pytest.mark.asyncio
async def test_trouble_is_logged_once_and_nothing_is_left_out(settings: Settings) -> None:
    blocked = settings.journal_dir / chain.NAME
    with capture_logs() as logs:
        async with sealing(settings) as (journal, one):
            blocked.mkdir()
            play(journal, settings, "a")
            one.settled("a")
            await eventually(lambda: bool(one._trouble))
            blocked.rmdir()
            await eventually(lambda: not one.pending)
    assert [it["log_level"] for it in logs if "sealed" in it["event"]] == ["error"]
    assert stored(settings.journal_path, SEALED) == ["1 a"]


@pytest.mark.asyncio
async def test_a_session_that_retention_took_first_gets_none_and_holds_nobody_up(settings: Settings) -> None:
    async with sealing(settings) as (journal, one):
        play(journal, settings, "gone")
        play(journal, settings, "here")
        await journal.work(lambda db: (pruning.remove_sessions(db, ["gone"]).events, []))
        one.settled("gone")
        one.settled("here")
        await eventually(lambda: not one.pending)
    assert [it.session_id for it in chained(settings)] == ["here"]


@pytest.mark.asyncio
async def test_the_chain_has_an_end_and_what_went_is_told(settings: Settings) -> None:
    tight = Settings.model_validate({"data_dir": str(settings.data_dir), "evidence": {"max_journal_bytes": 2**20}})
    path = settings.journal_dir / chain.NAME
    longest = 0
    for run in range(4):
        async with sealing(tight) as (journal, one):
            for number in range(60):
                for fact in (*login(f"s{run}-{number}"), *logout(f"s{run}-{number}")):
                    journal.emit(fact)
                one.settled(f"s{run}-{number}")
            await eventually(lambda: not one.pending)
        longest = max(longest, path.stat().st_size)
    assert longest <= 2**20 // sealer.CHAIN_SHARE
    found = [manifest.decode(line) for _, line in chain.lines(path)]
    assert found[0] is not None
    assert found[-1] is not None
    assert found[0].sequence > 1
    assert found[-1].sequence == 240
    gone = stored(settings.journal_path, "SELECT body ->> '$.path' FROM events WHERE event = 'evidence.removed'")
    assert gone[-1].endswith(f"-{found[0].sequence - 1}")
    checked = Verification(settings.journal_path, settings.recordings_dir, settings.artifacts_dir)
    assert {it.state for it in checked.findings()} == {State.REMOVED}
    path.write_bytes(b"".join(line + b"\n" for _, line in list(chain.lines(path))[1:]))
    checked = Verification(settings.journal_path, settings.recordings_dir, settings.artifacts_dir)
    assert ("missing", "manifest") in {(it.state.value, it.what) for it in checked.findings()}
