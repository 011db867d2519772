"""One attacker against everybody else: floods, stalls and full disks cost their own session, and no other."""

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import asyncssh
import pytest

from tests.sensors import CLIENT, Sensor, Start, let_through, wait_until

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def sensor(start: Start) -> Iterator[Sensor]:
    """One sensor for all floods: each must leave it whole for the next."""
    sensor = start(server__max_requests="1000")
    yield sensor
    assert sensor.stop() == 0
    assert "Traceback" not in sensor.said()


def rss(pid: int) -> int:
    """Resident memory in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


def test_a_gigabyte_to_a_reader_that_stops_reading(sensor: Sensor) -> None:
    front = sensor.pids()["front"]
    sensor.ssh("true")
    before = rss(front)
    with subprocess.Popen(
        ["sshpass", "-p", "root", "ssh", *CLIENT, "-p", str(sensor.port), "root@127.0.0.1", "head -c 1G /dev/zero"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
    ) as client:  # fmt: skip
        assert client.stdout is not None
        assert client.stdout.read(MIB) == bytes(MIB)
        most = 0
        for _ in range(20):
            assert sensor.ssh("echo fine").stdout == b"fine\n"
            most = max(most, rss(front))
        client.kill()
    assert most - before < 32 * MIB
    assert sensor.sessions(ended=22)


@pytest.mark.asyncio
async def test_a_client_that_plays_with_its_window(sensor: Sensor) -> None:
    front = sensor.pids()["front"]
    before = rss(front)
    async with asyncssh.connect(
        "127.0.0.1", sensor.port, username="root", password="root", known_hosts=None, client_keys=None, config=None
    ) as connection:  # fmt: skip
        process = await connection.create_process("cat", term_type="xterm", term_size=(80, 24), encoding=None)
        for number in range(100_000):
            process.change_terminal_size(80 + number % 100, 24 + number % 50)
            if number % 1000 == 0:
                await asyncio.sleep(0)
        process.stdin.write(b"\x04")
        assert (await asyncio.wait_for(process.wait(), 120)).exit_status == 0
    assert rss(front) - before < 16 * MIB
    newest = max(sensor.json("sessions", "list"), key=lambda item: item["started"])
    recordings = sensor.data_dir / "recordings"
    size = sum(path.stat().st_size for path in recordings.glob(f"*/{newest['session_id']}/*"))
    assert size < 256 * 1024


@pytest.mark.asyncio
async def test_vanishing_at_any_moment(sensor: Sensor) -> None:
    """Cut the TCP connection after each number of bytes: every await on the way is hit."""
    before = len(sensor.json("sessions", "list"))

    class Cut:
        """A proxy that forwards so many bytes from the client, then resets both sides."""

        def __init__(self, allowed: int) -> None:
            self.allowed = allowed

        async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", sensor.port)

            async def back() -> None:
                while data := await upstream_reader.read(65536):
                    writer.write(data)

            async with asyncio.TaskGroup() as group:
                backwards = group.create_task(back())
                while self.allowed > 0 and (data := await reader.read(min(65536, self.allowed))):
                    self.allowed -= len(data)
                    upstream.write(data)
                backwards.cancel()
            upstream.transport.abort()
            writer.transport.abort()

    for allowed in range(0, 4600, 230):
        cut = Cut(allowed)
        server = await asyncio.start_server(cut.serve, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            try:
                async with asyncio.timeout(30):
                    async with asyncssh.connect(
                        "127.0.0.1", port, username="root", password="root", known_hosts=None, client_keys=None, config=None
                    ) as connection:  # fmt: skip
                        await connection.run("cat", input="x" * 4000)
            except (OSError, asyncssh.Error):
                continue
    assert sensor.ssh("echo fine").stdout == b"fine\n"
    sensor.sessions(ended=before + 1)
    wait_until(lambda: all(session["ended"] is not None for session in sensor.json("sessions", "list")))


def test_many_connections_that_say_nothing(sensor: Sensor) -> None:
    import socket

    silent = [socket.create_connection(("127.0.0.1", sensor.port)) for _ in range(300)]
    try:
        assert sensor.ssh("echo fine").stdout == b"fine\n"
    finally:
        for sock in silent:
            sock.close()


def test_the_recordings_disk_is_full(start: Start, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    let_through(tmp_path)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", full], check=True)
    try:
        sensor = start(recording__output_dir=str(full), evidence__min_free="0")
        assert sensor.ssh("echo small").stdout == b"small\n"
        done = sensor.ssh("head -c 10000000 /dev/zero")
        assert done.returncode == 255
        assert len(done.stdout) < 2 * MIB
        session = sensor.sessions(ended=2)[0]
        detail = sensor.json("sessions", "show", session["session_id"])
        assert detail["cause"] == "recording-failed"
        for path in full.glob("*/*/*"):
            os.truncate(path, 0)
        assert sensor.ssh("echo again").stdout == b"again\n"
        assert sensor.stop(signal.SIGTERM) == 0
        assert "Traceback" not in sensor.said()
    finally:
        subprocess.run(["umount", "-l", full], check=True)
