"""What a Docker daemon can hold of the limits and walls of a box, and what it means where it cannot."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from aiodocker import Docker, DockerError

from hermes.broker.engines.docker_container import BOX_LABEL, INSTANCE_LABEL, name_of
from hermes.broker.engines.docker_stream import FAULTS
from hermes.broker.engines.exec_server import one_line
from hermes.config.models import LimitsConfig
from hermes.errors import EngineError

OLDEST_API = (1, 40)
CALL_TIMEOUT = 30.0
"""Seconds the daemon has to answer anything but the creation of a container."""
T = TypeVar("T")


def require_version(version: dict[str, Any]) -> None:
    """EngineError for a daemon that will not do. `version` is what it says at `/version`."""
    api = tuple(int(part) for part in str(version.get("ApiVersion", "0")).split("."))
    if api < OLDEST_API or version.get("Os") != "linux":
        oldest = ".".join(map(str, OLDEST_API))
        raise EngineError(
            f"docker: {version.get('Version')} for {version.get('Os')} will not do: API {oldest} on Linux is needed"
        )


async def can_limit_disk(docker: Docker, image: str, limits: LimitsConfig, instance: str) -> bool:
    """Whether the daemon's storage driver limits the disk of a container: it takes one that is never started, or refuses it."""
    trial = f"disk-trial-{instance}"
    wanted: dict[str, Any] = {
        "Image": image,
        "Entrypoint": ["/bin/true"],
        "Labels": {INSTANCE_LABEL: instance, BOX_LABEL: trial},
        "HostConfig": {"NetworkMode": "none", "StorageOpt": {"size": str(limits.disk)}},
    }
    try:
        container = await docker.containers.create(wanted, name=name_of(trial))
    except DockerError as error:
        if "storage-opt" in str(error.message).lower() or "storage opt" in str(error.message).lower():
            return False
        raise
    await container.delete(force=True)
    return True


def is_here(info: dict[str, Any]) -> bool:
    """Whether the daemon's files seem to be on this machine. `info` is what it says of itself."""
    driver = str(info.get("Driver", ""))
    return Path(str(info.get("DockerRootDir") or "/nonexistent"), driver).is_dir()


def has_user_namespace(info: dict[str, Any]) -> bool:
    """Whether root of a container is nobody on the daemon's machine."""
    return any("name=userns" in option or "name=rootless" in option for option in info.get("SecurityOptions") or ())


def warnings(info: dict[str, Any], *, enforced: bool, local: bool) -> Iterator[str]:
    """What an operator must know of it."""
    if not has_user_namespace(info):
        yield (
            "docker: root of a container is root of the daemon's machine, held back by capabilities and seccomp only: "
            'set "userns-remap": "default" in /etc/docker/daemon.json'
        )
    driver = info.get("Driver")
    if enforced:
        return
    if local and str(driver).startswith("overlay"):
        yield (
            f"docker: its storage driver ({driver}) cannot limit a container's disk here (overlay2 can on xfs with pquota): "
            "containers are watched, and one that takes more than container_pool.limits.disk is stopped, about a second later"
        )
    else:
        yield (
            f"docker: nothing limits a container's disk: its storage driver ({driver}) cannot, and its files are not on this "
            "machine. An attacker can fill that disk: use overlay2 on xfs with pquota, or give Docker a disk of its own"
        )


@asynccontextmanager
async def asking(host: str, what: str, timeout: float) -> AsyncIterator[None]:
    """Turn whatever goes wrong while the daemon at `host` is asked for something into an EngineError that says what that was."""
    try:
        async with asyncio.timeout(timeout):
            yield
    except TimeoutError as error:
        raise EngineError(f"docker: cannot {what}: no answer in {timeout:g} s") from error
    except FAULTS as error:
        if isinstance(error, DockerError) and error.status != 900:
            raise EngineError(f"docker: cannot {what}: {one_line(error)}") from error
        raise EngineError(
            f"docker: cannot {what}: {host} does not answer; is dockerd running? (systemctl start docker)"
        ) from error


async def caught(work: Awaitable[T]) -> "T | EngineError":
    """The outcome as a value: a task whose failure somebody waits for is no failure of its owner's."""
    try:
        return await work
    except EngineError as error:
        return error
