"""Find recordings on disk and read them back.

What is read may be torn, damaged, still growing or planted: files are opened without following links, only regular ones, and
their contents never make a reader raise. A file or directory that cannot be read makes it raise `RecordingUnavailable`.
"""

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hermes.errors import HermesError
from hermes.recording import asciicast, lossless
from hermes.recording.facts import Facts
from hermes.recording.lossless import Ending, Frame, Kind
from hermes.recording.recorder import is_session_id

_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_CHANNEL = re.compile(r"(\d{1,10})\.rec")
RECORDED = re.compile(r"\d{1,10}\.(?:rec|cast)")
"""Names of the files of a recording."""
_PIECE = 256 * 1024
_HEAD = 4096
_SHOWN = 5


class RecordingUnavailable(HermesError):
    """No recording answers to what was asked for, or several do, or it cannot be read."""


@dataclass(slots=True)
class Playback:
    """One pass over a lossless recording: iterate for its frames. `facts` and `ending` are known as far as it was read."""

    path: Path
    decoder: lossless.Decoder

    @property
    def facts(self) -> Facts | None:
        return self.decoder.facts

    @property
    def ending(self) -> Ending:
        return self.decoder.ending

    def __iter__(self) -> Iterator[Frame]:
        with _open(self.path) as file:
            while piece := file.read(_PIECE):
                yield from self.decoder.feed(piece)


@dataclass(frozen=True, slots=True)
class ChannelRecording:
    """The two recordings of one channel. `facts` is None when the lossless one is not readable from its start."""

    session_id: str
    channel: int
    rec: Path
    facts: Facts | None

    @property
    def cast(self) -> Path:
        """The asciicast file."""
        return self.rec.with_suffix(".cast")

    def play(self) -> Playback:
        """Return a pass over the lossless recording, from its start."""
        return Playback(self.rec, lossless.Decoder())

    def raw(self, stream: Kind) -> Iterator[bytes]:
        """Yield the exact bytes of `stream` (STDIN, STDOUT or STDERR)."""
        return (frame.data for frame in self.play() if frame.kind is stream)

    def cast_events(self) -> Iterator[asciicast.Event]:
        """Yield the events of the asciicast file."""
        with _open(self.cast) as file:
            file.readline(asciicast.MAX_LINE)
            yield from asciicast.decode_events(iter(lambda: file.readline(asciicast.MAX_LINE), b""))


def find_session(root: Path, prefix: str) -> str:
    """Return the id of the one recorded session whose id is `prefix`, or else begins with it.

    Raises `RecordingUnavailable` when there is none, or several.
    """
    if is_session_id(prefix):
        days = day_directories(root)
        found = {name for day in days for name in _names(day) if name.startswith(prefix) and is_session_id(name)}
        if prefix in found:
            return prefix
        if len(found) == 1:
            return found.pop()
        if found:
            some = ", ".join(sorted(found)[:_SHOWN])
            raise RecordingUnavailable(
                f"{len(found)} recorded sessions begin with {prefix}: {some}{', …' if len(found) > _SHOWN else ''}"
            )
    raise RecordingUnavailable(f"no recorded session begins with {prefix!r} in {root}")


def session_ids(root: Path, *, days: int) -> set[str]:
    """Return the ids of all sessions recorded on the last so many days on which there are any."""
    return {name for day in day_directories(root)[:days] for name in _names(day) if is_session_id(name)}


def channels(root: Path, session_id: str) -> list[ChannelRecording]:
    """Return the recordings of a session in the order in which they began; of an unknown session, none."""
    if not is_session_id(session_id):
        return []
    found = []
    for day in day_directories(root):
        for name in _names(day / session_id):
            if match := _CHANNEL.fullmatch(name):
                rec = day / session_id / name
                found.append(ChannelRecording(session_id, int(match[1]), rec, _facts(rec)))
    return sorted(found, key=lambda one: (one.facts.started_ns if one.facts else 0, one.channel))


def day_directories(root: Path) -> list[Path]:
    """Return the day directories, newest first: a session that crosses midnight may have channels in two."""
    return [root / name for name in sorted(_names(root), reverse=True) if _DAY.fullmatch(name)]


def _names(directory: Path) -> list[str]:
    try:
        return [entry.name for entry in directory.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise RecordingUnavailable(f"{directory}: {error.strerror}") from error


def _facts(rec: Path) -> Facts | None:
    """Return the facts at the head of a lossless recording."""
    decoder = lossless.Decoder()
    try:
        with _open(rec) as file:
            while decoder.facts is None and (piece := file.read(_HEAD)):
                decoder.feed(piece)
                if decoder.ending is Ending.DAMAGED:
                    break
    except RecordingUnavailable:
        return None
    return decoder.facts


@contextlib.contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file for reading; neither a link nor a pipe that would never end."""
    try:
        with open(path, "rb", opener=_no_link) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise RecordingUnavailable(f"{path}: not a regular file")
            yield file
    except OSError as error:
        raise RecordingUnavailable(f"{path}: {error.strerror}") from error


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
