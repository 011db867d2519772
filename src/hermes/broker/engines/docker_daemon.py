"""A Docker daemon: asked in time, its faults put into words, and what it can hold of the limits and walls of a box."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiodocker import Docker, DockerError

from hermes.broker.engines.docker_container import BOX_LABEL, INSTANCE_LABEL, connect, name_of
from hermes.broker.engines.docker_stream import FAULTS
from hermes.broker.engines.exec_server import one_line
from hermes.config.models import LimitsConfig
from hermes.errors import EngineError

OLDEST_API = (1, 40)
CALL_TIMEOUT = 30.0
"""Seconds the daemon has to answer anything but the creation of a container."""


class Daemon:
    """The client of one daemon, made when it is first needed. `host` as in `container_pool.docker.host`."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._client: Docker | None = None

    @property
    def docker(self) -> Docker:
        """The client itself."""
        if self._client is None:
            self._client = connect(self._host)
        return self._client

    async def close(self) -> None:
        """Let go of the client."""
        if self._client is not None:
            client, self._client = self._client, None
            await client.close()
            await client.connector.close()
            await asyncio.sleep(0)  # transports close in the loop's next turn

    @asynccontextmanager
    async def asking(self, what: str, timeout: float = 0.0) -> AsyncIterator[None]:
        """Ask it something. EngineError, which says what could not be done, for a fault or when it takes longer."""
        timeout = timeout or CALL_TIMEOUT
        try:
            async with asyncio.timeout(timeout):
                yield
        except TimeoutError as error:
            raise EngineError(f"docker: cannot {what}: no answer in {timeout:g} s") from error
        except FAULTS as error:
            if isinstance(error, DockerError) and error.status != 900:
                raise EngineError(f"docker: cannot {what}: {one_line(error)}") from error
            raise EngineError(
                f"docker: cannot {what}: {self._host} does not answer; is dockerd running? (systemctl start docker)"
            ) from error


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
