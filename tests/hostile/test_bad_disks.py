"""Whole sensors on full and read-only disks, without descriptors, without memory: loud, whole, and back to work by themselves."""

import contextlib
import os
import resource
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sensors import CLIENT, Sensor, Start, let_through, wait_until

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

MIB = 2**20


@contextlib.contextmanager
def mounted(place: Path, size: str) -> Iterator[Path]:
    """A file system of that size."""
    place.mkdir()
    let_through(place.parent)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.fixture
def disk(tmp_path: Path, images_dir: Path) -> Iterator[Path]:
    """A data directory on a small disk of its own."""
    with mounted(tmp_path / "disk", "192m") as place:
        (place / "images").symlink_to(images_dir)
        yield place


def free(place: Path) -> int:
    status = os.statvfs(place)
    return status.f_bavail * status.f_frsize


def fill(place: Path, leave: int = 0) -> Path:
    """Let somebody else's file take all of a disk but `leave` bytes."""
    ballast = place / "lost+found"
    with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while (left := free(place) - leave) > 0:
            file.write(bytes(min(left, MIB)))
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
        return self._ssh.stdout.readline()  # type: ignore[no-any-return]

    def close(self) -> None:
        self._ssh.kill()
        self._ssh.communicate()


def test_the_data_directory_is_full_and_empties(start: Start, disk: Path) -> None:
    sensor = start(disk, evidence__min_free="0")
    assert sensor.ssh("echo before").stdout == b"before\n"
    pids = sensor.pids()
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
    assert sensor.pids() == pids, "nothing had to be started afresh"
    assert events(sensor, "journal.recovered")
    sensor.sessions(ended=3)
    assert sensor.stop(signal.SIGINT) == 0
    is_whole(sensor)


def test_below_the_free_space_to_keep_sessions_go_on_and_nobody_new_is_let_in(start: Start, disk: Path) -> None:
    sensor = start(disk, evidence__min_free="32MiB")
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
    ballast = fill(disk)
    sensor = start(disk, ready=False)
    wait_until(lambda: sensor.process.poll() is not None or "ready after" in sensor.said())
    if sensor.process.poll() is None:  # it needed no room to start; it takes nobody
        assert sensor.ssh("echo never").stdout == b""
        assert sensor.stop(signal.SIGINT) in (0, 1)
    else:
        assert sensor.process.returncode == 1
        assert "No space left on device" in sensor.said() or "full" in sensor.said()
    assert "Traceback" not in sensor.said()
    ballast.unlink()
    again = start(disk, evidence__min_free="0")
    assert again.ssh("echo fine").stdout == b"fine\n"
    assert again.stop(signal.SIGINT) == 0
    is_whole(again)


def test_recordings_on_a_disk_that_turns_read_only(start: Start, tmp_path: Path) -> None:
    with mounted(tmp_path / "recordings", "32m") as place:
        sensor = start(recording__output_dir=str(place), evidence__min_free="0")
        assert sensor.ssh("echo before").stdout == b"before\n"
        sensor.sessions(ended=1)
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        failed = sensor.ssh("echo unrecorded")
        assert (failed.returncode, failed.stdout) == (255, b"")
        assert any("Read-only file system" in body for body in events(sensor, "recording.failed"))
        subprocess.run(["mount", "-o", "remount,rw", place], check=True)
        back_to_work(sensor)
        assert sensor.stop(signal.SIGINT) == 0
        is_whole(sensor)


def test_a_session_at_the_limit_of_its_recording_is_ended_and_whole(start: Start) -> None:
    sensor = start(recording__max_channel_bytes="1MiB")
    done = sensor.ssh("yes 0123456789")
    assert done.returncode == 255
    assert any("recording.max_channel_bytes" in body for body in events(sensor, "limit.reached"))
    (session,) = sensor.sessions(ended=1)
    raw = sensor.hermes("sessions", "replay", session["session_id"], "--raw", "stdout").stdout
    assert raw.startswith(done.stdout), "delivered and not recorded"
    assert len(raw) > 400_000
    assert sensor.ssh("echo next").stdout == b"next\n"
    assert sensor.stop(signal.SIGINT) == 0


def test_the_front_runs_out_of_descriptors(start: Start) -> None:
    sensor = start()
    front = sensor.pids()["front"]
    before = resource.prlimit(front, resource.RLIMIT_NOFILE)
    used = max(int(path.name) for path in Path(f"/proc/{front}/fd").iterdir())
    for left in (1, 3, 6, 9, 12):
        resource.prlimit(front, resource.RLIMIT_NOFILE, (used + 1 + left, before[1]))
        clients = [Terminal(sensor) for _ in range(4)]
        wait_until(lambda: "cannot be accepted" in sensor.said())
        for client in clients:
            client.close()
    assert len(sensor.said()) < 60_000, "it spins"
    resource.prlimit(front, resource.RLIMIT_NOFILE, before)
    back_to_work(sensor)
    assert sensor.pids()["front"] == front
    assert sensor.stop(signal.SIGINT) == 0
    is_whole(sensor)


def test_the_front_runs_out_of_memory(start: Start) -> None:
    sensor = start()
    front = sensor.pids()["front"]
    before = resource.prlimit(front, resource.RLIMIT_AS)
    size = int(Path(f"/proc/{front}/statm").read_text().split()[0]) * resource.getpagesize()
    for more in (0, MIB, 4 * MIB):
        with contextlib.suppress(ProcessLookupError):  # it may end; then another is started
            resource.prlimit(front, resource.RLIMIT_AS, (size + more, before[1]))
            for _ in range(3):
                sensor.ssh("head -c 3000000 /dev/zero")
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(front, resource.RLIMIT_AS, before)
    back_to_work(sensor)
    assert sensor.stop(signal.SIGINT) == 0
    db = sqlite3.connect(f"file:{sensor.data_dir / 'journal' / 'journal.db'}?mode=ro", uri=True)
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()
