"""`hermes up`: checks the machine, prepares image and directories, runs broker and front, and leaves nothing behind.

The launcher is the subreaper of everything below it and keeps the listening sockets, so that broker and front can die and be
started afresh without losing the port.
"""

import asyncio
import contextlib
import errno
import hashlib
import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import structlog

from hermes.broker import data_dir, front_filter, image, linux, machine
from hermes.broker.children import Child, Children, environment
from hermes.broker.janitor import sweep
from hermes.broker.machine_facts import Machine
from hermes.config import Settings
from hermes.errors import HermesError, ImageError, MachineError

log = structlog.get_logger(__name__)

Progress = Callable[[str], None]

START_PATIENCE = 660.0
"""Seconds that broker or front may say nothing while they start: the longest step, Docker's import of an image, may take 600."""
END_PATIENCE = 30.0
"""Seconds that each may take to end."""
KILL_PATIENCE = 5.0
"""Seconds that processes without a parent may take to end once they are killed; what is frozen ends when all is swept."""
RESTARTS = 5
"""Failures in a row after which Hermes gives up: a start that held for STEADY seconds ends the row."""
STEADY = 60.0


class _StopError(Exception):
    """The operator asked to stop."""


def instance_of(directory: Path) -> str:
    """Return the name under which everything that belongs to this data directory can be found again: 8 hex digits."""
    return hashlib.sha256(os.fsencode(directory.resolve())).hexdigest()[:8]


def runtime_dir(directory: Path) -> Path:
    """Return where sockets, mounts and the runtime's state of this data directory's Hermes are."""
    return Path("/run/hermes") / instance_of(directory)


def launch(settings: Settings, progress: Progress) -> None:
    """Run Hermes until SIGTERM or SIGINT. Raises MachineError, ImageError or EngineError when it cannot run."""
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
            sockets = [closing.enter_context(_listening(host, port)) for host, port in settings.server.endpoints]
            linux.set_subreaper()
            linux.private_mounts()
            asyncio.run(_Launcher(settings, sockets, lock, progress).run())


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


def _listening(host: str, port: int) -> socket.socket:
    """Return a listening socket, set up as sshd's are."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICHOST
        )[0]
        with contextlib.ExitStack() as undo:
            sock = undo.enter_context(socket.socket(family, kind, protocol))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
            sock.listen(1024)
            undo.pop_all()
            return sock
    except OSError as error:
        hint = ": is another server there? Set server.port to a free one" if error.errno == errno.EADDRINUSE else ""
        raise MachineError(f"cannot listen on {host} port {port}: {error.strerror}{hint}") from error


def _raise_open_files() -> None:
    """Take as many open files as allowed: a session needs about ten."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 1_048_576)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@contextlib.contextmanager
def _in_memory(data: bytes) -> Iterator[int]:
    """A descriptor from which a child reads these bytes."""
    fd = os.memfd_create("hermes", os.MFD_CLOEXEC)
    try:
        os.write(fd, data)
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)


class _Launcher:
    """Runs generations of broker and front: when one of the two dies, both are ended, all is swept, and a new pair starts."""

    def __init__(self, settings: Settings, sockets: list[socket.socket], lock: int, progress: Progress) -> None:
        self._settings = settings
        self._sockets = sockets
        self._lock = lock
        self._progress = progress
        self._children = Children(environment(os.environ))
        self._stop = asyncio.Event()
        self._announced = False
        self._filter = front_filter.compiled()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._stop.set)
        self._children.watch()
        failures = 0
        try:
            while True:
                started = loop.time()
                try:
                    await self._generation()
                except HermesError as error:
                    if not self._announced:
                        raise
                    failures = 1 if loop.time() - started > STEADY else failures + 1
                    if failures > RESTARTS:
                        raise
                    log.error("starting afresh", reason=str(error), failures=failures)
                    await self._pause(min(2.0 ** (failures - 1), 30.0))
        except _StopError:
            self._progress("stopped")

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        except TimeoutError:
            return
        raise _StopError

    async def _generation(self) -> None:
        """Run one broker and one front. Raises _StopError when asked to stop, EngineError when one of them died."""
        running: list[Child] = []
        try:
            ours, fronts = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with ours, fronts:
                broker = self._start("broker", ["hermes.broker"], [("--front", ours.fileno())])
                running.append(broker)
                await self._until(broker, "ready")
                listen = [("--listen", sock.fileno()) for sock in self._sockets]
                with _in_memory(self._filter) as filter_:
                    fds = [("--filter", filter_), ("--broker", fronts.fileno()), *listen]
                    front = self._start("front", ["hermes", "front-process"], fds)
                running.append(front)
            await self._until(front, "listening")
            self._announce()
            await self._first_of(broker.ended, front.ended)
            dead = front if front.ended.is_set() else broker
            raise MachineError(f"the {dead.name} died ({dead.how})")
        finally:
            for child in reversed(running):
                await self._children.end(child, patience=END_PATIENCE, log=log.warning)
            await self._children.end_orphans(patience=KILL_PATIENCE, log=log.warning)
            await asyncio.to_thread(sweep, instance_of(self._settings.data_dir), runtime_dir(self._settings.data_dir))

    def _start(self, name: str, module: list[str], fds: list[tuple[str, int]]) -> Child:
        with _in_memory(self._settings.model_dump_json().encode()) as settings:
            return self._children.start(name, module, [("--settings", settings), ("--lock", self._lock), *fds])

    async def _until(self, child: Child, word: str) -> None:
        """Return when the child says `word`; pass on what it says of its progress."""
        while True:
            try:
                async with asyncio.timeout(START_PATIENCE):
                    line = await self._next_line(child)
            except TimeoutError:
                raise MachineError(f"the {child.name} does not start") from None
            verb, _, rest = line.partition(" ")
            if verb == word:
                return
            if verb == "failed":
                raise MachineError(rest)
            if verb == "progress":
                self._progress(rest)

    async def _next_line(self, child: Child) -> str:
        async with asyncio.TaskGroup() as group:
            waiting = [group.create_task(self._stop.wait()), group.create_task(child.ended.wait())]
            getting = group.create_task(child.lines.get())
            await asyncio.wait([*waiting, getting], return_when=asyncio.FIRST_COMPLETED)
            for task in (*waiting, getting):
                if not task.done():
                    task.cancel()
        if not getting.cancelled():
            return getting.result()
        if self._stop.is_set():
            raise _StopError
        if not child.lines.empty():
            return child.lines.get_nowait()
        raise MachineError(f"the {child.name} could not start ({child.how})")

    async def _first_of(self, *happenings: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(event.wait()) for event in (self._stop, *happenings)]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
        if self._stop.is_set():
            raise _StopError

    def _announce(self) -> None:
        if not self._announced:
            self._announced = True
            for sock in self._sockets:
                host, port = sock.getsockname()[:2]
                self._progress(f"listening on {host} port {port}")
            self._progress("ready")
