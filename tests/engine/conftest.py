"""Real engines for the tests: a Docker daemon of our own where none answers, the target image, and one case an engine."""

import itertools
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pytest
import pytest_asyncio

from hermes.broker.boxfs import unmount_below
from hermes.broker.engines.base import Box, Engine
from hermes.config import ContainerPoolConfig
from hermes.config.models import DockerConfig, LimitsConfig
from hermes.errors import EngineError
from hermes.testing.boxes import BoxClient

if TYPE_CHECKING:
    from hermes.broker.engines.docker import DockerEngine
    from hermes.broker.image import Image

DEFAULT_SOCKET = Path("/var/run/docker.sock")
DAEMON_PATIENCE = 60.0

LIMITS = LimitsConfig(memory=128 << 20, pids=64, cpus=2.0, open_files=256, file_size=16 << 20)
"""Small enough to be reached in a test."""


@dataclass(frozen=True, slots=True)
class Case:
    """One engine as the suite sees it, and what it openly does not promise."""

    name: str
    make: Callable[[str], Engine]
    """Makes an engine, not started, for a Hermes instance of that name."""
    isolated: bool = True
    """Boxes are cut off from the host and limited; users are the box's own."""
    durable: bool = True
    """Boxes outlive the engine object, as they outlive a killed broker."""
    own_users: bool = False
    """root in the box is nobody on the host."""
    exact_signals: bool = True
    """An end by a signal that nobody sent over the box socket is told from exit status 128+n."""
    real_terminal: bool = True
    """A terminal's fd is a pty master."""


def _answers(path: Path) -> bool:
    """A daemon that listens may still be starting, or about to give up."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        with suppress(OSError):
            sock.connect(str(path))
            sock.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return b" 200 " in sock.recv(64)
    return False


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


class PrivateDockerd:
    """A dockerd that touches no firewall and no network of the host; stopped, and its mounts gone, on leaving."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.socket = root / "docker.sock"
        self.host = f"unix://{self.socket}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and return when it answers. Also after `kill()`."""
        log = (self.root / "dockerd.log").open("ab")
        with log:
            self.process = subprocess.Popen(
                [
                    "dockerd", "--data-root", self.root / "data", "--exec-root", self.root / "exec", "-H", self.host,
                    "--pidfile", self.root / "dockerd.pid", "--iptables=false", "--ip6tables=false", "--bridge=none",
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
def target_image() -> Iterator["Image"]:
    """The default target image, built on first use (about a minute) and kept for the next run under `HERMES_TEST_CACHE`."""
    from hermes.broker import image as images

    cache = Path(os.environ.get("HERMES_TEST_CACHE") or Path(tempfile.gettempdir()) / "hermes-test-cache")
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    built = images.ensure("debian-12", cache, lambda text: None)
    with images.hold(built):
        yield images.set_hostname(built, "srv07")


@pytest.fixture(scope="session")
def pool_config() -> Callable[..., ContainerPoolConfig]:
    """Makes a pool configuration with the suite's limits."""

    def make(**changes: object) -> ContainerPoolConfig:
        return ContainerPoolConfig.model_validate({"limits": LIMITS, "hostname": "srv07", **changes})

    return make


def _fake(request: pytest.FixtureRequest, root: Path) -> Case:
    from hermes.testing import FakeEngine

    return Case("fake", lambda instance: FakeEngine(), isolated=False, durable=False)


def _local(request: pytest.FixtureRequest, root: Path) -> Case:
    from hermes.broker.engines.local import LocalEngine

    image = request.getfixturevalue("target_image")
    config = request.getfixturevalue("pool_config")(engine="local")

    def make(instance: str) -> Engine:
        return LocalEngine(config, data_dir=root / instance, image=image, instance=instance)

    return Case("local", make, own_users=True)


def _docker(entry: str) -> Callable[[pytest.FixtureRequest, Path], Case]:
    def case(request: pytest.FixtureRequest, root: Path) -> Case:
        from hermes.broker.engines.docker import DockerEngine

        image = request.getfixturevalue("target_image")
        docker = DockerConfig.model_validate({"host": request.getfixturevalue("docker_host"), "entry": entry})
        config = request.getfixturevalue("pool_config")(engine="docker", docker=docker)

        def make(instance: str) -> Engine:
            return DockerEngine(config, data_dir=root / "data", image=image, instance=instance)

        spawner = entry == "spawner"
        return Case(f"docker-{entry}", make, exact_signals=spawner, real_terminal=spawner)

    return case


CASES = {"fake": _fake, "local": _local, "docker-spawner": _docker("spawner"), "docker-api": _docker("api")}


Make: TypeAlias = Callable[..., "DockerEngine"]


@pytest_asyncio.fixture
async def make(pool_config: Callable[..., ContainerPoolConfig], docker_host: str, tmp_path: Path) -> AsyncIterator[Make]:
    """Makes engines, not started; all are closed at the end."""
    from hermes.broker.engines.docker import DockerEngine

    engines: list[DockerEngine] = []

    def make(image: "Image | str", *, host: str = docker_host, entry: str = "auto", **changes: object) -> DockerEngine:
        config = pool_config(engine="docker", docker={"host": host, "entry": entry}, **changes)
        engine = DockerEngine(config, data_dir=tmp_path, image=image, instance=f"docker{os.getpid()}-{len(engines)}")
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        try:
            await engine.close()
        except EngineError:
            continue


@pytest.fixture(
    scope="module",
    params=[name if name == "fake" else pytest.param(name, marks=pytest.mark.root) for name in CASES],
)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Each engine in turn."""
    return CASES[request.param](request, tmp_path_factory.mktemp("engine"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(case: Case) -> AsyncIterator[Engine]:
    """The engine, started; its boxes are gone at the end."""
    engine = case.make("suite")
    await engine.start()
    yield engine
    await engine.close()


_ids = itertools.count(1)


def new_id() -> str:
    """A container id that was never used."""
    return f"box-{os.getpid()}-{next(_ids)}"


@pytest_asyncio.fixture(loop_scope="module")
async def box(engine: Engine) -> AsyncIterator[Box]:
    """A box of one test's own."""
    box = await engine.create(new_id())
    yield box
    await engine.destroy(box)


@pytest_asyncio.fixture(loop_scope="module")
async def client(engine: Engine, box: Box) -> AsyncIterator[BoxClient]:
    """That box, opened."""
    async with BoxClient(await engine.open(box), box.id) as client:
        yield client
