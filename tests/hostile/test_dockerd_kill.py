"""kill -9 of the Docker daemon under a sensor: sessions are told, the sensor listens on, and works again with the next daemon."""

import subprocess
from pathlib import Path

import pytest

from hermes.broker.engines.docker_container import INSTANCE_LABEL
from hermes.broker.launcher import instance_of
from tests.real import PrivateDockerd
from tests.sensors import Start, left_behind, wait_until

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

ROUNDS = 3


def containers(daemon: PrivateDockerd, data_dir: Path) -> list[str]:
    """What the daemon has of the sensor's, running or not."""
    wanted = f"label={INSTANCE_LABEL}={instance_of(data_dir)}"
    command = ["docker", "-H", daemon.host, "ps", "-aq", "--filter", wanted]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split()


def test_a_killed_daemon_costs_boxes_and_nothing_else(start: Start, sensors_dir: Path) -> None:
    with PrivateDockerd(sensors_dir / "docker") as daemon:
        sensor = start(container_pool__engine="docker", container_pool__docker__host=daemon.host)
        before = sensor.pids()
        for number in range(ROUNDS):
            assert wait_until(lambda: sensor.ssh("echo here").stdout) == b"here\n"
            daemon.kill()
            assert sensor.ssh("echo who", password="wrong").returncode == 5, "the sensor does not listen any more"
            daemon.start()
            assert wait_until(lambda number=number: sensor.ssh(f"echo back {number}").stdout) == f"back {number}\n".encode()  # type: ignore[misc]
        assert sensor.pids() == before
        assert sensor.stop() == 0, sensor.said()
        assert "Traceback" not in sensor.said()
        assert left_behind(sensor.data_dir) == []
        assert containers(daemon, sensor.data_dir) == []
        failed = [one for one in sensor.json("sessions", "list") if one["ended"] is None]
        assert failed == []
