"""Keeps broker and front running, and whoever follows their journal, each by itself: when one dies it is started afresh, and the
others go on.

A front that dies takes its connections with it, not the boxes' evidence: the broker stops and keeps what that front held. A
broker that dies takes its boxes with it: their sessions end, the front goes on listening, and the next broker keeps what the
boxes had changed. The analyst and the outputs are extras: they start once the sensor listens, and what becomes of them costs it
nothing.
"""

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from hermes import config, log
from hermes.broker import filters
from hermes.broker.children import Child, Children, environment
from hermes.broker.janitor import sweep
from hermes.broker.notify import ServiceManager
from hermes.config import Settings
from hermes.config.outputs import secret_variables
from hermes.container.control import ALIVE_SECONDS
from hermes.container.messages import ControlMessage, Peer, Reload, encode
from hermes.container.packets import know_senders
from hermes.errors import ConfigError, HermesError, MachineError
from hermes.tasks import TaskOwner

logger = structlog.get_logger(__name__)

Progress = Callable[[str], None]

START_PATIENCE = 660.0
"""Seconds that broker or front may say nothing while they start: the longest step, Docker's import of an image, may take 600."""
HANG_PATIENCE = 60.0
"""Seconds that broker or front may say nothing while they run, after which they are killed: they say so every `ALIVE_SECONDS`."""
END_PATIENCE = 30.0
"""Seconds that each may take to end."""
KILL_PATIENCE = 5.0
"""Seconds that processes without a parent may take to end once they are killed; what is frozen ends when all is swept."""
ALONE_SECONDS = 1.0
"""After the broker said that it is alone, a front that lives after all is connected with it again: it was cut off."""
BACKOFF = (0.1, 2.0, 30.0)
"""Seconds between a death and the next start: the first pause, doubled each time; the longest after a start that went well (an
attacker who finds a way to end a process should not keep the sensor down); and the longest after one that did not."""
STEADY = 60.0
"""Seconds that a process must have run for the pauses to begin anew."""

MAX_DEATHS = 100
"""Deaths that are told of when all is well again."""

assert HANG_PATIENCE > 4 * ALIVE_SECONDS


@dataclass(slots=True, eq=False)
class _Post:
    """One of them, whoever holds it now."""

    name: str
    module: tuple[str, ...]
    ready_word: str
    filter: bytes = b""
    """The system call filter it submits to, if any."""
    look_filter: bytes = b""
    """The one that those submit to who look at files for it."""
    sections: tuple[str, ...] = ()
    """Sections of the settings of which it takes over changes by being started afresh. Only an extra has any."""
    child: Child | None = None
    control: socket.socket | None = None
    """The launcher's end of the child's control socket. The child ends when it is closed."""
    is_ready: bool = False
    was_ready: bool = False
    """The process that holds it, or held it last, came to be ready."""


class Supervisor:
    """Runs one broker and one front on these listening sockets until it is asked to stop."""

    def __init__(
        self,
        settings: Settings,
        sockets: list[socket.socket],
        *,
        metrics: socket.socket | None,
        instance: str,
        runtime_dir: Path,
        lock: int,
        progress: Progress,
        read_again: Callable[[], Settings],
    ) -> None:
        """`lock`: the data directory's lock, which both hold by having it open; `read_again` reads the configuration (SIGHUP)."""
        self._settings = settings
        self._sockets = sockets
        self._metrics = metrics
        self._instance = instance
        self._runtime_dir = runtime_dir
        self._lock = lock
        self._progress = progress
        self._read_again = read_again
        self._children = Children(environment(os.environ))
        self._manager = ServiceManager(os.environ)
        self._broker = _Post("broker", ("hermes.broker",), "ready")
        self._front = _Post("front", ("hermes", "front-process"), "listening", filters.front())
        self._extras = [
            _Post("analyst", ("hermes", "analyst-process"), "ready", filters.analyst(), filters.look(), ("analysis",)),
            _Post("outputs", ("hermes", "outputs-process"), "ready", filters.outputs(), sections=("outputs", "alerts")),
        ]
        self._boxes_ready = asyncio.Event()
        self._listening = asyncio.Event()
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._announced = False
        self._deaths: list[tuple[str, str]] = []

    async def run(self) -> None:
        """Return when asked to stop and nothing is left. Raises HermesError when broker or front cannot start the first time."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked_to_stop, number)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        self._children.watch()
        async with TaskOwner("supervisor") as tasks:
            tasks.spawn(self._feed_watchdog(), name="watchdog")
            try:
                await self._keep_all()
                self._progress("stopping")
            finally:
                self._manager.stopping()
                await self._end_all()

    async def _keep_all(self) -> None:
        """Return when asked to stop. Raises HermesError as `run` does."""
        try:
            async with asyncio.TaskGroup() as group:
                keepers = [group.create_task(self._keep(post)) for post in (self._broker, self._front, *self._extras)]
                await self._stop.wait()
                for keeper in keepers:
                    keeper.cancel()
        except ExceptionGroup as failures:
            if (error := _ours(failures)) is None:
                raise
            raise error from None

    # ---- what the operator asks for

    def _asked_to_stop(self, number: signal.Signals) -> None:
        if self._stop.is_set() or number == signal.SIGINT:
            self._hurry.set()
            if self._stop.is_set() and self._front.child is not None and not self._front.child.ended.is_set():
                os.kill(self._front.child.pid, signal.SIGINT)
        self._stop.set()

    def _reload(self) -> None:
        self._manager.reloading()
        try:
            fresh = config.reload(self._settings, self._read_again())
        except (ConfigError, ValueError) as error:
            logger.error("settings not reloaded: nothing has changed", reason=str(error))
        else:
            self._settings = fresh.settings
            log.configure(self._settings.logging, process="launcher")
            logger.info("settings reloaded", changed=fresh.changed, wait_for_a_restart=fresh.ignored)
            for post in (self._broker, self._front):
                _tell(post, Reload(changed=fresh.changed, ignored=fresh.ignored), self._settings_fd())
            sections = {key.partition(".")[0] for key in fresh.changed}
            if self._settings.analysis.yara_rules or self._settings.analysis.technique_rules:
                sections.add("analysis")  # what is in those directories may have changed
            for extra in self._extras:
                if sections.intersection(extra.sections) and extra.is_ready:
                    self._renew(extra)
        self._manager.ready()

    def _renew(self, extra: _Post) -> None:
        if extra.child is not None and not extra.child.ended.is_set():
            os.kill(extra.child.pid, signal.SIGTERM)

    async def _feed_watchdog(self) -> None:
        while self._manager.watchdog:
            self._manager.alive()
            await asyncio.sleep(self._manager.watchdog / 3)

    # ---- one process

    async def _keep(self, post: _Post) -> None:
        """Hold the post with one process after the other. Raises HermesError when the first cannot start."""
        loop = asyncio.get_running_loop()
        first, longest, longest_unready = BACKOFF
        deaths = 0
        while True:
            started = loop.time()
            post.was_ready = False
            try:
                await self._hold(post)
            except HermesError as error:
                if not self._announced:
                    raise
                if post in self._extras and post.child is not None and post.child.code == 0:
                    logger.info("started afresh with other settings", what=post.name)
                    await self._clean_up_after(post)
                    continue
                deaths = 1 if loop.time() - started > STEADY else deaths + 1
                logger.error("starting afresh", what=post.name, reason=str(error), deaths=deaths)
                if post not in self._extras:
                    self._manager.status(f"the {post.name} is being started afresh")
                    self._deaths = [*self._deaths, (post.name, str(error))][-MAX_DEATHS:]
                await self._clean_up_after(post)
            await asyncio.sleep(min(longest if post.was_ready else longest_unready, first * 2.0 ** min(deaths - 1, 30)))

    async def _hold(self, post: _Post) -> None:
        """Run one process for the post, for as long as it lives. Raises MachineError with how it ended."""
        if post is self._front:
            await self._boxes_ready.wait()
        elif post in self._extras:
            await self._listening.wait()
        try:
            post.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            post.control.setblocking(False)
            with theirs:
                post.child = child = self._start(post, theirs.fileno())
            await self._until(child, post.ready_word)
            post.is_ready = post.was_ready = True
            if post not in self._extras:
                self._introduce()
        except OSError as error:  # no descriptors, no memory, no processes: for now
            raise MachineError(f"the {post.name} cannot be started: {error.strerror}") from error
        await self._until_dead(child)
        raise MachineError(f"the {child.name} died ({child.how})")

    def _start(self, post: _Post, control: int) -> Child:
        settings, filter_, look_filter = self._settings_fd(), _in_memory(post.filter), _in_memory(post.look_filter)
        try:
            fds = [("--settings", settings), ("--lock", self._lock), ("--control", control)]
            fds += [("--filter", filter_)] if post.filter else []
            fds += [("--look-filter", look_filter)] if post.look_filter else []
            if post is self._front:
                fds += [("--listen", sock.fileno()) for sock in self._sockets]
                fds += [("--metrics", self._metrics.fileno())] if self._metrics is not None else []
            return self._children.start(post.name, post.module, fds, self._secrets(post))
        finally:
            os.close(settings)
            os.close(filter_)
            os.close(look_filter)

    def _secrets(self, post: _Post) -> dict[str, str]:
        """Variables of our environment that the settings have this process use."""
        wanted = secret_variables(self._settings.outputs) if "outputs" in post.sections else set()
        return {name: os.environ[name] for name in sorted(wanted) if name in os.environ}

    def _settings_fd(self) -> int:
        return _in_memory(self._settings.model_dump_json().encode())

    def _introduce(self) -> None:
        """Connect broker and front, if both are ready."""
        if self._broker.is_ready:
            self._boxes_ready.set()
        if not (self._broker.is_ready and self._front.is_ready) or self._stop.is_set():
            return
        brokers, fronts = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        know_senders(brokers)  # the front may speak before the broker listens
        _tell(self._broker, Peer(), brokers.detach())
        _tell(self._front, Peer(deaths=self._deaths), fronts.detach())
        self._deaths = []
        self._announce()

    def _introduce_again(self, front: Child | None) -> None:
        """Connect a front that the broker lost, unless it has died: then the next one is on its way, or there."""
        if front is not None and front is self._front.child and not front.ended.is_set():
            logger.warning("the broker cut off a front that lives; they are connected again")
            self._introduce()

    def _announce(self) -> None:
        self._manager.status("listening")
        self._listening.set()
        if not self._announced:
            self._announced = True
            for sock in self._sockets:
                host, port = sock.getsockname()[:2]
                self._progress(f"listening on {host} port {port}")
            self._progress("ready")
            self._manager.ready()

    async def _until(self, child: Child, word: str) -> None:
        """Return when the child says `word`; pass on what it says of its progress."""
        while True:
            try:
                async with asyncio.timeout(START_PATIENCE):
                    line = await self._next_line(child)
            except TimeoutError:
                raise MachineError(f"the {child.name} does not start") from None
            if line is None:
                raise MachineError(f"the {child.name} could not start ({child.how})")
            verb, _, rest = line.partition(" ")
            if verb == word:
                return
            if verb == "failed":
                raise MachineError(rest)
            if verb == "progress":
                self._progress(rest)
                self._manager.status(rest)

    async def _until_dead(self, child: Child) -> None:
        """Return when the child has ended; kill it when it hangs."""
        loop = asyncio.get_running_loop()
        heard = loop.time()
        while True:
            try:
                async with asyncio.timeout_at(heard + HANG_PATIENCE):
                    if (line := await self._next_line(child)) is None:
                        return
                if line == "alone" and child is self._broker.child:
                    loop.call_later(ALONE_SECONDS, self._introduce_again, self._front.child)
            except TimeoutError:
                # After this process itself was stopped for a while, what was said meanwhile is read first.
                await asyncio.sleep(0)
                if child.lines.empty():
                    logger.error("it hangs: killing it", what=child.name, silent_seconds=HANG_PATIENCE)
                    os.kill(child.pid, signal.SIGKILL)
                    await child.ended.wait()
                    return
            heard = loop.time()

    async def _next_line(self, child: Child) -> str | None:
        """The next line of the child's; None when it has ended and all it said was read."""
        async with asyncio.TaskGroup() as group:
            ended, getting = group.create_task(child.ended.wait()), group.create_task(child.lines.get())
            await asyncio.wait([ended, getting], return_when=asyncio.FIRST_COMPLETED)
            for task in (ended, getting):
                task.cancel()
        if not getting.cancelled():
            return getting.result()
        return None if child.lines.empty() else child.lines.get_nowait()

    # ---- the end, of one or of all

    async def _clean_up_after(self, post: _Post) -> None:
        """Leave nothing of a process that died, or would not start. What a dead broker leaves are its boxes."""
        post.is_ready = False
        if post.child is not None:
            await self._children.end(post.child, patience=END_PATIENCE, log=logger.warning)
            post.child = None
        if post.control is not None:
            post.control.close()
            post.control = None
        if post is self._broker:
            await self._children.end_orphans(patience=KILL_PATIENCE, log=logger.warning)
            await asyncio.to_thread(sweep, self._instance, self._runtime_dir)

    async def _end_all(self) -> None:
        for sock in self._sockets:
            sock.close()
        if (front := self._front.child) is not None:
            ask = signal.SIGINT if self._hurry.is_set() else signal.SIGTERM
            patience = END_PATIENCE + self._settings.server.shutdown_grace
            await self._children.end(front, patience=patience, log=logger.warning, ask=ask)
        for post in (self._front, *self._extras, self._broker):
            await self._clean_up_after(post)


def _in_memory(data: bytes) -> int:
    """Return a descriptor from which a child reads these bytes."""
    fd = os.memfd_create("hermes", os.MFD_CLOEXEC)
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _tell(post: _Post, message: ControlMessage, fd: int) -> None:
    """Send a control message with its fd, which is closed. A process that does not take it is about to be killed."""
    try:
        if post.is_ready and post.control is not None:
            socket.send_fds(post.control, [encode(message)], [fd], socket.MSG_NOSIGNAL)
    except OSError as error:
        logger.warning("a process does not listen to its launcher", what=post.name, reason=error.strerror)
    finally:
        os.close(fd)


def _ours(failures: ExceptionGroup[Exception]) -> HermesError | None:
    """The one that Hermes raised on purpose, where no other was raised."""
    _, other = failures.split(HermesError)
    error: Exception = failures
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error if other is None and isinstance(error, HermesError) else None
