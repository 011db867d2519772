"""The stage `documents`: what can be searched. One document an event, and more for what a channel printed or was given.

Attackers repeat themselves, so each text is kept and indexed once (`documents_texts`), however many events have it.
"""

import hashlib
import sqlite3
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from hermes.analysis.shell import parse
from hermes.analysis.spoken import spoken
from hermes.analysis.stage import Gone
from hermes.analysis.visits import keys, leaving, micros, visit_of
from hermes.analysis.words import text_of
from hermes.store import StoredEvent

PARTS = ("event", "output", "input", "decoded")
"""What a document is of its event: what it says; what a channel printed, or was given besides lines of a shell, when it is
closed or its session is over (of its `channel.started`); what stood in its command in base64."""
EVENT, OUTPUT, INPUT, DECODED = range(4)
SHIFT = 2
"""A document's id is its event's, shifted by so many bits, and its part."""
HOUR = 3_600_000_000


class Documents:
    """The stage. `recordings`: where they are; `output_bytes`: how much of each stream of a channel can be searched."""

    name = "documents"
    version = 1
    schema = """
        CREATE TABLE IF NOT EXISTS documents_texts (id INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE, text TEXT NOT NULL);
        CREATE VIRTUAL TABLE IF NOT EXISTS documents_words USING fts5 (
            text, content = 'documents_texts', content_rowid = 'id', tokenize = 'unicode61 remove_diacritics 2'
        );
        CREATE TABLE IF NOT EXISTS documents_events (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
        CREATE TABLE IF NOT EXISTS documents (
            id      INTEGER PRIMARY KEY,
            time    INTEGER NOT NULL,
            event   INTEGER NOT NULL,
            visit   INTEGER,
            channel INTEGER,
            text    INTEGER
        );
        CREATE INDEX IF NOT EXISTS documents_visit ON documents (visit);
        CREATE INDEX IF NOT EXISTS documents_event ON documents (event);
        CREATE INDEX IF NOT EXISTS documents_text ON documents (text) WHERE text IS NOT NULL;
        CREATE TABLE IF NOT EXISTS documents_hours (hour INTEGER PRIMARY KEY, first INTEGER NOT NULL, last INTEGER NOT NULL);
        CREATE TABLE IF NOT EXISTS documents_files (id INTEGER PRIMARY KEY, sha256 TEXT, sha1 TEXT, md5 TEXT);
        CREATE INDEX IF NOT EXISTS documents_sha1 ON documents_files (sha1);
        CREATE INDEX IF NOT EXISTS documents_md5 ON documents_files (md5);
        CREATE TABLE IF NOT EXISTS documents_channels (
            id INTEGER PRIMARY KEY, session_id TEXT, channel INTEGER, kind TEXT, recording TEXT, time INTEGER, visit INTEGER
        );
        CREATE INDEX IF NOT EXISTS documents_channels_session ON documents_channels (session_id);
    """

    def __init__(self, recordings: Path, output_bytes: int) -> None:
        self._recordings = recordings
        self._output_bytes = output_bytes

    def take(self, db: sqlite3.Connection, events: Sequence[StoredEvent]) -> None:
        known = keys(db, events)
        batch = _Batch(db)
        for event in events:
            body, time = event.body, micros(event.time)
            visit, channel = visit_of(known, event), body.get("channel")
            add = partial(batch.add, event.id, time, event.event, visit, channel if isinstance(channel, int) else None)
            add(EVENT, text_of(event.event, body))
            match event.event:
                case "channel.started":
                    if body.get("kind") == "exec":
                        add(DECODED, _decoded(body.get("command")))
                    if self._output_bytes and body.get("recording"):
                        batch.open(event.id, event.session_id, channel, body.get("kind"), body["recording"], time, visit)
                case "channel.input":
                    add(DECODED, _decoded(body.get("line")))
                case "channel.closed":
                    self._over(batch, "session_id = ? AND channel = ?", event.session_id, channel)
                case "session.closed":
                    self._over(batch, "session_id = ?", event.session_id)
                case "sensor.started":  # what an earlier run left open is never closed
                    self._over(batch, "id < ?", event.id)
                case "artifact.stored":
                    batch.files.append((event.id << SHIFT, body.get("sha256"), body.get("sha1"), body.get("md5")))
                case _:
                    pass
        batch.write()

    def forget(self, db: sqlite3.Connection, gone: Gone) -> None:
        for visit in leaving(db, gone):
            _delete(db, "visit = ?", (visit,))
        for event in gone.events:
            _delete(db, "id BETWEEN ? AND ?", (event << SHIFT, (event << SHIFT) + len(PARTS) - 1))
        db.executemany("DELETE FROM documents_channels WHERE session_id = ?", [(it,) for it in gone.sessions])

    def _over(self, batch: "_Batch", which: str, *values: object) -> None:
        """Take in what was printed in channels that are over."""
        for event, channel, kind, recording, time, visit in batch.close(which, values):
            said = spoken(self._recordings, recording, self._output_bytes)
            add = partial(batch.add, event, time, "channel.started", visit, channel)
            add(OUTPUT, said.output)
            if kind != "shell":  # the lines of a shell are events
                add(INPUT, said.input)


def _decoded(command: object) -> str:
    if not isinstance(command, str) or "base64" not in command:
        return ""
    return " ".join(parse(command).facts.decoded)


class _Batch:
    """Rows to be written together. A text that is there already is not written again."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.files: list[tuple[int, object, object, object]] = []
        self._db = db
        self._rows: list[tuple[int, int, int, int | None, int | None, int | None]] = []
        self._texts: dict[bytes, int] = {}
        self._events = dict(db.execute("SELECT name, id FROM documents_events").fetchall())

    def add(self, event: int, time: int, name: str, visit: int | None, channel: int | None, part: int, text: str) -> None:
        """Add a document; without a text only for the event itself."""
        if part == EVENT or text.strip():
            key = self._text(text) if text.strip() else None
            self._rows.append(((event << SHIFT) + part, time, self._event(name), visit, channel, key))

    def open(self, *row: object) -> None:
        """Remember a channel whose recording is to be read once it is over."""
        self._db.execute("INSERT OR REPLACE INTO documents_channels VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def close(self, which: str, values: Sequence[object]) -> list[tuple[int, int, str, str, int, int | None]]:
        """Forget channels; return event, channel, kind, recording, time and visit of each."""
        found = self._db.execute(
            f"SELECT id, channel, kind, recording, time, visit FROM documents_channels WHERE {which}", values
        ).fetchall()
        if found:
            self._db.execute(f"DELETE FROM documents_channels WHERE {which}", values)
        return found

    def write(self) -> None:
        self._db.executemany("INSERT OR REPLACE INTO documents VALUES (?, ?, ?, ?, ?, ?)", self._rows)
        self._db.executemany("INSERT OR REPLACE INTO documents_files VALUES (?, ?, ?, ?)", self.files)
        hours: dict[int, tuple[int, int]] = {}
        for identity, time, *_ in self._rows:
            first, last = hours.get(time // HOUR, (identity, identity))
            hours[time // HOUR] = (min(first, identity), max(last, identity))
        self._db.executemany(
            "INSERT INTO documents_hours VALUES (?, ?, ?) ON CONFLICT (hour) DO UPDATE"
            " SET first = min(first, excluded.first), last = max(last, excluded.last)",
            [(hour, first, last) for hour, (first, last) in hours.items()],
        )

    def _event(self, name: str) -> int:
        if name not in self._events:
            self._events[name] = self._db.execute("INSERT INTO documents_events (name) VALUES (?)", (name,)).lastrowid
        return int(self._events[name])

    def _text(self, text: str) -> int:
        data = text.encode(errors="replace")
        digest = hashlib.blake2b(data, digest_size=16).digest()
        if (found := self._texts.get(digest)) is not None:
            return found
        row = self._db.execute("SELECT id FROM documents_texts WHERE hash = ?", (digest,)).fetchone()
        if row is None:
            clean = data.decode()
            key = self._db.execute("INSERT INTO documents_texts (hash, text) VALUES (?, ?)", (digest, clean)).lastrowid
            self._db.execute("INSERT INTO documents_words (rowid, text) VALUES (?, ?)", (key, clean))
            row = (key,)
        self._texts[digest] = row[0]
        return int(row[0])


def _delete(db: sqlite3.Connection, which: str, values: tuple[object, ...]) -> None:
    """Delete documents, and the texts that only they had."""
    texts = db.execute(f"SELECT DISTINCT text FROM documents WHERE {which} AND text IS NOT NULL", values).fetchall()
    db.execute(f"DELETE FROM documents_files WHERE id IN (SELECT id FROM documents WHERE {which})", values)
    db.execute(f"DELETE FROM documents WHERE {which}", values)
    for (key,) in texts:
        if db.execute("SELECT 1 FROM documents WHERE text = ?", (key,)).fetchone() is None:
            (text,) = db.execute("SELECT text FROM documents_texts WHERE id = ?", (key,)).fetchone()
            db.execute("INSERT INTO documents_words (documents_words, rowid, text) VALUES ('delete', ?, ?)", (key, text))
            db.execute("DELETE FROM documents_texts WHERE id = ?", (key,))
