"""What is sealed of a session, as one line of canonical JSON, and the hashes in it: pure.

A manifest names the session's recordings by size and SHA-256, digests its events, and names the manifest before. Besides, it
digests everything that was written to the journal since the manifest before, whomever it is of.
"""

import hashlib
from collections.abc import Iterable

import msgspec

from hermes.store.streams import Record

FORMAT = "hermes-manifest/1"
NOT_OF_A_SESSION = ("evidence.removed",)
"""Events that tell of a session and are not of it: they stay when its events are removed."""
MAX_LINE = 64 * 1024 * 1024
"""Longest manifest that is read, in bytes."""


class Covered(msgspec.Struct, frozen=True, kw_only=True):
    """Events: how many, and SHA-256 over their lines of JSON (as in the journal's JSON lines), in the order of their ids."""

    count: int
    sha256: str
    first: int = 0
    """Id of the first and the last of them; 0: there are none."""
    last: int = 0


class File(msgspec.Struct, frozen=True, kw_only=True):
    """A file of a recording; `path` is relative to the recordings' directory. No `sha256`: it could not be read."""

    path: str
    size: int
    sha256: str | None


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """A kept file that the session brought or made. (The input of a command is in its recording.)"""

    sha256: str
    size: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """One session's evidence, complete."""

    format: str = FORMAT
    sequence: int
    previous: str
    """SHA-256 of the manifest before; empty for the first."""
    sealed: str
    """When it was made, by the sensor's clock: ISO 8601, UTC."""
    sensor: str
    journal: str
    """The journal's identity."""
    session_id: str
    connection_id: str | None
    events: Covered
    """Of the session and its connection, up to the id `through`, but for `NOT_OF_A_SESSION`."""
    after: int
    through: int
    journaled: Covered
    """All events with ids from `after` (without it) to `through`."""
    removals: Covered
    """The `evidence.removed` among them."""
    recordings: list[File]
    artifacts: list[Artifact]


def encode(manifest: Manifest) -> bytes:
    """Return the manifest as its line, without the newline: keys sorted, no spaces."""
    return msgspec.json.encode(manifest, order="sorted")


def decode(line: bytes) -> Manifest | None:
    """Return the manifest that a line (without its newline) holds; None when it holds none, or not in its one form."""
    try:
        manifest = msgspec.json.decode(line, type=Manifest)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
    return manifest if manifest.format == FORMAT and encode(manifest) == line else None


def digest(line: bytes) -> str:
    """Return a manifest's SHA-256, by which the next one names it."""
    return hashlib.sha256(line).hexdigest()


class Digest:
    """Events digested one by one."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.count = 0
        self.first = 0
        self.last = 0

    def add(self, identity: int, line: bytes) -> None:
        """Take the next event: its id, and its line with the newline."""
        self._hash.update(line)
        self.count += 1
        self.first = self.first or identity
        self.last = identity

    @property
    def covered(self) -> Covered:
        """What was digested so far."""
        return Covered(count=self.count, sha256=self._hash.hexdigest(), first=self.first, last=self.last)


def of_events(records: Iterable[Record]) -> Covered:
    """Digest events of a session: those that are of it."""
    found = Digest()
    for one in records:
        if one.event not in NOT_OF_A_SESSION:
            found.add(one.id, one.line)
    return found.covered
