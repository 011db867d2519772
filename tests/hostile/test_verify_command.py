"""`hermes verify` as an operator runs it, and the quick set that keeps a sensor from listening."""

import os
import signal
import subprocess
from pathlib import Path

import msgspec
import pytest

from hermes.broker.verify.probe import ALL
from hermes.broker.verify.runner import chosen
from tests.sensors import HERMES, PATIENCE, Start, left_behind, wait_until

pytestmark = pytest.mark.root


def test_enough_is_tried() -> None:
    assert len(chosen(quick=False)) == len(ALL) >= 60
    assert 30 <= len(chosen(quick=True)) < len(ALL)


def verify(data_dir: Path, environ: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [HERMES, "verify", *arguments], env=environ, cwd="/", capture_output=True, timeout=3 * PATIENCE, check=False
    )


@pytest.mark.timeout(600)
@pytest.mark.parametrize("engine", ["local", "docker"])
def test_a_box_holds_beside_a_running_sensor(start: Start, tmp_path: Path, docker_host: str, engine: str) -> None:
    sensor = start(container_pool__engine=engine, container_pool__docker__host=docker_host)
    assert "attacks held in" in sensor.said()
    kept = tmp_path / "report.json"
    done = verify(sensor.data_dir, sensor.environ, "--json", "--output", str(kept))
    report = msgspec.json.decode(done.stdout)
    assert [it for it in report["probes"] if not it["held"]] == []
    assert done.returncode == 0
    assert {it["name"] for it in report["probes"]} == set(ALL)
    assert report["held"] is True
    assert (report["engine"], report["kernel"]) == (engine, os.uname().release)
    assert len(report["policy"]) == 64
    assert msgspec.json.decode(kept.read_bytes()) == report
    assert sensor.process.poll() is None
    assert sensor.ssh("echo", "still", "here").stdout == b"still here\n"
    assert list((sensor.data_dir / "verify").iterdir()) == []
    assert sensor.stop() == 0
    assert left_behind(sensor.data_dir) == []


@pytest.mark.timeout(600)
def test_boxes_of_gvisor_hold_or_the_sensor_does_not_listen(start: Start) -> None:
    sensor = start(container_pool__runtime="runsc", container_pool__size="1", container_pool__create_timeout="90")
    assert "attacks held in" in sensor.said()
    assert sensor.ssh("dmesg").returncode == 0
    assert sensor.stop() == 0
    assert left_behind(sensor.data_dir) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_can_be_stopped_midway(start: Start, number: signal.Signals) -> None:
    sensor = start()
    with subprocess.Popen([HERMES, "verify"], env=sensor.environ, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as it:
        assert it.stdout is not None
        assert it.stdout.readline().startswith(b"held")
        it.send_signal(number)
        _, errors = it.communicate(timeout=PATIENCE)
    assert it.returncode == 130
    assert b"nothing is left behind" in errors
    assert list((sensor.data_dir / "verify").iterdir()) == []
    wait_until(lambda: sensor.process.poll() is None)
    assert sensor.ssh("echo", "well").stdout == b"well\n"


def test_what_a_killed_run_left_goes_with_the_next(start: Start) -> None:
    sensor = start()
    with subprocess.Popen(
        [HERMES, "verify"], env=sensor.environ, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as it:
        assert it.stdout is not None
        for line in it.stdout:
            if b"file-fifos" in line:  # boxes have been kept by then
                break
        it.kill()
    (left,) = (sensor.data_dir / "verify").iterdir()
    assert list((left / "kept").iterdir()) != []
    assert verify(sensor.data_dir, sensor.environ, "--quick").returncode == 0
    assert list((sensor.data_dir / "verify").iterdir()) == []
    assert left_behind(left) == []


def test_a_sensor_whose_boxes_do_not_hold_does_not_listen(start: Start, tmp_path: Path) -> None:
    """A profile that lets everything through is a mistake an operator can make."""
    profile = tmp_path / "lax.json"
    profile.write_text(msgspec.json.encode({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}).decode())
    sensor = start(ready=False, container_pool__security__seccomp_profile=str(profile))
    assert sensor.process.wait(PATIENCE) == 1
    assert "attacks on a box were not held: unshare: " in sensor.said()
    assert "listening" not in sensor.said()
    assert left_behind(sensor.data_dir) == []
