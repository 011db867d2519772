"""The front's process: started by the launcher as root with everything it needs, it gives up all power, then listens."""

import argparse
import asyncio
import concurrent.futures.thread  # noqa: F401  imported lazily, as the next one
import contextlib
import encodings.idna  # noqa: F401  imported lazily by the standard library, when it may be out of our reach
import gc
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import structlog

import hermes
from hermes import events, log
from hermes.config import Settings
from hermes.confine.landlock import OWN, READ, Files, Rule
from hermes.confine.process import confine
from hermes.container import BrokerEvent, ContainerPool, ControlSocket, Report
from hermes.container.messages import Peer, Reload
from hermes.errors import AllocationError, EngineError, HermesError, JournalError, MachineError, RecordingError, SpawnError
from hermes.evidence import Keeper
from hermes.evidence.intake import Intake
from hermes.evidence.recovery import unstated
from hermes.evidence.sealer import Sealer
from hermes.geo.databases import Databases
from hermes.metrics import Endpoint, Metrics, Watch
from hermes.recording import Quota, SessionRecorder
from hermes.server.hostkeys import load_or_make
from hermes.server.process import ChannelProcess
from hermes.server.ssh import Front
from hermes.server.visitor import Visitor
from hermes.session.inputs import Input, is_input
from hermes.session.lines import LineAssembler
from hermes.session.proxy import ContainerLostError
from hermes.store import Journal
from hermes.store.cursors import standing
from hermes.tasks import TaskOwner

logger = structlog.get_logger(__name__)

SessionHandler = Callable[..., Awaitable[None]]

DRAIN_SECONDS = 5.0
"""How long a front that ends waits for the last facts of its containers; the next front takes what comes later."""


def main(handler: SessionHandler) -> None:
    """Run the front until the launcher ends it or is gone. SIGTERM lets sessions go on for `server.shutdown_grace`, SIGINT
    does not. Exits 0 after either, 1 when it cannot go on."""
    parser = argparse.ArgumentParser(prog="hermes front-process")
    parser.add_argument("--settings", type=int, required=True, help="fd of the settings as JSON")
    parser.add_argument("--filter", type=int, required=True, help="fd of the seccomp filter to submit to")
    parser.add_argument("--control", type=int, required=True, help="fd of the control socket")
    parser.add_argument("--status", type=int, required=True, help="fd to write lines to: listening, failed, alive")
    parser.add_argument("--metrics", type=int, help="fd of the socket to serve metrics on")
    parser.add_argument("--listen", type=int, action="append", required=True, help="fd of a listening socket")
    parser.add_argument("--lock", type=int, help="fd of the data directory's lock, held by being open")
    fds = parser.parse_args(sys.argv[2:])
    with os.fdopen(fds.settings, "rb") as file:
        settings = Settings.model_validate_json(file.read())
    log.configure(settings.logging, process="front")
    report = Report(fds.status)
    try:
        with os.fdopen(fds.filter, "rb") as file:
            program = file.read()
        os.environ |= {"SQLITE_TMPDIR": str(settings.journal_dir), "HOME": "/nonexistent"}
        confine(settings.sensor.user, program, own_files(settings))
        asyncio.run(_run(settings, handler, fds, report))
    except HermesError as error:
        report(f"failed {error}")
        raise SystemExit(1) from None


def own_files(settings: Settings) -> list[Rule]:
    """What the front may do with files once it is confined: anything in its own directories, and read about itself."""
    directories = {settings.journal_dir: "", settings.keys_dir: ""}
    user = settings.sensor.user
    if isinstance(lines := _lines(settings), Path):
        directories[lines.parent] = f"events cannot be written (let {user} in, or set logging.events)"
    if settings.recording.enabled:
        directories[settings.recordings_dir] = f"recordings cannot be written (let {user} in, or set recording.output_dir)"
    own = [Rule(directory, OWN, complaint) for directory, complaint in sorted(directories.items())]
    geo = [settings.geo_dir, *filter(None, (settings.geo.country, settings.geo.asn))]
    read = [Rule(path, Files.READ_FILE | Files.READ_DIR, optional=True) for path in geo]
    positions = [Rule(directory, READ) for directory in (settings.index_dir, settings.outputs_dir)]
    return [*own, *read, *positions, Rule(Path("/proc/self"), Files.READ_FILE)]


async def _run(settings: Settings, handler: SessionHandler, fds: argparse.Namespace, report: Report) -> None:
    drain, stop = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    log.handle_loop_exceptions(loop)
    loop.add_signal_handler(signal.SIGTERM, drain.set)
    loop.add_signal_handler(signal.SIGINT, stop.set)
    if settings.recording.enabled:
        _check_writable(settings.recordings_dir, settings.sensor.user)
    metrics, lines = Metrics(), _lines(settings)
    observers: list[Callable[[events.Event], None]] = [metrics.count]
    journal = Journal(
        settings.journal_path, sensor=settings.sensor.name, lines=lines,
        rotate_lines=settings.evidence.max_lines_bytes // 4, on_event=lambda event: _tell(observers, event),
    )  # fmt: skip
    journal.open()
    try:
        for fact in await asyncio.to_thread(unstated, settings.journal_path, settings.recordings_dir):
            journal.emit(fact)
        async with TaskOwner("front-process") as tasks:
            patience = settings.container_pool.allocation_timeout
            intake = Intake(journal)
            observers.append(intake.saw)
            pool = ContainerPool(on_event=lambda event: _state(journal, event), spools=intake, patience=patience)
            intake.on_taken = pool.taken
            await pool.start()
            sessions = Sessions(settings, journal, pool, handler, tasks)
            sealer = Sealer(settings, journal, unsettled=lambda: intake.unsettled)
            intake.on_settled = sealer.settled
            await journal.wait_written()
            await sealer.start()
            keeper = Keeper(
                settings, journal, active=lambda: sessions.recorded | sealer.pending,
                lines=lines if isinstance(lines, Path) else None,
            )  # fmt: skip
            await keeper.start()
            geo = Databases(settings)
            geo.open()
            front = Front(
                settings, journal, load_or_make(settings.keys_dir),
                handler=sessions.run_channel, on_channel_opened=sessions.prepare, on_session_over=sessions.over,
                no_room=lambda: keeper.refusal, origin=geo.origin,
            )  # fmt: skip
            watched = [it.name for it in settings.outputs]
            control = ControlSocket(
                socket.socket(fileno=fds.control), on_peer=lambda sock, said: _attach(sock, said, pool, journal),
                on_reload=lambda fresh, said: _reload(Settings.model_validate_json(fresh), said, front, geo, journal, watched),
            )  # fmt: skip
            control.start()
            watch = Watch(
                front, journal, pool, intake, lambda: standing(settings.journal_path, settings.outputs_dir, watched),
                lambda: _index_lag(settings),
            )  # fmt: skip
            endpoint = Endpoint(fds.metrics and socket.socket(fileno=fds.metrics), metrics, watch.look)
            await endpoint.start()
            sockets = [socket.socket(fileno=fd) for fd in fds.listen]
            gc.collect()
            gc.freeze()
            gc.set_threshold(10_000, 10, 10)
            try:
                await front.listen(sockets)
            except OSError as error:  # another program has begun to listen since the launcher bound them
                raise MachineError(f"cannot listen: {error.strerror}") from error
            journal.emit(
                events.SensorStarted(
                    version=hermes.__version__,
                    addresses=[f"{address[0]}:{address[1]}" for address in (sock.getsockname() for sock in sockets)],
                    engine=settings.container_pool.engine,
                    image=settings.container_pool.image,
                )
            )
            report("listening")
            tasks.spawn(report.stay_alive(), name="alive")
            tasks.spawn(keeper.run(), name="keeper")
            tasks.spawn(sealer.run(), name="sealer")
            over = [
                tasks.spawn(stop.wait(), name="stop"),
                tasks.spawn(drain.wait(), name="drain"),
                tasks.spawn(control.closed.wait(), name="launcher"),
            ]
            await asyncio.wait(over, return_when=asyncio.FIRST_COMPLETED)
            if drain.is_set() and not stop.is_set():
                await front.drain(stop)
            control.close()
            await front.close()
            await sessions.close()
            await endpoint.close()
            await intake.drain(DRAIN_SECONDS)
            await intake.close()
            await pool.close()
            await sealer.close()
            with contextlib.suppress(JournalError):  # it has said so itself
                journal.emit(events.SensorStopped(reason="the launcher is gone" if control.closed.is_set() else "asked to"))
    finally:
        journal.close()


def _tell(observers: list[Callable[[events.Event], None]], event: events.Event) -> None:
    for observer in observers:
        observer(event)


def _attach(sock: socket.socket, said: Peer, pool: ContainerPool, journal: Journal) -> None:
    """Talk with this broker from now on, and state what died before."""
    pool.attach(sock)
    with contextlib.suppress(JournalError):  # it has said so itself
        for process, how in said.deaths:
            journal.emit(events.SensorRecovered(process=process, reason=how))


def _reload(
    settings: Settings, said: Reload, front: Front, geo: Databases, journal: Journal, watched: list[str]
) -> None:  # fmt: skip
    """Take over the settings, for connections that come from now on, and databases that are new."""
    log.configure(settings.logging, process="front")
    front.reconfigure(settings)
    geo.open()
    watched[:] = (it.name for it in settings.outputs)
    with contextlib.suppress(JournalError):  # it has said so itself
        journal.emit(events.SensorReloaded(changed=said.changed, ignored=said.ignored))


def _index_lag(settings: Settings) -> int | None:
    """Events that the analyst has yet to take in; None where that is not known."""
    found = standing(settings.journal_path, settings.index_dir, ["analyst"] if settings.analysis.enabled else [])
    return found[0].lag if found else None


def _check_writable(directory: Path, user: str) -> None:
    """Raise MachineError when recordings could not be made: better now than when the first attacker is in."""
    try:
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise MachineError(
            f"recordings cannot be written: {user} cannot make files in {directory} ({error.strerror}): "
            "let it in, or set recording.output_dir"
        ) from error


def _lines(settings: Settings) -> Path | Literal["stdout"] | None:
    where = settings.logging.events
    if where == "off":
        return None
    return "stdout" if where == "stdout" else settings.journal_dir / where


def _state(journal: Journal, event: BrokerEvent) -> None:
    """Write a fact the broker states to the journal, if it is one of the catalogue."""
    kind = events.ALL.get(event.kind)
    if kind is None:
        logger.error("the broker stated an unknown event", event_name=event.kind)
        return
    try:
        journal.emit(msgspec.convert({**event.fields, "event": event.kind}, kind))
    except (msgspec.ValidationError, JournalError) as error:
        logger.error("the broker's event could not be written", event_name=event.kind, reason=str(error))


@dataclass
class _Evidence:
    """What is being recorded of a session: its quota, and how many channels are open."""

    quota: Quota
    open: int = 0


class Sessions:
    """Sessions and the containers they hold: the first channel opened takes one, the end of the connection gives it back."""

    def __init__(
        self, settings: Settings, journal: Journal, pool: ContainerPool, handler: SessionHandler, tasks: TaskOwner
    ) -> None:  # fmt: skip
        self._settings = settings
        self._journal = journal
        self._pool = pool
        self._handler = handler
        self._tasks = tasks
        self._holds: dict[str, asyncio.Task[AllocationError | None]] = {}
        self._evidence: dict[str, _Evidence] = {}
        self._containers: dict[str, str] = {}  # by session, from when it has one until nothing more is added to its evidence

    async def run_channel(self, visitor: Visitor, process: ChannelProcess) -> None:
        """Run one channel; what goes wrong ends the channel or, where evidence or container are lost, the session."""
        session = visitor.session
        if session is None or visitor.closed:
            return
        lines = LineAssembler(terminal=process.pty is not None) if process.kind == "shell" else None
        is_content = is_input(process.kind, process.label, process.pty is not None)
        content = Input(self._settings.artifacts.file_bytes) if is_content else None

        def on_input(data: bytes) -> None:
            if content is not None:
                content.feed(data)
            for line in lines.feed(data) if lines is not None else ():
                visitor.line_typed(process.number, line.text, truncated=line.truncated)

        def on_started(recorder: SessionRecorder | None) -> None:
            if content is not None:
                content.is_recorded = recorder is not None
            visitor.channel_running(process, recording=recorder.relative_path if recorder is not None else None)

        if (evidence := self._evidence.get(session.session_id)) is None:
            quota = Quota("recording.max_session_bytes", self._settings.recording.max_session_bytes)
            evidence = self._evidence[session.session_id] = _Evidence(quota)
        evidence.open += 1
        try:
            await self._hold(visitor, session.session_id)
            await self._handler(
                session, process.pty, process, self._pool, self._settings.recording,
                kind=process.kind, command=process.command, env=process.env, channel=process.number,
                recordings_dir=self._settings.recordings_dir, session_quota=evidence.quota, on_started=on_started,
                on_input=on_input if lines is not None or content is not None else None,
            )  # fmt: skip
        except (AllocationError, SpawnError, EngineError) as error:
            visitor.channel_failed(process.number, str(error))
        except RecordingError as error:
            visitor.recording_failed(process.number, error)
        except ContainerLostError as error:
            visitor.end("container-lost", str(error))
        finally:
            if lines is not None:
                for line in lines.finish():
                    visitor.line_typed(process.number, line.text, truncated=line.truncated)
            for kind, fields in content.facts(process.number, self._containers.get(session.session_id, "")) if content else ():
                visitor.say(kind, **fields)
            evidence.open -= 1
            self._forget(visitor)

    @property
    def recorded(self) -> frozenset[str]:
        """Ids of the sessions that are being recorded, or may yet be."""
        return frozenset(self._evidence)

    def _forget(self, visitor: Visitor) -> None:
        """Forget the session's evidence once nothing can be added to it."""
        if visitor.session is not None and visitor.closed:
            evidence = self._evidence.get(visitor.session.session_id)
            if evidence is None or not evidence.open:
                self._evidence.pop(visitor.session.session_id, None)
                self._containers.pop(visitor.session.session_id, None)

    def prepare(self, visitor: Visitor) -> None:
        """Take the session's container, unless that is done or under way: its first channel has been opened."""
        session = visitor.session
        if session is not None and not visitor.closed and session.session_id not in self._holds:
            self._holds[session.session_id] = self._tasks.spawn(self._take(visitor, session.session_id), name="take")

    async def _take(self, visitor: Visitor, session_id: str) -> AllocationError | None:
        started = time.monotonic()
        try:
            container = await self._pool.allocate(session_id)
        except AllocationError as error:
            self._holds.pop(session_id, None)  # the next channel may try again
            return error
        self._containers[session_id] = container.id
        visitor.container_given(container.id, container.engine, container.image, time.monotonic() - started)
        return None

    async def _hold(self, visitor: Visitor, session_id: str) -> None:
        """Return when the session has its container, which all of its channels share. Raises AllocationError."""
        self.prepare(visitor)
        error = await asyncio.shield(self._holds[session_id])
        if error is not None:
            raise error

    def over(self, visitor: Visitor) -> None:
        """The session's connection is closed: give back its container."""
        self._forget(visitor)
        if visitor.session is not None and (hold := self._holds.pop(visitor.session.session_id, None)) is not None:
            self._tasks.spawn(self._give_back(visitor.session.session_id, hold), name="give back")

    async def _give_back(self, session_id: str, hold: "asyncio.Task[AllocationError | None]") -> None:
        hold.cancel()
        await asyncio.wait([hold])
        if not hold.cancelled() and hold.exception() is None and hold.result() is None:
            await self._pool.release(session_id)

    async def close(self) -> None:
        """Give back what is still held."""
        for session_id, hold in list(self._holds.items()):
            await self._give_back(session_id, hold)
        self._holds.clear()
