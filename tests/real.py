"""The real things that whole test runs share: a Docker daemon of our own where none answers, and the target image."""

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hermes.broker import programs
from hermes.broker.boxfs import unmount_below
from hermes.broker.oci import RUNSC_FLAGS

if TYPE_CHECKING:
    from hermes.broker.image import Image

DEFAULT_SOCKET = Path("/var/run/docker.sock")
DAEMON_PATIENCE = 60.0


def _answers(path: Path) -> bool:
    """A daemon that listens may still be starting, or about to give up."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        with suppress(OSError):
            sock.connect(str(path))
            sock.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return b" 200 " in sock.recv(64)
    return False


class PrivateDockerd:
    """A dockerd that touches no firewall and no network of the host; stopped, and its mounts gone, on leaving."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.socket = root / "docker.sock"
        self.host = f"unix://{self.socket}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and return when it answers. Also after `kill()`."""
        runsc = {"path": programs.which("runsc") or "/usr/bin/runsc", "runtimeArgs": RUNSC_FLAGS}
        (self.root / "daemon.json").write_text(json.dumps({"runtimes": {"runsc": runsc}}))
        log = (self.root / "dockerd.log").open("ab")
        with log:
            self.process = subprocess.Popen(
                [
                    "dockerd", "--data-root", self.root / "data", "--exec-root", self.root / "exec", "-H", self.host,
                    "--pidfile", self.root / "dockerd.pid", "--iptables=false", "--ip6tables=false", "--bridge=none",
                    "--config-file", self.root / "daemon.json",
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + DAEMON_PATIENCE
        while not _answers(self.socket):
            if self.process.poll() is not None or time.monotonic() > deadline:
                text = (self.root / "dockerd.log").read_text(errors="replace")
                pytest.fail(f"dockerd does not start:\n{text[-3000:]}")
            time.sleep(0.05)

    def kill(self) -> None:
        """kill -9 of the daemon alone; its containerd and containers are left."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        # Its containerd dies with it, but stays a zombie where nobody buries it: the next dockerd would take that for alive.
        for left in ("dockerd.pid", "exec/containerd/containerd.pid"):
            (self.root / left).unlink(missing_ok=True)
        self.socket.unlink(missing_ok=True)

    def stop(self) -> None:
        """Stop it in good order, containers and all; after `kill()`, start it once more for that."""
        if self.process is not None and self.process.poll() is not None:
            self.start()
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        unmount_below(self.root)
        for folder in ("data", "exec"):
            shutil.rmtree(self.root / folder, ignore_errors=True)

    def __enter__(self) -> "PrivateDockerd":
        self.root.mkdir(parents=True, exist_ok=True)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@pytest.fixture(scope="session")
def docker_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Docker daemon: `DOCKER_HOST`'s, the machine's, or else a private one that ends with the tests."""
    if host := os.environ.get("DOCKER_HOST"):
        yield host
        return
    if _answers(DEFAULT_SOCKET):
        yield f"unix://{DEFAULT_SOCKET}"
        return
    with PrivateDockerd(tmp_path_factory.mktemp("dockerd")) as daemon:
        yield daemon.host


@pytest.fixture(scope="session")
def target_image() -> Iterator["Image"]:
    """The default target image, built on first use (about a minute) and kept for the next run under `HERMES_TEST_CACHE`."""
    from hermes.broker import image as images

    cache = Path(os.environ.get("HERMES_TEST_CACHE") or Path(tempfile.gettempdir()) / "hermes-test-cache")
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    built = images.ensure("debian-12", cache, lambda text: None)
    with images.hold(built):
        yield images.set_hostname(built, "srv07")
