"""Compares what was played with what Hermes knows of it: inputs, processes, files."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from hermes.analysis.query import Query
from hermes.analysis.reader import IndexReader
from hermes.analysis.search import search
from hermes.evidence.sources import timeline
from hermes.store import JournalReader
from hermes.store.queries import StoredEvent
from tests.corpus.kernel import ProcessAccount
from tests.corpus.play import Played

SEARCHED = 2000
"""Characters of an input that are searched for."""


@dataclass
class Report:
    """What was compared, and where the two differ."""

    sessions: int = 0
    inputs: int = 0
    processes: int = 0
    files: int = 0
    unplayed: list[str] = field(default_factory=list)
    not_found: list[str] = field(default_factory=list)
    """Inputs that the search does not find in their session."""
    not_on_timeline: list[str] = field(default_factory=list)
    miscounted: list[str] = field(default_factory=list)
    """Sessions in which Hermes and the kernel count different numbers of executed programs."""
    files_unknown: list[str] = field(default_factory=list)
    """Files that a box says were written, and whose content Hermes does not know."""

    @property
    def holds(self) -> bool:
        """Nothing differs."""
        return not (self.unplayed or self.not_found or self.not_on_timeline or self.miscounted or self.files_unknown)

    def lines(self) -> Iterable[str]:
        """The report, for people."""
        yield f"{self.sessions} sessions, {self.inputs} inputs, {self.processes} processes, {self.files} files"
        for what, which in (
            ("could not be played", self.unplayed), ("not found by search", self.not_found),
            ("not on the timeline", self.not_on_timeline), ("processes counted otherwise by the kernel", self.miscounted),
            ("files not known by their content", self.files_unknown),
        ):  # fmt: skip
            yield f"{what}: {len(which)}"
            yield from (f"  {one}" for one in which[:20])


def session_of(journal: JournalReader, played: Iterable[Played]) -> dict[str, str]:
    """Session ids by marker."""
    markers = {one.marker for one in played}
    found = {}
    for session in journal.list_sessions(limit=1_000_000):
        for marker in markers.intersection(*(command.split()[-1:] for command in session.commands[:1])):
            found[marker] = session.session_id
    return found


def compare(played: list[Played], journal_path: Path, index_path: Path, recordings: Path, account: ProcessAccount) -> Report:
    """Compare all sessions; the sensor has taken in everything by now."""
    report = Report()
    with JournalReader(journal_path) as journal, IndexReader(index_path) as index:
        sessions = session_of(journal, played)
        for one in played:
            session_id = sessions.get(one.marker)
            if one.failed or session_id is None:
                report.unplayed.append(f"{one.script.id}: {one.failed or 'its session is not in the journal'}")
                continue
            report.sessions += 1
            _inputs(report, one, session_id, journal, index, recordings)
            events = journal.session_events(session_id)
            _processes(report, one, events, account)
            _files(report, one, events)
    return report


def _inputs(
    report: Report, played: Played, session_id: str, journal: JournalReader, index: IndexReader, recordings: Path
) -> None:  # fmt: skip
    connection_id = journal.get_session(session_id).connection_id
    with journal.snapshot() as db:
        there = Counter(
            str(item.body.get("command") if item.event == "channel.started" else item.body.get("line"))
            for item in timeline(db, recordings, session_id, connection_id)
            if item.event in ("channel.started", "channel.input")
        )
    for text in played.sent:
        report.inputs += 1
        if not there[text]:
            report.not_on_timeline.append(f"{played.script.id}: {text[:100]!r}")
        there[text] -= 1
        hits = search(index, Query(text=text[:SEARCHED], syntax="substring", session=session_id))
        if not any(hit.event in ("channel.started", "channel.input") for hit in hits):
            report.not_found.append(f"{played.script.id}: {text[:100]!r}")


def _processes(report: Report, played: Played, events: list[StoredEvent], account: ProcessAccount) -> None:
    executed = [one for one in events if one.event == "process.started" and one.body["error"] is None]
    counted = account.executed(played.marker.encode(), played.began, played.over)
    report.processes += len(executed)
    if counted != len(executed):
        report.miscounted.append(f"{played.script.id}: {len(executed)}, the kernel: {counted}")


def _files(report: Report, played: Played, events: list[StoredEvent]) -> None:
    known = {
        (one.body["path"], one.body["sha256"])
        for one in events
        if one.event in ("file.written", "file.changed") and one.body["sha256"] is not None
    }
    for path, digest in played.files.items():
        report.files += 1
        if (path, digest) not in known:
            report.files_unknown.append(f"{played.script.id}: {path} {digest}")
