"""asciicast v2 (https://docs.asciinema.org/manual/asciicast/v2/): events to bytes and back, without I/O.

A recording is lines of JSON: a header object, then `[seconds, code, text]` arrays. A line counts only with its newline, so
that one torn by a crash is known as torn.
"""

import codecs
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgspec

from hermes.events import from_bytes
from hermes.recording.facts import Facts

MAX_LINE = 8 * 1024 * 1024
"""Longest line that is read, in bytes; longer ones are skipped."""
MAX_SIZE = 1000
"""Columns and rows are kept within 1…MAX_SIZE, lest a player be asked for a screen of 2³² columns."""

_to_json = msgspec.json.Encoder().encode


class Event(NamedTuple):
    """What happened `time` seconds after the start. `code`: `o` output, `i` input, `r` resize (`80x24`), `m` marker."""

    time: float
    code: str
    text: str


class Header(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The first line. `hermes` is ours; players pass over it."""

    version: int
    width: int
    height: int
    timestamp: int | None = None
    title: str | None = None
    command: str | None = None
    env: dict[str, str] = {}
    hermes: dict[str, Any] = {}


def clamp(size: int, default: int) -> int:
    """Return a client's number of columns or rows as one a player can show; `default` for 0 (unknown)."""
    return min(size, MAX_SIZE) if size > 0 else default


def encode_header(facts: Facts) -> bytes:
    """Return the first line of a channel's recording."""
    command = None if facts.command is None else from_bytes(facts.command)
    env = {"SHELL": "/bin/bash"}
    if facts.term is not None:
        env["TERM"] = facts.term
    what = facts.kind if command is None else f"{facts.kind} {command[:80]}"
    header = Header(
        version=2,
        width=clamp(facts.width, 80),
        height=clamp(facts.height, 24),
        timestamp=facts.started_ns // 1_000_000_000,
        title=f"{facts.username[:64]}@{facts.source_ip} channel {facts.channel}: {what}",
        command=command,
        env=env,
        hermes={
            "session_id": facts.session_id,
            "username": facts.username,
            "source_ip": facts.source_ip,
            "source_port": facts.source_port,
            "channel": facts.channel,
            "kind": facts.kind,
            "command": command,
            "pty": facts.term is not None,
        },
    )
    return _to_json(header) + b"\n"


def encode_event(time: float, code: str, text: str) -> bytes:
    """Return one event as a line. `text` must hold no surrogates."""
    return b'[%.6f,"%b",%b]\n' % (time, code.encode(), _to_json(text))


def encode_resize(time: float, width: int, height: int) -> bytes:
    """Return a resize event as a line; sizes are brought within what players can show."""
    return encode_event(time, "r", f"{clamp(width, 80)}x{clamp(height, 24)}")


class TextStream:
    """Bytes of one stream to text: a UTF-8 character split over pieces comes out whole, what is not UTF-8 as U+FFFD."""

    __slots__ = ("rest",)

    def __init__(self) -> None:
        self.rest = b""
        """What is held back: at most three bytes, the start of a character."""

    def feed(self, data: bytes) -> str:
        """Return the text that `data` completes."""
        if self.rest:
            data = self.rest + data
            self.rest = b""
        elif data.isascii():
            return data.decode("ascii")
        text, used = codecs.utf_8_decode(data, "replace", False)
        if used < len(data):
            self.rest = data[used:]
        return text

    def finish(self) -> str:
        """Return what was held back, as U+FFFD."""
        rest, self.rest = self.rest, b""
        return rest.decode(errors="replace")


_header_from_json = msgspec.json.Decoder(Header).decode
_event_from_json = msgspec.json.Decoder(tuple[float, str, str]).decode
_BAD = (msgspec.MsgspecError, UnicodeError, RecursionError)


def decode_header(line: bytes) -> Header | None:
    """Return the header, or None when `line` is no asciicast v2 header."""
    if not line.endswith(b"\n") or len(line) > MAX_LINE:
        return None
    try:
        header = _header_from_json(line)
    except _BAD:
        return None
    return header if header.version == 2 else None


def decode_events(lines: Iterable[bytes]) -> Iterator[Event]:
    """Yield the events among `lines` (the header left out). Torn, overlong and foreign lines are passed over; never raises.

    Times never run backwards: an event dated before its predecessor is given its predecessor's time.
    """
    latest = 0.0
    for line in lines:
        if not line.endswith(b"\n") or len(line) > MAX_LINE:
            continue
        try:
            time, code, text = _event_from_json(line)
        except _BAD:
            continue
        if not math.isfinite(time):
            continue
        latest = max(latest, time)
        yield Event(latest, code, text)
