"""Timelines from a real journal and real recordings, also of a machine whose clock was set."""

import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from hermes import events
from hermes.config import RecordingConfig
from hermes.evidence.sources import timeline
from hermes.evidence.timeline import Item
from hermes.recording import SessionRecorder, recorder
from hermes.server.backend import SessionInfo
from hermes.store import Journal, JournalReader, waiting
from hermes.store.clock import ClockWatch
from tests.unit.store.facts import login

SECOND = 1_000_000_000


class Machine:
    """A machine's clocks, which the test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
        self.now, self.ahead = 1_000 * SECOND, 1_700_000_000 * SECOND
        self.root = root
        monkeypatch.setattr(recorder, "time", self)
        monkeypatch.setattr(waiting, "time", self)
        self.journal = Journal(root / "journal.db", sensor="s1")
        self.journal._clock = ClockWatch(self.time_ns, self.monotonic_ns)
        self.journal.open()

    def monotonic_ns(self) -> int:
        return self.now

    def time_ns(self) -> int:
        return self.now + self.ahead

    def passes(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)

    def record(self, session_id: str, channel: int) -> SessionRecorder:
        info = SessionInfo(session_id, "root", "192.0.2.7", 4001, authenticated=True)
        one = SessionRecorder(RecordingConfig(), info, channel=channel, output_dir=self.root / "recordings")
        one.start()
        return one

    def items(self, session_id: str) -> list[Item]:
        self.journal.close()
        with JournalReader(self.root / "journal.db") as reader, reader.snapshot() as db:
            return list(timeline(db, self.root / "recordings", session_id, f"c-{session_id}"))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path)


def play(machine: Machine, jumps: list[float]) -> list[Item]:
    """A session of ten seconds; after each, the clock is set by the next jump."""
    both: Any = {"connection_id": "c-s", "session_id": "s"}
    left = iter(jumps)
    for one in login("s")[:-1]:
        machine.journal.emit(one)
    for channel in (0, 1):
        it = machine.record("s", channel)
        machine.journal.emit(events.ChannelStarted(channel=channel, kind="shell", recording=it.relative_path, **both))
        for number in range(5):
            machine.passes(1)
            machine.ahead += int(next(left, 0) * SECOND)
            it.input(b"%d-%d\n" % (channel, number))
            machine.journal.emit(events.ChannelInput(channel=channel, line=f"{channel}-{number}", **both))
            machine.passes(0.001)
            it.output(b"done %d-%d" % (channel, number))
        it.close(exit_status=0)
        machine.journal.emit(events.ChannelClosed(channel=channel, exit_status=0, duration=5, bytes_in=20, bytes_out=50, **both))
    return machine.items("s")


@pytest.mark.parametrize(
    "jumps", [[], [0, 0, 3600], [-3600], [0] * 7 + [0.25], [0, 60, -30, 0, 0, -90, 0, 1000], [0, 0, 0, 0, 0, -86400]]
)
def test_bytes_and_events_are_in_one_order_whatever_the_clock_did(machine: Machine, jumps: list[float]) -> None:
    began = machine.time_ns() // 1000
    found = [one for one in play(machine, jumps) if one.kind in ("input", "line", "output")]
    expected = [
        (kind, f"{channel}-{number}") for channel in (0, 1) for number in range(5) for kind in ("input", "line", "output")
    ]
    assert [(one.kind, _name(one)) for one in found] == expected
    for place, one in enumerate(found):
        number, kind = divmod(place, 3)
        at = (number + 1) * 1_000_000 + number * 1000 + (1000 if kind == 2 else 0)
        assert abs(one.time - began - at) <= 2_000 * (1 + len(jumps)), "by one clock"
    changed = [one for one in found if one.kind == "line" and one.stated is not None]
    assert bool(changed) == bool(jumps)


def _name(one: Item) -> str:
    return str(one.body["line"]) if one.kind == "line" else one.data.decode().strip().removeprefix("done ")


def test_a_session_of_a_hundred_thousand_facts_comes_as_a_stream(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    journal = Journal(path, sensor="s1")
    journal.open()
    for one in login("s"):
        journal.emit(one)
    journal.close()
    body = '{"event":"process.started","session_id":"s","container_id":"b","channel":0,"pid":%d,"parent":1,"argv":["true"]}'
    now = time.time_ns() // 1000
    with sqlite3.connect(path) as db:
        rows = ((number, now + number, "s1", "process.started", "c-s", "s", body % number) for number in range(100, 100_100))
        db.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
    db.close()
    with JournalReader(path) as reader, reader.snapshot() as snapshot:
        items = timeline(snapshot, tmp_path / "recordings", "s", "c-s")
        assert next(items).event == "connection.opened"
        rest = [one.command for one in items]
    assert len(rest) == 100_000 + len(login("s")) - 1
    assert rest[-1] == "uname -a"
