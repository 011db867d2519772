"""The contents of attackers' files, read back: from where files are kept by their SHA-256, or from the recording of a channel
whose input it was. What is read is checked against its hash.
"""

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from hermes.artifacts import path as path
from hermes.errors import HermesError
from hermes.recording.lossless import Kind
from hermes.recording.reader import RecordingUnavailable, channels

_PIECE = 256 * 1024


class ArtifactUnavailable(HermesError):
    """No content with that hash is kept (any more), or it cannot be read."""


class Input(NamedTuple):
    """A channel of whose input it is said that it has the hash."""

    session_id: str
    channel: int


def size(directory: Path, sha256: str) -> int | None:
    """Bytes of a file that is kept; None if it is not. ArtifactUnavailable where nobody may look."""
    try:
        status = path(directory, sha256).lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ArtifactUnavailable(f"artifact {sha256}: {error.strerror}; only root and the sensor's group can read it") from error
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def copy(sha256: str, to: BinaryIO, *, directory: Path, recordings: Path, inputs: Iterable[Input] = ()) -> None:
    """Write the content with that hash to a file that can be sought in and read: what is kept, else the input of a channel.

    Raises ArtifactUnavailable, and OSError where it cannot be written.
    """
    if size(directory, sha256) is not None:
        if _written(to, _pieces(path(directory, sha256))) != sha256:
            raise ArtifactUnavailable(f"artifact {sha256} is damaged: its content has another hash")
        return
    for one in inputs:
        try:
            found = [it for it in channels(recordings, one.session_id) if it.channel == one.channel]
            if found and _written(to, found[0].raw(Kind.STDIN)) == sha256:
                return
        except RecordingUnavailable:
            continue
    to.seek(0)
    to.truncate()
    raise ArtifactUnavailable(f"artifact {sha256} is not kept (any more)")


def _written(to: BinaryIO, pieces: Iterable[bytes]) -> str:
    """Make that the file's whole content; return its hash."""
    to.seek(0)
    to.truncate()
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
        to.write(piece)
    to.seek(0)
    return digest.hexdigest()


def _pieces(file: Path) -> Iterator[bytes]:
    try:
        fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as opened:
            while piece := opened.read(_PIECE):
                yield piece
    except OSError as error:
        raise ArtifactUnavailable(f"{file}: {error.strerror}") from error
