import asyncio
import json
import os
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from hermes import events
from hermes.store import Journal, lines
from hermes.store.lines import Row, ascii_json, line
from tests.unit.store.facts import eventually, fact, login, stored


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(each) for each in path.read_text().splitlines()] if path.exists() else []


def versions(path: Path) -> list[str]:
    return [each["version"] for each in read(path) if each["event"] == "connection.version"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def test_a_line_has_id_time_sensor_and_the_event() -> None:
    row = Row(7, 1_767_323_045_678_901, "s1", b'{"event":"auth.attempt","username":"root"}')
    assert line(row) == (
        b'{"id":7,"time":"2026-01-02T03:04:05.678901Z","sensor":"s1","event":"auth.attempt","username":"root"}\n'
    )


def test_microseconds_keep_their_zeros() -> None:
    assert b'"time":"1970-01-01T00:00:01.000007Z"' in line(Row(1, 1_000_007, "s", b'{"event":"x"}'))


@pytest.mark.parametrize(
    "text", ["\x1b[2J", "\x9b2J", "\x7f", "\u202e", "\u2028", "\r\n", "é\x7f", "\U0001f980", '"\\', "\0", "\ufeff", "\\u007f"]
)
def test_json_is_printable_ascii_and_exact(text: str) -> None:
    body = json.dumps({"text": text}, ensure_ascii=False).encode()
    safe = ascii_json(body)
    assert re.fullmatch(rb"[\x20-\x7e]*", safe)
    assert json.loads(safe) == {"text": text}


@pytest.mark.asyncio
async def test_lines_are_what_the_journal_holds(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "events.jsonl"
    journal = Journal(path, sensor="s1", lines=target)
    journal.open()
    for one in (*login("a", username="r\x1b[2Jé\n"), *(fact(number) for number in range(2000))):
        journal.emit(one)
    journal.close()
    written = read(target)
    assert [each["id"] for each in written] == stored(path, "SELECT id FROM events ORDER BY id")
    bodies = [json.loads(body) for body in stored(path, "SELECT body FROM events ORDER BY id")]
    assert [{key: value for key, value in each.items() if key not in ("id", "time", "sensor")} for each in written] == bodies
    assert re.fullmatch(rb"[\x20-\x7e\n]*", target.read_bytes())
    assert target.stat().st_mode & 0o027 == 0


@pytest.mark.asyncio
async def test_lines_are_appended_after_a_restart(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "events.jsonl"
    for number in range(3):
        journal = Journal(path, sensor="s1", lines=target)
        journal.open()
        journal.emit(fact(number))
        journal.close()
    assert versions(target) == ["0", "1", "2"]


@pytest.mark.asyncio
async def test_a_rotated_file_is_opened_again(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "events.jsonl"
    journal = Journal(path, sensor="s1", lines=target)
    journal.open()
    journal.emit(fact(1))
    await eventually(lambda: versions(target) == ["1"])
    target.rename(tmp_path / "events.jsonl.1")
    journal.emit(fact(2))
    await eventually(lambda: versions(target) == ["2"])
    journal.close()
    assert versions(tmp_path / "events.jsonl.1") == ["1"]


@pytest.mark.asyncio
async def test_a_failing_file_costs_nothing_and_is_caught_up(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "RETRY_SECONDS", (0.01, 0.1))
    monkeypatch.setattr(lines, "QUEUE_BYTES", 1000)
    directory = tmp_path / "missing"
    target = directory / "events.jsonl"
    with capture_logs() as logs:
        journal = Journal(path, sensor="s1", lines=target)
        journal.open()
        for number in range(1500):
            journal.emit(fact(number))
            if number % 100 == 0:
                await journal.wait_written()
        await journal.wait_written()
        assert journal.healthy
        await eventually(lambda: len(logs) > 0)
        directory.mkdir()
        await eventually(lambda: len(versions(target)) == 1500)
        journal.emit(fact(1500))
        journal.close()
    assert versions(target) == [str(number) for number in range(1501)]
    assert [entry["event"] for entry in logs] == ["JSON lines cannot be written", "JSON lines are written again"]


@pytest.mark.asyncio
async def test_a_line_cut_short_is_finished(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a disk that is full in the middle of a line."""
    monkeypatch.setattr(lines, "RETRY_SECONDS", (0.01, 0.1))
    write, room = os.write, [200]

    def cramped(fd: int, data: bytes) -> int:
        if room[0] == 0:
            raise OSError(28, "No space left on device")
        count = write(fd, data[: room[0]])
        room[0] -= count
        return count

    monkeypatch.setattr(os, "write", cramped)
    target = tmp_path / "events.jsonl"
    journal = Journal(path, sensor="s1", lines=target)
    journal.open()
    for number in range(10):
        journal.emit(fact(number))
    await eventually(lambda: room[0] == 0)
    room[0] = 10**9
    await eventually(lambda: target.read_bytes().count(b"\n") == 10)
    journal.close()
    assert versions(target) == [str(number) for number in range(10)]


@pytest.mark.asyncio
async def test_a_line_cut_short_begins_anew_in_a_rotated_file(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "RETRY_SECONDS", (0.01, 0.1))
    write, room = os.write, [200]

    def cramped(fd: int, data: bytes) -> int:
        if room[0] == 0:
            raise OSError(28, "No space left on device")
        count = write(fd, data[: room[0]])
        room[0] -= count
        return count

    monkeypatch.setattr(os, "write", cramped)
    target = tmp_path / "events.jsonl"
    journal = Journal(path, sensor="s1", lines=target)
    journal.open()
    for number in range(10):
        journal.emit(fact(number))
    await eventually(lambda: room[0] == 0)
    target.rename(tmp_path / "events.jsonl.1")
    room[0] = 10**9
    whole = (tmp_path / "events.jsonl.1").read_bytes().split(b"\n")[:-1]
    await eventually(lambda: target.exists() and target.read_bytes().count(b"\n") == 10 - len(whole))
    journal.close()
    assert [json.loads(each)["version"] for each in whole] + versions(target) == [str(number) for number in range(10)]


@pytest.mark.asyncio
async def test_a_reader_that_does_not_read_holds_nothing_up(path: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    journal = Journal(path, sensor="s1", lines=pipe)
    journal.open()
    for number in range(5000):
        journal.emit(fact(number, size=100))
    await journal.wait_written()
    assert journal.healthy
    assert len(stored(path)) == 5000
    received = bytearray()
    os.set_blocking(reader, True)

    def drain() -> None:
        while data := os.read(reader, 65536):
            received.extend(data)

    thread = threading.Thread(target=drain)
    thread.start()
    await eventually(lambda: received.count(b"\n") == 5000)
    await asyncio.to_thread(journal.close)
    thread.join()
    os.close(reader)
    assert [json.loads(each)["id"] for each in received.splitlines()] == list(range(1, 5001))


@pytest.mark.asyncio
async def test_standard_output(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    journal = Journal(path, sensor="s1", lines="stdout")
    journal.open()
    journal.emit(fact(1))
    journal.emit(events.ChannelInput(session_id="s", channel=0, line="\x1b[2J\n"))
    journal.close()
    first, second = map(json.loads, capfd.readouterr().out.splitlines())
    assert (first["version"], second["line"]) == ("1", "\x1b[2J\n")
    os.fstat(1)


@pytest.mark.asyncio
async def test_lines_follow_a_journal_that_was_begun_anew(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "events.jsonl"
    journal = Journal(path, sensor="s1", lines=target)
    journal.open()
    journal.emit(fact(1))
    journal.emit(fact(2))
    await eventually(lambda: versions(target) == ["1", "2"])
    path.rename(tmp_path / "moved.db")
    journal.emit(fact(3))
    await eventually(lambda: versions(target) == ["1", "2", "3"])
    journal.close()
    assert [each["id"] for each in read(target)] == [1, 2, 1, 2]


@pytest.mark.asyncio
async def test_a_full_file_is_put_aside_under_the_id_of_its_last_line(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "events.jsonl"
    journal = Journal(path, sensor="s1", lines=target, rotate_lines=2000)
    journal.open()
    for number in range(60):
        journal.emit(fact(number, size=100))
        await journal.wait_written()
    journal.close()
    aside = lines.put_aside(target)
    assert len(aside) > 3
    assert [number for each in (*aside, target) for number in versions(each)] == [f"{n}{'x' * 100}" for n in range(60)]
    for each in aside:
        assert each == lines.put_aside_name(target, read(each)[-1]["id"])
        assert 2000 <= each.stat().st_size < 2000 + 20_000
    assert lines.put_aside(tmp_path / "other.jsonl") == []


@pytest.mark.asyncio
async def test_what_is_put_aside_overwrites_nothing(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "events.jsonl"
    taken = lines.put_aside_name(target, 1)
    taken.write_text("of a journal before")
    journal = Journal(path, sensor="s1", lines=target, rotate_lines=1)
    journal.open()
    journal.emit(fact(1))
    await eventually(lambda: len(lines.put_aside(target)) == 2)
    journal.close()
    assert taken.read_text() == "of a journal before"
    assert versions(lines.put_aside_name(target, 2)) == ["1"]


@pytest.mark.asyncio
async def test_a_file_that_cannot_be_renamed_is_still_written(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Path, target: Path) -> Path:
        raise PermissionError(13, "Permission denied")

    target = tmp_path / "events.jsonl"
    with capture_logs() as logs:
        journal = Journal(tmp_path / "journal.db", sensor="s1", lines=target, rotate_lines=1)
        journal.open()
        monkeypatch.setattr(Path, "rename", refused)
        for number in range(5):
            journal.emit(fact(number))
            await journal.wait_written()
        journal.close()
    assert versions(target) == [str(number) for number in range(5)]
    assert [entry["event"] for entry in logs] == ["JSON lines grow without bound: their file cannot be renamed"]
