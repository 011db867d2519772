"""`hermes up`: checks the machine, prepares image and directories, has broker and front run, and leaves nothing behind.

The launcher is the subreaper of everything below it and keeps the listening sockets, so that broker and front can die and be
started afresh without losing the port (`supervisor`).
"""

import asyncio
import contextlib
import hashlib
import os
import resource
import socket
from collections.abc import Callable
from pathlib import Path

from hermes.broker import data_dir, image, linux, machine, sockets
from hermes.broker.machine_facts import Machine
from hermes.broker.supervisor import Progress, Supervisor
from hermes.config import Settings
from hermes.errors import ImageError, MachineError


def instance_of(directory: Path) -> str:
    """Return the name under which everything that belongs to this data directory can be found again: 8 hex digits."""
    return hashlib.sha256(os.fsencode(directory.resolve())).hexdigest()[:8]


def runtime_dir(directory: Path) -> Path:
    """Return where sockets, mounts and the runtime's state of this data directory's Hermes are."""
    return Path("/run/hermes") / instance_of(directory)


def launch(settings: Settings, progress: Progress, *, read_again: Callable[[], Settings] | None = None) -> None:
    """Run Hermes until SIGTERM or SIGINT; SIGHUP has it read its settings again. Raises HermesError when it cannot run."""
    os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"  # su leaves out where runc is
    if os.geteuid() != 0:
        raise MachineError("not running as root: Hermes makes namespaces and mounts; run it with sudo")
    data_dir.prepare(settings.data_dir)
    with data_dir.locked(settings.data_dir, progress) as lock:
        machine.require(settings, _Held())
        _raise_open_files()
        data_dir.prepare_fronts(settings)
        _prepare_image(settings, progress)
        with contextlib.ExitStack() as closing:
            listen = [closing.enter_context(sockets.bound(host, port)) for host, port in settings.server.endpoints]
            metrics = sockets.bound_for_metrics(settings.metrics.address)
            if metrics is not None:
                closing.callback(sockets.give_up, metrics)
            linux.set_subreaper()
            linux.private_mounts()
            asyncio.run(_supervised(settings, listen, metrics, lock, progress, read_again or (lambda: settings)))


async def _supervised(
    settings: Settings,
    listen: list[socket.socket],
    metrics: socket.socket | None,
    lock: int,
    progress: Progress,
    read_again: Callable[[], Settings],
) -> None:
    instance, directory = instance_of(settings.data_dir), runtime_dir(settings.data_dir)
    supervisor = Supervisor(
        settings, listen, metrics=metrics, instance=instance, runtime_dir=directory,
        lock=lock, progress=progress, read_again=read_again,
    )  # fmt: skip
    await supervisor.run()
    progress("stopped")


class _Held(Machine):
    """The machine, as whoever holds the data directory's lock sees it."""

    def is_running(self, data_dir: Path) -> bool:
        return False


def _prepare_image(settings: Settings, progress: Progress) -> None:
    pool = settings.container_pool
    try:
        image.find(pool.image)
    except ImageError:
        if pool.engine == "docker":
            return  # any Docker image will do; the engine looks for it
        raise
    image.ensure(pool.image, settings.data_dir, progress)


def _raise_open_files() -> None:
    """Take as many open files as allowed: a session needs about ten."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 1_048_576)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
