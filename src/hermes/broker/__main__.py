"""The broker's process: the only one that keeps root's power. Started by the launcher; serves one front after the other."""

import argparse
import asyncio
import contextlib
import gc
import os
import pwd
import signal
import socket
from collections.abc import Callable, Iterator

import structlog

from hermes import log
from hermes.broker import image, linux
from hermes.broker.artifact_keeper import ArtifactKeeper, budgets
from hermes.broker.difference import Differences
from hermes.broker.engines.base import Engine
from hermes.broker.forensics import Forensics
from hermes.broker.launcher import instance_of, runtime_dir
from hermes.broker.pool import Pool
from hermes.broker.recovery import recover
from hermes.broker.server import Fronts
from hermes.broker.spools import Spools
from hermes.broker.verify.gate import before_listening
from hermes.config import Settings
from hermes.container import BrokerEvent, ControlSocket, Report
from hermes.errors import EngineError, HermesError, ImageError, MachineError
from hermes.tasks import TaskOwner

logger = structlog.get_logger(__name__)


def main() -> None:
    """Run the broker until the launcher ends it or is gone."""
    parser = argparse.ArgumentParser(prog="hermes.broker")
    parser.add_argument("--settings", type=int, required=True, help="fd of the settings as JSON")
    parser.add_argument("--control", type=int, required=True, help="fd of the control socket")
    parser.add_argument("--status", type=int, required=True, help="fd to write lines to: progress, ready, failed, alive")
    parser.add_argument("--lock", type=int, help="fd of the data directory's lock, held by being open")
    fds = parser.parse_args()
    linux.set_parent_death_signal(signal.SIGTERM)
    with os.fdopen(fds.settings, "rb") as file:
        settings = Settings.model_validate_json(file.read())
    log.configure(settings.logging, process="broker")
    os.umask(0o077)
    report = Report(fds.status)
    try:
        with target_image(settings) as target:
            account = pwd.getpwnam(settings.sensor.user)
            files = budgets(settings.artifacts, settings.artifacts_dir, account.pw_gid)
            spools = Spools(settings.data_dir / "watched", files)
            asyncio.run(_run(settings, make_engine(settings, target, spools), spools, fds.control, report))
    except HermesError as error:
        report(f"failed {error}")
        raise SystemExit(1) from None


def make_engine(settings: Settings, target: image.Image | None, spools: Spools) -> Engine:
    """Return the engine that the settings name, not started. `target` None: an image that only Docker knows. `spools`: where what
    is seen in its boxes goes."""
    pool = settings.container_pool
    instance = instance_of(settings.data_dir)
    if pool.engine == "docker":
        from hermes.broker.engines.docker import DockerEngine

        return DockerEngine(pool, data_dir=settings.data_dir, image=target or pool.image, instance=instance, spools=spools)
    from hermes.broker.engines.local import LocalEngine

    if target is None:
        raise ImageError(f"image {pool.image!r} is unknown: the local engine runs images of `hermes image list`")
    return LocalEngine(
        pool, data_dir=settings.data_dir, image=target, instance=instance, runtime_dir=runtime_dir(settings.data_dir),
        spools=spools,
    )  # fmt: skip


@contextlib.contextmanager
def target_image(settings: Settings) -> Iterator[image.Image | None]:
    """Hold the target image while boxes stand on it; None when it is not one of ours."""
    pool = settings.container_pool
    try:
        image.find(pool.image)
    except ImageError:
        yield None
        return
    target = image.get(pool.image, settings.data_dir)
    with image.hold(target):
        yield image.set_hostname(target, pool.hostname)


async def _run(settings: Settings, engine: Engine, spools: Spools, control_fd: int, report: Report) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    log.handle_loop_exceptions(loop)
    config = settings.container_pool
    fronts = Fronts(user=pwd.getpwnam(settings.sensor.user).pw_uid, spools=spools, on_alone=lambda: report("alone"))
    start = _Start(config.size, report)

    def emit(fact: BrokerEvent) -> None:
        start.saw(fact)
        fronts.emit(fact)

    report(f"progress starting the {config.engine} engine")
    assert spools.files is not None
    differences = Differences(
        spools.files, settings.artifacts.session_changes, emit=emit, spool=spools.writer, room=lambda: fronts.has_room
    )
    forensics = Forensics(
        settings.data_dir / "stopped", config.forensics, emit=emit, differences=differences, over=spools.end
    )  # fmt: skip
    keeper = ArtifactKeeper(
        settings.artifacts_dir, settings.artifacts, emit=emit, room=lambda: fronts.has_room,
        active_since=lambda: forensics.held_since,
    )  # fmt: skip
    try:
        left = await forensics.start()
    except OSError as error:
        raise MachineError(f"cannot use {forensics.directory}: {error.strerror}") from error
    if not await _started(engine, stop, spare=[facts.container_id for facts in left]):
        await forensics.close()
        await engine.close()
        return
    try:
        await asyncio.to_thread(spools.start, spare=[facts.container_id for facts in left])
    except OSError as error:
        raise MachineError(f"cannot use {spools.directory}: {error.strerror}") from error
    try:
        pool = Pool(engine, config, emit=emit, forensics=forensics)
        control = ControlSocket(
            socket.socket(fileno=control_fd), on_peer=lambda sock, _: fronts.connect(sock),
            on_reload=lambda fresh, _: pool.reconfigure(Settings.model_validate_json(fresh).container_pool),
        )  # fmt: skip
        try:
            control.start()
            await pool.start()
            fronts.start(pool)
            async with TaskOwner("broker") as tasks:
                over = [tasks.spawn(stop.wait(), name="stop"), tasks.spawn(control.closed.wait(), name="launcher")]
                begun = [tasks.spawn(pool.ready.wait(), name="ready"), tasks.spawn(start.failed.wait(), name="failed")]
                await asyncio.wait([*over, *begun], return_when=asyncio.FIRST_COMPLETED)
                if start.failed.is_set() and not pool.ready.is_set():
                    raise EngineError(start.reason)
                if not any(task.done() for task in over):
                    await before_listening(settings, engine, pool, emit, report)
                start.over = True
                gc.collect()
                gc.freeze()
                report("ready")
                tasks.spawn(report.stay_alive(), name="alive")
                tasks.spawn(keeper.run(), name="artifacts")
                tasks.spawn(recover(engine, forensics, left, emit=emit), name="recover")
                await asyncio.wait(over, return_when=asyncio.FIRST_COMPLETED)
        finally:
            control.close()
            await fronts.close()
            await pool.close()
            await forensics.close()
    finally:
        await engine.close()
        spools.close()


async def _started(engine: Engine, stop: asyncio.Event, *, spare: list[str]) -> bool:
    """Start the engine, which may take minutes; False when asked to stop before that was done."""

    async def cut_short(limit: asyncio.Timeout) -> None:
        await stop.wait()
        limit.reschedule(0)

    try:
        async with TaskOwner("start") as tasks, asyncio.timeout(None) as limit:
            tasks.spawn(cut_short(limit), name="stop")
            await engine.start(spare=spare)
    except TimeoutError:
        if not stop.is_set():
            raise
        return False
    return True


class _Start:
    """What happens until the pool is warm, told to whoever waits for it; the first failure of the engine ends the wait."""

    def __init__(self, size: int, report: Callable[[str], None]) -> None:
        self.failed = asyncio.Event()
        self.reason = ""
        self.over = False
        self._size = size
        self._warm = 0
        self._report = report

    def saw(self, fact: BrokerEvent) -> None:
        """Take a fact that the pool states."""
        if self.over:
            return
        if fact.kind == "container.created" and self._warm < self._size:
            self._warm += 1
            self._report(f"progress warming the pool: {self._warm} of {self._size}")
        elif fact.kind == "engine.failed":
            self.reason = str(fact.fields.get("reason", "the engine failed"))
            self.failed.set()


if __name__ == "__main__":
    main()
