"""The `local` engine: boxes made by an OCI runtime on this machine, without a daemon.

A spawner enters them; where none can, because the box has a kernel of its own (gVisor), the runtime's own exec does.

What one instance owns is found again by its name: `runtime_dir`, `<data_dir>/boxes`, and the cgroups below
`/hermes-<instance>`. So a run that was killed is cleaned up by the next, without a record of its own.
"""

import asyncio
import base64
import contextlib
import json
import os
import secrets
import signal
import socket
import zlib
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, Protocol, TypeVar

import structlog

from hermes.broker import cgroups, programs, trees
from hermes.broker.boxfs import IDS, BoxFiles, Places, origin, own_working_directory, throw_away
from hermes.broker.cgroups import BoxCgroup
from hermes.broker.disks import Disks
from hermes.broker.engines.base import Box
from hermes.broker.engines.freezing import set_frozen
from hermes.broker.engines.local_cell import Cell
from hermes.broker.engines.oci_exec import OciExecServer
from hermes.broker.forensics import budget
from hermes.broker.janitor import sweep
from hermes.broker.oci import Runtime, config, occupy_tmp
from hermes.broker.policy import Policy
from hermes.broker.spools import Spools
from hermes.broker.watching import Watching
from hermes.broker.zygote import Zygote
from hermes.config.models import ContainerPoolConfig
from hermes.errors import ConfigError, EngineError, MachineError
from hermes.tasks import TaskOwner

log = structlog.get_logger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

SLOTS = 2048
"""Boxes at once, at most: each has a range of ids of its own."""
_BLOCKS = 30
_END_TIMEOUT = 10.0
_DELETE_PATIENCE = 5.0


def block_of(instance: str) -> int:
    """Which of the blocks of user ids an instance's boxes have; two instances may have the same."""
    return zlib.crc32(instance.encode()) % _BLOCKS


class Image(Protocol):
    """A target image, unpacked: its root file system, and what its process 1 is."""

    @property
    def rootfs(self) -> Path: ...
    @property
    def init(self) -> tuple[str, ...]: ...


class LocalEngine:
    """See `hermes.broker.engines.base.Engine`."""

    name = "local"

    def __init__(
        self,
        config: ContainerPoolConfig,
        *,
        data_dir: Path,
        image: Image,
        instance: str,
        runtime_dir: Path | None = None,
        spools: Spools | None = None,
    ) -> None:
        self.policy = Policy(config.security, config.limits)
        self.runtime: str = config.runtime
        self.runtime_dir = runtime_dir or Path("/run/hermes") / instance
        self._config = config
        self._image = image
        self._origin = origin(image.rootfs, config.hostname)
        self._places = Places(self.runtime_dir, data_dir)
        self._disks = Disks(data_dir / "templates", config.limits)
        self._instance = instance
        self._cgroup = f"/hermes-{instance}"
        self._base = (1 + block_of(instance)) * SLOTS * IDS
        self._free = list(reversed(range(SLOTS)))
        self._cells: dict[str, Cell] = {}
        self._namespaces: dict[int, int] = {}
        self._trees: list[cgroups.Hierarchy] = []
        self._runtime: Runtime | None = None
        self._swap = False
        self._bpf: str | None = None
        self.zygote = Zygote()
        self._watching = Watching(config.watch, spools, self.zygote)
        self._threads = ThreadPoolExecutor(config.concurrency + 1, "hermes-local", initializer=own_working_directory)
        self._tasks = TaskOwner("local-engine")
        self._deleting = asyncio.Lock()
        self._closed = False

    # ---- the contract

    async def start(self, *, spare: Collection[str] = ()) -> None:
        try:
            if not (self._image.rootfs / "etc").is_dir():
                raise EngineError(f"the image has no root file system at {self._image.rootfs}")
            self._trees = cgroups.hierarchies()
            if self._config.runtime in ("auto", "crun") and cgroups.hide_unified(self._trees):
                self._trees = cgroups.hierarchies()
            self._swap = cgroups.counts_swap(self._trees)
            self.policy.bpf()
            await self._clean_up(frozenset(spare))
            await self._in_thread(self._disks.prepare)
            await self.zygote.start()
            await self._choose_runtime()
        except (OSError, ConfigError, MachineError) as error:
            raise EngineError(f"the local engine cannot start: {_told(error)}") from error

    async def _choose_runtime(self) -> None:
        """Take the first runtime that can make a box here."""
        wanted = ("crun", "runc") if self._config.runtime == "auto" else (self._config.runtime,)
        failures = []
        for name in wanted:
            program = programs.which(name)
            if program is None:
                failures.append(f"{name} is not installed (apt-get install {name})")
                continue
            self._runtime = Runtime(program, self._places.runtime)
            self._bpf = base64.b64encode(self.policy.bpf()).decode() if self._runtime.is_crun else None
            try:
                await self._try()
            except EngineError as error:
                failures.append(str(error))
                self._runtime = None
            else:
                # Version 2 does not tell before a cgroup below the root has the memory controller; the trial's parent has it.
                self._swap = cgroups.counts_swap(self._trees)
                self.runtime = name
                self._watching.say("a container of gVisor's has a kernel of its own" if self._runtime.is_runsc else None)
                log.info("OCI runtime chosen", runtime=name)
                return
        raise EngineError("no OCI runtime works: " + "; ".join(failures))

    async def _try(self) -> None:
        """Make a box, enter it, and remove it again."""
        box = await self.create(f"trial-{secrets.token_hex(4)}")
        try:
            (await self.open(box)).close()
        finally:
            await self.destroy(box)

    async def create(self, container_id: str) -> Box:
        cell = self._new_cell(container_id)
        try:
            async with asyncio.timeout(self._config.create_timeout):
                await self._create(cell)
        except TimeoutError as error:
            await self._abandon(cell)
            raise EngineError(f"no box within {self._config.create_timeout:g} s") from error
        except OSError as error:
            await self._abandon(cell)
            raise EngineError(f"cannot create a box: {_told(error)}") from error
        except BaseException:
            await self._abandon(cell)
            raise
        return cell.box

    async def open(self, box: Box) -> socket.socket:
        cell = self._cell(box)
        if self._runtime is not None and self._runtime.is_runsc:
            cell.server, sock = await OciExecServer.enter(self._runtime, box.id, self.policy)
        else:
            sock = await self._watching.enter(box, pidfd=cell.pidfd, policy=self.policy)
        try:
            cell.cgroup.end_boot(self.policy.limits.cpu_weight, self.policy.cpu_burst)
        except OSError as error:
            sock.close()
            raise EngineError(f"box {box.id} cannot be opened: {error}") from error
        return sock

    def look(self, box: Box) -> None:
        if (cell := self._cells.get(box.id)) is not None:
            cell.gauge.read(box.reached)
            if self._places.must_go(cell.files, self._config.limits.host_free) and not cell.ended.is_set():
                box.reached["host_free"] = 1
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(cell.pidfd, signal.SIGKILL)

    async def freeze(self, box: Box) -> None:
        await set_frozen(self._cell(box).cgroup, True, patience=_END_TIMEOUT)

    async def thaw(self, box: Box) -> None:
        await set_frozen(self._cell(box).cgroup, False, patience=_END_TIMEOUT)

    async def destroy(self, box: Box, *, keep: Path | None = None) -> trees.Copied | None:
        cell = self._cells.get(box.id)
        if cell is None:
            return None
        await self._end(cell, keep)
        return cell.copied

    async def list_owned(self) -> list[str]:
        return await self._in_thread(self._owned)

    async def close(self) -> None:
        ends = [self._end(cell, None) for cell in list(self._cells.values())]
        failures = [result for result in await asyncio.gather(*ends, return_exceptions=True) if isinstance(result, EngineError)]
        self._closed = True
        await self._tasks.close()
        self._watching.close()
        await self.zygote.close()
        for namespace in self._namespaces.values():
            os.close(namespace)
        self._namespaces.clear()
        await asyncio.to_thread(self._threads.shutdown)
        if not failures:
            await self._empty(BoxCgroup(self._cgroup, self._trees))
        for directory in (self._places.bundles, self._places.runtime, self.runtime_dir):
            with contextlib.suppress(OSError):
                directory.rmdir()
        if failures:
            raise failures[0]

    # ---- making a box

    def _new_cell(self, container_id: str) -> Cell:
        if self._closed:
            raise EngineError("the engine is closed")
        if container_id in self._cells:
            raise EngineError(f"box {container_id} exists")
        if not self._free:
            raise EngineError(f"all {SLOTS} ranges of user ids are taken")
        files = self._places.files(container_id)
        cgroup = BoxCgroup(f"{self._cgroup}/{container_id}", self._trees)
        cell = self._cells[container_id] = Cell(Box(container_id), self._free.pop(), files, cgroup, self._config.limits.disk)
        return cell

    async def _create(self, cell: Cell) -> None:
        if self._runtime is None:
            raise EngineError("the engine has not been started")
        base = self._base + cell.slot * IDS
        if cell.slot not in self._namespaces:
            self._namespaces[cell.slot] = await self.zygote.user_namespace(base, IDS)
        namespace = self._namespaces[cell.slot]
        settings = config(
            self.policy,
            init=self._image.init,
            hostname=self._config.hostname,
            base=base,
            cgroup=cell.cgroup.name,
            swap=self._swap,
            bpf=self._bpf,
            sandboxed=self._runtime.is_runsc,
        )
        await self._in_thread(self._lay_out, cell.files, namespace, base, json.dumps(settings))
        pid = await self._runtime.run(cell.box.id, cell.files.bundle)
        cell.pidfd = os.pidfd_open(pid)
        cell.box.pid = pid
        asyncio.get_running_loop().add_reader(cell.pidfd, self._ended, cell)
        if not cell.cgroup.holds(pid):
            raise EngineError("the box's init ended at once")

    def _lay_out(self, files: BoxFiles, namespace: int, base: int, settings: str) -> None:
        files.mount(self._disks, self._image.rootfs, namespace, base, self._config.hostname)
        if self._runtime is not None and self._runtime.is_runsc:
            occupy_tmp(files.rootfs, base)
        (files.bundle / "config.json").write_text(settings)

    async def _abandon(self, cell: Cell) -> None:
        """Undo a creation that failed. What cannot be undone now is logged; `start` of the next run will."""
        try:
            await self._end(cell, None)
        except EngineError as error:
            log.error("box could not be removed", container_id=cell.box.id, reason=str(error))

    # ---- its end

    def _ended(self, cell: Cell) -> None:
        """The box's init has ended: by our doing, by its own, or by its attacker's."""
        asyncio.get_running_loop().remove_reader(cell.pidfd)
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, cell.pidfd, os.WEXITED | os.WNOHANG)
        cell.ended.set()
        if cell.server is not None:
            self._tasks.spawn(cell.server.box_ended(), name=f"ended {cell.box.id}")
        for callback in cell.box.on_exit:
            callback()

    async def _end(self, cell: Cell, keep: Path | None) -> None:
        if cell.ending is None or cell.ending.done():
            cell.ending = self._tasks.spawn(self._end_once(cell, keep), name=f"end {cell.box.id}")
        error = await asyncio.shield(cell.ending)
        if error is not None:
            raise error

    async def _end_once(self, cell: Cell, keep: Path | None) -> EngineError | None:
        if self._cells.get(cell.box.id) is not cell:
            return None
        try:
            await self._kill(cell)
            await self._watching.finish(cell.box.id)
            if keep is not None:
                cell.copied = await self._in_thread(cell.files.keep, keep, budget(self._config.forensics), self._origin)
            doomed = await self._in_thread(self._places.take_down, cell.files)
        except (OSError, EngineError) as error:
            return EngineError(f"box {cell.box.id} cannot be removed: {error}")
        self._watching.end(cell.box.id, kept=keep is not None)
        if cell.pidfd >= 0:
            asyncio.get_running_loop().remove_reader(cell.pidfd)
            os.close(cell.pidfd)
        del self._cells[cell.box.id]
        self._free.append(cell.slot)
        if doomed is not None:
            deletion = self._tasks.spawn(self._delete(doomed), name=f"delete {doomed.name}")
            await asyncio.wait([deletion], timeout=_DELETE_PATIENCE)
        return None

    async def _kill(self, cell: Cell) -> None:
        cell.gauge.read(cell.box.reached)
        with contextlib.suppress(OSError):
            cell.cgroup.freeze(False)
        if cell.pidfd >= 0 and not cell.ended.is_set():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(cell.pidfd, signal.SIGKILL)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_END_TIMEOUT):
                    await cell.ended.wait()
        await self._empty(cell.cgroup)

    async def _empty(self, cgroup: BoxCgroup) -> None:
        """Kill what is in the cgroup until it can be removed."""
        pause = 0.001
        try:
            async with asyncio.timeout(_END_TIMEOUT):
                while not cgroup.remove():
                    await asyncio.sleep(pause)
                    if pause > 0.002:
                        cgroup.kill()
                    pause = min(pause * 2, 0.05)
        except TimeoutError as error:
            raise EngineError(f"cgroup {cgroup.name} still holds {sorted(cgroup.pids())} after {_END_TIMEOUT:g} s") from error

    async def _delete(self, pit: Path) -> None:
        """Delete what is left of a box. One at a time: the larger its disk, the longer that takes."""
        async with self._deleting:
            try:
                await self._in_thread(trees.remove, pit)
            except (OSError, ValueError) as error:
                log.error("files of a box could not be deleted", path=str(pit), reason=str(error))

    # ---- what an earlier run left

    def _owned(self) -> list[str]:
        found = cgroups.children(self._cgroup, cgroups.hierarchies())
        found |= self._places.names()
        return sorted(found)

    async def recover(self, container_id: str, *, keep: Path | None) -> trees.Copied | None:
        files = self._places.files(container_id)
        try:
            return await self._in_thread(self._places.recover, files, keep, budget(self._config.forensics), self._origin)
        except OSError as error:
            raise EngineError(f"changes of box {container_id} cannot be kept: {_told(error)}") from error

    async def _clean_up(self, spare: frozenset[str]) -> None:
        """End every box that an earlier run left, and remove all but the disks of those in `spare`."""
        left = await self._in_thread(self._owned)
        await self._in_thread(sweep, self._instance, self.runtime_dir)
        self._places.prepare()
        for container_id in left:
            files = self._places.files(container_id)
            if container_id not in spare or not files.image.exists():
                await self._in_thread(self._places.take_down, files)
        if left:
            log.warning("boxes of an earlier run ended", count=len(left))
        for doomed in list(self._places.trash.iterdir()):
            pit = throw_away(doomed, self._places.trash)
            self._tasks.spawn(self._delete(pit), name=f"delete {pit.name}")

    # ---- small things

    def _cell(self, box: Box) -> Cell:
        cell = self._cells.get(box.id)
        if cell is None or cell.ended.is_set():
            raise EngineError(f"box {box.id} has ended")
        return cell

    async def _in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a blocking function in a worker thread, to its end even if the caller is cancelled meanwhile."""
        if self._closed:
            raise EngineError("the engine is closed")
        future = asyncio.get_running_loop().run_in_executor(self._threads, lambda: function(*args, **kwargs))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            raise


def _told(error: Exception) -> str:
    """What an error says to an operator."""
    return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
