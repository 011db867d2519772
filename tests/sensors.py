"""A whole sensor: `hermes up` as an operator runs it, real clients, real containers, on each engine."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

PATIENCE = 90.0
HERMES = Path(sys.executable).with_name("hermes")
CLIENT = ("-F", "none", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR")


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


_WORDS = (
    ("broker", b"hermes.broker"), ("front", b"front-process"), ("analyst", b"analyst-process"), ("outputs", b"outputs-process"),
)  # fmt: skip


@dataclass
class Sensor:
    """`hermes up` in a process of its own; what it printed is in `output`."""

    data_dir: Path
    environ: dict[str, str]
    port: int
    process: "subprocess.Popen[bytes]"
    output: Path
    children: dict[str, int] = field(default_factory=dict)

    def ssh(
        self, *arguments: str, stdin: bytes = b"", login: str = "root", password: str = "root"
    ) -> "subprocess.CompletedProcess[bytes]":
        """Run the real ssh client."""
        return subprocess.run(
            ["sshpass", "-p", password, "ssh", *CLIENT, "-p", str(self.port), f"{login}@127.0.0.1", *arguments],
            input=stdin, capture_output=True, timeout=PATIENCE, check=False,
        )  # fmt: skip

    def client(self, program: str, *arguments: str, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
        """Run scp or sftp."""
        return subprocess.run(
            ["sshpass", "-p", "root", program, *CLIENT, "-P", str(self.port), *arguments],
            input=stdin, capture_output=True, timeout=PATIENCE, check=False,
        )  # fmt: skip

    def hermes(self, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
        """Run another `hermes` command on the same data."""
        return subprocess.run([HERMES, *arguments], env=self.environ, cwd="/", capture_output=True, timeout=PATIENCE, check=False)

    def json(self, *arguments: str) -> Any:
        """What a `hermes … --json` command prints."""
        done = self.hermes(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return msgspec.json.decode(done.stdout)

    def sessions(self, *, ended: int) -> list[dict[str, Any]]:
        """All sessions, once so many have ended."""

        def enough() -> list[dict[str, Any]] | None:
            found: list[dict[str, Any]] = self.json("sessions", "list")
            return found if sum(session["ended"] is not None for session in found) >= ended else None

        found: list[dict[str, Any]] = wait_until(enough)
        return found

    def pids(self) -> dict[str, int]:
        """The launcher's children by name."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        named = {}
        for pid in children:
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:  # it ended meanwhile
                continue
            for name, word in _WORDS:
                if word in command:
                    named[name] = int(pid)
        return named

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it, and return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def said(self) -> str:
        """Everything it printed."""
        return self.output.read_text(errors="replace")


def wait_until(condition: Callable[[], Any]) -> Any:
    """Return what `condition` returns, once that is something."""
    deadline = time.monotonic() + PATIENCE
    while True:
        if found := condition():
            return found
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


@pytest.fixture(scope="session")
def sensors_dir() -> Iterator[Path]:
    """Where sensors keep their data: outside of pytest's own directory, which every pytest closes to other users."""
    place = Path(tempfile.mkdtemp(prefix="hermes-sensors-", dir="/var/tmp"))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


def let_through(directory: Path) -> None:
    """Let every user reach what is in `directory`, as the front must."""
    for place in (directory, *directory.parents):
        mode = place.stat().st_mode
        if not mode & 0o001:
            place.chmod(mode | 0o011)


@pytest.fixture(scope="session")
def images_dir(target_image: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the built image for sensors with host names of their own."""
    place = tmp_path_factory.mktemp("images")
    built = target_image.rootfs.parent
    subprocess.run(["cp", "-a", "--reflink=auto", built, place / built.name], check=True)
    yield place
    shutil.rmtree(place)


Start = Callable[..., Sensor]


@pytest.fixture(scope="module")
def start(images_dir: Path, sensors_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start a sensor with settings given as `section__key="value"`; return it when it is ready, or at once if not `ready`."""
    started: list[Sensor] = []

    def run(
        data_dir: Path | None = None, *, ready: bool = True, command: tuple[str, ...] = (str(HERMES), "up"), **settings: str
    ) -> Sensor:
        if data_dir is None:
            data_dir = Path(tempfile.mkdtemp(prefix="sensor-", dir=sensors_dir))
            data_dir.chmod(0o755)
            (data_dir / "images").symlink_to(images_dir)
        port = free_port()
        environ = {
            **{key: value for key, value in os.environ.items() if not key.startswith("HERMES_")},
            "HERMES_DATA_DIR": str(data_dir),
            "HERMES_SERVER__PORT": str(port),
            "HERMES_SERVER__MAX_STARTUPS": "1000",  # a test comes with as many clients at once as it likes
            "HERMES_CONTAINER_POOL__SIZE": "2",
            **{f"HERMES_{key.upper()}": value for key, value in settings.items()},
        }
        output = tmp_path_factory.mktemp("output") / "log"
        with output.open("wb") as log:
            process = subprocess.Popen(command, env=environ, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        sensor = Sensor(data_dir, environ, port, process, output)
        started.append(sensor)
        if ready:
            wait_until(lambda: "ready after" in sensor.said() or process.poll() is not None)
            assert process.poll() is None, sensor.said()
        return sensor

    yield run
    for sensor in started:
        sensor.stop()


def left_behind(data_dir: Path) -> list[str]:
    """What a sensor that ended has left of processes, mounts and cgroups."""
    from hermes.broker.launcher import instance_of, runtime_dir

    name = f"hermes-{instance_of(data_dir)}"
    cgroups = Path("/sys/fs/cgroup")
    groups = [str(path) for path in (*cgroups.glob(name), *cgroups.glob(f"*/{name}"))]
    mounts = [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(runtime_dir(data_dir)) in line]
    running = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if re.search(rb"HERMES_DATA_DIR=" + re.escape(os.fsencode(data_dir)) + rb"\0", path.read_bytes()):
                running.append((path.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return [*groups, *mounts, *running]
