"""What attackers run is in the journal, each fact once, with its session, connection and channel, whoever is killed."""

import os
import signal
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.sensors import CLIENT, Sensor, Start, wait_until

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


def stated(sensor: Sensor, mark: str) -> list[dict[str, Any]]:
    """The programs with that argument, as the journal has them."""
    db = sqlite3.connect(f"file:{sensor.data_dir}/journal/journal.db?mode=ro", uri=True)
    try:
        rows = db.execute(
            "SELECT body, connection_id, session_id FROM events WHERE event = 'process.started' AND body LIKE ?"
            " ORDER BY time, id",
            (f"%{mark}%",),
        ).fetchall()
    finally:
        db.close()
    return [{**msgspec.json.decode(body), "connection": connection, "session": session} for body, connection, session in rows]


def numbers(found: list[dict[str, Any]], mark: str) -> list[int]:
    return [int(it["argv"][2]) for it in found if it["argv"][1:2] == [mark]]


def waiting(sensor: Sensor) -> list[str]:
    return sorted(path.name for path in Path(sensor.data_dir, "watched").iterdir())


def burst(sensor: Sensor, mark: str, count: int) -> "subprocess.Popen[bytes]":
    """Start a session that executes so many programs, one after the other."""
    command = f"i=0; while [ $i -lt {count} ]; do /bin/true {mark} $i; i=$((i+1)); done"
    return subprocess.Popen(
        ["sshpass", "-p", "root", "ssh", *CLIENT, "-p", str(sensor.port), "root@127.0.0.1", command],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def test_what_a_session_runs_is_in_the_journal_with_all_that_joins_it(start: Start) -> None:
    sensor = start()
    assert sensor.ssh("/bin/true first 0; cd /usr; /bin/echo second").returncode == 0
    (session,) = sensor.sessions(ended=1)
    (echo,) = wait_until(lambda: [it for it in stated(sensor, "second") if it["program"] == "/bin/echo"])
    (true,) = [it for it in stated(sensor, "first") if it["program"] == "/bin/true"]
    assert (echo["cwd"], echo["argv"], echo["channel"], echo["error"]) == ("/usr", ["/bin/echo", "second"], 1, None)
    assert true["session"] == echo["session"] == session["session_id"]
    assert echo["connection"] is not None
    given = [it for it in stated(sensor, session["session_id"]) if it["parent"] == 0]
    assert len({it["pid"] for it in given}) == 1, "nothing of the box's own is the session's"


def test_each_is_there_once_when_the_front_is_killed(start: Start) -> None:
    sensor = start()
    running = burst(sensor, "front-dies", 3000)
    wait_until(lambda: len(numbers(stated(sensor, "front-dies"), "front-dies")) > 100)
    os.kill(sensor.pids()["front"], signal.SIGKILL)
    running.wait(60)
    container = stated(sensor, "front-dies")[0]["container_id"]
    wait_until(lambda: container not in waiting(sensor))
    found = numbers(stated(sensor, "front-dies"), "front-dies")
    assert found == list(range(len(found)))
    assert len(found) > 100


def test_each_is_there_once_when_the_broker_is_killed(start: Start) -> None:
    sensor = start()
    running = burst(sensor, "broker-dies", 3000)
    wait_until(lambda: len(numbers(stated(sensor, "broker-dies"), "broker-dies")) > 100)
    container = stated(sensor, "broker-dies")[0]["container_id"]
    os.kill(sensor.pids()["broker"], signal.SIGKILL)
    running.wait(60)
    wait_until(lambda: container not in waiting(sensor))
    found = numbers(stated(sensor, "broker-dies"), "broker-dies")
    assert found == list(range(len(found)))


def test_nothing_is_lost_when_all_is_killed(start: Start) -> None:
    sensor = start()
    running = burst(sensor, "all-die", 3000)
    wait_until(lambda: len(numbers(stated(sensor, "all-die"), "all-die")) > 100)
    container = stated(sensor, "all-die")[0]["container_id"]
    for pid in (sensor.process.pid, *sensor.pids().values()):
        os.kill(pid, signal.SIGKILL)
    running.wait(60)
    sensor.process.wait(60)
    again = start(data_dir=sensor.data_dir)
    wait_until(lambda: container not in waiting(again))
    found = numbers(stated(again, "all-die"), "all-die")
    assert found == list(range(len(found)))
    assert len(found) > 100
