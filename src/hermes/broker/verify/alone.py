"""`hermes verify`: the same attacks, beside a sensor that may run on the same data directory.

It stands in a directory of its own below `data_dir`, `verify/N`, with a name, mounts, control groups and user ids of its own, and
leaves nothing. What a run that was killed has left there, the next one removes.
"""

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

from hermes.broker import data_dir, image, linux
from hermes.broker.__main__ import make_engine, target_image
from hermes.broker.janitor import sweep
from hermes.broker.launcher import instance_of, runtime_dir
from hermes.broker.pool import Pool
from hermes.broker.spools import Spools
from hermes.broker.verify import gate, runner
from hermes.broker.verify.report import Report
from hermes.config import Settings
from hermes.container.messages import BrokerEvent
from hermes.errors import EngineError, ImageError, MachineError
from hermes.tasks import TaskOwner

PLACES = 16
"""Runs at once on one data directory."""
SIZE = 3
"""Boxes kept warm: the one under attack, a neighbour, and the next."""


class Interrupted(Exception):
    """The operator asked to stop."""


def verify(settings: Settings, *, quick: bool, say: Callable[[str], None], progress: runner.Progress) -> Report:
    """Attack boxes made as `settings` say, and report. `say` is told what takes time, `progress` each verdict.

    Raises MachineError, ImageError or EngineError when that cannot be done, Interrupted when told to stop. To be called once, in
    the main thread of a process of its own: it leaves the host's mount namespace.
    """
    os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    if os.geteuid() != 0:
        raise MachineError("not running as root: Hermes makes namespaces and mounts; run it with sudo")
    data_dir.prepare(settings.data_dir)
    _prepare_image(settings, say)
    os.umask(0o077)
    linux.private_mounts()
    with target_image(settings) as target, _place(settings.data_dir) as place:
        own = _alone(settings, place)
        try:
            return asyncio.run(_until_stopped(_run(settings, own, target, quick=quick, say=say, progress=progress)))
        finally:
            sweep(instance_of(place), runtime_dir(place))


def _prepare_image(settings: Settings, say: Callable[[str], None]) -> None:
    pool = settings.container_pool
    try:
        image.find(pool.image)
    except ImageError:
        if pool.engine != "docker":
            raise
    else:
        image.ensure(pool.image, settings.data_dir, say)


def _alone(settings: Settings, place: Path) -> Settings:
    """The settings for a pool of our own, whose boxes are what the sensor's are."""
    pool = settings.container_pool
    few = pool.model_copy(update={"size": SIZE, "max_active": 2 * SIZE})
    return settings.model_copy(update={"data_dir": place, "container_pool": few})


@contextlib.contextmanager
def _place(root: Path) -> Iterator[Path]:
    """A directory that no other run uses, removed after. Its name decides on ids: none that the sensor's boxes may have."""
    from hermes.broker.engines.local import block_of

    taken = block_of(instance_of(root))
    for number in range(PLACES):
        place = root / "verify" / str(number)
        if block_of(instance_of(place)) == taken:
            continue
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if _is_taken(place, fd):
                continue
            try:
                yield place
            finally:
                shutil.rmtree(place, ignore_errors=True)
            return
        finally:
            os.close(fd)
    raise MachineError(f"{PLACES} runs of `hermes verify` are under way on {root}")


def _is_taken(place: Path, fd: int) -> bool:
    """Lock a directory, for as long as its fd is open; whether another run has it, or has just removed it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return not (place.exists() and os.path.samestat(place.stat(), os.fstat(fd)))


def _kept(own: Settings) -> Path:
    """Where what boxes leave is kept, until the end."""
    directory = own.data_dir / "kept"
    shutil.rmtree(directory, ignore_errors=True)  # of a run that was killed
    directory.mkdir(mode=0o700)
    return directory


async def _until_stopped(work: Coroutine[Any, Any, Report]) -> Report:
    """Do the work; Interrupted on SIGTERM, SIGINT or SIGHUP, once all is cleaned up."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    async with TaskOwner("verify") as tasks:
        working = tasks.spawn(work, name="attack")
        stopping = tasks.spawn(stop.wait(), name="stop")
        await asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED)
    if working.cancelled():
        raise Interrupted
    return working.result()


async def _run(
    settings: Settings,
    own: Settings,
    target: image.Image | None,
    *,
    quick: bool,
    say: Callable[[str], None],
    progress: runner.Progress,
) -> Report:
    engine = make_engine(own, target, Spools(own.data_dir / "watched"))
    config = own.container_pool
    failed = asyncio.Event()
    reasons: list[str] = []

    def emit(fact: BrokerEvent) -> None:
        if fact.kind == "engine.failed":
            reasons.append(str(fact.fields.get("reason", "the engine failed")))
            failed.set()

    say(f"starting the {config.engine} engine")
    try:
        await engine.start()
        pool = Pool(engine, config, emit=emit)
        try:
            await pool.start()
            async with TaskOwner("verify") as tasks:
                begun = [tasks.spawn(pool.ready.wait(), name="ready"), tasks.spawn(failed.wait(), name="failed")]
                await asyncio.wait(begun, return_when=asyncio.FIRST_COMPLETED)
            if not pool.ready.is_set():
                raise EngineError(reasons[0])
            return await runner.verify(
                pool,
                engine,
                config,
                image_digest=gate.digest_of(settings),
                secret_paths=gate.secret_paths(own),
                keep=None if quick else _kept(own),
                progress=progress,
            )
        finally:
            await pool.close()
    finally:
        await engine.close()
