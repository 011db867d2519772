"""The stage `stats`: credentials that were tried and files that were brought, as rows that are quickly counted."""

import hashlib
import sqlite3
from collections.abc import Sequence

from hermes.analysis.stage import Gone
from hermes.analysis.visits import keys, leaving, micros, visit_of
from hermes.store import StoredEvent

MAX_TEXT = 1024
"""Characters of a user name or secret."""


class Stats:
    """The stage."""

    name = "stats"
    version = 2
    schema = """
        CREATE TABLE IF NOT EXISTS stats_pairs (
            id INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE, username TEXT NOT NULL, password TEXT, key TEXT
        );
        CREATE TABLE IF NOT EXISTS stats_attempts (
            id INTEGER PRIMARY KEY, time INTEGER NOT NULL, visit INTEGER, pair INTEGER NOT NULL
        );
        CREATE INDEX IF NOT EXISTS stats_attempts_pair ON stats_attempts (pair, time);
        CREATE INDEX IF NOT EXISTS stats_attempts_visit ON stats_attempts (visit);
        CREATE TABLE IF NOT EXISTS stats_files (
            id INTEGER PRIMARY KEY, time INTEGER NOT NULL, visit INTEGER, sha256 TEXT NOT NULL, size INTEGER, path TEXT
        );
        CREATE INDEX IF NOT EXISTS stats_files_sha256 ON stats_files (sha256, time);
        CREATE INDEX IF NOT EXISTS stats_files_visit ON stats_files (visit);
    """

    def take(self, db: sqlite3.Connection, events: Sequence[StoredEvent]) -> None:
        events = [it for it in events if it.event in ("auth.attempt", "artifact.stored")]
        known = keys(db, events)
        for event in events:
            body, time, visit = event.body, micros(event.time), visit_of(known, event)
            if event.event == "artifact.stored":
                file = (event.id, time, visit, body["sha256"], body.get("size"), _text(body.get("path")))
                db.execute("INSERT OR REPLACE INTO stats_files VALUES (?, ?, ?, ?, ?, ?)", file)
            elif (pair := _pair(body)) is not None:
                attempt = (event.id, time, visit, _keep(db, *pair))
                db.execute("INSERT OR REPLACE INTO stats_attempts VALUES (?, ?, ?, ?)", attempt)

    def forget(self, db: sqlite3.Connection, gone: Gone) -> None:
        for visit in leaving(db, gone):
            db.execute("DELETE FROM stats_files WHERE visit = ?", (visit,))
            pairs = db.execute("SELECT DISTINCT pair FROM stats_attempts WHERE visit = ?", (visit,)).fetchall()
            db.execute("DELETE FROM stats_attempts WHERE visit = ?", (visit,))
            for pair in pairs:
                if db.execute("SELECT 1 FROM stats_attempts WHERE pair = ?", pair).fetchone() is None:
                    db.execute("DELETE FROM stats_pairs WHERE id = ?", pair)


def _pair(body: dict[str, object]) -> tuple[str, str | None, str | None] | None:
    """User name, password and key that were tried; None where only the methods were asked for."""
    password, key, responses = body.get("password"), body.get("key_fingerprint"), body.get("responses")
    if password is None and isinstance(responses, list):
        password = " ".join(str(it) for it in responses)
    if password is None and key is None:
        return None
    return (
        _text(body.get("username")),
        None if password is None else _text(password),
        None if key is None else _text(key),
    )


def _text(value: object) -> str:
    return str(value or "")[:MAX_TEXT].encode(errors="replace").decode()


def _keep(db: sqlite3.Connection, username: str, password: str | None, key: str | None) -> int:
    digest = hashlib.blake2b(repr((username, password, key)).encode(errors="replace"), digest_size=16).digest()
    row = db.execute("SELECT id FROM stats_pairs WHERE hash = ?", (digest,)).fetchone()
    if row is None:
        values = (digest, username, password, key)
        row = (db.execute("INSERT INTO stats_pairs (hash, username, password, key) VALUES (?, ?, ?, ?)", values).lastrowid,)
    return int(row[0])
