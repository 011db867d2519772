"""Real engines for the tests: one case an engine."""

import contextlib
import itertools
import os
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pytest
import pytest_asyncio

from hermes.broker.engines.base import Box, Engine
from hermes.config import ContainerPoolConfig
from hermes.config.models import DockerConfig, LimitsConfig
from hermes.errors import EngineError
from hermes.testing.boxes import BoxClient

if TYPE_CHECKING:
    from hermes.broker.engines.docker import DockerEngine
    from hermes.broker.image import Image

LIMITS = LimitsConfig(memory=128 << 20, pids=64, cpus=2.0, open_files=256, file_size=16 << 20, disk=64 << 20, inodes=4000)
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
    disk: bool = False
    """A box's disk is limited by the kernel, so that it is full at its limit."""
    own_users: bool = False
    """root in the box is nobody on the host."""
    exact_signals: bool = True
    """An end by a signal that nobody sent over the box socket is told from exit status 128+n."""
    real_terminal: bool = True
    """A terminal's fd is a pty master."""
    linux: bool = True
    """The kernel of a box is Linux, with its limits and its refusals; what goes too far is killed alone, not the box."""
    named_terminal: bool = True
    """A terminal is a device of the box: it has a path, and is /dev/tty."""


@pytest.fixture(scope="session")
def pool_config() -> Callable[..., ContainerPoolConfig]:
    """Makes a pool configuration with the suite's limits."""

    def make(**changes: object) -> ContainerPoolConfig:
        return ContainerPoolConfig.model_validate({"limits": LIMITS, "hostname": "srv07", **changes})

    return make


def _fake(request: pytest.FixtureRequest, root: Path) -> Case:
    from hermes.testing import FakeEngine

    return Case("fake", lambda instance: FakeEngine(), isolated=False, durable=False)


def _local(runtime: str) -> Callable[[pytest.FixtureRequest, Path], Case]:
    def case(request: pytest.FixtureRequest, root: Path) -> Case:
        from hermes.broker.engines.local import LocalEngine

        image = request.getfixturevalue("target_image")
        config = request.getfixturevalue("pool_config")(engine="local", runtime=runtime)

        def make(instance: str) -> Engine:
            return LocalEngine(config, data_dir=root / instance, image=image, instance=instance)

        if runtime == "runsc":
            return Case("local-runsc", make, disk=True, linux=False, named_terminal=False)
        return Case("local", make, disk=True, own_users=True)

    return case


def _docker(entry: str, runtime: str = "auto") -> Callable[[pytest.FixtureRequest, Path], Case]:
    def case(request: pytest.FixtureRequest, root: Path) -> Case:
        from hermes.broker.engines.docker import DockerEngine

        image = request.getfixturevalue("target_image")
        docker = DockerConfig.model_validate({"host": request.getfixturevalue("docker_host"), "entry": entry})
        config = request.getfixturevalue("pool_config")(engine="docker", docker=docker, runtime=runtime)

        def make(instance: str) -> Engine:
            return DockerEngine(config, data_dir=root / "data", image=image, instance=instance)

        if runtime == "runsc":
            return Case("docker-runsc", make, exact_signals=False, real_terminal=False, linux=False, named_terminal=False)
        spawner = entry == "spawner"
        return Case(f"docker-{entry}", make, exact_signals=spawner, real_terminal=spawner)

    return case


CASES = {
    "fake": _fake,
    "local": _local("auto"),
    "local-runsc": _local("runsc"),
    "docker-spawner": _docker("spawner"),
    "docker-api": _docker("api"),
    "docker-runsc": _docker("auto", "runsc"),
}


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
    with broker_umask():
        await engine.start()
        yield engine
        await engine.close()


@contextlib.contextmanager
def broker_umask() -> Iterator[None]:
    """The umask that the broker runs with; nothing of it may be seen in a box."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


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
