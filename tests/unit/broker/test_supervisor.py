"""Broker and front, each kept running by itself: played by small programs that say what the real ones say."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from hermes.broker import supervisor as supervisor_module
from hermes.broker.children import Child, Children, environment
from hermes.broker.supervisor import Supervisor
from hermes.config import Settings
from hermes.errors import ConfigError, MachineError

PATIENCE = 30.0

PLAYER = """
import json, os, select, signal, socket, sys, time
argument = {name: int(value) for name, value in zip(sys.argv[1::2], sys.argv[2::2])}
settings = json.loads(os.read(argument["--settings"], 1 << 20))
control = socket.socket(fileno=argument["--control"])
log = os.open(os.environ["HERMES_TEST_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
role = ROLE
def note(what):
    os.write(log, f"{role} {os.getpid()} {what}\\n".encode())
def ended(number, frame):
    note(signal.Signals(number).name)
    raise SystemExit(0)
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, ended)
note("started " + str(settings["server"]["banner"]))
if settings["server"]["banner"] == "broken":
    os.write(argument["--status"], b"failed it is broken\\n")
    raise SystemExit(1)
os.write(argument["--status"], READY)
while True:
    if select.select([control], [], [], 0.05)[0]:
        packet, fds, *_ = socket.recv_fds(control, 65536, 3)
        if not packet:
            note("left alone")
            raise SystemExit(0)
        kind = "peer" if b"Peer" in packet else "reload " + str(json.loads(os.pread(fds[0], 1 << 20, 0))["server"]["banner"])
        note(kind + (" of dead" if b"killed" in packet else ""))
    if settings["server"]["banner"] != "silent":
        os.write(argument["--status"], b"alive\\n")
    if settings["server"]["banner"] == "cuts off" and role == "broker":
        os.write(argument["--status"], b"alone\\n")
"""


class Stage:
    """A supervisor of two players; what they note is in `log`."""

    def __init__(self, place: Path, banner: str = "first") -> None:
        for module, role, ready in (("a_broker", "broker", "ready"), ("a_front", "front", "listening")):
            text = PLAYER.replace("ROLE", repr(role)).replace("READY", f"b'{ready}\\n'")
            (place / f"{module}.py").write_text(text)
        self.log = place / "notes"
        self.said: list[str] = []
        self.banner = banner
        self.sock = socket.socket()
        self.sock.bind(("127.0.0.1", 0))
        self.supervisor = Supervisor(
            self.settings(), [self.sock],
            metrics=None, instance="no-such", runtime_dir=place / "run", lock=self.sock.fileno(),
            progress=self.said.append, read_again=self.settings,
        )  # fmt: skip
        kept = {**environment(os.environ), "PYTHONPATH": str(place), "HERMES_TEST_LOG": str(self.log)}
        self.supervisor._children = Children(kept)
        self.supervisor._broker.module = ("a_broker",)
        self.supervisor._front.module = ("a_front",)
        for extra in self.supervisor._extras:
            (place / f"a_{extra.name}.py").write_text(PLAYER.replace("ROLE", repr(extra.name)).replace("READY", "b'ready\\n'"))
            extra.module = (f"a_{extra.name}",)

    def settings(self) -> Settings:
        if self.banner == "wrong":
            raise ConfigError("hermes.yaml:1: server.banner is wrong")
        return Settings.model_validate({"server": {"banner": self.banner, "shutdown_grace": 0}})

    def notes(self) -> list[list[str]]:
        return [line.split(" ", 2) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    async def noted(self, enough: Callable[[list[list[str]]], bool]) -> list[list[str]]:
        async with asyncio.timeout(PATIENCE):
            while not enough(self.notes()):  # noqa: ASYNC110 - another process writes them
                await asyncio.sleep(0.01)
        return self.notes()

    def pid(self, role: str) -> int:
        return int([pid for who, pid, _ in self.notes() if who == role][-1])


def both_met(times: int) -> Callable[[list[list[str]]], bool]:
    return lambda notes: all(
        sum(who == role and what.startswith("peer") for who, _, what in notes) >= times for role in ("broker", "front")
    )


@pytest_asyncio.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    stage.sock.close()


@pytest.mark.asyncio
async def test_both_are_started_introduced_and_ended_the_front_first(stage: Stage) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(stage.supervisor.run())
        await stage.noted(both_met(1))
        assert [line for line in stage.said if line != "ready"] == [f"listening on 127.0.0.1 port {stage.sock.getsockname()[1]}"]
        os.kill(os.getpid(), signal.SIGTERM)
    ends = [(who, what) for who, _, what in stage.notes() if what.startswith("SIG") and who in ("front", "broker")]
    assert ends == [("front", "SIGTERM"), ("broker", "SIGTERM")]
    assert stage.said[-1] == "stopping"
    assert stage.sock.fileno() == -1


@pytest.mark.asyncio
@pytest.mark.parametrize("role", ["front", "broker"])
async def test_one_that_dies_is_started_afresh_and_the_other_goes_on(stage: Stage, role: str) -> None:
    other = "broker" if role == "front" else "front"
    async with asyncio.TaskGroup() as group:
        group.create_task(stage.supervisor.run())
        await stage.noted(both_met(1))
        dead, lives = stage.pid(role), stage.pid(other)
        os.kill(dead, signal.SIGKILL)
        notes = await stage.noted(lambda notes: sum(what.startswith("peer") for _, _, what in notes) >= 4)
        assert stage.pid(role) != dead
        assert stage.pid(other) == lives
        assert [what for who, _, what in notes if who == "front" and what.startswith("peer")][-1] == "peer of dead"
        os.kill(os.getpid(), signal.SIGINT)
    assert [(who, what) for who, _, what in stage.notes() if what.startswith("SIG") and who in ("front", "broker")] == [
        ("front", "SIGINT"),
        ("broker", "SIGTERM"),
    ]
    assert stage.said.count("ready") == 1


@pytest.mark.asyncio
async def test_a_first_start_that_fails_is_the_end(tmp_path: Path) -> None:
    stage = Stage(tmp_path, banner="broken")
    with pytest.raises(MachineError, match=r"^it is broken$"):
        await asyncio.wait_for(stage.supervisor.run(), PATIENCE)
    assert {who for who, _, _ in stage.notes()} == {"broker"}
    assert stage.said == []


@pytest.mark.asyncio
async def test_one_that_hangs_is_killed_and_started_afresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "HANG_PATIENCE", 0.2)
    stage = Stage(tmp_path, banner="silent")
    async with asyncio.TaskGroup() as group:
        group.create_task(stage.supervisor.run())
        notes = await stage.noted(lambda notes: sum(what.startswith("started") for _, _, what in notes) >= 4)
        assert len({pid for _, pid, _ in notes}) >= 4
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.asyncio
async def test_settings_are_read_again_and_kept_for_the_next_start(stage: Stage) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(stage.supervisor.run())
        await stage.noted(both_met(1))
        stage.banner = "second"
        os.kill(os.getpid(), signal.SIGHUP)
        await stage.noted(lambda notes: [what for _, _, what in notes].count("reload second") == 2)
        stage.banner = "wrong"
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(stage.pid("front"), signal.SIGKILL)
        notes = await stage.noted(lambda notes: ["front", "started second"] in [[who, what] for who, _, what in notes])
        assert not any(what == "reload wrong" for _, _, what in notes)
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.asyncio
async def test_systemd_hears_when_it_is_ready_alive_and_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "30000")
        stage = Stage(tmp_path)
        heard: list[bytes] = []

        async def hears(message: bytes) -> None:
            async with asyncio.timeout(PATIENCE):
                while message not in heard:
                    heard.append(await asyncio.get_running_loop().sock_recv(systemd, 1000))

        async with asyncio.TaskGroup() as group:
            group.create_task(stage.supervisor.run())
            await hears(b"READY=1")
            await hears(b"WATCHDOG=1")
            os.kill(os.getpid(), signal.SIGTERM)
            await hears(b"STOPPING=1")


@pytest.mark.asyncio
async def test_a_front_that_the_broker_cut_off_is_connected_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "ALONE_SECONDS", 0.01)
    stage = Stage(tmp_path, banner="cuts off")
    async with asyncio.TaskGroup() as group:
        group.create_task(stage.supervisor.run())
        notes = await stage.noted(both_met(3))
        assert len({pid for who, pid, _ in notes if who == "front"}) == 1
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.asyncio
async def test_what_cannot_be_started_for_now_is_tried_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    start, failures = stage.supervisor._start, 3

    def scarce(post: supervisor_module._Post, control: int) -> Child:
        nonlocal failures
        if stage.said.count("ready") and failures:
            failures -= 1
            raise OSError(11, "Resource temporarily unavailable")
        return start(post, control)

    monkeypatch.setattr(stage.supervisor, "_start", scarce)
    async with asyncio.TaskGroup() as group:
        group.create_task(stage.supervisor.run())
        await stage.noted(both_met(1))
        os.kill(stage.pid("front"), signal.SIGKILL)
        await stage.noted(both_met(2))
        assert failures == 0
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.asyncio
async def test_extras_start_once_it_listens_and_their_deaths_cost_nothing(stage: Stage) -> None:
    async with asyncio.TaskGroup() as group:
        running = group.create_task(stage.supervisor.run())
        notes = await stage.noted(lambda notes: {"analyst", "outputs"} <= {who for who, *_ in notes})
        assert [who for who, _, what in notes if what.startswith("started")][:2] == ["broker", "front"]
        async with asyncio.timeout(PATIENCE):
            while not all(extra.is_ready for extra in stage.supervisor._extras):  # noqa: ASYNC110 - the supervisor sets it
                await asyncio.sleep(0.01)
        os.kill(stage.pid("analyst"), signal.SIGKILL)
        await stage.noted(lambda notes: sum(who == "analyst" and what.startswith("started") for who, _, what in notes) == 2)
        os.kill(os.getpid(), signal.SIGTERM)
        await running
    ended = [who for who, _, what in stage.notes() if what == "SIGTERM"]
    assert ended[0] == "front"
    assert ended[-1] == "broker"
    assert sum(who == "front" and what.startswith("started") for who, _, what in stage.notes()) == 1
    assert sum(what.startswith("peer") for _, _, what in stage.notes()) == 2, "broker and front are not connected anew"


@pytest.mark.asyncio
async def test_an_extra_that_cannot_start_is_tried_again_and_is_no_reason_to_stop(stage: Stage) -> None:
    for extra in stage.supervisor._extras:
        extra.module = ("no_such_module",)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(stage.supervisor.run())
        await stage.noted(both_met(1))
        async with asyncio.timeout(PATIENCE):
            while "ready" not in stage.said:  # noqa: ASYNC110 - said by callbacks
                await asyncio.sleep(0.01)
        (stage.log.parent / "no_such_module.py").write_text(PLAYER.replace("ROLE", "'late'").replace("READY", "b'ready\\n'"))
        await stage.noted(lambda notes: "late" in {who for who, *_ in notes})
        os.kill(os.getpid(), signal.SIGTERM)
        await running


@pytest.mark.asyncio
async def test_an_extra_takes_over_its_settings_by_starting_afresh(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.supervisor._extras[0].sections = ("server",)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(stage.supervisor.run())
        await stage.noted(lambda notes: {"analyst", "outputs"} <= {who for who, *_ in notes})
        async with asyncio.timeout(PATIENCE):
            while not stage.supervisor._extras[0].is_ready:  # noqa: ASYNC110 - the supervisor sets it
                await asyncio.sleep(0.01)
        stage.banner = "second"
        os.kill(os.getpid(), signal.SIGHUP)
        await stage.noted(lambda notes: ["analyst", "started second"] in [[who, what] for who, _, what in notes])
        os.kill(os.getpid(), signal.SIGTERM)
        await running
    assert not any(who == "outputs" and what == "started second" for who, _, what in stage.notes())


@pytest.mark.asyncio
async def test_the_analyst_reads_the_rules_that_its_settings_name_again(stage: Stage, tmp_path: Path) -> None:
    def settings() -> Settings:
        return Settings.model_validate({"analysis": {"yara_rules": tmp_path}, "server": {"shutdown_grace": 0}})

    stage.supervisor._settings, stage.supervisor._read_again = settings(), settings
    async with asyncio.TaskGroup() as group:
        running = group.create_task(stage.supervisor.run())
        await stage.noted(lambda notes: {"analyst", "outputs"} <= {who for who, *_ in notes})
        async with asyncio.timeout(PATIENCE):
            while not all(extra.is_ready for extra in stage.supervisor._extras):  # noqa: ASYNC110 - the supervisor sets it
                await asyncio.sleep(0.01)
        os.kill(os.getpid(), signal.SIGHUP)
        await stage.noted(lambda notes: sum(who == "analyst" and what.startswith("started") for who, _, what in notes) == 2)
        os.kill(os.getpid(), signal.SIGTERM)
        await running
    assert sum(who == "outputs" and what.startswith("started") for who, _, what in stage.notes()) == 1
