"""The `docker` engine: boxes are containers of a Docker daemon, on this machine or another.

What one instance owns is found again by labels. Where the daemon is local (a container's init is in our /proc), the spawner
enters as it enters any box, and the init's end is seen by its pidfd; where it is not, Docker's exec API and its `wait` serve.
"""

import asyncio
import json
import os
import re
import socket
from collections.abc import Collection
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from typing import Any

import structlog
from aiodocker import Docker, DockerError

from hermes.broker import cgroups
from hermes.broker.engines import docker_changes
from hermes.broker.engines.base import Box
from hermes.broker.engines.docker_cell import Cell
from hermes.broker.engines.docker_container import (
    BOX_LABEL,
    INSTANCE_LABEL,
    connect,
    container_config,
    name_of,
    occupied_tmp,
    pidfd_of,
)
from hermes.broker.engines.docker_daemon import CALL_TIMEOUT, asking, can_limit_disk, caught, is_here, require_version, warnings
from hermes.broker.engines.docker_disk import DiskWatch, upper_directory
from hermes.broker.engines.docker_exec import DockerExecServer
from hermes.broker.engines.docker_image import ready_image
from hermes.broker.engines.docker_runtime import end_sandbox, is_gvisor
from hermes.broker.engines.docker_stream import FAULTS
from hermes.broker.forensics import budget
from hermes.broker.gauges import Gauge
from hermes.broker.image import Image
from hermes.broker.policy import Policy
from hermes.broker.spools import Spools
from hermes.broker.trees import Copied
from hermes.broker.watching import UnwatchedError, Watching
from hermes.broker.zygote import Zygote
from hermes.config.models import ContainerPoolConfig
from hermes.errors import EngineError
from hermes.tasks import TaskOwner

log = structlog.get_logger(__name__)

REMOVERS = 8
"""Containers removed at the same time."""
_RETRIES = (0.5, 15.0)
_GIVE_UP = 300.0
_ABSENT = 3
_KEEP_TIMEOUT = 120.0
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


class DockerEngine:
    """See `hermes.broker.engines.base.Engine`. `image`: a built target image, or the name of one the daemon has or can pull."""

    name = "docker"

    def __init__(
        self, config: ContainerPoolConfig, *, data_dir: Path, image: Image | str, instance: str, spools: Spools | None = None
    ) -> None:
        self.runtime: str = "docker's default" if config.runtime == "auto" else config.runtime
        self._config = config
        self._data_dir = data_dir
        self._image = image
        self._instance = instance
        self._policy = Policy(config.security, config.limits)
        self._reference = ""
        self._gvisor = False
        self._client: Docker | None = None
        self._zygote = Zygote()
        self._watching = Watching(config.watch, spools, self._zygote)
        self._cells: dict[str, Cell] = {}
        self._tasks = TaskOwner("docker")
        self._removers = asyncio.Semaphore(REMOVERS)
        self._spared: set[str] = set()
        self._enforced = False
        self._disks = DiskWatch(config.limits, freeze=self._set_frozen, exceeded=self._exceeded)
        self._trees = cgroups.hierarchies()

    # ---- the engine's life

    async def start(self, *, spare: Collection[str] = ()) -> None:
        """Make ready: check the daemon, bring it the image, end what an earlier run left, and remove it but for `spare`."""
        async with self._asking("ask for the version"):
            version = await self._docker.version()
        require_version(version)
        async with self._asking("ask for the runtimes"):
            self._gvisor = await is_gvisor(self._docker, self._config.runtime)
        if self._gvisor:
            self.runtime = "runsc"
        if self._gvisor and self._config.docker.entry == "spawner":
            raise EngineError("docker: the default runtime is gVisor, which no spawner can enter: set docker.entry to auto")
        self._reference = await ready_image(self._docker, self._image)
        self._spared = set(spare) & set(left := await self.list_owned())
        if left:
            log.warning("containers of an earlier run ended", count=len(left))
        await self._remove_owned()
        await asyncio.gather(*(self._kill(name_of(container_id)) for container_id in self._spared))
        await self._limit_disks()

    async def _limit_disks(self) -> None:
        """Find out who holds the limit of a container's disk, and say what it means if it is nobody."""
        async with self._asking("ask for its storage driver"):
            told = await self._docker._query_json("info")
            self._enforced = await can_limit_disk(self._docker, self._reference, self._config.limits, self._instance)
        for warning in warnings(told, enforced=self._enforced, local=is_here(told)):
            log.warning(warning)
        if not self._enforced:
            self._tasks.spawn(self._disks.run(), name="disks")

    async def recover(self, container_id: str, *, keep: Path | None) -> Copied | None:
        """Keep what changed in a container that was spared, and remove it."""
        try:
            if container_id not in self._spared or keep is None:
                return None
            async with self._asking("keep what changed in a container", _KEEP_TIMEOUT):
                details = await self._docker.containers.container(name_of(container_id)).show()
                return await self._changes(name_of(container_id), details).keep(keep)
        finally:
            self._spared.discard(container_id)
            await self._remove(container_id)

    def look(self, box: Box) -> None:
        """Bring `box.reached` up to date, where the container's cgroups are on this machine."""
        if (cell := self._cells.get(box.id)) is not None and cell.gauge is not None:
            cell.gauge.read(box.reached)

    async def close(self) -> None:
        """Destroy every box and let go of all resources. Those are let go of even if EngineError says that boxes are left."""
        try:
            await asyncio.gather(*(self.destroy(cell.box) for cell in list(self._cells.values())), return_exceptions=True)
            await self._remove_owned()
        finally:
            for cell in self._cells.values():
                self._forget_init(cell)
                if cell.server is not None:
                    await cell.server.close()
            self._cells.clear()
            await self._tasks.close()
            self._watching.close()
            await self._zygote.close()
            if self._client is not None:
                client, self._client = self._client, None
                await client.close()
                await client.connector.close()
                await asyncio.sleep(0)  # transports close in the loop's next turn

    async def list_owned(self) -> list[str]:
        """Ids of all boxes of this instance that exist, running or not."""
        filters = json.dumps({"label": [f"{INSTANCE_LABEL}={self._instance}"]})
        async with self._asking("list containers"):
            found = await self._docker._query_json("containers/json", params={"all": "1", "filters": filters})
        return [str(container["Labels"].get(BOX_LABEL, container["Id"])) for container in found]

    async def _remove_owned(self) -> None:
        owned = set(await self.list_owned()) - self._spared
        await asyncio.gather(*(self._remove(container_id) for container_id in owned))

    # ---- a box's life

    async def create(self, container_id: str) -> Box:
        """Return a running box. On failure or cancellation nothing of it is left, or goes as soon as the daemon answers again."""
        if not _ID.fullmatch(container_id):
            raise EngineError(f"docker: {container_id!r} cannot be a container's id")
        making = self._tasks.spawn(caught(self._create(container_id)), name=f"create {container_id}")
        try:
            cell = await asyncio.shield(making)
        except asyncio.CancelledError:
            # A request that was sent is carried out whether or not somebody waits for it: wait, then remove what it made.
            await asyncio.shield(self._tasks.spawn(self._unmake(making, container_id), name=f"unmake {container_id}"))
            raise
        if isinstance(cell, EngineError):
            raise cell
        return cell.box

    async def _create(self, container_id: str) -> Cell:
        labels = {INSTANCE_LABEL: self._instance, BOX_LABEL: container_id}
        init = self._image.init if isinstance(self._image, Image) else ()
        wanted = container_config(
            self._policy, self._config, self._reference, init, labels, gvisor=self._gvisor, disk=self._enforced
        )
        name = name_of(container_id)
        try:
            async with self._asking("create a container", self._config.create_timeout):
                container = await self._docker.containers.create(wanted, name=name)
                if self._gvisor:
                    await container.put_archive("/", occupied_tmp())  # type: ignore[no-untyped-call]
                await container.start()
                details = await container.show()
            cell = Cell(Box(container_id), name, details)
            self._watch(cell)
        except BaseException as error:
            # A request without an answer may still be carried out.
            await self._remove_surely(container_id, again=isinstance(error.__cause__, TimeoutError))
            raise
        self._cells[container_id] = cell
        return cell

    async def _unmake(self, making: "asyncio.Task[Cell | EngineError]", container_id: str) -> None:
        cell = await making
        if isinstance(cell, Cell):
            with suppress(EngineError):
                await self.destroy(cell.box)
                return
            await self._remove_surely(container_id)

    async def open(self, box: Box) -> socket.socket:
        """Return the box socket of a box: of a spawner in it where that can be, else of a stand-in that speaks the exec API."""
        cell = self._cell(box)
        entry = self._config.docker.entry
        if cell.pidfd is not None:
            self._settle(cell)
        if entry == "spawner" and cell.pidfd is None:
            raise EngineError("docker: container_pool.docker.entry is spawner, but the daemon is on another machine; use auto")
        if entry != "api" and cell.pidfd is not None and not self._gvisor:
            try:
                return await self._watching.enter(box, pidfd=cell.pidfd, policy=self._policy)
            except EngineError as error:
                if entry == "spawner" or cell.ended.is_set() or isinstance(error, UnwatchedError):
                    raise
                log.warning("no spawner can enter; using the exec API, which is slower", reason=str(error))
        self._watching.say("no spawner stands in them: Docker's exec API is used (container_pool.docker.entry)")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setblocking(False)
        variables = tuple(str(entry).partition("=")[0] for entry in cell.details["Config"].get("Env") or ())
        cell.server = DockerExecServer(self._docker, cell.name, ours, unset=variables)
        return theirs

    def _settle(self, cell: Cell) -> None:
        """What Docker has no setting for, and what to look at, where the container is on this machine."""
        with suppress(OSError):
            paths = cgroups.of_process(cell.box.pid, self._trees)
            cgroups.set_cpu(paths, self._policy.limits.cpu_weight, self._policy.cpu_burst)
            cell.gauge = Gauge(paths)
        if not self._enforced and (upper := upper_directory(cell.details)) is not None:
            self._disks.uppers[cell.box.id] = upper

    async def _set_frozen(self, container_id: str, frozen: bool) -> None:
        with suppress(EngineError, KeyError):
            await (self.freeze if frozen else self.thaw)(self._cells[container_id].box)

    async def _exceeded(self, container_id: str, limit: str) -> None:
        """A container took more disk than it may: end it, before it takes the host's."""
        self._disks.uppers.pop(container_id, None)
        if (cell := self._cells.get(container_id)) is not None:
            cell.box.reached[limit] = 1
            with suppress(EngineError):
                await self._kill(cell.name)

    async def freeze(self, box: Box) -> None:
        """Stop every process of the box where it is."""
        async with self._asking("pause a container"):
            await self._docker.containers.container(self._cell(box).name).pause()

    async def thaw(self, box: Box) -> None:
        """Let them go on."""
        async with self._asking("unpause a container"):
            await self._docker.containers.container(self._cell(box).name).unpause()

    async def destroy(self, box: Box, *, keep: Path | None = None) -> Copied | None:
        """End the box and remove all of it; with `keep`, first bring the files that changed there."""
        cell = self._cells.get(box.id)
        if cell is None:
            await self._remove(box.id)
            return None
        if cell.removal is None:
            cell.removal = self._tasks.spawn(caught(self._destroy(cell, keep)), name=f"destroy {box.id}")
        if (error := await asyncio.shield(cell.removal)) is not None:
            cell.removal = None
            raise error
        return cell.copied

    async def _destroy(self, cell: Cell, keep: Path | None) -> None:
        self._disks.uppers.pop(cell.box.id, None)
        self.look(cell.box)
        if self._gvisor and cell.pidfd is not None:
            end_sandbox(cell.pidfd)
        if keep is not None:
            await self._kill(cell.name)
            await self._watching.finish(cell.box.id)
            async with self._asking("keep what changed in a container", _KEEP_TIMEOUT):
                cell.copied = await self._changes(cell.name, cell.details).keep(keep)
        await self._remove(cell.box.id)
        await self._watching.finish(cell.box.id)
        self._watching.end(cell.box.id, kept=keep is not None)
        self._cells.pop(cell.box.id, None)
        self._init_ended(cell)
        if cell.server is not None:
            await cell.server.box_ended()

    def _changes(self, name: str, details: dict[str, Any]) -> docker_changes.Changes:
        return docker_changes.Changes(self._docker, name, details, budget(self._config.forensics))

    async def _kill(self, name: str) -> None:
        """Return when nothing of the container runs any more."""
        container = self._docker.containers.container(name)
        async with self._asking("kill a container"):
            with suppress(DockerError):
                await container.unpause()
            with suppress(DockerError):
                await container.kill()
            await container.wait()

    async def _remove(self, container_id: str) -> None:
        """Kill and remove a container, if it is there. Return when it is gone."""
        container = self._docker.containers.container(name_of(container_id))
        async with self._removers, self._asking("remove a container", CALL_TIMEOUT * (1 + 3 * self._gvisor)):
            while True:
                try:
                    await container.delete(force=True, v=True)
                except DockerError as error:
                    if error.status == 404:
                        return
                    if error.status != 409:
                        raise
                    await asyncio.sleep(0.05)  # it is being removed already
                else:
                    return

    async def _remove_surely(self, container_id: str, *, again: bool = False) -> None:
        """Remove a container; where the daemon does not answer now, or with `again`, (also) in the background. Does not raise."""
        try:
            await self._remove(container_id)
        except EngineError as error:
            log.warning("a container cannot be removed yet", container=container_id, reason=str(error))
            again = True
        if again:
            self._tasks.spawn(self._remove_later(container_id), name=f"remove {container_id}")

    async def _remove_later(self, container_id: str) -> None:
        """Try until the container was not there a few times in a row. What is left after minutes, the next start removes."""
        pause, longest = _RETRIES
        absent = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(_GIVE_UP):
                while absent < _ABSENT:
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, longest)
                    with suppress(EngineError):
                        absent = 0 if container_id in await self.list_owned() else absent + 1
                        await self._remove(container_id)

    # ---- its init

    def _watch(self, cell: Cell) -> None:
        """See to it that the end of the container's init is noticed. EngineError if it has ended already."""
        state = cell.details["State"]
        if not state.get("Running"):
            why = state.get("Error") or "no reason given"
            raise EngineError(f"docker: a container ended at once, with status {state.get('ExitCode')}: {why}")
        pid = int(state["Pid"])
        cell.pidfd = pidfd_of(pid, str(cell.details["Id"]))
        if cell.pidfd is not None:
            cell.box.pid = pid
            asyncio.get_running_loop().add_reader(cell.pidfd, self._init_ended, cell)
        else:
            self._tasks.spawn(self._wait(cell), name=f"wait {cell.box.id}")

    async def _wait(self, cell: Cell) -> None:
        """Wait for the end of a container on another machine, also across restarts of its daemon."""
        pause, longest = _RETRIES
        while not cell.ended.is_set():
            try:
                await self._docker.containers.container(cell.name).wait()
                break
            except FAULTS as error:
                if isinstance(error, DockerError) and error.status == 404:
                    break
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)
        self._init_ended(cell)

    def _init_ended(self, cell: Cell) -> None:
        self._forget_init(cell)
        if cell.ended.is_set():
            return
        cell.ended.set()
        if cell.server is not None and cell.removal is None:
            self._tasks.spawn(cell.server.box_ended(), name=f"ended {cell.box.id}")
        for told in cell.box.on_exit:
            told()

    @staticmethod
    def _forget_init(cell: Cell) -> None:
        if cell.pidfd is not None:
            asyncio.get_running_loop().remove_reader(cell.pidfd)
            os.close(cell.pidfd)
            cell.pidfd = None

    # ---- the daemon

    @property
    def _docker(self) -> Docker:
        if self._client is None:
            self._client = connect(self._config.docker.host)
        return self._client

    def _cell(self, box: Box) -> Cell:
        if (cell := self._cells.get(box.id)) is None:
            raise EngineError(f"docker: container {box.id} is gone")
        return cell

    def _asking(self, what: str, timeout: float = 0.0) -> AbstractAsyncContextManager[None]:
        return asking(self._config.docker.host, what, timeout or CALL_TIMEOUT)
