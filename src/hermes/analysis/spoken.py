"""What was printed in a channel, and what was given to it, as text that can be searched: read from its recording."""

import re
from pathlib import Path
from typing import NamedTuple

from hermes.recording import reader
from hermes.recording.lossless import Kind
from hermes.recording.recorder import is_session_id

MAX_READ = 16 * 1024**2
"""Bytes of frames that are read of one recording, for a channel may be given gigabytes before it prints anything."""

_PLACE = re.compile(r"(\d{4}-\d{2}-\d{2})/([^/]+)/(\d{1,10})\.cast")
_SEQUENCE = re.compile(r"\x1b\[[0-?]{0,64}[ -/]{0,8}[@-~]|\x1b[\]PX^_][^\x07\x1b]{0,1024}(?:\x07|\x1b\\)?|\x1b[ -/]{0,8}[0-~]?")
"""What moves or colours a terminal: CSI, OSC and the like, and short ones (ECMA-48)."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]+")
_TEXTUAL = 0.7


class Spoken(NamedTuple):
    """Text of a channel, without what only moves a terminal; empty where there is none, or it is no text."""

    output: str
    input: str


def spoken(root: Path, recording: str, limit: int) -> Spoken:
    """Return the first `limit` bytes of each direction of a recording, named as in its `channel.started`; a recording that is
    gone or not to be read has none."""
    match = _PLACE.fullmatch(recording)
    if match is None or not is_session_id(match[2]):
        return Spoken("", "")
    path = root / match[1] / match[2] / f"{match[3]}.rec"
    printed, given, read = bytearray(), bytearray(), 0
    try:
        for frame in reader.ChannelRecording(match[2], int(match[3]), path, None).play():
            read += len(frame.data)
            if frame.kind in (Kind.STDOUT, Kind.STDERR):
                printed += frame.data[: limit - len(printed)]
            elif frame.kind is Kind.STDIN:
                given += frame.data[: limit - len(given)]
            if read > MAX_READ or (len(printed) >= limit and len(given) >= limit):
                break
    except reader.RecordingUnavailable:
        return Spoken("", "")
    return Spoken(as_text(bytes(printed)), as_text(bytes(given)))


def as_text(data: bytes) -> str:
    """Bytes as text that can be searched; empty for what is no text, such as a program."""
    text = _SEQUENCE.sub("", data.decode(errors="replace").replace("\r\n", "\n"))
    good = sum((it.isprintable() and it != "\ufffd") or it in "\n\r\t\b" for it in text)
    return _CONTROL.sub(" ", text) if good >= _TEXTUAL * len(text) else ""
