"""Whether the evidence that is kept is the evidence that was sealed.

Everything is read once, as a stream: the chain of manifests, the journal beside it, recordings and artifacts. What a manifest
says is compared with what is there; what is not there must be told of as removed.
"""

import re
import sqlite3
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from hermes import artifacts
from hermes.evidence import chain, manifest, sealing
from hermes.evidence.findings import Finding, Summary, added, changed, missing, note, removed
from hermes.evidence.manifest import Digest, Manifest
from hermes.evidence.shelves import REMOVING
from hermes.store import JournalReader, pruning, streams
from hermes.store.ranges import Ranges
from hermes.store.streams import Record

_RECORDING = re.compile(r"(\d{4}-\d{2}-\d{2})/([A-Za-z0-9_-][A-Za-z0-9._-]{0,127})/(\d{1,10}\.(?:rec|cast))")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class _Named(msgspec.Struct, frozen=True):
    """What an event's body says of itself."""

    event: str
    connection_id: str | None = None
    session_id: str | None = None
    sequence: int = 0
    manifest: str = ""


_named = msgspec.json.Decoder(_Named).decode


class Verification:
    """One look at everything: iterate over `findings`; `summary` is complete at their end."""

    def __init__(self, journal: Path, recordings: Path, kept: Path, *, head: str | None = None) -> None:
        """`kept`: the artifacts' directory. `head`: a manifest's hash that was noted once, and must be in the chain."""
        self.summary = Summary()
        self._path = journal
        self._chain = journal.with_name(chain.NAME)
        self._recordings = recordings
        self._artifacts = kept
        self._noted = head
        self._hashes = bytearray()
        """Of the manifests, 32 bytes each, in order."""
        self._first = 1
        """The number of the first manifest there is."""
        self._removed = Ranges()
        """Ids of events that retention removed."""
        self._cut = Ranges()
        """Numbers of manifests that retention removed."""
        self._gone: set[bytes] = set()
        """Artifacts that retention removed."""
        self._checked: set[bytes] = set()

    def findings(self) -> Iterator[Finding]:
        """Yield what is found, as it is found. Raises JournalError, OSError where something cannot be read at all."""
        yield from self._links()
        with JournalReader(self._path) as reader, reader.snapshot() as db:
            self._read_removals(db)
            if self._first > 1:
                told = self._cut.covers(1, self._first - 1)
                detail = "by retention" if told else "the chain does not begin with its first manifest, and no removal tells why"
                yield (removed if told else missing)("manifest", f"1-{self._first - 1}", detail)
            yield from self._walk(db)

    # ---- the chain by itself

    def _links(self) -> Iterator[Finding]:
        """Check that each manifest names the one before."""
        before = chain.Head()
        for number, (_, line) in enumerate(chain.lines(self._chain), 1):
            one, own = manifest.decode(line), manifest.digest(line)
            if one is None:
                yield changed("manifest", f"line {number}", "it is not in a manifest's form")
                before = chain.Head(before.sequence + 1, own)
            else:
                if number == 1:
                    self._first = one.sequence
                elif one.sequence != before.sequence + 1:
                    yield changed("manifest", str(one.sequence), f"it stands where number {before.sequence + 1} belongs")
                elif one.previous != before.hash:
                    yield changed(
                        "manifest", str(one.sequence), f"it does not follow from number {before.sequence} as it is here"
                    )
                before = chain.Head(one.sequence, own)
            self._hashes += bytes.fromhex(own)
            self.summary.manifests += 1
        self.summary.head, self.summary.sequence = before.hash, before.sequence
        if self._noted is not None and not self._is_in_chain(self._noted):
            yield missing("manifest", self._noted[:64], "the head that was noted is not in the chain: it was cut or made anew")

    def _last_now(self) -> int:
        """The number of the chain's last manifest as it is now."""
        found = (manifest.decode(line) for _, line in chain.lines(self._chain))
        return max((one.sequence for one in found if one is not None), default=0)

    def _is_in_chain(self, noted: str) -> bool:
        if not _SHA256.fullmatch(noted):
            return False
        wanted, at = bytes.fromhex(noted), -1
        while (at := self._hashes.find(wanted, at + 1)) >= 0:
            if at % 32 == 0:
                return True
        return False

    # ---- the chain and all else

    def _read_removals(self, db: sqlite3.Connection) -> None:
        query = "SELECT body ->> '$.what', body ->> '$.path', body ->> '$.ids' FROM events WHERE event = 'evidence.removed'"
        pairs: list[tuple[int, int]] = []
        for what, path, ids in db.execute(query):
            if ids:
                pairs += Ranges.parse(ids)
            if what == "manifests":
                self._cut |= Ranges.parse(path or "")
            if what == "artifact" and _SHA256.fullmatch(path or ""):
                self._gone.add(bytes.fromhex(path))
        self._removed = Ranges(pairs)

    def _walk(self, db: sqlite3.Connection) -> Iterator[Finding]:
        identity, last = streams.identity(db), streams.last_id(db)
        stream = _Stream(streams.between(db, 0), self._removed)
        others: set[str] = set()
        covered = 0
        # What was sealed since is later than this view of the journal.
        for _, line in islice(chain.lines(self._chain), self.summary.manifests):
            if (one := manifest.decode(line)) is None:
                continue
            yield from self._recording_files(db, one)
            yield from self._kept_files(one)
            if one.journal != identity:
                if one.journal not in others:
                    others.add(one.journal)
                    yield note("journal", one.journal[:32], "manifests of it are in the chain, and it is not here")
                self.summary.elsewhere += one.events.count
                continue
            yield from self._session(db, one)
            if one.through > last:
                yield missing("journal", f"{last + 1}-{one.through}", f"it ends before what manifest {one.sequence} covers")
                continue
            if one.after < covered:
                yield changed("manifest", str(one.sequence), "it covers events that an earlier one covers")
                continue
            yield from self._through(stream, one.after, None)
            yield from self._through(stream, one.through, one)
            covered = one.through
        before = stream.events
        yield from self._through(stream, streams.MAX_ID, None)
        self.summary.events, self.summary.unsealed = stream.events, stream.events - before
        if stream.sealed > self.summary.sequence and stream.sealed > self._last_now():
            cut = f"{self.summary.sequence + 1}-{stream.sealed}"
            yield missing("manifest", cut, "the journal states them, and the chain ends before: its end was cut")
        self.summary.removed_events = len(self._removed)

    def _through(self, stream: "_Stream", through: int, one: Manifest | None) -> Iterator[Finding]:
        """Go on in the journal, and compare what comes with what a manifest says of it."""
        everything, removals, gone = Digest(), Digest(), stream.explained
        for record in stream.take(through):
            line = record.line
            everything.add(record.id, line)
            if record.event == "evidence.removed":
                removals.add(record.id, line)
            yield from self._row(record)
        yield from stream.gaps()
        if one is None:
            return
        absent = stream.explained - gone
        what = f"{one.after + 1}-{one.through}"
        if removals.covered != one.removals and not (absent and removals.count < one.removals.count):
            yield changed("journal", what, f"its removals are not those that manifest {one.sequence} covers")
        if absent:
            self.summary.unproven += everything.count
        elif everything.covered != one.journaled:
            how = f"{everything.count} events here, {one.journaled.count} then"
            yield changed("journal", what, f"it is not what manifest {one.sequence} covers ({how})")

    def _row(self, record: Record) -> Iterator[Finding]:
        """Check an event by itself, and a seal against the chain."""
        try:
            body = _named(record.body.encode())
        except (msgspec.MsgspecError, UnicodeError):
            yield changed("event", str(record.id), "it is not an event's JSON")
            return
        if (body.event, body.connection_id, body.session_id) != (record.event, record.connection_id, record.session_id):
            yield changed("event", str(record.id), "its columns are not what it says itself")
        if record.event == "session.sealed":
            place = (body.sequence - self._first) * 32
            own = self._hashes[place : place + 32].hex() if place >= 0 else ""
            if own and own != body.manifest:
                yield changed("manifest", str(body.sequence), "it is not the one that the journal states")

    def _session(self, db: sqlite3.Connection, one: Manifest) -> Iterator[Finding]:
        found = manifest.of_events(streams.of_session(db, one.session_id, one.connection_id, through=one.through))
        if found == one.events:
            self.summary.sessions += 1
        elif found.count:
            how = f"{found.count} events here, {one.events.count} then"
            yield changed("session", one.session_id, f"its events are not those that manifest {one.sequence} covers ({how})")
        elif self._by_retention(one):
            self.summary.removed_sessions += 1
            yield removed("session", one.session_id, f"{one.events.count} events, by retention")
        else:
            yield missing("session", one.session_id, f"all its {one.events.count} events are gone, and no removal tells of them")

    # ---- files

    def _recording_files(self, db: sqlite3.Connection, one: Manifest) -> Iterator[Finding]:
        gone: dict[str, bool] = {}
        for file in one.recordings:
            if not (match := _RECORDING.fullmatch(file.path)) or match[2] != one.session_id:
                yield changed("manifest", str(one.sequence), "it names a file that cannot be of its session")
                continue
            if not (self._recordings / file.path).is_file():
                place = file.path.rpartition("/")[0]
                if place not in gone:
                    gone[place] = self._is_told(one.session_id, place) or self._by_retention(one)
                    if gone[place]:
                        self.summary.removed_recordings += 1
                        yield removed("recording", place, "by retention")
                if not gone[place]:
                    yield missing("recording", file.path, "it is gone, and no removal tells of it")
                continue
            size, sha256 = sealing.hash_file(self._recordings / file.path)
            self.summary.files += 1
            if file.sha256 is None:
                yield note("recording", file.path, "it could not be read when it was sealed")
            elif (size, sha256) != (file.size, file.sha256):
                yield changed("recording", file.path, f"it is not what was sealed ({size} bytes here, {file.size} then)")
        named = {file.path for file in one.recordings}
        for path in sealing.paths(self._recordings, one.session_id):
            if path not in named:
                yield added("recording", path, "it was not there when its session was sealed")

    def _is_told(self, session_id: str, place: str) -> bool:
        """Whether its removal is told of by now (it may have gone while we looked), or is under way."""
        with JournalReader(self._path) as reader, reader.snapshot() as db:
            if pruning.is_stated(db, session_id, "evidence.removed", "path", place):
                return True
        return any((self._recordings / REMOVING).glob(f"{place.replace('/', ',')},*"))

    def _by_retention(self, one: Manifest) -> bool:
        """Whether the session's events went by retention (and with age what told of the removal of its files)."""
        ends = (one.events.first, one.events.last)
        return all(self._removed.covers(identity, identity) for identity in ends)

    def _kept_files(self, one: Manifest) -> Iterator[Finding]:
        for artifact in one.artifacts:
            if not _SHA256.fullmatch(artifact.sha256):
                yield changed("manifest", str(one.sequence), "it names an artifact that cannot be one")
                continue
            key = bytes.fromhex(artifact.sha256)
            if key in self._checked:
                continue
            self._checked.add(key)
            path = artifacts.path(self._artifacts, artifact.sha256)
            if not path.is_file():
                told = key in self._gone or self._by_retention(one)
                yield (removed if told else missing)(
                    "artifact", artifact.sha256, "by retention" if told else "it is gone, and no removal tells of it"
                )
                continue
            self.summary.artifacts += 1
            if sealing.hash_file(path)[1] != artifact.sha256:
                yield changed("artifact", artifact.sha256, "it is not what its name says")


class _Stream:
    """The journal's events in order; notes which ids are left out."""

    def __init__(self, records: Iterator[Record], removed: Ranges) -> None:
        self._records = records
        self._removed = removed
        self._next: Record | None = next(records, None)
        self._last = 0
        self._gaps: list[tuple[int, int]] = []
        self.explained = 0
        """Ids left out by retention, so far."""
        self.events = 0
        self.sealed = 0
        """The highest number of a manifest that is stated."""

    def take(self, through: int) -> Iterator[Record]:
        """Yield the events up to an id."""
        while self._next is not None and self._next.id <= through:
            one = self._next
            self._skip_to(one.id)
            self._last = one.id
            self.events += 1
            if one.event == "session.sealed":
                self.sealed = max(self.sealed, _sequence(one))
            yield one
            self._next = next(self._records, None)
        if self._next is not None and through > self._last:
            self._skip_to(through + 1)
            self._last = through

    def gaps(self) -> Iterator[Finding]:
        """Yield what was left out since the last call, and nobody tells of."""
        for first, last in self._gaps:
            yield missing("event", str(first) if first == last else f"{first}-{last}", "gone, and no removal tells of it")
        self._gaps = []

    def _skip_to(self, identity: int) -> None:
        """Note the ids between the last one and this one: nobody has them."""
        if self._last + 1 < identity:
            gap = Ranges([(self._last + 1, identity - 1)])
            self.explained += sum(last - first + 1 for first, last in gap & self._removed)
            self._gaps += gap - self._removed


def _sequence(record: Record) -> int:
    try:
        body: Any = _named(record.body.encode())
    except (msgspec.MsgspecError, UnicodeError):
        return 0
    return int(body.sequence)
