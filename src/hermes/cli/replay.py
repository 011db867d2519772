"""`hermes sessions replay`: show again what went over a session's channels. The one command in which an attacker's bytes
reach the operator's terminal as they are; before it ends, the terminal is put back in order.
"""

import base64
import contextlib
import enum
import json
import math
import os
import select
import sys
import termios
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, BinaryIO

import typer

from hermes.cli.console import USAGE, ConfigOption, JsonOption, SetOption, err, fail, load_settings, reporting, visible
from hermes.cli.privileges import become_owner
from hermes.events import from_bytes
from hermes.recording import lossless
from hermes.recording.asciicast import TextStream
from hermes.recording.lossless import Ending, Frame, Kind
from hermes.recording.reader import ChannelRecording, channels, find_session

INTERRUPTED = 130
"""Exit code after Ctrl-C."""
PIPE_CLOSED = 141
"""Exit code when whatever read the output stopped reading, as of a program that SIGPIPE ended."""

_LONGEST = 3600.0
_STREAMS = (Kind.STDIN, Kind.STDOUT, Kind.STDERR)

_RESET = (
    b"\x18\x1b\\"  # ends a control sequence or string that was never finished
    b"\x1b[?2026l\x1b[?1049l"  # drawing held back; the other screen
    b"\x1b[!p"  # soft reset: cursor shown, autowrap, margins, keypad, insert mode, attributes
    b"\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1004l\x1b[?1005l\x1b[?1006l\x1b[?1015l\x1b[?2004l"  # mouse, focus, paste
    b"\x1b[20l\x1b[>4m\x1b[<u\x1b(B\x0f"  # line feed mode, keyboard protocols, character set
    b"\x1b[?25h\x1b[0m"
)
_ASK = b"\x1b[5n"
_ANSWER = b"\x1b[0n"


class Stream(enum.StrEnum):
    """A stream of a channel."""

    STDIN = "stdin"
    STDOUT = "stdout"
    STDERR = "stderr"

    @property
    def kind(self) -> Kind:
        return Kind[self.name]


@reporting()
def replay(
    session: Annotated[str, typer.Argument(metavar="ID", help="Session id, or a beginning that only one session has.")],
    channel: Annotated[
        int | None, typer.Option(min=0, help="Only this channel; all of them, one after another, otherwise.")
    ] = None,
    speed: Annotated[float, typer.Option(min=0.01, help="How many times faster than it happened.")] = 1.0,
    max_idle: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="Longest pause kept.")] = 2.0,
    raw: Annotated[bool, typer.Option("--raw", help="Write the exact bytes of one stream, at once.")] = False,
    stream: Annotated[Stream | None, typer.Option(help="With --raw: which stream (stdout if not given).")] = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """Play a session's output as it happened. What the attacker sent reaches your terminal unfiltered."""
    if math.isnan(speed) or math.isnan(max_idle):
        fail("--speed and --max-idle are numbers", USAGE)
    if raw and as_json:
        fail("--raw and --json exclude each other", USAGE)
    if stream is not None and not raw:
        fail("--stream is for --raw", USAGE)
    settings = load_settings(config, overrides)
    become_owner(settings)
    root = settings.recordings_dir
    session_id = find_session(root, session)
    found = channels(root, session_id)
    if channel is not None:
        found = [one for one in found if one.channel == channel]
    if not found:
        fail(f"session {session_id} has no recording" + ("" if channel is None else f" of channel {channel}"))
    try:
        if as_json:
            write_json(found, sys.stdout.write)
            sys.stdout.flush()
            return
        with _terminal(sys.stdout.buffer) as out:
            if raw:
                _write_raw(found, (stream or Stream.STDOUT).kind, out)
            else:
                _play(found, out, speed=speed, max_idle=max_idle, separate=channel is None)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        # What is still buffered has nowhere to go; without this the interpreter would try once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(PIPE_CLOSED) from None


def schedule(frames: Iterable[Frame], *, speed: float, max_idle: float) -> Iterator[tuple[float, bytes]]:
    """Yield what was shown to the client and when, in seconds from the start, to show it again: `speed` times faster, pauses
    in the output cut to `max_idle` seconds of the recording's time. The time before the first output counts as a pause.
    """
    due, latest = 0.0, 0
    for frame in frames:
        if frame.kind is Kind.STDOUT or frame.kind is Kind.STDERR:
            due += min((frame.time - latest) / 1e9, max_idle, _LONGEST) / speed
            latest = frame.time
            yield due, frame.data


def write_json(recordings: Iterable[ChannelRecording], write: Callable[[str], object]) -> None:
    """Write all events of `recordings` as one JSON array in ASCII, an event a line. None is held in memory."""
    before = "[\n"
    for one in recordings:
        text = {kind: TextStream() for kind in _STREAMS}
        for frame in one.play():
            event = {"channel": one.channel, "time": frame.time / 1e9, "kind": frame.kind.name.lower(), **_content(frame, text)}
            write(before + json.dumps(event).replace("\x7f", "\\u007f"))
            before = ",\n"
    write("[]\n" if before == "[\n" else "\n]\n")


def _content(frame: Frame, text: dict[Kind, TextStream]) -> dict[str, Any]:
    if frame.kind in text:
        return {"data": base64.b64encode(frame.data).decode(), "text": text[frame.kind].feed(frame.data)}
    if frame.kind is Kind.RESIZE:
        return dict(zip(("width", "height", "pixel_width", "pixel_height"), lossless.decode_size(frame.data), strict=True))
    if frame.kind is Kind.MARKER:
        return {"label": frame.data.decode(errors="replace")}
    if frame.kind is Kind.END:
        end = lossless.decode_end(frame.data)
        return {"exit_status": end.status, "exit_signal": end.signal}
    return {}


def _write_raw(recordings: Iterable[ChannelRecording], kind: Kind, out: BinaryIO) -> None:
    for one in recordings:
        for data in one.raw(kind):
            out.write(data)
    out.flush()


def _play(recordings: list[ChannelRecording], out: BinaryIO, *, speed: float, max_idle: float, separate: bool) -> None:
    reset = _RESET + b"\r\n" if out.isatty() else b"\r\n"
    for one in recordings:
        if separate:
            out.write(_separator(one).encode())
            out.flush()
        play = one.play()
        began = time.monotonic()
        for due, data in schedule(play, speed=speed, max_idle=max_idle):
            if (wait := began + due - time.monotonic()) > 0:
                time.sleep(wait)
            out.write(data)
            out.flush()
        damaged = play.ending in (Ending.TORN, Ending.DAMAGED)
        if damaged or one is not recordings[-1]:
            out.write(reset)
            out.flush()
        if damaged:
            err.print(f"channel {one.channel}: the recording is {play.ending.value} here; what stands before is whole")


def _separator(one: ChannelRecording) -> str:
    parts = [f"channel {one.channel}"]
    if one.facts is not None:
        started = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(one.facts.started))
        what = one.facts.kind if one.facts.command is None else f"{one.facts.kind} {from_bytes(one.facts.command[:200])}"
        parts += [f"{one.facts.username}@{one.facts.source_ip}", started, what]
    return "--- " + visible(" · ".join(parts)) + " ---\r\n"


@contextlib.contextmanager
def _terminal(out: BinaryIO) -> Iterator[BinaryIO]:
    """Let an attacker's bytes at `out`. Where that is a terminal, put it in order afterwards.

    A terminal can be made to answer (its title, its position, its type), and an answer that nobody reads is typed into the
    operator's shell. So meanwhile nothing is echoed, and in the end what was answered is thrown away.
    """
    if not out.isatty():
        yield out
        return
    keyboard = _keyboard()
    before = None if keyboard is None else termios.tcgetattr(keyboard)
    try:
        if keyboard is not None:
            silent = termios.tcgetattr(keyboard)
            silent[3] &= ~(termios.ECHO | termios.ICANON)
            termios.tcsetattr(keyboard, termios.TCSADRAIN, silent)
        yield out
    finally:
        with contextlib.suppress(OSError):
            out.write(_RESET + b"\r\n")
            out.flush()
            if keyboard is not None:
                out.write(_ASK)
                out.flush()
                _drain(keyboard)
        if keyboard is not None and before is not None:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(keyboard, termios.TCSAFLUSH, before)
            os.close(keyboard)


def _keyboard() -> int | None:
    """Open what the terminal types into, wherever standard input comes from; None for a process without a terminal."""
    try:
        return os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return os.dup(sys.stdin.fileno()) if sys.stdin.isatty() else None


def _drain(keyboard: int) -> None:
    """Read away what the terminal answered: all up to the answer to our last question, and what follows at once."""
    deadline = time.monotonic() + 1.0
    seen = b""
    quiet = 0.3
    while (left := deadline - time.monotonic()) > 0 and select.select([keyboard], [], [], min(quiet, left))[0]:
        if not (data := os.read(keyboard, 4096)):
            return
        seen = (seen + data)[-len(data) - len(_ANSWER) :]
        if _ANSWER in seen:
            quiet = 0.05
