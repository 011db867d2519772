"""kill -9 of any process at any moment, hundreds of times under load: nothing is left behind, nothing that was seen is lost.

HERMES_TEST_KILLS and HERMES_TEST_SEED make the storm longer, or the same again.
"""

import asyncio
import contextlib
import os
import random
import re
import secrets
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from hermes.broker.launcher import instance_of, runtime_dir
from hermes.recording.lossless import Kind
from hermes.recording.reader import channels
from tests.sensors import Sensor, Start, left_behind, wait_until

KILLS = int(os.environ.get("HERMES_TEST_KILLS", "300"))
CLIENTS = 4
LAUNCHER_EVERY = 60
"""Every so many kills it is the launcher's turn, after which Hermes is started again."""
PAUSES = (0.0, 0.0, 0.02, 0.1, 0.3, 0.8)
"""Seconds between two kills, one of these at random: some hit what is just being started or cleaned up."""
COMMAND = (
    'echo begin {0}; echo {0} >/root/found; i=0; while [ $i -lt 60 ]; do echo "{0} $i"; i=$((i+1)); '
    "[ $((i % 20)) = 0 ] && sleep 0.1; done; true"
)
LOGIN: dict[str, Any] = {"username": "root", "password": "root", "known_hosts": None, "config": None, "client_keys": None}
KINDS = ("spawner", "watcher", "front", "broker", "zygote", "init", "runtime", "analyst", "outputs")
COSTLY = ("front", "broker", "zygote")
"""Kinds whose death ends many sessions: killed less often, and mostly not again before the sensor is back."""

pytestmark = [pytest.mark.root, pytest.mark.timeout(3000)]


@dataclass
class Seen:
    """What the clients saw, by the token that each channel's command prints."""

    output: dict[str, bytes] = field(default_factory=dict)
    whole: int = 0
    refused: int = 0


def below(pid: int) -> list[int]:
    """Every process below this one."""
    try:
        children = [int(it) for task in Path(f"/proc/{pid}/task").iterdir() for it in (task / "children").read_text().split()]
    except OSError:
        return []
    return [it for child in children for it in (child, *below(child))]


def kind_of(pid: int, launcher: int) -> str:
    """What a process of Hermes's is, '' for one of an attacker's or one that has gone."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        parent = int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
        own_pids = Path(f"/proc/{pid}/ns/pid").readlink() == Path("/proc/self/ns/pid").readlink()
    except OSError:
        return ""
    if not own_pids:
        return "init" if parent == launcher else ""
    for process in ("front", "analyst", "outputs"):
        if f"{process}-process".encode() in command:
            return process
    if b"hermes.broker" in command:
        return "broker"
    if name == "hermes-zygote":
        return "zygote"
    if name == "hermes-watcher":
        return "watcher"
    if command[0].startswith(b"sshd: "):
        return "spawner"
    return "runtime" if name in ("crun", "runc") or b"--bundle" in command else ""


class Storm:
    """Clients that never stop, and a killer."""

    def __init__(self, start: Start, dice: random.Random) -> None:
        self.start = start
        self.dice = dice
        self.sensor: Sensor = start(**self.settings())
        self.said = [self.sensor]
        self.seen = Seen()
        self.killed: Counter[str] = Counter()
        self.over = asyncio.Event()
        self.progress = asyncio.Event()

    def settings(self) -> dict[str, str]:
        return {"container_pool__size": "4", "server__per_address__connections_per_minute": "0", "server__max_startups": "1000"}

    async def rage(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(self.attack())
            while self.killed.total() < KILLS:
                await asyncio.sleep(self.dice.choice(PAUSES) * self.dice.random())
                if self.killed.total() % LAUNCHER_EVERY == LAUNCHER_EVERY - 1:
                    await self.kill_launcher()
                elif self.kill_one() in COSTLY and self.dice.random() < 0.8:
                    await self.calm()
            self.over.set()

    async def calm(self) -> None:
        """Let things go on until a client sees something again: a sensor that never gets up could not lose anything."""
        self.progress.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.progress.wait(), 60)

    def kill_one(self) -> str:
        """Kill one process, and return what it was."""
        launcher = self.sensor.process.pid
        found: dict[str, list[int]] = {}
        for pid in below(launcher):
            found.setdefault(kind_of(pid, launcher), []).append(pid)
        found.pop("", None)
        if not found:
            return ""
        kind = self.dice.choices(sorted(found), [1 if kind in COSTLY else 4 for kind in sorted(found)])[0]
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.dice.choice(found[kind]), signal.SIGKILL)
            self.killed[kind] += 1
        return kind

    async def kill_launcher(self) -> None:
        self.sensor.process.kill()
        self.killed["launcher"] += 1
        await asyncio.to_thread(self.sensor.process.wait)
        self.sensor = await asyncio.to_thread(lambda: self.start(self.sensor.data_dir, **self.settings()))
        self.said.append(self.sensor)
        await self.calm()

    async def attack(self) -> None:
        while not self.over.is_set():
            try:
                async with asyncio.timeout(60), asyncssh.connect("127.0.0.1", self.sensor.port, **LOGIN) as connection:
                    await asyncio.gather(*(self.run(connection) for _ in range(2)))
            except (OSError, asyncssh.Error, TimeoutError):
                self.seen.refused += 1
                await asyncio.sleep(0.05)

    async def run(self, connection: asyncssh.SSHClientConnection) -> None:
        token = secrets.token_hex(8)
        process = await connection.create_process(COMMAND.format(token), encoding=None)
        got = bytearray()
        try:
            while data := await process.stdout.read(4096):
                got += data
                self.progress.set()
        finally:
            self.seen.output[token] = bytes(got)
            if not got:
                await asyncio.sleep(0.1)  # refused: a client that comes again at once would only take the machine's time
        self.seen.whole += got.endswith(f"{token} 59\n".encode())


def recorded(root: Path) -> dict[str, tuple[str, bytes]]:
    """Session and output of each recorded channel, by its token."""
    found = {}
    for directory in root.glob("*/*"):
        for channel in channels(root, directory.name):
            output = b"".join(channel.raw(Kind.STDOUT))
            if match := re.match(rb"begin ([0-9a-f]{16})", output):
                found[match[1].decode()] = (directory.name, output)
    return found


def loop_devices(data_dir: Path) -> list[str]:
    """Loop devices that stand on a file of the data directory's."""
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if str(data_dir) in (backing := path.read_text()):
                found.append(backing.strip())
    return found


def eventually_nothing(left: Callable[[], list[str]]) -> None:
    """Fail with what is left, after a while."""
    deadline = time.monotonic() + 60
    while found := left():
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


@pytest.mark.asyncio
async def test_a_storm_of_kills_leaves_nothing_and_loses_nothing(start: Start) -> None:
    seed = os.environ.get("HERMES_TEST_SEED") or secrets.token_hex(4)
    print(f"HERMES_TEST_SEED={seed}")
    storm = Storm(start, random.Random(seed))
    await storm.rage()
    print(f"killed {dict(storm.killed)}")
    print(f"{len(storm.seen.output)} channels, {storm.seen.whole} to their end; {storm.seen.refused} connections cut")
    sensor, data_dir = storm.sensor, storm.sensor.data_dir
    assert storm.killed.total() >= KILLS
    assert set(storm.killed) >= {*KINDS, "launcher"} - {"runtime"}, storm.killed
    assert storm.seen.whole > KILLS // 10, "hardly a session came to its end: the storm shows little"

    # The sensor works, and ends in good order.
    assert wait_until(lambda: sensor.ssh("echo calm").stdout) == b"calm\n"
    assert await asyncio.to_thread(sensor.stop) == 0
    for one in storm.said:
        assert "Traceback" not in one.said(), one.said().partition("Traceback")[2][:3000]

    # Nothing is left that no session owns.
    eventually_nothing(lambda: left_behind(data_dir))
    assert loop_devices(data_dir) == []
    assert [path for name in ("boxes", "trash") for path in (data_dir / name).glob("*")] == []
    assert not runtime_dir(data_dir).exists() or list(runtime_dir(data_dir).rglob("*")) == []
    assert list(Path("/dev/shm").glob(f"*{instance_of(data_dir)}*")) == []

    # What clients saw is a prefix of what is recorded, and the journal knows whose it is.
    found = recorded(data_dir / "recordings")
    lost = {token: output for token, output in storm.seen.output.items() if output and token not in found}
    assert lost == {}
    torn = [token for token, output in storm.seen.output.items() if output and not found[token][1].startswith(output)]
    assert torn == []
    with contextlib.closing(sqlite3.connect(data_dir / "journal" / "journal.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        known = {one for (one,) in db.execute("SELECT session_id FROM events WHERE session_id IS NOT NULL")}
        assert db.execute("SELECT count(*) FROM sessions WHERE ended IS NULL").fetchone() == (0,)
        failed = db.execute("SELECT body ->> '$.reason', count(*) FROM events WHERE event = 'channel.failed' GROUP BY 1")
        print("channels failed:", dict(failed))
        kept = {one for (one,) in db.execute("SELECT body ->> '$.kept' FROM events WHERE event = 'container.stopped'") if one}
    assert {session for token, (session, _) in found.items() if storm.seen.output.get(token)} - known == set()
    assert list(data_dir.glob("journal/*damaged*")) == []

    # The evidence of every box that is kept is whole.
    assert kept
    assert list((data_dir / "stopped" / ".held").iterdir()) == [], "boxes are noted as held that nobody holds"
    for place in (data_dir / "stopped").glob("[!.]*"):
        assert (place / "facts.json").is_file(), f"{place} is half"
