"""Making a session's manifest from what lies on disk and in the journal. All of it blocks."""

import hashlib
import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from hermes.evidence import manifest
from hermes.evidence.chain import Head
from hermes.evidence.manifest import Artifact, Covered, Digest, File, Manifest
from hermes.evidence.timeline import moment
from hermes.recording.reader import RECORDED, day_directories
from hermes.recording.recorder import is_session_id
from hermes.store import streams

PIECE = 1024 * 1024
_ARTIFACTS = (
    "SELECT DISTINCT body ->> '$.sha256', body ->> '$.size' FROM events WHERE session_id = ? AND event = 'artifact.stored'"
    " AND body ->> '$.source' != 'input' AND id <= ? ORDER BY 1"
)


def seal(db: sqlite3.Connection, recordings: Path | None, session_id: str, sensor: str, head: Head) -> Manifest | None:
    """Return the session's manifest, the next after `head`; None when the journal knows nothing of the session (any more).

    Its recordings are on the disk itself when this returns. Raises sqlite3.Error.
    """
    identity, through = streams.identity(db), streams.last_id(db)
    connection_id = streams.connection_of(db, session_id)
    events = manifest.of_events(streams.of_session(db, session_id, connection_id, through=through))
    if not events.count:
        return None
    after = head.through if head.journal == identity else 0
    journaled, removals = range_of(db, after, through)
    return Manifest(
        sequence=head.sequence + 1,
        previous=head.hash,
        sealed=moment(time.time_ns() // 1000),
        sensor=sensor,
        journal=identity,
        session_id=session_id,
        connection_id=connection_id,
        events=events,
        after=after,
        through=through,
        journaled=journaled,
        removals=removals,
        recordings=[] if recordings is None else sorted(files(recordings, session_id), key=lambda one: one.path),
        artifacts=[Artifact(sha256=sha256, size=size) for sha256, size in db.execute(_ARTIFACTS, (session_id, through))],
    )


def range_of(db: sqlite3.Connection, after: int, through: int) -> tuple[Covered, Covered]:
    """Digest all events of a range, and the `evidence.removed` among them."""
    everything, removals = Digest(), Digest()
    for one in streams.between(db, after, through):
        line = one.line
        everything.add(one.id, line)
        if one.event == "evidence.removed":
            removals.add(one.id, line)
    return everything.covered, removals.covered


def files(recordings: Path, session_id: str) -> Iterator[File]:
    """Yield the files of a session's recordings, each brought to the disk."""
    for path in paths(recordings, session_id):
        size, sha256 = hash_file(recordings / path, sync=True)
        yield File(path=path, size=size, sha256=sha256)


def paths(recordings: Path, session_id: str) -> Iterator[str]:
    """Yield where a session's recordings lie, relative to `recordings`: every file that is one by its name."""
    if is_session_id(session_id):
        for day in day_directories(recordings):
            try:
                names = sorted(one.name for one in (day / session_id).iterdir())
            except (FileNotFoundError, NotADirectoryError):
                continue
            yield from (f"{day.name}/{session_id}/{name}" for name in names if RECORDED.fullmatch(name))


def hash_file(path: Path, *, sync: bool = False) -> tuple[int, str | None]:
    """Return size and SHA-256 of a regular file; None for what cannot be read to its end."""
    size, found = 0, hashlib.sha256()
    try:
        with open(path, "rb", buffering=0, opener=no_link) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return 0, None
            if sync:
                os.fsync(file.fileno())
            while piece := file.read(PIECE):
                found.update(piece)
                size += len(piece)
    except OSError:
        return size, None
    return size, found.hexdigest()


def no_link(path: str, flags: int) -> int:
    """An opener that follows no link, and waits for no pipe."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
