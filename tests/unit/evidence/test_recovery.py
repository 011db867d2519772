"""Sessions that a killed front had recorded and not stated."""

import time
from pathlib import Path

from hermes import events
from hermes.config.keeping import RecordingConfig
from hermes.evidence.recovery import unstated
from hermes.recording import SessionRecorder
from hermes.server.backend import SessionInfo
from tests.unit.store.facts import fact, login, write


def new_id(seconds_ago: float, tail: str) -> str:
    return f"{int((time.time() - seconds_ago) * 1000):012x}{tail}"


def record(root: Path, session_id: str, *, channel: int = 1, command: bytes | None = None) -> str:
    recorder = SessionRecorder(
        RecordingConfig(output_dir=root), SessionInfo(session_id, "adm\x1bin", "192.0.2.7", 4711),
        channel=channel, kind="shell" if command is None else "exec", command=command,
    )  # fmt: skip
    recorder.start()
    recorder.output(b"seen")
    recorder.close()
    return recorder.relative_path


def test_what_was_recorded_and_not_stated_is_stated(tmp_path: Path) -> None:
    known, missing, old = new_id(1, "00000000000a"), new_id(1, "00000000000b"), new_id(3600, "00000000000c")
    write(tmp_path / "journal.db", *login(known), fact(1))
    for session_id in (known, old):
        record(tmp_path, session_id)
    paths = [record(tmp_path, missing), record(tmp_path, missing, channel=2, command=b"id\xff")]
    recovered, opened, *started, closed = unstated(tmp_path / "journal.db", tmp_path)
    assert recovered == events.SessionRecovered(session_id=missing, channels=2)
    assert opened == events.SessionOpened(
        session_id=missing, username="adm\x1bin", source_ip="192.0.2.7", source_port=4711, client_version=""
    )
    assert started == [
        events.ChannelStarted(session_id=missing, channel=1, kind="shell", recording=paths[0]),
        events.ChannelStarted(session_id=missing, channel=2, kind="exec", command="id\\xff", recording=paths[1]),
    ]
    assert isinstance(closed, events.SessionClosed)
    assert closed.cause == "lost"


def test_once_stated_it_is_known(tmp_path: Path) -> None:
    write(tmp_path / "journal.db", fact(1))
    record(tmp_path, new_id(0, "00000000000b"))
    found = unstated(tmp_path / "journal.db", tmp_path)
    assert len(found) == 4
    write(tmp_path / "journal.db", *found)
    assert unstated(tmp_path / "journal.db", tmp_path) == []


def test_nothing_is_made_up(tmp_path: Path) -> None:
    write(tmp_path / "journal.db")
    record(tmp_path, new_id(0, "00000000000b"))
    assert unstated(tmp_path / "journal.db", tmp_path) == []
    write(tmp_path / "journal.db", fact(1))
    assert unstated(tmp_path / "journal.db", tmp_path / "missing") == []
    day = next(path for path in tmp_path.iterdir() if path.is_dir())
    for name in (new_id(0, "00000000000d"), "not-an-id", "x" * 300):
        (day / name[:200]).mkdir()
    assert len(unstated(tmp_path / "journal.db", tmp_path)) == 4
