"""Stage `techniques`: ATT&CK techniques that a session shows, by rules that are data, each with the evidence that fired it."""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence

from hermes import events
from hermes.analysis.rules_match import Hit, Rules
from hermes.analysis.stage import Gone
from hermes.store import StoredEvent

MAX_EVIDENCE = 10
"""Pieces of evidence kept of one rule in one connection; more are counted."""


class Techniques:
    """Findings are of a connection, which has at most one session; what it shows before the login belongs to that session."""

    name = "techniques"
    version = 1
    schema = """
    CREATE TABLE IF NOT EXISTS techniques (
        connection_id TEXT NOT NULL,
        rule          TEXT NOT NULL,
        session_id    TEXT,
        technique     TEXT NOT NULL,
        name          TEXT NOT NULL,
        event_id      INTEGER NOT NULL,
        time          INTEGER NOT NULL,
        count         INTEGER NOT NULL DEFAULT 0,
        needed        INTEGER NOT NULL DEFAULT 1,
        PRIMARY KEY (connection_id, rule)
    ) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS techniques_session ON techniques (session_id) WHERE session_id IS NOT NULL;
    CREATE INDEX IF NOT EXISTS techniques_technique ON techniques (technique, time);
    CREATE TABLE IF NOT EXISTS techniques_evidence (
        connection_id TEXT NOT NULL,
        rule          TEXT NOT NULL,
        event_id      INTEGER NOT NULL,
        text          TEXT NOT NULL,
        PRIMARY KEY (connection_id, rule, event_id)
    ) WITHOUT ROWID;
    """

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self.version = rules.fingerprint

    def take(self, db: sqlite3.Connection, events_: Sequence[StoredEvent]) -> None:
        """Note which rules the events fire."""
        for event in events_:
            connection = event.connection_id
            if connection is None:
                continue
            if event.event == "session.opened":
                db.execute(
                    "UPDATE techniques SET session_id = ? WHERE connection_id = ?", (event.session_id, connection)
                )  # fmt: skip
            for hit in self._hits(db, event):
                _note(db, connection, event.session_id, hit, event.id, _micros(event))

    def forget(self, db: sqlite3.Connection, gone: Gone) -> None:
        """Remove what those connections showed."""
        for connection in gone.connections:
            for table in ("techniques", "techniques_evidence"):
                db.execute(f"DELETE FROM {table} WHERE connection_id = ?", (connection,))

    def scanned(self, db: sqlite3.Connection, sha256: str) -> None:
        """Note which rules the sessions fire that brought this content, now that it was looked at."""
        hits = list(self._of_file(db, sha256))
        if not hits:
            return
        rows = db.execute("SELECT connection_id, session_id, event_id FROM scans_seen WHERE sha256 = ?", (sha256,)).fetchall()
        for connection, session, event_id in rows:
            for hit in hits:
                _note(db, connection, session or None, hit, event_id, None)

    def _hits(self, db: sqlite3.Connection, event: StoredEvent) -> Iterator[Hit]:
        yield from self._rules.event(event)
        match event.fact():
            case events.ChannelStarted(kind="exec", command=str() as command):
                yield from self._rules.typed(command)
            case events.ChannelInput(line=line):
                yield from self._rules.typed(line)
            case events.ProcessStarted(program=program, argv=argv, error=None):
                yield from self._rules.executed(program, argv)
            case events.ArtifactStored(sha256=sha256):
                yield from self._of_file(db, sha256)

    def _of_file(self, db: sqlite3.Connection, sha256: str) -> Iterable[Hit]:
        row = db.execute("SELECT mime FROM scans WHERE sha256 = ? AND state = 'done'", (sha256,)).fetchone()
        if row is None:
            return
        matches = db.execute("SELECT namespace, rule, tags FROM scans_matches WHERE sha256 = ?", (sha256,))
        names = [name for namespace, rule, tags in matches for name in (f"{namespace}:{rule}", *tags.split())]
        yield from self._rules.file(list(dict.fromkeys(names)), row[0])


def _note(db: sqlite3.Connection, connection: str, session: str | None, hit: Hit, event_id: int, time: int | None) -> None:
    rule = hit.rule
    if db.execute(
        "SELECT 1 FROM techniques_evidence WHERE connection_id = ? AND rule = ? AND event_id = ?", (connection, rule.id, event_id)
    ).fetchone():
        return
    db.execute(
        "INSERT INTO techniques (connection_id, rule, session_id, technique, name, event_id, time, needed) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET session_id = coalesce(session_id, excluded.session_id)",
        (connection, rule.id, session, rule.technique, rule.name, event_id, time or 0, rule.count),
    )
    (count,) = db.execute(
        "UPDATE techniques SET count = count + 1 WHERE connection_id = ? AND rule = ? RETURNING count", (connection, rule.id)
    ).fetchone()
    if count <= MAX_EVIDENCE:
        db.execute("INSERT INTO techniques_evidence VALUES (?, ?, ?, ?)", (connection, rule.id, event_id, hit.evidence))


def _micros(event: StoredEvent) -> int:
    return int(event.time.timestamp()) * 1_000_000 + event.time.microsecond
