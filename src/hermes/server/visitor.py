"""One connection and the attacker behind it: its state, its limits, and the events that tell its story."""

import asyncio
import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import asyncssh

from hermes import events
from hermes.errors import JournalError, RecordingError, RecordingLimitError
from hermes.server import persona
from hermes.server.algorithms import client_algorithms
from hermes.server.backend import PTYRequest, SessionInfo
from hermes.server.channel import Channel
from hermes.server.connection import Connection
from hermes.server.forwards import Forwards
from hermes.server.limits import Slot
from hermes.server.login import Login
from hermes.server.process import ChannelProcess

if TYPE_CHECKING:
    from hermes.server.ssh import Front


def new_id() -> str:
    """Return an id that sorts by time: 12 hex digits of milliseconds, 12 of chance."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(6)}"


class Visitor(asyncssh.SSHServer):
    """The owner of one connection; everything that is known of it hangs here and nowhere else."""

    def __init__(self, front: "Front") -> None:
        self.front = front
        self.connection_id = new_id()
        self.session: SessionInfo | None = None
        self.source_ip = ""
        self.source_port = 0
        self.client_version = ""
        self.bytes_in = 0
        self.bytes_out = 0
        self.channels = 0
        self.login = Login(self, front.memory)
        self.slot: Slot | None = None
        """Its place among the connections, once it is let in."""
        self._settings = front.settings.server
        self.forwards = Forwards(self, front.settings)
        self._connection: Connection | None = None
        self._open: dict[int, ChannelProcess] = {}
        self._started = time.monotonic()
        self._session_started = 0.0
        self._ended = 0.0
        self._running = 0
        self._last_active = self._started
        self._cause: tuple[str, str] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._requests = 0
        self._no_more_sessions = False

    # ---- settings the connection asks for

    @property
    def banner(self) -> str | None:
        """Text to send before authentication."""
        return self._settings.banner

    @property
    def elapsed(self) -> float:
        """Seconds since the connection opened, to the microsecond."""
        return round(time.monotonic() - self._started, 6)

    @property
    def open_channels(self) -> int:
        """Session channels open now."""
        return len(self._open)

    @property
    def closed(self) -> bool:
        """The connection is gone."""
        return self not in self.front.visitors

    # ---- the connection's life

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        assert isinstance(conn, Connection)
        self._connection = conn
        peer = conn.get_extra_info("peername") or ("", 0)
        local = conn.get_extra_info("sockname") or ("", 0)
        self.source_ip, self.source_port = _plain(peer[0]), peer[1]
        refusal = self.front.refusal(self)
        if refusal is not None:
            self._cause = ("refused", refusal)
            self.front.refused(events.ConnectionRefused(
                connection_id=self.connection_id, source_ip=self.source_ip, source_port=self.source_port, reason=refusal
            ))  # fmt: skip
            conn.refuse(persona.overload_notice(self._settings.version))
            return
        self.say(
            events.ConnectionOpened,
            source_ip=self.source_ip,
            source_port=self.source_port,
            local_ip=_plain(local[0]),
            local_port=local[1],
            proxied=bool(conn.get_extra_info("proxied", False)),
        )
        if (origin := self.front.origin(self.source_ip)) is not None:
            self.say(events.ConnectionOrigin, country=origin.country, asn=origin.asn, organization=origin.organization)
        if self._settings.login_timeout:
            self._arm(self._settings.login_timeout, self._login_expired)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        if self not in self.front.visitors:
            return
        self.front.left(self)
        if self._cause is None:
            self._cause = _cause_of(exc)
        self._ended = time.monotonic()
        self.forwards.over()
        if self.session is not None:
            self.front.session_over(self)
        if not self._running:
            self._state_end()

    def _state_end(self) -> None:
        """State that all is over: the connection is lost, and no channel's evidence is open any more."""
        cause, detail = self._cause or ("lost", "")
        if self.session is not None:
            self.say(
                events.SessionClosed,
                cause=cause,
                duration=self._ended - self._session_started,
                channels=self.channels,
                bytes_in=self.bytes_in,
                bytes_out=self.bytes_out,
            )
        self.say(
            events.ConnectionClosed,
            cause=cause,
            detail=detail,
            duration=self._ended - self._started,
            auth_attempts=self.login.attempts,
            channels=self.channels,
            requests_dropped=max(0, self._requests - self._settings.max_requests),
        )

    def end(self, cause: str, detail: str = "") -> None:
        """Close the connection, for this cause. The first cause given stands."""
        if self._cause is None:
            self._cause = (cause, detail)
        if self._connection is not None:
            self._connection.abort()

    def note_cause(self, cause: str) -> None:
        """The connection is about to end, for this cause. The first cause given stands."""
        if self._cause is None:
            self._cause = (cause, "")

    def shut_down(self) -> None:
        """Close the connection as a stopping sshd does."""
        self.end("shutdown")

    # ---- time limits

    def touch(self, *, received: int = 0, sent: int = 0) -> None:
        """Note that bytes went over a channel."""
        self.bytes_in += received
        self.bytes_out += sent
        self._last_active = time.monotonic()

    def _arm(self, seconds: float, callback: Callable[[], None]) -> None:
        self._disarm()
        self._timer = asyncio.get_running_loop().call_later(max(seconds, 0.001), callback)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _login_expired(self) -> None:
        self._expire("login", self._settings.login_timeout)

    def _watch(self) -> None:
        """Look whether the session is over its time or idle; look again when it could next be."""
        now = time.monotonic()
        idle, total = self._settings.idle_timeout, self._settings.session_timeout
        if total and now >= self._session_started + total:
            self._expire("session", total)
        elif idle and now >= self._last_active + idle:
            self._expire("idle", idle)
        else:
            ends = [self._session_started + total] * bool(total) + [self._last_active + idle] * bool(idle)
            if ends:
                self._arm(min(ends) - now, self._watch)

    def _expire(self, limit: str, seconds: float) -> None:
        self.say(events.SessionTimeout, limit=limit, seconds=seconds)
        self.limit_reached(f"server.{limit}_timeout", seconds)
        self.end(f"{limit}-timeout")

    # ---- what the client says of itself

    def version_received(self, line: bytes) -> None:
        """The client identified itself."""
        self.client_version = events.from_bytes(line)
        self.say(events.ClientVersion, version=self.client_version, elapsed=self.elapsed)

    def kexinit_received(self, payload: bytes) -> None:
        """The client offered its algorithms."""
        offered = client_algorithms(payload, connection_id=self.connection_id, elapsed=self.elapsed)
        if offered is not None:
            self._emit(offered)

    def auth_completed(self) -> None:
        assert self._connection is not None
        if self.front.session_refused(self):
            self.end("limit")
            return
        self.session = SessionInfo(
            new_id(), self._connection.get_extra_info("username"), self.source_ip, self.source_port, authenticated=True
        )
        self._session_started = self._last_active = time.monotonic()
        self._disarm()
        self._watch()
        self.say(
            events.SessionOpened,
            username=self.session.username,
            source_ip=self.source_ip,
            source_port=self.source_port,
            client_version=self.client_version,
        )

    # ---- channels

    def session_requested(self) -> tuple[Channel, ChannelProcess]:
        if self._no_more_sessions:
            raise asyncssh.DisconnectError(asyncssh.DISC_PROTOCOL_ERROR, persona.SESSIONS_DISABLED)
        for limit, count, most in (
            ("server.max_channels", len(self._open), self._settings.max_channels),
            ("server.max_session_channels", self.channels, self._settings.max_session_channels),
            ("server.max_requests", self._requests, self._settings.max_requests),
        ):
            if count < most:
                continue
            self.limit_reached(limit, most)
            self.repeat(events.ChannelFailed, channel=None, reason=f"{limit} reached")
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, persona.OPEN_FAILED)
        assert self._connection is not None
        self.channels += 1
        channel = Channel(self._connection, asyncio.get_running_loop())
        process = self._open[self.channels] = ChannelProcess(self, self._connection, channel, self.channels)
        self.repeat(events.ChannelOpened, channel=process.number)
        self.front.channel_opened(self)
        return channel, process

    def refuse_more_sessions(self) -> None:
        """The client said that it will open no more sessions (OpenSSH's `no-more-sessions@openssh.com`)."""
        self._no_more_sessions = True

    def channel_started(self, process: ChannelProcess) -> None:
        """The channel's shell, command or subsystem is to run."""
        self._running += 1
        self.front.run(self, process)

    def channel_running(self, process: ChannelProcess, *, recording: str | None) -> None:
        """The channel's process is being started, and recorded in this file; or it never will, for want of a box."""
        process.stated = True
        self.say(
            events.ChannelStarted, channel=process.number, kind=process.kind, command=process.label, recording=recording
        )  # fmt: skip

    def channel_over(self, process: ChannelProcess, duration: float) -> None:
        """The channel's process has ended, and its evidence is closed."""
        if not process.stated:
            self.channel_running(process, recording=None)
        self._report_closed(process, duration)
        self._running -= 1
        if not self._running and self.closed:
            self._state_end()

    def recording_failed(self, number: int, error: RecordingError) -> None:
        """The channel could not be recorded (any more): the session must end."""
        if isinstance(error, RecordingLimitError):
            self.say(
                events.LimitReached, limit=error.limit, value=error.value, source_ip=self.source_ip, channel=number,
                detail="the session was ended",
            )  # fmt: skip
            self.end("limit", str(error))
            return
        self.say(events.RecordingFailed, channel=number, reason=str(error))
        self.end("recording-failed", str(error))

    def container_given(self, container_id: str, engine: str, image: str, waited: float) -> None:
        """The session stands in this container."""
        self.say(events.SessionContainer, container_id=container_id, engine=engine, image=image, waited=waited)

    def channel_closed(self, process: ChannelProcess) -> None:
        """The channel is gone."""
        self._open.pop(process.number, None)
        if not process.kind:
            self._report_closed(process, 0.0)

    def _report_closed(self, process: ChannelProcess, duration: float) -> None:
        """State that the channel is closed, and what came of it."""
        self.say(
            events.ChannelClosed,
            channel=process.number,
            exit_status=process.exit_status,
            exit_signal=process.exit_signal,
            duration=duration,
            bytes_in=process.bytes_in,
            bytes_out=process.bytes_out,
        )

    def channel_failed(self, number: int, reason: str) -> None:
        """What the channel asked for cannot be done."""
        self.say(events.ChannelFailed, channel=number, reason=reason)

    def pty_requested(self, number: int, pty: PTYRequest) -> None:
        """The channel gets a terminal."""
        self.say(events.ChannelPty, channel=number, term=pty.term_type, width=pty.width, height=pty.height)

    def env_requested(self, number: int, name: bytes, value: bytes, *, accepted: bool) -> None:
        """The channel asks for an environment variable."""
        self.repeat(
            events.ChannelEnv, channel=number, accepted=accepted,
            variable=events.from_bytes(name[:256]), value=events.from_bytes(value[:4096]),
        )  # fmt: skip

    def resized(self, number: int, width: int, height: int) -> None:
        """The channel's window changed."""
        self.repeat(events.ChannelResize, channel=number, width=width, height=height)

    def signalled(self, number: int, signal: str) -> None:
        """The channel was sent a signal or a break."""
        self.repeat(events.ChannelSignal, channel=number, signal=signal)

    def line_typed(self, number: int, line: str, *, truncated: bool) -> None:
        """A line went to the channel's shell."""
        self.repeat(events.ChannelInput, channel=number, line=line, truncated=truncated)

    def request_allowed(self, process: ChannelProcess) -> bool:
        """Count a request on the channel. Return whether it is to be acted on."""
        process.requests += 1
        most = self._settings.max_channel_requests
        if process.requests == most + 1:
            self.limit_reached("server.max_channel_requests", most, channel=process.number)
        return process.requests <= most

    def environment_allowed(self, process: ChannelProcess, size: int) -> bool:
        """Return whether the channel's environment may grow by so many bytes."""
        most = self._settings.max_environment
        if sum(len(name) + len(value) for name, value in process.env.items()) + size <= most:
            return True
        self.limit_reached("server.max_environment", most, channel=process.number)
        return False

    # ---- other requests

    def forward_requested(self, kind: str, *, accepted: bool) -> None:
        """X11 or agent forwarding was asked for."""
        self.repeat(events.ForwardRequested, kind=kind, accepted=accepted)

    def global_request_received(self, request: bytes) -> None:
        """Another global request came; forwards tell their own story."""
        if b"forward" not in request:
            self.repeat(events.GlobalRequest, request=events.from_bytes(request[:256]))

    # ---- events

    def say(self, event: "type[events.Event]", /, **fields: object) -> None:
        session_id = self.session.session_id if self.session else None
        self._emit(event(connection_id=self.connection_id, session_id=session_id, **fields))

    def repeat(self, event: "type[events.Event]", /, **fields: object) -> None:
        """State a fact that the client can cause for free, until it has done so too often."""
        self._requests += 1
        if self._requests <= self._settings.max_requests:
            self.say(event, **fields)
        elif self._requests == self._settings.max_requests + 1:
            self.limit_reached("server.max_requests", self._settings.max_requests, detail="more are only counted")

    def limit_reached(self, limit: str, value: float, *, channel: int | None = None, detail: str = "") -> None:
        """State that the connection came to a limit: this setting, which is so much."""
        self.front.report(
            events.LimitReached(
                connection_id=self.connection_id,
                session_id=self.session.session_id if self.session else None,
                limit=limit, value=value, source_ip=self.source_ip, channel=channel, detail=detail,
            ), limit,
        )  # fmt: skip

    def _emit(self, event: events.Event) -> None:
        try:
            self.front.emit(event)
        except JournalError as error:
            self.end("journal-failed", str(error))


def _cause_of(exc: Exception | None) -> tuple[str, str]:
    """Return why a connection ended that nobody here ended."""
    if exc is None:
        return "client", ""
    if isinstance(exc, asyncssh.ConnectionLost | OSError):
        return "lost", ""
    return "protocol-error", events.from_bytes(str(exc).encode(errors="backslashreplace"))[:256]


def _plain(address: str) -> str:
    """Return an IPv4-mapped IPv6 address as the IPv4 address it is, and any other without its scope."""
    return address.removeprefix("::ffff:") if "." in address else address.partition("%")[0]
