import os
import re
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hermes import events
from hermes.errors import JournalError
from hermes.store import JournalReader, Session, queries, schema
from tests.unit.store.facts import fact, login, logout, write


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal of three sessions: `aa1` and `aa2` are over, `b` was lost; and of a connection that did not get in."""
    path = tmp_path / "journal.db"
    write(
        path,
        *login("aa1", username="root", source_ip="192.0.2.1"), *logout("aa1"), fact(1),
        *login("aa2", username="admin", source_ip="2001:db8::1"), *logout("aa2"),
        *login("b", username="root", source_ip="192.0.2.1", command="id"),
        events.ChannelOpened(session_id="b", channel=1), events.ChannelStarted(session_id="b", channel=1, kind="shell"),
        events.ChannelInput(session_id="b", channel=1, line="ls"), events.ChannelInput(session_id="b", channel=1, line=""),
        events.ChannelOpened(session_id="b", channel=2),
        events.ChannelStarted(session_id="b", channel=2, kind="subsystem", command="sftp"),
    )  # fmt: skip
    return path


def ids(sessions: list[Session]) -> list[str]:
    return [session.session_id for session in sessions]


def test_a_session_is_told_whole(path: Path) -> None:
    with JournalReader(path) as reader:
        session = reader.get_session("aa1")
    assert (session.username, session.source_ip, session.source_port) == ("root", "192.0.2.1", 4001)
    assert (session.sensor, session.client_version, session.connection_id) == ("s1", "SSH-2.0-Go", "c-aa1")
    assert (session.container_id, session.engine, session.image) == ("box1", "local", "debian-12")
    assert (session.channels, session.commands, session.command_count) == (1, ["uname -a"], 1)
    assert (session.cause, session.bytes_in, session.bytes_out) == ("client", 10, 200)
    assert session.started.tzinfo is UTC
    assert session.ended is not None
    assert session.started <= session.ended <= datetime.now(UTC)
    assert datetime.now(UTC) - session.started < timedelta(minutes=5)


def test_commands_are_execs_and_input_in_order(path: Path) -> None:
    with JournalReader(path) as reader:
        session = reader.get_session("b")
    assert session.commands == ["id", "ls", ""]
    assert session.channels == 3


def test_newest_first_and_page_by_page(path: Path) -> None:
    with JournalReader(path) as reader:
        assert ids(reader.list_sessions()) == ["b", "aa2", "aa1"]
        assert ids(reader.list_sessions(2)) == ["b", "aa2"]
        assert ids(reader.list_sessions(2, 2)) == ["aa1"]
        assert reader.list_sessions(2, 3) == []


def test_filters(path: Path) -> None:
    with JournalReader(path) as reader:
        assert ids(reader.list_sessions(username="root")) == ["b", "aa1"]
        assert ids(reader.list_sessions(source_ip="2001:db8::1")) == ["aa2"]
        assert ids(reader.list_sessions(username="admin", source_ip="192.0.2.1")) == []
        assert ids(reader.list_sessions(active=True)) == ["b"]
        assert ids(reader.list_sessions(active=False)) == ["aa2", "aa1"]
        second = reader.get_session("aa2").started
        assert ids(reader.list_sessions(since=second)) == ["b", "aa2"]
        assert ids(reader.list_sessions(since=second + timedelta(microseconds=1))) == ["b"]
        assert ids(reader.list_sessions(username="' OR 1=1 --")) == []


def test_a_prefix_is_enough_when_it_is_unique(path: Path) -> None:
    with JournalReader(path) as reader:
        assert reader.get_session("aa2").session_id == "aa2"
        assert reader.get_session("b").session_id == "b"
        with pytest.raises(JournalError, match="several sessions have an id like 'a': aa1, aa2"):
            reader.get_session("a")


@pytest.mark.parametrize("name", ["", "x", "%", "_", "aa1x", "a\0", "AA1", "*", "\udcff"])
def test_an_unknown_session_is_said_in_one_line(path: Path, name: str) -> None:
    with JournalReader(path) as reader, pytest.raises(JournalError, match="no session with an id like") as caught:
        reader.get_session(name)
    assert str(caught.value).isprintable()


def test_an_id_that_begins_another_s_is_found_exactly(tmp_path: Path) -> None:
    write(tmp_path / "journal.db", *login("ab"), *login("a"))
    with JournalReader(tmp_path / "journal.db") as reader:
        assert reader.get_session("a").session_id == "a"


def test_listed_commands_are_bounded_but_counted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "COMMANDS_LISTED", 2)
    with JournalReader(path) as reader:
        assert (reader.list_sessions(1)[0].commands, reader.list_sessions(1)[0].command_count) == (["id", "ls"], 3)
        assert len(reader.get_session("b").commands) == 3


def test_events_begin_before_the_login(path: Path) -> None:
    with JournalReader(path) as reader:
        stored = reader.session_events("aa1")
    assert [event.fact() for event in stored] == [
        *login("aa1", username="root", source_ip="192.0.2.1"), *logout("aa1"),
    ]  # fmt: skip
    assert [event.event for event in stored][:3] == ["connection.opened", "auth.attempt", "auth.attempt"]
    assert {event.connection_id for event in stored} == {"c-aa1"}
    assert [event.id for event in stored] == list(range(1, len(stored) + 1))


def test_events_of_nobody(path: Path) -> None:
    with JournalReader(path) as reader:
        assert reader.session_events("nobody") == []


def test_an_event_of_another_version_is_kept_as_it_is(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute(
            "INSERT INTO events (time, sensor, event, session_id, body) VALUES (1, 's1', 'moon.landed', 'b', ?)",
            ('{"event":"moon.landed","session_id":"b","crater":"Tycho"}',),
        )
    db.close()
    with JournalReader(path) as reader:
        last = reader.session_events("b")[-1]
    assert last.fact() is None
    assert last.body["crater"] == "Tycho"


def test_nothing_can_be_written(path: Path) -> None:
    before = path.read_bytes()
    with JournalReader(path) as reader:
        reader.list_sessions()
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            reader._db.execute("DELETE FROM events")
    assert path.read_bytes() == before


def test_a_journal_in_a_directory_that_is_closed_to_us(path: Path) -> None:
    path.parent.chmod(0)
    os.seteuid(65534)  # root may look anywhere
    try:
        with pytest.raises(JournalError, match="only root and the sensor's user can read it"):
            JournalReader(path)
    finally:
        os.seteuid(os.getuid())
        path.parent.chmod(0o700)


def test_a_missing_journal(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match=r"there is no journal at .*: no Hermes has run"):
        JournalReader(tmp_path / "journal.db")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "journal.db").write_bytes(b"nonsense" * 1000)
    with pytest.raises(JournalError, match="is damaged"):
        JournalReader(tmp_path / "journal.db")


def test_a_damaged_page(path: Path) -> None:
    (root,) = next(iter(_rows(path, "SELECT rootpage FROM sqlite_schema WHERE name = 'sessions'")))
    with path.open("r+b") as file:
        file.seek((root - 1) * 4096)
        file.write(b"\xa5" * 4096)
    with JournalReader(path) as reader, pytest.raises(JournalError, match="is damaged"):
        reader.list_sessions()


@pytest.mark.parametrize(("version", "text"), [(1000, "newer Hermes"), (0, "older Hermes: start `hermes up` once")])
def test_other_versions(path: Path, version: int, text: str) -> None:
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {version}")
    db.close()
    with pytest.raises(JournalError, match=text) as caught:
        JournalReader(path)
    assert re.search(re.escape(str(path)), str(caught.value))
    assert version != len(schema.MIGRATIONS)


def _rows(path: Path, query: str) -> list[tuple[int]]:
    db = sqlite3.connect(path)
    try:
        return db.execute(query).fetchall()
    finally:
        db.close()
