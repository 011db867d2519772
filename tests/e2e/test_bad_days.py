"""What an operator meets when things go wrong: one clear line, no traceback, nothing left behind, and back to work."""

import contextlib
import os
import signal
import socket
import socketserver
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import msgspec
import pytest

from tests.sensors import CLIENT, HERMES, Sensor, Start, free_port, left_behind, let_through, wait_until

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


def ends(sensor: Sensor, *, code: int) -> str:
    """What a sensor said that could not start."""
    assert sensor.process.wait(90) == code, sensor.said()
    said = sensor.said()
    assert "Traceback" not in said
    assert left_behind(sensor.data_dir) == []
    return said


def wait_until_clean(sensor: Sensor) -> None:
    """Return when nothing is left of the sensor; fail with what is."""
    deadline = time.monotonic() + 60
    while left := left_behind(sensor.data_dir):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def test_port_taken(start: Start) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = ends(start(ready=False, server__port=str(port)), code=1)
    assert f"127.0.0.1 port {port}" in said or f"port {port} on 127.0.0.1" in said or str(port) in said


def test_not_root(tmp_path: Path) -> None:
    let_through(tmp_path)
    environ = {**os.environ, "HERMES_DATA_DIR": str(tmp_path), "HERMES_SERVER__PORT": str(free_port())}
    # Imported as root, for the sources may lie where only root can read them.
    code = (
        "import os; from hermes.broker.launcher import launch; from hermes.cli.console import load_settings, reporting; "
        "settings = load_settings(); os.setuid(65534); run = reporting()(launch); run(settings, print)"
    )
    command = [
        str(HERMES.with_name("python")),
        "-c",
        f"import typer\ntry:\n {code}\nexcept typer.Exit as end:\n raise SystemExit(end.exit_code)",
    ]
    done = subprocess.run(command, env=environ, cwd="/", capture_output=True, timeout=60, check=False)
    assert done.returncode == 1
    assert b"root" in done.stderr
    assert b"Traceback" not in done.stderr


def test_wrong_configuration(tmp_path: Path) -> None:
    (tmp_path / "hermes.yaml").write_text("server:\n  port: abc\n  prot: 22\n")
    done = subprocess.run([HERMES, "up"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "hermes.yaml:2: server.port" in done.stderr
    assert "hermes.yaml:3: unknown key server.prot" in done.stderr


def test_unknown_image(start: Start) -> None:
    said = ends(start(ready=False, container_pool__image="no-such-image"), code=1)
    assert "no-such-image" in said


def test_engine_missing(start: Start, tmp_path: Path) -> None:
    host = f"unix://{tmp_path}/none.sock"
    said = ends(start(ready=False, container_pool__engine="docker", container_pool__docker__host=host), code=1)
    assert str(tmp_path / "none.sock") in said


def test_recordings_that_the_front_could_not_write(start: Start, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o700)
    said = ends(start(ready=False, recording__output_dir=str(tmp_path / "closed" / "recordings")), code=1)
    assert "recordings cannot be written" in said
    assert "recording.output_dir" in said


def test_second_sensor_on_the_same_data(start: Start) -> None:
    first = start()
    second = start(first.data_dir, ready=False)
    assert second.process.wait(90) == 1
    assert "another Hermes" in second.said()
    assert first.ssh("echo still here").stdout == b"still here\n"
    assert first.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stops_cleanly_in_the_middle_of_sessions(start: Start, number: signal.Signals) -> None:
    sensor = start()
    with subprocess.Popen(
        ["sshpass", "-p", "root", "ssh", "-F", "none", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
         "-p", str(sensor.port), "root@127.0.0.1", "echo ready; sleep 1000"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
    ) as client:  # fmt: skip
        assert client.stdout is not None
        assert client.stdout.readline() == b"ready\n"
        assert sensor.stop(number) == 0
        assert client.wait(30) == 255
    assert "Traceback" not in sensor.said()
    assert left_behind(sensor.data_dir) == []
    (session,) = sensor.sessions(ended=1)
    assert sensor.json("sessions", "show", session["session_id"])["cause"] == "shutdown"


def test_killed_outright_it_leaves_nothing_and_starts_again(start: Start) -> None:
    sensor = start()
    sensor.process.kill()
    sensor.process.wait()
    wait_until_clean(sensor)
    again = start(sensor.data_dir)
    assert again.ssh("echo back").stdout == b"back\n"
    assert again.stop() == 0
    assert left_behind(sensor.data_dir) == []


def test_started_again_while_the_killed_one_still_cleans_up(start: Start) -> None:
    sensor = start(container_pool__size="6")
    broker = sensor.pids()["broker"]
    os.kill(broker, signal.SIGSTOP)
    sensor.process.kill()
    sensor.process.wait()
    again = start(sensor.data_dir, ready=False)
    wait_until(lambda: "waiting for an earlier run to end" in again.said())
    os.kill(broker, signal.SIGCONT)
    wait_until(lambda: "ready after" in again.said() or again.process.poll() is not None)
    assert again.ssh("echo back").stdout == b"back\n"
    assert again.stop() == 0
    assert left_behind(sensor.data_dir) == []


def test_a_data_directory_of_others(start: Start, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o1777)
    assert "cannot be the data directory" in ends(start(tmp_path / "shared", ready=False), code=1)
    assert (tmp_path / "shared").stat().st_mode & 0o7777 == 0o1777


def test_a_directory_for_kept_boxes_that_cannot_be_used(start: Start, tmp_path: Path, images_dir: Path) -> None:
    let_through(tmp_path)
    (tmp_path / "images").symlink_to(images_dir)
    (tmp_path / "stopped").write_text("")
    assert f"cannot use {tmp_path / 'stopped'}" in ends(start(tmp_path, ready=False), code=1)


class SlowDaemon(socketserver.ThreadingUnixStreamServer):
    """A Docker daemon that answers all questions and then takes forever over an import."""

    daemon_threads = True

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), self.Handler)
        self.importing = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            assert isinstance(self.server, SlowDaemon)
            if self.command == "POST" and "/images/" in self.path:
                self.server.importing.set()
                self.rfile.read()
            if self.path.partition("?")[0].endswith("/version"):
                status, body = 200, b'{"Version": "20.10.24", "ApiVersion": "1.41", "MinAPIVersion": "1.12", "Os": "linux"}'
            elif "/containers/json" in self.path:
                status, body = 200, b"[]"
            elif self.path.partition("?")[0].endswith("/info"):
                status, body = 200, b'{"Runtimes": {"runc": {"path": "runc"}}, "DefaultRuntime": "runc"}'
            else:
                status, body = 404, b'{"message": "no such thing"}'
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_DELETE = do_HEAD = answer

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""


def test_stopped_during_a_long_start(start: Start, tmp_path: Path) -> None:
    with SlowDaemon(tmp_path / "docker.sock") as daemon:
        threading.Thread(target=daemon.serve_forever, daemon=True).start()
        host = f"unix://{tmp_path}/docker.sock"
        sensor = start(ready=False, container_pool__engine="docker", container_pool__docker__host=host)
        wait_until(lambda: daemon.importing.is_set() or sensor.process.poll() is not None)
        assert sensor.stop(signal.SIGINT) == 0, sensor.said()
        daemon.shutdown()
    assert "does not end" not in sensor.said()
    assert "Traceback" not in sensor.said()
    assert left_behind(sensor.data_dir) == []


def test_everything_killed_at_once_the_next_start_cleans_up_and_keeps_the_evidence(start: Start) -> None:
    sensor = start()
    with session(sensor, "echo found >/root/evidence; echo ready; sleep 1000"):
        for pid in (sensor.process.pid, *sensor.pids().values()):
            os.kill(pid, signal.SIGKILL)
    sensor.process.wait()
    again = start(sensor.data_dir)
    assert wait_until(lambda: list(sensor.data_dir.glob("stopped/*/facts.json")))
    (evidence,) = sensor.data_dir.glob("stopped/*/changes/root/evidence")
    assert evidence.read_text() == "found\n"
    assert again.ssh("echo back").stdout == b"back\n"
    assert again.stop() == 0
    assert left_behind(sensor.data_dir) == []


def test_everything_killed_while_nobody_is_there(start: Start) -> None:
    sensor = start()
    for pid in (sensor.process.pid, *sensor.pids().values()):
        os.kill(pid, signal.SIGKILL)
    sensor.process.wait()
    again = start(sensor.data_dir)
    assert again.ssh("echo back").stdout == b"back\n"
    assert again.stop() == 0
    assert left_behind(sensor.data_dir) == []


@contextlib.contextmanager
def session(sensor: Sensor, command: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A session in which `command` has said `ready` and goes on."""
    ssh = ["sshpass", "-p", "root", "ssh", *CLIENT, "-p", str(sensor.port), "root@127.0.0.1", command]
    with subprocess.Popen(ssh, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"ready\n"
        yield client


@pytest.mark.parametrize("name", ["front", "broker"])
def test_a_process_that_dies_is_started_afresh_and_the_other_goes_on(start: Start, name: str) -> None:
    sensor = start()
    before = sensor.pids()
    with session(sensor, "echo found >/root/evidence; echo ready; sleep 1000") as client:
        os.kill(before[name], signal.SIGKILL)
        assert client.wait(60) == 255
    wait_until(lambda: {"front", "broker"} <= (now := sensor.pids()).keys() and now[name] != before[name])
    assert wait_until(lambda: sensor.ssh("echo back").stdout) == b"back\n"
    other = "broker" if name == "front" else "front"
    assert sensor.pids()[other] == before[other]
    assert wait_until(lambda: list(sensor.data_dir.glob("stopped/*/changes/root/evidence"))), "what the session changed is kept"
    assert sensor.stop() == 0
    assert f"the {name} died (killed by SIGKILL)" in sensor.said()
    assert "Traceback" not in sensor.said()
    assert left_behind(sensor.data_dir) == []
    events = [msgspec.json.decode(line) for line in (sensor.data_dir / "journal" / "events.jsonl").read_bytes().splitlines()]
    assert [event["process"] for event in events if event["event"] == "sensor.recovered"] == [name]
    stopped = [event for event in events if event["event"] == "container.stopped"]
    assert [event["recovered"] for event in stopped][:1] == [name == "broker"]
    assert (Path(stopped[0]["kept"]) / "changes" / "root" / "evidence").read_text() == "found\n"
    assert list((sensor.data_dir / "boxes").iterdir()) == []


def test_sigterm_lets_sessions_come_to_their_end_and_takes_no_more(start: Start) -> None:
    sensor = start(server__shutdown_grace="60")
    with session(sensor, "echo ready; read line; echo $line") as client:
        sensor.process.send_signal(signal.SIGTERM)
        wait_until(lambda: sensor.ssh("echo in").returncode == 255)
        out, _ = client.communicate(b"to the end\n", timeout=60)
        assert (out, client.returncode) == (b"to the end\n", 0)
    assert sensor.process.wait(30) == 0
    assert left_behind(sensor.data_dir) == []
    assert {one["cause"] for one in sensor.sessions(ended=1)} == {"client"}


def test_a_second_signal_cuts_the_grace_short(start: Start) -> None:
    sensor = start(server__shutdown_grace="1000")
    with session(sensor, "echo ready; sleep 1000") as client:
        sensor.process.send_signal(signal.SIGTERM)
        wait_until(lambda: sensor.ssh("echo in").returncode == 255)
        assert sensor.process.poll() is None
        assert sensor.stop(signal.SIGTERM) == 0
        assert client.wait(30) == 255
    (one,) = sensor.sessions(ended=1)
    assert one["cause"] == "shutdown"


def test_sighup_reads_the_settings_again(start: Start, tmp_path: Path) -> None:
    config = tmp_path / "hermes.yaml"
    config.write_text("authentication: {passwords: {root: [root]}}\n")
    sensor = start(command=(str(HERMES), "up", "--config", str(config)))
    assert sensor.ssh("true", password="second").returncode == 5
    with session(sensor, "echo ready; read line; echo $line") as client:
        config.write_text("authentication: {passwords: {root: [second]}}\ncontainer_pool: {hostname: other, size: 1}\n")
        sensor.process.send_signal(signal.SIGHUP)
        wait_until(lambda: sensor.ssh("true", password="second").returncode == 0)
        assert client.communicate(b"still here\n", timeout=60)[0] == b"still here\n"
    assert sensor.ssh("true", password="root").returncode == 5
    assert sensor.ssh("uname -n", password="second").stdout != b"other\n"
    config.write_text("authentication: {passwords: 7}\n")
    sensor.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "settings not reloaded" in sensor.said())
    assert sensor.ssh("true", password="second").returncode == 0
    assert sensor.stop() == 0
    reloaded = next(line for line in sensor.said().splitlines() if "settings reloaded" in line)
    assert "authentication.passwords" in reloaded
    assert "container_pool.hostname" in reloaded.partition("wait_for_a_restart")[2]


def test_an_attacker_who_kills_everything_in_the_box(start: Start) -> None:
    sensor = start()
    assert sensor.ssh("kill -9 -1; echo alone").stdout == b"alone\n"
    assert sensor.ssh("kill -9 1; kill -9 $$").returncode == 255
    assert sensor.ssh("echo next").stdout == b"next\n"
    assert sensor.stop() == 0
    assert left_behind(sensor.data_dir) == []
