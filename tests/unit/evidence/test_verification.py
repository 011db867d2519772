"""Whatever is done to sealed evidence is found, and what retention did is told apart from it."""

import asyncio
import hashlib
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hermes import artifacts, events
from hermes.config import Settings
from hermes.evidence import chain, manifest
from hermes.evidence.findings import Finding, State
from hermes.evidence.rows import Rows, _remove
from hermes.evidence.verification import Verification
from tests.unit.evidence.test_sealer import play, sealing
from tests.unit.evidence.test_sealing import stored_artifact
from tests.unit.store.facts import eventually, fact, write
from tests.unit.store.test_pruning import knock

CONTENT = b"\x7fELF"
SHA = hashlib.sha256(CONTENT).hexdigest()


class Sensor:
    """A sensor's evidence: three sealed sessions among others' knocks, an artifact, and some events since."""

    def __init__(self, root: Path) -> None:
        self.settings = Settings(data_dir=root)
        self.recordings = self.settings.recordings_dir
        self.chain = self.settings.journal_dir / chain.NAME
        self.artifact = artifacts.path(self.settings.artifacts_dir, SHA)

    async def make(self) -> None:
        self.settings.journal_dir.mkdir()
        self.artifact.parent.mkdir(parents=True)
        self.artifact.write_bytes(CONTENT)
        async with sealing(self.settings) as (journal, one):
            for session_id in ("a", "b", "c"):
                for it in knock(f"before-{session_id}"):
                    journal.emit(it)
                journal.emit(stored_artifact(session_id, SHA, len(CONTENT)))
                play(journal, self.settings, session_id)
                one.settled(session_id)
                await eventually(lambda: not one.pending)
            for it in knock("last"):
                journal.emit(it)

    def verify(self, head: str | None = None) -> tuple[list[Finding], Verification]:
        it = Verification(self.settings.journal_path, self.recordings, self.settings.artifacts_dir, head=head)
        return list(it.findings()), it

    def wrong(self, head: str | None = None) -> list[tuple[str, str]]:
        return [(it.state.value, it.what) for it in self.verify(head)[0] if it.state.is_wrong]

    def sql(self, query: str, *values: Any) -> None:
        db = sqlite3.connect(self.settings.journal_path, isolation_level=None)
        assert db.execute(query, values).rowcount > 0
        db.close()

    def recording(self, session_id: str, name: str = "0.rec") -> Path:
        (found,) = self.recordings.glob(f"*/{session_id}/{name}")
        return found

    def lines(self) -> list[bytes]:
        return self.chain.read_bytes().splitlines(keepends=True)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sealed")
    asyncio.run(Sensor(root).make())
    return root


@pytest.fixture
def sensor(template: Path, tmp_path: Path) -> Sensor:
    return Sensor(shutil.copytree(template, tmp_path / "data"))


def flip(path: Path, at: int = -3) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_evidence_that_nobody_touched_is_as_it_was_sealed(sensor: Sensor) -> None:
    found, it = sensor.verify()
    assert found == []
    summary = it.summary
    assert (summary.manifests, summary.sessions, summary.files, summary.artifacts) == (3, 3, 6, 1)
    assert (summary.sequence, summary.removed_events, summary.unproven) == (3, 0, 0)
    assert summary.head == manifest.digest(sensor.lines()[-1][:-1])
    assert summary.unsealed == 1 + len(list(knock("last"))), "a seal, and a knock"
    for line in sensor.lines():
        assert sensor.wrong(head=manifest.digest(line[:-1])) == []


def swap(sensor: Sensor, one: int, other: int) -> None:
    for before, after in ((one, -1), (other, one), (-1, other)):
        sensor.sql("UPDATE events SET id = ? WHERE id = ?", after, before)


def place_of(sensor: Sensor, session_id: str) -> str:
    return str(sensor.recording(session_id, "0.cast").with_suffix(".rec").relative_to(sensor.recordings))


TAMPERINGS: dict[str, tuple[Callable[[Sensor], object], set[tuple[str, str]]]] = {
    "a byte of a recording": (lambda it: flip(it.recording("b")), {("changed", "recording")}),
    "a byte of a cast": (lambda it: flip(it.recording("b", "0.cast")), {("changed", "recording")}),
    "a recording grows": (
        lambda it: it.recording("b").write_bytes(it.recording("b").read_bytes() + b"x"), {("changed", "recording")},
    ),
    "a recording is gone": (lambda it: it.recording("b").unlink(), {("missing", "recording")}),
    "a session's recordings are gone": (lambda it: shutil.rmtree(it.recording("b").parent), {("missing", "recording")}),
    "a recording is a link": (
        lambda it: it.recording("b").rename(it.recordings / "x").parent.joinpath(place_of(it, "b")).symlink_to("/etc/passwd"),
        {("changed", "recording")},
    ),
    "a recording is added": (
        lambda it: shutil.copy(it.recording("b"), it.recording("b").with_name("7.rec")), {("added", "recording")},
    ),
    "an artifact's content": (lambda it: it.artifact.write_bytes(b"else"), {("changed", "artifact")}),
    "an artifact is gone": (lambda it: it.artifact.unlink(), {("missing", "artifact")}),
    "an event of a session is gone": (
        lambda it: it.sql("DELETE FROM events WHERE session_id = 'b' AND event = 'channel.closed'"),
        {("missing", "event"), ("changed", "session"), ("changed", "journal")},
    ),
    "a whole session is gone": (
        lambda it: it.sql("DELETE FROM events WHERE session_id = 'b' OR connection_id = 'c-b'"),
        {("missing", "event"), ("missing", "session"), ("changed", "journal")},
    ),
    "a knock is gone": (
        lambda it: it.sql("DELETE FROM events WHERE connection_id = 'before-b'"), {("missing", "event"), ("changed", "journal")},
    ),
    "an event's body": (
        lambda it: it.sql("UPDATE events SET body = replace(body, 'uname -a', 'uname -b') WHERE session_id = 'b'"),
        {("changed", "session"), ("changed", "journal")},
    ),
    "an event's time": (
        lambda it: it.sql("UPDATE events SET time = time + 1 WHERE connection_id = 'before-b'"), {("changed", "journal")},
    ),
    "an event is another session's": (
        lambda it: it.sql("UPDATE events SET session_id = 'a' WHERE session_id = 'b' AND event = 'channel.closed'"),
        {("changed", "event")},
    ),
    "an event's name": (
        lambda it: it.sql("UPDATE events SET event = 'channel.opened' WHERE session_id = 'b' AND event = 'channel.closed'"),
        {("changed", "event")},
    ),
    "two events change places": (lambda it: swap(it, 2, 3), {("changed", "journal")}),
    "another event is in one's place": (
        lambda it: it.sql("UPDATE events SET body = replace(body, 'before-a', 'z'), connection_id = 'z' WHERE id = 1"),
        {("changed", "journal")},
    ),
    "the journal is emptied": (
        lambda it: it.sql("DELETE FROM events"), {("missing", "session"), ("missing", "journal")},
    ),
    "the last manifest is dropped": (lambda it: it.chain.write_bytes(b"".join(it.lines()[:-1])), {("missing", "manifest")}),
    "the first manifest is dropped": (lambda it: it.chain.write_bytes(b"".join(it.lines()[1:])), {("missing", "manifest")}),
    "one in the middle is dropped": (
        lambda it: it.chain.write_bytes(it.lines()[0] + it.lines()[2]), {("changed", "manifest")},
    ),
    "two change places": (
        lambda it: it.chain.write_bytes(it.lines()[1] + it.lines()[0] + it.lines()[2]),
        {("changed", "manifest"), ("missing", "manifest")},
    ),
    "all are dropped": (lambda it: it.chain.unlink(), {("missing", "manifest")}),
    "a manifest is changed": (
        lambda it: it.chain.write_bytes(it.chain.read_bytes().replace(b'"size":', b'"size":1', 1)),
        {("changed", "manifest")},
    ),
    "the last one is changed": (
        lambda it: it.chain.write_bytes(b"".join(it.lines()[:2]) + it.lines()[2].replace(b'"sealed":"2', b'"sealed":"1')),
        {("changed", "manifest")},
    ),
    "a manifest is made unreadable": (
        lambda it: it.chain.write_bytes(it.chain.read_bytes().replace(b"{", b"[", 1)), {("changed", "manifest")},
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", TAMPERINGS)
def test_tampering_is_found(sensor: Sensor, what: str) -> None:
    tamper, expected = TAMPERINGS[what]
    tamper(sensor)
    found = set(sensor.wrong())
    assert expected <= found, found


def test_a_chain_that_was_cut_with_its_seals_is_told_by_a_head_that_was_noted(sensor: Sensor) -> None:
    head = sensor.verify()[1].summary.head
    seal = _ids(sensor, "session.sealed")[-1]
    sensor.chain.write_bytes(b"".join(sensor.lines()[:-1]))
    sensor.sql("DELETE FROM events WHERE id >= ?", seal)
    assert sensor.wrong() == [], "nothing here can tell"
    assert sensor.wrong(head) == [("missing", "manifest")]
    for nonsense in ("", "x", "ab" * 32, head[2:] + "00"):
        assert sensor.wrong(nonsense) == [("missing", "manifest")]


def _ids(sensor: Sensor, event: str) -> list[int]:
    with sqlite3.connect(sensor.settings.journal_path) as db:
        found = [row[0] for row in db.execute("SELECT id FROM events WHERE event = ? ORDER BY id", (event,))]
    db.close()
    return found


# ---- retention


async def remove(sensor: Sensor, *, journal: str | None = None, recording: str | None = None, artifact: bool = False) -> None:
    """What retention does, as it does it."""
    async with sealing(sensor.settings) as (writer, _):
        if journal is not None:
            await writer.work(lambda db: _remove(db, [journal], "evidence.max_journal_bytes"))
        if recording is not None:
            place = sensor.recording(recording).parent
            path = str(place.relative_to(sensor.recordings))
            shutil.rmtree(place)
            writer.emit(
                events.EvidenceRemoved(session_id=recording, what="recording", path=path, reason="evidence.max_bytes", bytes=9)
            )
        if artifact:
            sensor.artifact.unlink()
            writer.emit(events.EvidenceRemoved(what="artifact", path=SHA, reason="artifacts.max_bytes", bytes=4))


@pytest.mark.asyncio
async def test_what_retention_removed_is_told_apart(sensor: Sensor) -> None:
    await remove(sensor, recording="a")
    await remove(sensor, journal="b", artifact=True)
    found, it = sensor.verify()
    assert {(one.state, one.what) for one in found} == {
        (State.REMOVED, "recording"), (State.REMOVED, "session"), (State.REMOVED, "artifact"),
    }  # fmt: skip
    assert (it.summary.sessions, it.summary.removed_sessions) == (2, 1)
    assert it.summary.unproven > 0
    await remove(sensor, journal="a", recording="b")
    assert sensor.wrong() == []


@pytest.mark.asyncio
async def test_more_than_retention_removed_is_found(sensor: Sensor) -> None:
    await remove(sensor, journal="b")
    sensor.sql("DELETE FROM events WHERE connection_id = 'before-b'")
    assert set(sensor.wrong()) == {("missing", "event")}


@pytest.mark.asyncio
async def test_what_tells_of_removals_is_covered_itself(sensor: Sensor) -> None:
    await remove(sensor, journal="b")
    async with sealing(sensor.settings) as (journal, one):
        play(journal, sensor.settings, "d")
        one.settled("d")
        await eventually(lambda: not one.pending)
    assert sensor.wrong() == []
    sensor.sql("UPDATE events SET body = replace(body, '\"ids\":\"', '\"ids\":\"1-3,') WHERE event = 'evidence.removed'")
    sensor.sql("DELETE FROM events WHERE id <= 3")
    assert ("changed", "journal") in sensor.wrong()


@pytest.mark.asyncio
async def test_by_age_everything_goes_and_nothing_is_wrong(sensor: Sensor) -> None:
    shutil.rmtree(sensor.recordings)
    sensor.artifact.unlink()
    async with sealing(sensor.settings) as (journal, one):
        rows = Rows(sensor.settings.journal_path)
        for _ in range(3):
            work = rows.read(lambda db: rows.age(db, 2**62, journal.first_id, "evidence.max_age"))
            await journal.work(work)
        play(journal, sensor.settings, "d")
        one.settled("d")
        await eventually(lambda: not one.pending)
    found, it = sensor.verify()
    assert [one for one in found if one.state.is_wrong] == []
    assert it.summary.removed_sessions == 3
    assert it.summary.sessions == 1


@pytest.mark.asyncio
async def test_a_journal_that_was_damaged_and_kept_aside_is_noted(sensor: Sensor) -> None:
    sensor.settings.journal_path.write_bytes(b"SQLite format 3\0 no more")
    for left in sensor.settings.journal_dir.glob("journal.db-*"):
        left.unlink()
    async with sealing(sensor.settings) as (journal, one):
        journal.emit(fact(1))
        play(journal, sensor.settings, "d")
        one.settled("d")
        await eventually(lambda: not one.pending)
    found, it = sensor.verify()
    assert [(one.state, one.what) for one in found] == [(State.NOTE, "journal")]
    assert it.summary.sessions == 1
    assert it.summary.elsewhere > 0
    assert it.summary.sequence == 4


def test_events_that_came_after_the_seal_do_not_make_it_fail(sensor: Sensor, tmp_path: Path) -> None:
    late = events.ContainerLost(session_id="b", connection_id="c-b", container_id="x")
    write(sensor.settings.journal_path, late)
    assert sensor.wrong() == []
