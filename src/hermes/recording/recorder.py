"""Write a channel's two recordings while it runs: recorded before delivered.

When a method returns, what it was given is with the kernel, in both files; nothing waits in this process. So a kill -9 at any
moment loses no byte that was passed on after its method had returned. (A crash of the machine itself may lose the last
seconds: nothing is fsynced.)
"""

import contextlib
import enum
import errno
import os
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from hermes.clocks import wall_ahead
from hermes.config.keeping import RecordingConfig
from hermes.errors import RecordingError, RecordingLimitError
from hermes.recording import asciicast, lossless
from hermes.recording.facts import MAX_COMMAND, MAX_TEXT, Facts
from hermes.recording.lossless import MAX_PAYLOAD, Kind

RESIZES_PER_SECOND = 10
"""Window changes written a second at most. Of those in between, the last is written before whatever comes next."""
MAX_MARKERS = 1000
"""Markers written in one recording; past it they are only counted."""
MAX_LABEL = 256
"""Characters kept of a marker's label."""

_SAFE_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_RESIZE_INTERVAL = 1_000_000_000 // RESIZES_PER_SECOND
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC


class Session(Protocol):
    """What a recording says of its session."""

    @property
    def session_id(self) -> str: ...
    @property
    def username(self) -> str: ...
    @property
    def source_ip(self) -> str: ...
    @property
    def source_port(self) -> int: ...


class Terminal(Protocol):
    """What a recording says of its terminal; sizes in characters."""

    @property
    def term_type(self) -> str: ...
    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...


class Quota:
    """Bytes that recordings may still take, by the setting named; shared by whoever shares it."""

    __slots__ = ("limit", "taken", "value")

    def __init__(self, limit: str, value: int) -> None:
        self.limit = limit
        self.value = value
        self.taken = 0


class _State(enum.Enum):
    NEW = enum.auto()
    OPEN = enum.auto()
    FAILED = enum.auto()
    CLOSED = enum.auto()


def is_session_id(name: str) -> bool:
    """Whether `name` can be a session's: one path component that cannot lead elsewhere."""
    return _SAFE_ID.fullmatch(name) is not None


class SessionRecorder:
    """The recording of one channel of a session.

    Every method is synchronous and raises `RecordingError` when it cannot write all it was given; the files are then closed and
    every later write raises too. Not for use by several threads at once.

    At a limit of `config`, `RecordingLimitError` is raised instead: of a piece that does not fit nothing is written, and
    `close()` still ends both files in good order. What it writes then (under 4 KiB) comes on top.
    """

    __slots__ = (
        "_cast_fd",
        "_eof",
        "_facts",
        "_full",
        "_held_resize",
        "_last_resize",
        "_markers",
        "_quotas",
        "_rec_fd",
        "_root",
        "_size",
        "_start",
        "_state",
        "_texts",
        "bytes_in",
        "bytes_out",
        "relative_path",
    )

    def __init__(
        self,
        config: RecordingConfig,
        session_info: Session,
        *,
        channel: int = 0,
        kind: str = "shell",
        command: bytes | None = None,
        pty_request: Terminal | None = None,
        output_dir: Path | None = None,
        session_quota: Quota | None = None,
    ) -> None:
        """Prepare the recording of `channel` (unique in its session) under `config.output_dir`, else `output_dir`.

        `session_quota` is shared by the recordings of a session; None: there are no others. Nothing is touched on disk
        before `start()`.
        """
        root = config.output_dir or output_dir
        if root is None:
            raise RecordingError("no directory to record in: recording.output_dir is not set")
        if not is_session_id(session_info.session_id):
            raise RecordingError(f"not a session id: {session_info.session_id[:200]!r}")
        self._root = root
        self._start = time.monotonic_ns()
        started = self._start + wall_ahead(time.time_ns, time.monotonic_ns)
        self._facts = Facts(
            session_id=session_info.session_id,
            username=_text(session_info.username),
            source_ip=_text(session_info.source_ip),
            source_port=session_info.source_port,
            channel=channel,
            kind=_text(kind),
            command=None if command is None else command[:MAX_COMMAND],
            term=None if pty_request is None else _text(pty_request.term_type),
            width=80 if pty_request is None else pty_request.width,
            height=24 if pty_request is None else pty_request.height,
            started_ns=started,
        )
        day = datetime.fromtimestamp(started // 1_000_000_000, UTC).strftime("%Y-%m-%d")
        self.relative_path = f"{day}/{session_info.session_id}/{channel}.cast"
        """The asciicast file, relative to the recordings' directory."""
        self.bytes_in = 0
        """Bytes recorded from the client."""
        self.bytes_out = 0
        """Bytes recorded to the client, stdout and stderr together."""
        self._quotas: tuple[Quota, ...] = (
            Quota("recording.max_channel_bytes", config.max_channel_bytes),
            session_quota or Quota("recording.max_session_bytes", config.max_session_bytes),
        )
        self._full: Quota | None = None
        self._state = _State.NEW
        self._rec_fd = self._cast_fd = -1
        self._texts: dict[Kind, asciicast.TextStream] = {}
        self._size = (self._facts.width, self._facts.height, 0, 0)
        self._held_resize: tuple[int, tuple[int, int, int, int]] | None = None
        self._last_resize = -_RESIZE_INTERVAL
        self._markers = 0
        self._eof = False

    @property
    def path(self) -> Path:
        """The asciicast file; the lossless one lies beside it as `.rec`."""
        return self._root / self.relative_path

    def start(self) -> None:
        """Create both files (0600, in directories 0700) and write their headers. Nothing is left when it cannot."""
        if self._state is not _State.NEW:
            raise RecordingError(f"recording {self.relative_path}: started twice")
        heads = (lossless.encode_header(self._facts), asciicast.encode_header(self._facts))
        self._take(sum(map(len, heads)))
        self._state = _State.OPEN
        try:
            self._create(*heads)
        except OSError as error:
            raise self._fail(error) from error

    def output(self, data: bytes, *, stderr: bool = False) -> None:
        """Record bytes about to be sent to the client."""
        self._stream(Kind.STDERR if stderr else Kind.STDOUT, "o", data)
        self.bytes_out += len(data)

    def input(self, data: bytes) -> None:
        """Record bytes from the client about to be given to its process."""
        self._stream(Kind.STDIN, "i", data)
        self.bytes_in += len(data)

    def input_eof(self) -> None:
        """Record, once, that the client will send no more."""
        now = self._now()
        if not self._eof:
            self._eof = True
            self._event(now, Kind.STDIN_EOF, b"", "m", "stdin closed")

    def resize(self, width: int, height: int, pixel_width: int = 0, pixel_height: int = 0) -> None:
        """Record the window's new size, in characters and pixels.

        No more than RESIZES_PER_SECOND are written; the last one always is, at the latest before the next byte, with the
        time it came.
        """
        if self._state is not _State.OPEN or self._full is not None:
            raise self._refusal()
        now = time.monotonic_ns() - self._start
        size = (width, height, pixel_width, pixel_height)
        if now - self._last_resize < _RESIZE_INTERVAL:
            self._held_resize = (now, size)
            return
        self._held_resize = None
        self._write_resize(now, size)

    def marker(self, label: str) -> None:
        """Record a remark of ours, such as a signal the client sent. At most MAX_MARKERS are written."""
        now = self._now()
        self._markers += 1
        if self._markers <= MAX_MARKERS:
            label = _text(label, MAX_LABEL)
            self._event(now, Kind.MARKER, label.encode(), "m", label)

    def close(self, *, exit_status: int | None = None, exit_signal: str | None = None) -> None:
        """Record how the channel's process ended, as far as it is known, and close the files. Safe to call twice.

        Raises `RecordingError` when that last write fails; the files are closed all the same. After an earlier failure it
        raises nothing.
        """
        if self._state is not _State.OPEN:
            self._state = _State.CLOSED
            return
        full, self._full = self._full, None
        self._quotas = ()
        now = self._now()
        for kind, text in self._texts.items():
            if rest := text.finish():
                self._write(self._cast_fd, asciicast.encode_event(now / 1e9, "i" if kind is Kind.STDIN else "o", rest))
        if (unwritten := self._markers - MAX_MARKERS) > 0:
            label = f"{unwritten} more markers not recorded"
            self._event(now, Kind.MARKER, label.encode(), "m", label)
        if full is not None:
            label = f"recorded up to {full.limit}"
            self._event(now, Kind.MARKER, label.encode(), "m", label)
        signal = None if exit_signal is None else _text(exit_signal, MAX_LABEL)
        label = f"killed by {signal}" if signal else "closed" if exit_status is None else f"exit {exit_status}"
        self._write(self._cast_fd, asciicast.encode_event(now / 1e9, "m", label))
        self._write(self._rec_fd, lossless.encode(now, Kind.END, lossless.encode_end(exit_status, signal)))
        self._state = _State.CLOSED
        if (error := self._close_files()) is not None:
            raise RecordingError(f"recording {self.relative_path}: {error.strerror}") from error

    # ---- what goes into the files

    def _stream(self, kind: Kind, code: str, data: bytes) -> None:
        now = self._now()
        try:
            if len(data) > MAX_PAYLOAD:
                for at in range(0, len(data), MAX_PAYLOAD):
                    self._piece(now, kind, code, data[at : at + MAX_PAYLOAD])
            elif data:
                self._piece(now, kind, code, data)
        except MemoryError as error:
            raise self._fail(OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))) from error

    def _piece(self, now: int, kind: Kind, code: str, data: bytes) -> None:
        stream = self._texts.get(kind)
        if stream is None:
            stream = self._texts[kind] = asciicast.TextStream()
        held = stream.rest
        text = stream.feed(data)
        try:
            self._put(lossless.encode(now, kind, data), asciicast.encode_event(now / 1e9, code, text) if text else b"")
        except RecordingLimitError:
            stream.rest = held
            raise

    def _event(self, now: int, kind: Kind, data: bytes, code: str, text: str) -> None:
        self._put(lossless.encode(now, kind, data), asciicast.encode_event(now / 1e9, code, text))

    def _write_resize(self, now: int, size: tuple[int, int, int, int]) -> None:
        if size == self._size:
            return
        self._put(
            lossless.encode(now, Kind.RESIZE, lossless.encode_size(*size)), asciicast.encode_resize(now / 1e9, size[0], size[1])
        )
        self._size = size
        self._last_resize = now

    def _put(self, rec: bytes, cast: bytes) -> None:
        """Write to both files, or to neither when that would go over a limit."""
        self._take(len(rec) + len(cast))
        self._write(self._rec_fd, rec)
        if cast:
            self._write(self._cast_fd, cast)

    def _take(self, size: int) -> None:
        for quota in self._quotas:
            if quota.taken + size > quota.value:
                self._full = quota
                raise self._limit(quota)
        for quota in self._quotas:
            quota.taken += size

    def _limit(self, quota: Quota) -> RecordingLimitError:
        text = f"recording {self.relative_path}: {quota.limit} of {quota.value} bytes reached"
        return RecordingLimitError(text, limit=quota.limit, value=quota.value)

    def _now(self) -> int:
        """Return the time for what is about to be written, after writing what must stand before it."""
        if self._state is not _State.OPEN or self._full is not None:
            raise self._refusal()
        if self._held_resize is not None:
            held, self._held_resize = self._held_resize, None
            self._write_resize(*held)
        return time.monotonic_ns() - self._start

    # ---- the files themselves

    def _create(self, rec_head: bytes, cast_head: bytes) -> None:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        day, session, name = self.relative_path.split("/")
        directories = [os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)]
        created: list[str] = []
        try:
            for part in (day, session):
                directories.append(_enter(directories[-1], part))
            here = directories[-1]
            try:
                rec = name.removesuffix(".cast") + ".rec"
                self._rec_fd = os.open(rec, _FILE, 0o600, dir_fd=here)
                created.append(rec)
                self._cast_fd = os.open(name, _FILE, 0o600, dir_fd=here)
                created.append(name)
                _write_all(self._rec_fd, rec_head)
                _write_all(self._cast_fd, cast_head)
            except OSError:
                for made in created:
                    with contextlib.suppress(OSError):
                        os.unlink(made, dir_fd=here)
                raise
        finally:
            for directory in directories:
                os.close(directory)

    def _write(self, fd: int, data: bytes) -> None:
        try:
            _write_all(fd, data)
        except OSError as error:
            raise self._fail(error) from error

    def _fail(self, error: OSError) -> RecordingError:
        self._state = _State.FAILED
        self._held_resize = None
        self._close_files()
        return RecordingError(f"recording {self.relative_path}: {error.strerror}")

    def _refusal(self) -> RecordingError:
        if self._state is _State.OPEN and self._full is not None:
            return self._limit(self._full)
        reason = {_State.NEW: "not started", _State.FAILED: "an earlier write failed"}.get(self._state, "closed")
        return RecordingError(f"recording {self.relative_path}: {reason}")

    def _close_files(self) -> OSError | None:
        """Close both files, whatever happens, and return the last error."""
        failure = None
        fds = (self._rec_fd, self._cast_fd)
        self._rec_fd = self._cast_fd = -1
        for fd in fds:
            if fd >= 0:
                try:
                    os.close(fd)
                except OSError as error:
                    failure = error
        return failure


def _enter(directory: int, name: str) -> int:
    """Make `name` in `directory` if it is not there, and return it open."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=directory)
    return os.open(name, _DIRECTORY, dir_fd=directory)


def _write_all(fd: int, data: bytes) -> None:
    """Write all of `data`. A short write does not say why it was short; the next one does."""
    written = os.write(fd, data)
    while written != len(data):
        written += os.write(fd, memoryview(data)[written:])


def _text(text: str, limit: int = MAX_TEXT) -> str:
    """Return text that can be written as UTF-8, at most `limit` characters of it."""
    return text[:limit].encode(errors="backslashreplace").decode()
