"""The main job, on each engine: log in, stand in a real box, work, leave, and see all of it."""

import hashlib
import os
import pty
import re
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sensors import CLIENT, Sensor, Start, left_behind

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


@pytest.fixture(scope="module", params=["local", "docker", "runsc"])
def sensor(request: pytest.FixtureRequest, start: Start) -> Iterator[Sensor]:
    """A sensor on each engine in turn, and on the local one with boxes of gVisor."""
    settings = {"container_pool__engine": request.param}
    if request.param == "runsc":
        settings = {"container_pool__runtime": "runsc"}
    if request.param == "docker":
        settings["container_pool__docker__host"] = request.getfixturevalue("docker_host")
    sensor = start(**settings)
    yield sensor
    assert sensor.stop() == 0, sensor.said()
    assert "Traceback" not in sensor.said()
    assert left_behind(sensor.data_dir) == []


def test_exec_in_a_box_with_streams_apart_and_status(sensor: Sensor) -> None:
    done = sensor.ssh("id -u; hostname; echo problem >&2; exit 42")
    assert (done.returncode, done.stdout, done.stderr) == (42, b"0\nsrv01\n", b"problem\n")


def test_stdin_reaches_the_command_and_ends(sensor: Sensor) -> None:
    data = os.urandom(3_000_000)
    done = sensor.ssh("sha256sum", stdin=data)
    assert done.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()


def test_binary_output_comes_through_and_is_recorded_exactly(sensor: Sensor) -> None:
    before = {session["session_id"] for session in sensor.json("sessions", "list")}
    done = sensor.ssh("head -c 5000000 /dev/urandom | tee /tmp/copy; sha256sum < /tmp/copy >&2")
    assert done.stderr.split()[0].decode() == hashlib.sha256(done.stdout).hexdigest()
    (session,) = [s for s in sensor.sessions(ended=len(before) + 1) if s["session_id"] not in before]
    raw = sensor.hermes("sessions", "replay", session["session_id"], "--raw", "--stream", "stdout")
    assert raw.stdout == done.stdout


def test_an_interactive_shell(sensor: Sensor, request: pytest.FixtureRequest) -> None:
    name = b"not a tty" if "runsc" in request.node.name else b"/dev/pts/0"
    shell = Terminal(sensor)
    assert re.search(rb"root@srv01:~# $", shell.until(b"# "))
    shell.type(b"tty; stty size; echo $TERM\r")
    assert name + b"\r\n33 101\r\nxterm-256color\r\n" in shell.until(b"256color\r\n").replace(b"\x1b[?2004l\r", b"")
    shell.until(b"# ")
    shell.resize(40, 120)
    shell.type(b"stty size\r")
    shell.until(b"40 120\r\n")
    # What runs says that it does: a Ctrl-C between the echo of a line and the start of its process would be lost.
    shell.type(b"sh -c 'echo $((6 * 7)) runs; sleep 1000'\r")
    shell.until(b"42 runs\r\n")
    shell.type(b"\x03")
    shell.until(b"# ")
    shell.type(b"exit 9\r")
    assert shell.wait() == 9


def test_what_was_typed_is_listed_shown_and_replayed(sensor: Sensor) -> None:
    count = len(sensor.json("sessions", "list"))
    shell = Terminal(sensor)
    shell.until(b"# ")
    shell.type(b"echo mar\x7frked-$((7*191+3))\r")
    shell.until(b"marked-1340")
    shell.type(b"exit\r")
    assert shell.wait() == 0
    session = max(sensor.sessions(ended=count + 1), key=lambda item: item["started"])
    assert {"session_id", "username", "source_ip", "source_port", "started", "ended", "channels", "commands"} <= set(session)
    assert (session["username"], session["source_ip"], session["channels"]) == ("root", "127.0.0.1", 1)
    assert session["commands"] == ["echo marked-$((7*191+3))", "exit"]
    shown = sensor.hermes("sessions", "show", session["session_id"])
    assert shown.returncode == 0
    assert b"echo marked" in shown.stdout
    replayed = sensor.hermes("sessions", "replay", session["session_id"], "--speed", "1000")
    assert b"marked-1340" in replayed.stdout


def test_many_channels_at_once_share_one_box(sensor: Sensor) -> None:
    with tempfile.TemporaryDirectory() as short:  # a socket's path is at most 107 bytes long
        many_channels(sensor, ["-o", f"ControlPath={short}/%C", "-o", "ControlMaster=auto", "-o", "ControlPersist=60"])


def many_channels(sensor: Sensor, control: list[str]) -> None:
    login = [*CLIENT, *control, "-p", str(sensor.port), "root@127.0.0.1"]
    first = subprocess.run(
        ["sshpass", "-p", "root", "ssh", *login, "echo here > /tmp/shared"], stdin=subprocess.DEVNULL, timeout=60, check=False
    )
    assert first.returncode == 0
    commands = [f"cat /tmp/shared; echo {number}; exit {number}" for number in range(8)]
    running = [
        subprocess.Popen(["ssh", *login, command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) for command in commands
    ]
    results = [(process.communicate(timeout=60)[0], process.returncode) for process in running]
    subprocess.run(["ssh", "-O", "exit", *login], capture_output=True, check=False, timeout=60)
    assert results == [(f"here\n{number}\n".encode(), number) for number in range(8)]


def test_each_session_has_a_box_of_its_own(sensor: Sensor) -> None:
    assert sensor.ssh("echo mine > /root/secret; cat /root/secret").stdout == b"mine\n"
    assert sensor.ssh("cat /root/secret").returncode == 1


def test_a_signal_is_reported_as_one(sensor: Sensor) -> None:
    assert sensor.ssh("kill -KILL $$").returncode == 255


def test_scp_both_kinds_and_sftp(sensor: Sensor, tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    there.write_bytes(os.urandom(1_000_000))
    for kind in ([], ["-O"]):
        done = sensor.client("scp", *kind, str(there), "root@127.0.0.1:/tmp/file")
        assert done.returncode == 0, done.stderr
    count = len(sensor.json("sessions", "list"))
    batch = f"put {there} /root/up\nget /root/up {back}\nls -l /root/up\n".encode()
    done = sensor.client("sftp", "-o", "BatchMode=no", "-b", "-", "root@127.0.0.1", stdin=batch)
    assert done.returncode == 0, done.stderr
    assert back.read_bytes() == there.read_bytes()
    session = max(sensor.sessions(ended=count + 1), key=lambda item: item["started"])
    detail = sensor.json("sessions", "show", session["session_id"])
    (channel,) = detail["channel_list"]
    assert (channel["kind"], channel["command"]) == ("subsystem", "sftp")


def test_nothing_of_the_host_is_seen(sensor: Sensor) -> None:
    seen = sensor.ssh("ps axo args; ls -l /proc/self/fd; env").stdout.decode()
    assert "hermes" not in seen.lower()
    assert str(sensor.data_dir) not in sensor.ssh("cat /proc/self/mountinfo").stdout.decode()


class Terminal:
    """The real ssh client on a terminal of its own."""

    def __init__(self, sensor: Sensor) -> None:
        self._waiting = b""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = "xterm-256color"
            import fcntl
            import struct
            import termios

            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 101, 0, 0))
            os.execvp("sshpass", ["sshpass", "-p", "root", "ssh", *CLIENT, "-p", str(sensor.port), "root@127.0.0.1"])

    def type(self, data: bytes) -> None:
        """Press keys."""
        os.write(self.fd, data)

    def until(self, needle: bytes) -> bytes:
        """Everything printed since the last call, up to and with `needle`."""
        deadline = time.monotonic() + 30
        while needle not in self._waiting:
            ready, _, _ = select.select([self.fd], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{needle!r} not in {self._waiting!r}"
            self._waiting += os.read(self.fd, 65536)
        before, found, self._waiting = self._waiting.partition(needle)
        return before + found

    def resize(self, rows: int, columns: int) -> None:
        """Change the window's size."""
        import fcntl
        import struct
        import termios

        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        os.kill(self.pid, signal.SIGWINCH)

    def wait(self) -> int:
        """Return the client's exit status."""
        while True:
            try:
                if not os.read(self.fd, 65536):
                    break
            except OSError:
                break
        _, status = os.waitpid(self.pid, 0)
        os.close(self.fd)
        return os.waitstatus_to_exitcode(status)
