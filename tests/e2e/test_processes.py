"""The processes of a sensor beside broker and front: without power, and no condition of anything."""

import os
import pwd
import signal
from pathlib import Path

import pytest

from tests.sensors import Sensor, Start, left_behind, wait_until

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

EXTRAS = ("analyst", "outputs")


@pytest.fixture(scope="module")
def sensor(start: Start) -> Sensor:
    """A sensor whose extras run."""
    sensor = start()
    wait_until(lambda: all(has_no_power(sensor.pids().get(name, 0)) for name in EXTRAS))
    return sensor


def status_of(pid: int) -> dict[str, str]:
    """What the kernel says of a process; nothing of one that is gone."""
    try:
        return dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
    except OSError:
        return {}


def has_no_power(pid: int) -> bool:
    """Whether the process is confined."""
    status = status_of(pid)
    user = pwd.getpwnam("hermes")
    return (
        status.get("Uid", "").split() == [str(user.pw_uid)] * 4
        and status["Gid"].split() == [str(user.pw_gid)] * 4
        and {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
        and status["NoNewPrivs"] == "1"
        and status["Seccomp"] == "2"
    )


def test_they_have_no_power(sensor: Sensor) -> None:
    for name in EXTRAS:
        assert has_no_power(sensor.pids()[name]), name
    assert "Traceback" not in sensor.said()
    assert "cannot be read" not in sensor.said()


@pytest.mark.parametrize("name", EXTRAS)
def test_one_that_is_killed_is_started_afresh_and_no_session_notices(sensor: Sensor, name: str) -> None:
    before = sensor.pids()
    os.kill(before[name], signal.SIGKILL)
    assert sensor.ssh("echo still here").stdout == b"still here\n"
    wait_until(lambda: has_no_power(sensor.pids().get(name, 0)) and sensor.pids()[name] != before[name])
    after = sensor.pids()
    assert (after["broker"], after["front"]) == (before["broker"], before["front"])


def test_they_end_with_the_sensor(sensor: Sensor) -> None:
    assert sensor.stop() == 0
    assert left_behind(sensor.data_dir) == []
