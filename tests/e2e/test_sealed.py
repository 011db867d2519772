"""A sensor that attackers visit and that dies: every session is sealed, and the chain holds."""

import os
import signal
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.sensors import Sensor, Start, wait_until

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def sensor(start: Start) -> Iterator[Sensor]:
    sensor = start(container_pool__engine="local")
    yield sensor
    assert sensor.stop() == 0, sensor.said()
    assert "Traceback" not in sensor.said(), sensor.said()


def verified(sensor: Sensor, *, manifests: int) -> dict[str, Any]:
    """What `hermes verify-evidence` says once there are so many manifests."""

    def enough() -> dict[str, Any] | None:
        found: dict[str, Any] = sensor.json("verify-evidence")
        return found if found["manifests"] >= manifests else None

    found: dict[str, Any] = wait_until(enough)
    assert found["ok"]
    assert found["sessions"] == found["manifests"]
    return found


def test_a_session_is_sealed_exported_and_stands_on_one_timeline(sensor: Sensor, tmp_path: Path) -> None:
    done = sensor.ssh("echo typed; cat > /tmp/x; sh -c 'id; ls /nowhere'", stdin=b"piped\n")
    assert b"typed" in done.stdout
    found = verified(sensor, manifests=1)
    assert (found["files"], found["findings"]) == (2, [])
    (session,) = sensor.sessions(ended=1)
    items = [line for line in sensor.hermes("sessions", "timeline", session["session_id"]).stdout.decode().splitlines() if line]
    story = "\n".join(items)
    assert all(line.isprintable() for line in items)
    for text in ("auth.attempt", "| typed", "> piped", "uid=0(root)", "! ls:", "cannot access", "session.sealed"):
        assert text in story
    out = tmp_path / "out.zip"
    assert sensor.hermes("sessions", "export", session["session_id"], "-o", str(out)).returncode == 0
    with zipfile.ZipFile(out) as archive:
        assert archive.read(f"{session['session_id']}/streams/1.stdout").startswith(b"typed\nuid=0")
    assert sensor.hermes("verify-evidence", str(out)).returncode == 0


def test_a_front_that_is_killed_breaks_no_chain(sensor: Sensor) -> None:
    head = verified(sensor, manifests=1)["head"]
    before = len(sensor.json("sessions", "list"))
    for number in range(3):
        sensor.ssh(f"echo {number}")
        os.kill(sensor.pids()["front"], signal.SIGKILL)
        wait_until(lambda: sensor.ssh("true").returncode == 0)
    count = len(sensor.sessions(ended=before + 3))
    found = verified(sensor, manifests=count)
    assert found["sequence"] == found["manifests"]
    assert sensor.hermes("verify-evidence", "--head", head).returncode == 0
