import asyncio
import os
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from hermes import events
from hermes.errors import JournalError
from hermes.store import Journal, JournalReader, database
from tests.unit.store.facts import eventually, fact, login, logout, stored, write


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.mark.asyncio
async def test_events_are_stored_in_order_with_time_sensor_and_id(path: Path) -> None:
    journal = Journal(path, sensor="s1")
    journal.open()
    for number in range(1500):
        journal.emit(fact(number))
    await journal.wait_written()
    assert stored(path) == [str(number) for number in range(1500)]
    assert stored(path, "SELECT DISTINCT sensor FROM events") == ["s1"]
    assert stored(path, "SELECT id FROM events") == list(range(1, 1501))
    times = stored(path, "SELECT time FROM events ORDER BY id")
    assert times == sorted(times)
    assert journal.healthy
    journal.close()
    assert not journal.healthy


def test_ids_go_on_where_the_last_run_ended(path: Path) -> None:
    write(path, fact(1), fact(2))
    write(path, fact(3))
    assert stored(path, "SELECT id FROM events ORDER BY id") == [1, 2, 3]


def test_close_writes_what_waits_and_leaves_one_file(path: Path) -> None:
    write(path, *(fact(number) for number in range(5000)))
    assert [each.name for each in path.parent.iterdir() if each.name != "journal.lock"] == ["journal.db"]
    assert len(stored(path)) == 5000


def test_the_journal_is_not_for_everyone_to_read(path: Path) -> None:
    write(path, fact(1))
    assert stat.S_IMODE(path.stat().st_mode) & 0o027 == 0


@pytest.mark.parametrize(
    "text", ["a\udc80b", "\ud800", "nul\0", "\x1b]0;x\x07", "\u202e", "🦀" * 1000, "'; DROP TABLE events; --"]
)
def test_any_text_is_kept(path: Path, text: str) -> None:
    write(path, *login("s", username=text), events.ChannelInput(session_id="s", channel=0, line=text))
    with JournalReader(path) as reader:
        session = reader.get_session("s")
    kept = text.encode(errors="backslashreplace").decode()
    assert session.username == kept
    assert session.commands == ["uname -a", kept]


def test_lists_with_lone_surrogates_are_kept(path: Path) -> None:
    write(
        path, events.AuthAttempt(method="keyboard-interactive", username="u", accepted=False, responses=["\udcff"], rule="denied")
    )
    assert stored(path, "SELECT body ->> '$.responses[0]' FROM events") == ["\\udcff"]


def test_a_second_writer_is_refused(path: Path) -> None:
    first = Journal(path, sensor="s1")
    first.open()
    with pytest.raises(JournalError, match="another Hermes runs on this data directory"):
        Journal(path, sensor="s2").open()
    first.close()
    write(path, fact(1))


@pytest.mark.parametrize("when", ["never opened", "closed"])
@pytest.mark.asyncio
async def test_a_journal_that_is_not_open_takes_nothing(path: Path, when: str) -> None:
    journal = Journal(path, sensor="s1")
    if when == "closed":
        journal.open()
        journal.close()
    with pytest.raises(JournalError, match="not open"):
        journal.emit(fact(1))
    with pytest.raises(JournalError, match="not open"):
        await journal.wait_written()
    assert not journal.healthy
    assert journal.refused == 1
    journal.close()


def test_a_directory_that_is_not_there_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match=r"cannot write in .*nowhere: No such file"):
        Journal(tmp_path / "nowhere" / "journal.db", sensor="s1").open()


def test_a_failed_open_gives_the_lock_up(path: Path) -> None:
    path.mkdir()
    with pytest.raises(JournalError):
        Journal(path, sensor="s1").open()
    path.rmdir()
    write(path, fact(1))


def test_sessions_of_a_killed_sensor_are_ended_as_lost(path: Path) -> None:
    write(path, *login("done"), *logout("done"), *login("gone"))
    last = stored(path, "SELECT max(time) FROM events")
    journal = Journal(path, sensor="s1")
    journal.open()
    journal.close()
    assert stored(path, "SELECT cause FROM sessions ORDER BY id") == ["client", "lost"]
    assert stored(path, "SELECT ended FROM sessions WHERE session_id = 'gone'") == last


class _Blocker:
    """Another program that holds the database's write lock."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("BEGIN IMMEDIATE")

    def leave(self) -> None:
        self._db.execute("ROLLBACK")
        self._db.close()


@pytest.mark.asyncio
async def test_a_database_locked_by_another_program_loses_nothing(path: Path) -> None:
    with capture_logs() as logs:
        journal = Journal(path, sensor="s1")
        journal.open()
        journal.emit(fact(0))
        await journal.wait_written()
        blocker = _Blocker(path)
        for number in range(1, 1000):
            journal.emit(fact(number))
        await eventually(lambda: not journal.healthy)
        blocker.leave()
        await journal.wait_written()
        await eventually(lambda: journal.healthy)
        await journal.wait_written()
        journal.close()
    assert stored(path) == [str(number) for number in range(1000)]
    assert stored(path, "SELECT body ->> '$.reason' FROM events WHERE event = 'journal.recovered'") == ["database is locked"]
    assert stored(path, "SELECT body ->> '$.waiting' FROM events WHERE event = 'journal.recovered'") == [999]
    said = [entry["event"] for entry in logs]
    assert said == ["the journal cannot be written; events wait", "the journal is written again"]


def test_opening_a_locked_database_says_so(path: Path) -> None:
    write(path, fact(1))
    blocker = _Blocker(path)
    with pytest.raises(JournalError, match="another program is writing to it"):
        Journal(path, sensor="s1").open()
    blocker.leave()


@pytest.mark.parametrize("bound", [{"max_waiting": 50}, {"max_waiting_bytes": 50 * 300}])
@pytest.mark.asyncio
async def test_a_full_queue_refuses_and_keeps_what_it_took(path: Path, bound: dict[str, Any]) -> None:
    journal = Journal(path, sensor="s1", **bound)
    journal.open()
    blocker = _Blocker(path)
    taken = 0
    with pytest.raises(JournalError, match="events wait to be written already"):
        for number in range(1000):
            journal.emit(fact(number, size=210))
            taken += 1
    assert 40 < taken <= 60
    assert journal.refused == 1
    blocker.leave()
    await journal.wait_written()
    assert len(stored(path)) == taken
    journal.emit(fact(-1))
    journal.close()
    assert len(stored(path)) == taken + 1


@pytest.mark.asyncio
async def test_the_queue_s_room_comes_back(path: Path) -> None:
    journal = Journal(path, sensor="s1", max_waiting=40, max_waiting_bytes=8000)
    journal.open()
    for number in range(400):
        journal.emit(fact(number, size=100))
        if number % 40 == 39:
            await journal.wait_written()
    journal.close()
    assert len(stored(path)) == 400


@pytest.mark.asyncio
async def test_closing_an_unwritable_journal_says_how_much_is_lost(path: Path) -> None:
    journal = Journal(path, sensor="s1")
    journal.open()
    blocker = _Blocker(path)
    for number in range(7):
        journal.emit(fact(number))
    waiter = asyncio.gather(journal.wait_written(), return_exceptions=True)
    await asyncio.sleep(0)
    with pytest.raises(JournalError, match="7 events could not be written: database is locked"):
        journal.close()
    assert isinstance((await waiter)[0], JournalError)
    blocker.leave()
    write(path, fact(8))


@pytest.mark.asyncio
async def test_a_journal_that_is_not_open_has_no_waiters(path: Path) -> None:
    journal = Journal(path, sensor="s1")
    with pytest.raises(JournalError, match="not open"):
        await journal.wait_written()
    assert not journal._waiting
    journal.open()
    journal.close()
    with pytest.raises(JournalError, match="not open"):
        await journal.wait_written()
    assert not journal._waiting


@pytest.mark.asyncio
async def test_a_cancelled_waiter_does_no_harm(path: Path) -> None:
    journal = Journal(path, sensor="s1")
    journal.open()
    blocker = _Blocker(path)
    journal.emit(fact(1))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(journal.wait_written(), 0.01)
    blocker.leave()
    await journal.wait_written()
    journal.close()


@pytest.mark.asyncio
async def test_a_journal_removed_while_it_is_written_is_begun_anew(path: Path) -> None:
    journal = Journal(path, sensor="s1")
    journal.open()
    journal.emit(fact(1))
    await journal.wait_written()
    path.rename(path.with_name("moved.db"))
    journal.emit(fact(2))
    await journal.wait_written()
    await eventually(lambda: journal.healthy)
    journal.close()
    assert stored(path) == ["2"]
    assert stored(path.with_name("moved.db")) == ["1"]
    assert stored(path, "SELECT body ->> '$.reason' FROM events WHERE event = 'journal.recovered'") == [
        "the journal's file was removed or replaced"
    ]


@pytest.mark.asyncio
async def test_live_sessions_are_not_ended_when_the_journal_is_opened_again(path: Path) -> None:
    journal = Journal(path, sensor="s1")
    journal.open()
    for one in login("live"):
        journal.emit(one)
    await journal.wait_written()
    copy = path.with_name("copy.db")
    with sqlite3.connect(path) as source, sqlite3.connect(copy) as target:
        source.backup(target)
    source.close()
    target.close()
    copy.rename(path)
    journal.emit(fact(1))
    await journal.wait_written()
    with JournalReader(path) as reader:
        assert reader.get_session("live").ended is None
    for one in logout("live"):
        journal.emit(one)
    journal.close()
    with JournalReader(path) as reader:
        assert reader.get_session("live").cause == "client"


def _overwrite_middle(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2 // 4096 * 4096)
        file.write(b"\xa5" * 8192)


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _empty(path: Path) -> None:
    os.truncate(path, 0)


def _replace(path: Path) -> None:
    path.write_bytes(b"this is no database at all\n" * 1000)


def _zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _short(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0")


def _remove_but_log(path: Path) -> None:
    path.unlink()
    Path(f"{path}-wal").write_bytes(b"x" * 100)


@pytest.mark.parametrize("damage", [_overwrite_middle, _truncate, _empty, _replace, _zero, _short, _remove_but_log])
@pytest.mark.asyncio
async def test_a_damaged_journal_is_kept_aside(path: Path, damage: Callable[[Path], None]) -> None:
    write(path, *(fact(number, size=500) for number in range(2000)))
    damage(path)
    before = path.read_bytes() if path.exists() else None
    with capture_logs() as logs:
        journal = Journal(path, sensor="s1")
        journal.open()
        journal.emit(fact(-1))
        await journal.wait_written()
        journal.close()
    assert "damaged" in logs[0]["event"]
    (kept,) = stored(path, "SELECT body ->> '$.kept' FROM events WHERE event = 'journal.damaged'")
    assert stored(path) == ["-1"]
    assert Path(kept).parent == path.parent
    assert Path(kept).name.startswith("journal.damaged-")
    if before is None:
        assert Path(f"{kept}-wal").read_bytes() == b"x" * 100
    else:
        assert Path(kept).read_bytes() == before


@pytest.mark.asyncio
async def test_damage_found_while_writing_is_kept_aside_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, *(events.ClientVersion(connection_id=f"{number:040}", version="x") for number in range(3000)))
    (root,) = stored(path, "SELECT rootpage FROM sqlite_schema WHERE name = 'events_connection'")
    with path.open("r+b") as file:
        file.seek((root - 1) * 4096)
        file.write(b"\xa5" * 4096)
    monkeypatch.setattr(database, "WHOLE_CHECK_BYTES", 0)
    journal = Journal(path, sensor="s1")
    journal.open()
    for number in range(10):
        journal.emit(fact(number))
    await journal.wait_written()
    await eventually(lambda: journal.healthy)
    journal.close()
    assert stored(path) == [str(number) for number in range(10)]
    assert stored(path, "SELECT event FROM events WHERE event GLOB 'journal.*'") == ["journal.damaged", "journal.recovered"]
    assert list(path.parent.glob("journal.damaged-*.db"))


@pytest.mark.asyncio
async def test_what_other_programs_inserted_does_not_stop_it(path: Path) -> None:
    journal = Journal(path, sensor="s1")
    journal.open()
    with sqlite3.connect(path) as db:
        db.execute("INSERT INTO events (id, time, sensor, event, body) VALUES (1, 1, 'x', 'x', '{}')")
    db.close()
    journal.emit(fact(1))
    await journal.wait_written()
    journal.close()
    assert stored(path) == ["1"]


def test_a_newer_journal_is_refused_and_left_alone(path: Path) -> None:
    write(path, fact(1))
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 1000")
    db.close()
    before = path.read_bytes()
    with pytest.raises(JournalError, match="written by a newer Hermes: its tables are of version 1000"):
        Journal(path, sensor="s1").open()
    assert path.read_bytes() == before


def test_somebody_else_s_database_is_refused_and_left_alone(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE addresses (name)")
    db.close()
    before = path.read_bytes()
    with pytest.raises(JournalError, match="not a journal of Hermes"):
        Journal(path, sensor="s1").open()
    assert path.read_bytes() == before


def test_a_half_made_journal_is_made_again(path: Path) -> None:
    path.with_name("journal.db.new").write_bytes(b"half")
    write(path, fact(1))
    assert stored(path) == ["1"]
    assert not path.with_name("journal.db.new").exists()


@pytest.mark.asyncio
async def test_the_write_ahead_log_stays_small(path: Path) -> None:
    journal = Journal(path, sensor="s1")
    journal.open()
    largest = 0
    for _ in range(40):
        for number in range(500):
            journal.emit(fact(number, size=2000))
        await journal.wait_written()
        largest = max(largest, Path(f"{path}-wal").stat().st_size)
    journal.close()
    assert path.stat().st_size > 40_000_000
    assert largest <= database.WAL_BYTES


@pytest.mark.asyncio
async def test_it_is_read_while_it_is_written(path: Path) -> None:
    journal = Journal(path, sensor="s1")
    journal.open()
    with JournalReader(path) as reader:
        for number in range(20):
            for one in login(f"session-{number}"):
                journal.emit(one)
            await journal.wait_written()
            assert len(reader.list_sessions(100)) == number + 1
    journal.close()


@pytest.mark.asyncio
async def test_a_crash_of_the_writer_is_loud(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ArithmeticError("a bug")

    said: list[Any] = []
    monkeypatch.setattr("threading.excepthook", said.append)
    monkeypatch.setattr("hermes.store.journal.book", broken)
    journal = Journal(path, sensor="s1")
    journal.open()
    journal.emit(fact(1))
    with pytest.raises(JournalError, match="closed before"):
        await journal.wait_written()
    assert not journal.healthy
    with pytest.raises(JournalError):
        journal.emit(fact(2))
    with pytest.raises(JournalError, match="1 events could not be written"):
        journal.close()
    assert isinstance(said[0].exc_value, ArithmeticError)


@pytest.mark.asyncio
async def test_a_disk_that_hangs_is_not_healthy(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hermes.store.journal.STALL_SECONDS", 0.05)
    monkeypatch.setattr("hermes.store.journal.BUSY_SECONDS", 60)
    journal = Journal(path, sensor="s1")
    journal.open()
    blocker = _Blocker(path)
    assert journal.healthy
    journal.emit(fact(1))
    await eventually(lambda: not journal.healthy)
    blocker.leave()
    await journal.wait_written()
    assert journal.healthy
    journal.close()
    assert stored(path, "SELECT count(*) FROM events") == [1]


@pytest.mark.asyncio
async def test_what_is_committed_soon_reaches_the_database_itself(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint ends with an fsync: that is what bounds the loss in a power cut."""
    monkeypatch.setattr("hermes.store.journal.SYNC_SECONDS", 0.05)
    journal = Journal(path, sensor="s1")
    journal.open()
    journal.emit(fact(1))
    await journal.wait_written()
    alone = path.with_name("alone.db")

    def there() -> bool:
        alone.write_bytes(path.read_bytes())
        return stored(alone) == ["1"]

    await eventually(there)
    journal.close()


def test_a_journal_cannot_make_its_reader_call_functions(path: Path) -> None:
    write(path, *login("s"))
    db = database.connect(path, mode="ro", busy_timeout=1)
    assert db.execute("PRAGMA trusted_schema").fetchone() == (0,)
    db.close()


def test_who_watches_sees_what_is_taken_and_nothing_else(path: Path) -> None:
    seen: list[events.Event] = []
    path.write_bytes(b"no database" * 1000)
    journal = Journal(path, sensor="s", max_waiting=2, on_event=seen.append)
    journal.open()
    with pytest.raises(JournalError):
        for number in range(100_000):
            journal.emit(fact(number))
    journal.close()
    with pytest.raises(JournalError):
        journal.emit(fact(0))
    assert isinstance(seen[0], events.JournalDamaged)
    assert len(seen) == len(stored(path, "SELECT id FROM events"))


def test_a_clock_that_is_set_moves_no_event_and_ends_no_session_before_it_began(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1_800_000_000_000_000_000]
    monkeypatch.setattr("hermes.store.waiting.time.time_ns", lambda: clock[0])
    journal = Journal(path, sensor="s1")
    journal.open()
    for number, hours in enumerate((0, 1000, -2000, 0)):
        clock[0] += hours * 3600 * 10**9
        journal.emit(fact(number))
    for event in login("s"):
        journal.emit(event)
    clock[0] -= 5000 * 3600 * 10**9
    for event in logout("s"):
        journal.emit(event)
    journal.close()
    assert stored(path) == ["0", "1", "2", "3"]
    assert stored(path, "SELECT id FROM events ORDER BY id") == list(range(1, 4 + len(login("s")) + len(logout("s")) + 1))
    with JournalReader(path) as reader:
        (session,) = reader.list_sessions()
    assert session.ended == session.started
    write(path, fact(4))
    assert stored(path)[-1] == "4"
