"""The journal when its process is killed at any moment, its disk is full, or root has looked into it."""

import asyncio
import json
import multiprocessing
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from hermes import events
from hermes.store import Journal, JournalReader
from tests.unit.store.facts import eventually, fact, login, stored

KILLS = 60
ROOT = Path(__file__).parents[2]


def _sensor(path: Path, run: int, reports: Connection, seed: int) -> None:
    """State numbered facts and whole sessions without end; report each number that is known to be written."""

    async def main() -> None:
        choice = random.Random(seed)
        journal = Journal(path, sensor=f"run-{run}", lines=path.with_name("events.jsonl"))
        reports.send("opening")
        journal.open()
        number = 0
        while True:
            for _ in range(choice.choice((1, 3, 30, 700))):
                journal.emit(fact(number, size=choice.choice((0, 0, 200, 5000))))
                number += 1
            for one in login(f"{run}-{number}"):
                journal.emit(one)
            if choice.random() < 0.5:
                await journal.wait_written()
                reports.send(number)
            else:
                await asyncio.sleep(0)

    asyncio.run(main())


def _killed_sensor(path: Path, run: int, choice: random.Random) -> int:
    """Kill a sensor a random moment after it began to open the journal, or after it first knew that facts were written.

    Return how many of its facts it knew to be written.
    """
    context = multiprocessing.get_context("forkserver")
    reports, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_sensor, args=(path, run, theirs, choice.getrandbits(32)))
    process.start()
    theirs.close()
    assert reports.poll(60)
    assert reports.recv() == "opening"
    known = 0
    if run % 3:
        while not known:
            assert reports.poll(60)
            known = reports.recv()
    process.join(choice.choice((0.0, 0.01, 0.03, 0.1)) * choice.random())
    assert process.is_alive(), "the sensor ended by itself"
    process.kill()
    process.join()
    try:
        while reports.poll(0):
            known = reports.recv()
    except EOFError:
        pass
    reports.close()
    process.close()
    return known


def test_killed_at_any_moment_the_journal_is_a_prefix_of_what_was_emitted(tmp_path: Path) -> None:
    multiprocessing.set_forkserver_preload([__name__])
    path = tmp_path / "journal.db"
    choice = random.Random(20260102)
    for run in range(KILLS):
        known = _killed_sensor(path, run, choice)
        if not path.exists():
            continue
        assert stored(path, "PRAGMA integrity_check") == ["ok"]
        versions = f"SELECT body ->> '$.version' FROM events WHERE sensor = 'run-{run}' AND event GLOB '*.version' ORDER BY id"
        numbers = [int(version.rstrip("x")) for version in stored(path, versions)]
        assert numbers == list(range(len(numbers))), "a gap"
        assert len(numbers) >= known, "something known to be written is not there"
    assert list(tmp_path.glob("*damaged*")) == []

    journal = Journal(path, sensor="last")
    journal.open()
    journal.close()
    ids = stored(path, "SELECT id FROM events ORDER BY id")
    assert ids == list(range(1, len(ids) + 1))
    opened = stored(path, "SELECT session_id FROM events WHERE event = 'session.opened' ORDER BY id")
    assert stored(path, "SELECT session_id FROM sessions ORDER BY id") == opened
    assert stored(path, "SELECT id FROM commands ORDER BY id") == stored(
        path, "SELECT id FROM events WHERE event = 'channel.started' ORDER BY id"
    )
    assert stored(path, "SELECT count(*) FROM sessions WHERE cause IS NOT 'lost' OR ended < started") == [0]
    _lines_are_whole(tmp_path / "events.jsonl", ids)


def _lines_are_whole(path: Path, ids: list[int]) -> None:
    """Each line but the last of a killed run is whole, and says something that the journal says."""
    known = set(ids)
    for line in path.read_bytes().split(b"\n"):
        for part in line.split(b'{"id":')[1:]:
            try:
                identity = json.loads(b'{"id":' + part)["id"]
            except ValueError:
                continue
            assert identity in known


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory that other users can reach, unlike pytest's."""
    directory = Path(tempfile.mkdtemp(prefix="hermes-journal-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def _run(function: str, *args: str, **more: Any) -> dict[str, Any]:
    """Run a function of this module in a process of its own; return what it printed last, as JSON."""
    code = f"import sys; from {__name__} import {function}; {function}(*sys.argv[1:])"
    command = [*more.pop("before", ()), sys.executable, "-c", code, *args]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def fill_the_disk(directory: str) -> None:
    """Emit through a full disk; print what happened."""

    async def main() -> None:
        path, ballast = Path(directory, "journal.db"), Path(directory, "ballast")
        journal = Journal(path, sensor="s1", lines=Path(directory, "events.jsonl"))
        journal.open()
        journal.emit(fact(0))
        await journal.wait_written()
        space = os.statvfs(directory)
        ballast.write_bytes(bytes(space.f_bfree * space.f_bsize - 200_000))
        number = 1
        while journal.healthy:
            journal.emit(fact(number, size=1000))
            number += 1
            await asyncio.sleep(0.001)
        for _ in range(300):
            journal.emit(fact(number))
            number += 1
        waiting = asyncio.gather(journal.wait_written())
        await asyncio.wait([waiting], timeout=0.5)
        was = {"healthy": journal.healthy, "written": waiting.done()}
        ballast.unlink()
        await waiting
        await eventually(lambda: journal.healthy)
        await journal.wait_written()
        versions = [int(version.rstrip("x")) for version in stored(path)]
        lines = Path(directory, "events.jsonl")
        await eventually(lambda: lines.read_bytes().count(b'"event":"connection.version"') == number)
        journal.close()
        print(
            json.dumps(
                {
                    **was,
                    "emitted": number,
                    "stored": versions,
                    "check": stored(path, "PRAGMA integrity_check"),
                    "recovered": stored(path, "SELECT body ->> '$.reason' FROM events WHERE event = 'journal.recovered'"),
                    "lines": [json.loads(line)["id"] for line in lines.read_text().splitlines()],
                    "ids": stored(path, "SELECT id FROM events ORDER BY id"),
                }
            )
        )

    asyncio.run(main())


@pytest.mark.root
def test_a_full_disk_loses_nothing(scratch: Path) -> None:
    mounted = ["unshare", "--mount", "sh", "-ec", 'mount -t tmpfs -o size=16m tmpfs "$1"; shift; exec "$@"', "sh", str(scratch)]
    result = _run("fill_the_disk", str(scratch), before=mounted)
    assert not result["healthy"]
    assert not result["written"]
    assert result["stored"] == list(range(result["emitted"]))
    assert result["check"] == ["ok"]
    assert result["recovered"] == ["database or disk is full"]
    assert result["lines"] == result["ids"]


def state_one_session(directory: str, session_id: str, end: str) -> None:
    """State a session; leave in good order, or be killed by our own hand."""

    async def main() -> None:
        journal = Journal(Path(directory, "journal.db"), sensor="s1")
        journal.open()
        for one in login(session_id):
            journal.emit(one)
        journal.emit(events.ChannelInput(session_id=session_id, channel=0, line=str(os.getuid())))
        await journal.wait_written()
        print(json.dumps({"done": session_id}), flush=True)
        if end == "killed":
            os.kill(os.getpid(), 9)
        journal.close()

    asyncio.run(main())


@pytest.mark.root
@pytest.mark.parametrize("end", ["closed", "killed"])
def test_root_can_look_without_getting_in_the_way_of_the_sensor_s_user(scratch: Path, end: str) -> None:
    """Root's reader makes files beside the journal: they must be the sensor's user's to write."""
    home = scratch / "data"
    home.mkdir()
    os.chown(home, 65534, 65534)
    # Imported as root, for the sources may lie where only root can read them; then root is given up for good.
    code = (
        f"import os, sys; sys.path.insert(0, '.'); from {__name__} import state_one_session as s; "
        "os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534); s(*sys.argv[1:])"
    )
    for session_id in ("first", "second"):
        command = [sys.executable, "-c", code, str(home), session_id, end]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == (0 if end == "closed" else -9), done.stderr
        with JournalReader(home / "journal.db") as reader:
            assert reader.get_session(session_id).commands == ["uname -a", "65534"]
    assert {each.stat().st_uid for each in home.iterdir()} == {65534}


def test_integrity_check_sees_damage(tmp_path: Path) -> None:
    """The check that the tests above rely on fails where it should."""
    path = tmp_path / "journal.db"
    journal = Journal(path, sensor="s1")
    journal.open()
    for number in range(3000):
        journal.emit(fact(number))
    journal.close()
    with path.open("r+b") as file:
        file.seek(8 * 4096)
        file.write(b"\xa5" * 4096)
    with pytest.raises(sqlite3.DatabaseError, match="malformed"):
        stored(path, "PRAGMA integrity_check")
