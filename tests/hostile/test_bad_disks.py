"""Whole sensors on full and read-only disks, without descriptors, without memory: loud, whole, and back to work by themselves."""

import asyncio
import contextlib
import json
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hermes.config import RecordingConfig, Settings
from hermes.errors import JournalError, RecordingError
from hermes.recording import SessionRecorder
from hermes.recording.lossless import Kind
from hermes.recording.reader import channels
from hermes.server.backend import SessionInfo
from hermes.store import Journal
from tests.sensors import CLIENT, Sensor, Start, wait_until
from tests.unit.store.facts import eventually, fact, stored

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

MIB = 2**20


@contextlib.contextmanager
def mounted(place: Path, size: int) -> Iterator[Path]:
    """An ext4 of that many MiB."""
    place.mkdir()
    image = place.with_suffix(".img")
    with image.open("wb") as file:
        file.truncate(size * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)
        image.unlink()


@pytest.fixture
def place(sensors_dir: Path) -> Path:
    """A directory that the front can reach, unlike pytest's."""
    found = Path(tempfile.mkdtemp(prefix="disk-", dir=sensors_dir))
    found.chmod(0o755)
    return found


@pytest.fixture
def disk(place: Path, images_dir: Path) -> Iterator[Path]:
    """A data directory on a small disk of its own."""
    with mounted(place / "disk", 400) as small:
        (small / "images").symlink_to(images_dir)
        yield small


def fill(place: Path, leave: int = 0) -> Path:
    """Let somebody else's file take all of a disk but `leave` bytes."""
    ballast = place / "ballast"
    with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            status = os.statvfs(place)
            left = status.f_bavail * status.f_frsize - leave
            if left <= 0:
                break
            size = file.seek(0, os.SEEK_END)
            if left > 8 * MIB:
                os.posix_fallocate(file.fileno(), size, left - 4 * MIB)
            else:
                file.write(bytes(min(left, 64 * 1024)))
    return ballast


def events(sensor: Sensor, *names: str) -> list[str]:
    path = sensor.data_dir / "journal" / "journal.db"
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        marks = ",".join("?" * len(names))
        return [body for (body,) in db.execute(f"SELECT body FROM events WHERE event IN ({marks}) ORDER BY id", names)]
    finally:
        db.close()


def is_whole(sensor: Sensor) -> None:
    """The journal is sound, and the sensor has said nothing that only a programmer understands."""
    db = sqlite3.connect(f"file:{sensor.data_dir / 'journal' / 'journal.db'}?mode=ro", uri=True)
    try:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    finally:
        db.close()
    assert "Traceback" not in sensor.said()


def back_to_work(sensor: Sensor) -> None:
    wait_until(lambda: sensor.ssh("echo back").stdout == b"back\n")


class Terminal:
    """A session that is on: it repeats what it is told."""

    def __init__(self, sensor: Sensor) -> None:
        self._ssh = subprocess.Popen(
            ["sshpass", "-p", "root", "ssh", *CLIENT, "-p", str(sensor.port), "root@127.0.0.1", "cat"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
        )  # fmt: skip

    def says(self, text: bytes) -> bytes:
        assert self._ssh.stdin is not None
        assert self._ssh.stdout is not None
        self._ssh.stdin.write(text)
        return self._ssh.stdout.readline()

    def close(self) -> None:
        self._ssh.kill()
        self._ssh.communicate()


def test_the_data_directory_is_full_and_empties(start: Start, disk: Path) -> None:
    sensor = start(disk, evidence__min_free="0")
    assert sensor.ssh("echo before").stdout == b"before\n"
    pids = {name: sensor.pids()[name] for name in ("front", "broker")}
    on = Terminal(sensor)
    assert on.says(b"recorded\n") == b"recorded\n"
    ballast = fill(disk)
    wait_until(lambda: sensor.ssh("echo unrecorded").returncode == 255)
    wait_until(lambda: "the journal cannot be written" in sensor.said())
    assert sensor.ssh("echo unrecorded").stdout == b""
    on.close()
    assert len(sensor.said()) < 20_000, "loud, not a flood"
    ballast.unlink()
    back_to_work(sensor)
    assert sensor.pids() | pids == sensor.pids(), "neither had to be started afresh"
    assert events(sensor, "journal.recovered")
    sensor.sessions(ended=3)
    assert sensor.stop(signal.SIGINT) == 0
    is_whole(sensor)


def test_below_the_free_space_to_keep_sessions_go_on_and_nobody_new_is_let_in(start: Start, disk: Path) -> None:
    sensor = start(disk, evidence__min_free="32MiB", artifacts__min_free="0")
    on = Terminal(sensor)
    assert on.says(b"one\n") == b"one\n"
    ballast = fill(disk, leave=20 * MIB)
    wait_until(lambda: events(sensor, "limit.reached"))
    refused = sensor.ssh("echo never")
    assert (refused.returncode, refused.stdout) == (255, b"")
    assert on.says(b"still recorded\n") == b"still recorded\n"
    ballast.unlink()
    wait_until(lambda: events(sensor, "evidence.resumed"))
    assert sensor.ssh("echo again").stdout == b"again\n"
    on.close()
    sensor.sessions(ended=2)
    (recording,) = [path for path in disk.glob("recordings/*/*/1.rec") if b"still recorded" in path.read_bytes()]
    assert b"one\n" in recording.read_bytes()
    assert all("evidence.min_free" in body for body in events(sensor, "limit.reached"))
    assert sensor.stop(signal.SIGINT) == 0
    is_whole(sensor)


def test_a_start_on_a_full_disk_ends_in_one_line_and_the_next_one_works(start: Start, disk: Path) -> None:
    first = start(disk, evidence__min_free="0")
    assert first.stop(signal.SIGINT) == 0
    ballast = fill(disk)
    sensor = start(disk, ready=False)
    assert sensor.process.wait(90) == 1
    assert "0.0 GB free" in sensor.said()
    assert "Traceback" not in sensor.said()
    ballast.unlink()
    again = start(disk, evidence__min_free="0")
    assert again.ssh("echo fine").stdout == b"fine\n"
    assert again.stop(signal.SIGINT) == 0
    is_whole(again)


def test_recordings_on_a_disk_that_turns_read_only(start: Start, place: Path) -> None:
    with mounted(place / "recordings", 32) as small:
        shutil.chown(small, Settings().sensor.user)
        sensor = start(recording__output_dir=str(small), evidence__min_free="0")
        assert sensor.ssh("echo before").stdout == b"before\n"
        sensor.sessions(ended=1)
        subprocess.run(["mount", "-o", "remount,ro", small], check=True)
        failed = sensor.ssh("echo unrecorded")
        assert (failed.returncode, failed.stdout) == (255, b"")
        wait_until(lambda: any("Read-only file system" in body for body in events(sensor, "recording.failed")))
        subprocess.run(["mount", "-o", "remount,rw", small], check=True)
        back_to_work(sensor)
        assert sensor.stop(signal.SIGINT) == 0
        is_whole(sensor)


def test_a_session_at_the_limit_of_its_recording_is_ended_and_whole(start: Start) -> None:
    sensor = start(recording__max_channel_bytes="1MiB")
    done = sensor.ssh("yes 0123456789")
    assert done.returncode == 255
    wait_until(lambda: any("recording.max_channel_bytes" in body for body in events(sensor, "limit.reached")))
    (session,) = sensor.sessions(ended=1)
    (recording,) = channels(sensor.data_dir / "recordings", session["session_id"])
    raw = b"".join(recording.raw(Kind.STDOUT))
    assert raw.startswith(done.stdout), "delivered and not recorded"
    assert len(raw) > 400_000
    assert sensor.ssh("echo next").stdout == b"next\n"
    assert sensor.stop(signal.SIGINT) == 0


def without_descriptors(directory: str) -> None:
    """Record and state facts, have the journal taken away while there is no descriptor, and go on when there is one."""

    async def main() -> None:
        path = Path(directory, "journal.db")
        journal = Journal(path, sensor="s1", lines=Path(directory, "events.jsonl"))
        journal.open()
        config, info = RecordingConfig(output_dir=Path(directory)), SessionInfo("s", "root", "192.0.2.7", 1)
        on = SessionRecorder(config, info, channel=1)
        on.start()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        on.output(b"still recorded")
        journal.emit(fact(1))
        await journal.wait_written()
        path.rename(path.with_name("moved.db"))
        journal.emit(fact(2))
        await eventually(lambda: not journal.healthy)
        error = ""
        try:
            SessionRecorder(config, info, channel=2).start()
        except RecordingError as failure:
            error = str(failure)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        late = SessionRecorder(config, info, channel=3)
        late.start()
        late.close()
        on.close()
        await journal.wait_written()
        await eventually(lambda: journal.healthy)
        await journal.wait_written()
        journal.close()
        recovered = stored(path, "SELECT body ->> '$.reason' FROM events WHERE event = 'journal.recovered'")
        recordings = [recording.channel for recording in channels(Path(directory), "s")]
        kept = [*stored(path.with_name("moved.db")), *stored(path)]
        print(json.dumps({"error": error, "recovered": recovered, "stored": kept, "recordings": recordings}))

    asyncio.run(main())


def alone(function: str, directory: Path) -> Any:
    """Run a function of this module in a process of its own; return what it printed last."""
    code = f"import sys; from {__name__} import {function}; {function}(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, directory], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_descriptors_run_out(tmp_path: Path) -> None:
    result = alone("without_descriptors", tmp_path)
    assert "Too many open files" in result["error"]
    assert result["stored"] == ["1", "2"]
    assert len(result["recovered"]) == 1
    assert result["recordings"] == [1, 3]


def without_memory(directory: str) -> None:
    """Record and state facts until there is no memory, and go on when there is; print what is there in the end."""

    async def main() -> None:
        journal = Journal(Path(directory, "journal.db"), sensor="s1")
        journal.open()
        recorder = SessionRecorder(RecordingConfig(output_dir=Path(directory)), SessionInfo("s", "root", "192.0.2.7", 1))
        recorder.start()
        stated = delivered = 0
        error = ""
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        ballast = []
        for more in (2 * MIB, MIB // 2, 0):
            resource.setrlimit(resource.RLIMIT_AS, (size + more, hard))
            with contextlib.suppress(MemoryError):
                while True:
                    ballast.append(bytearray(16 * 1024))
            for _ in range(50):
                with contextlib.suppress(MemoryError, JournalError):
                    journal.emit(fact(stated, size=100_000))
                    stated += 1
                with contextlib.suppress(MemoryError):
                    try:
                        recorder.output(b"%07d\0" % delivered * 8000)
                        delivered += 1
                    except RecordingError as failure:
                        error = str(failure)
                await asyncio.sleep(0.001)
            ballast.clear()
            resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        journal.emit(fact(-1))
        await journal.wait_written()
        await eventually(lambda: journal.healthy)
        journal.close()
        recorder.close()
        (recording,) = channels(Path(directory), "s")
        recorded = b"".join(recording.raw(Kind.STDOUT))
        versions = [int(version.rstrip("x")) for version in stored(journal.path)]
        whole = recorded.startswith(b"".join(b"%07d\0" % number * 8000 for number in range(delivered)))
        print(json.dumps({"stated": stated, "stored": versions, "whole": whole, "delivered": delivered, "error": error}))

    asyncio.run(main())


def test_memory_runs_out(tmp_path: Path) -> None:
    result = alone("without_memory", tmp_path)
    assert result["stored"] == [*range(result["stated"]), -1]
    assert result["whole"]
