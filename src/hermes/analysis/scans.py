"""Stage `scans`: each kept content is looked at once, by the scanner, and what was found is kept beside its hash."""

import sqlite3
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import BinaryIO

import msgspec
import structlog

from hermes import events
from hermes.analysis import keys
from hermes.analysis.looking import Facts, understood
from hermes.analysis.scanner import Scanner
from hermes.analysis.stage import Gone, Note
from hermes.errors import HermesError
from hermes.store import StoredEvent

log = structlog.get_logger(__name__)

OnScanned = Callable[[sqlite3.Connection, str], None]
"""Told the hash of a content that was looked at, in the transaction that says what was found."""
Content = Callable[[str, Sequence[tuple[str, int]]], BinaryIO]
"""Opens a content by its SHA-256, given the channels whose input it was: sessions' ids and their numbers. May raise HermesError
or OSError, where it is not kept any more."""
MAX_TRIES = 2
"""Looks that an analyst may die of before the content is given up; it may have been killed for another reason."""
MAX_INPUTS = 20
"""Channels of whose input a content is looked for."""
DIED = "the analyst died while it was looked at"


class Scans:
    """What is waited for are rows too: nothing is looked at twice because of a restart, and nothing is forgotten."""

    name = "scans"
    version = 2
    schema = """
    CREATE TABLE IF NOT EXISTS scans (
        sha256      TEXT PRIMARY KEY,
        size        INTEGER NOT NULL,
        state       TEXT NOT NULL,
        tries       INTEGER NOT NULL DEFAULT 0,
        rules       TEXT NOT NULL DEFAULT '',
        mime        TEXT NOT NULL DEFAULT '',
        description TEXT NOT NULL DEFAULT '',
        elf         TEXT,
        failure     TEXT,
        looked_at   INTEGER NOT NULL DEFAULT 0,
        scanned     INTEGER
    ) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS scans_by_state ON scans (state);
    CREATE TABLE IF NOT EXISTS scans_matches (
        sha256      TEXT NOT NULL,
        namespace   TEXT NOT NULL,
        rule        TEXT NOT NULL,
        tags        TEXT NOT NULL,
        description TEXT NOT NULL,
        patterns    TEXT NOT NULL,
        PRIMARY KEY (sha256, namespace, rule)
    ) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS scans_matches_rule ON scans_matches (rule);
    CREATE TABLE IF NOT EXISTS scans_keys (
        sha256      TEXT NOT NULL,
        fingerprint TEXT NOT NULL,
        key         TEXT NOT NULL,
        PRIMARY KEY (sha256, fingerprint)
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS scans_seen (
        sha256        TEXT NOT NULL,
        session_id    TEXT NOT NULL,
        connection_id TEXT NOT NULL,
        event_id      INTEGER NOT NULL,
        path          TEXT NOT NULL,
        source        TEXT NOT NULL,
        channel       INTEGER,
        PRIMARY KEY (sha256, session_id)
    ) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS scans_seen_session ON scans_seen (session_id);
    CREATE INDEX IF NOT EXISTS scans_seen_connection ON scans_seen (connection_id);
    """

    def __init__(
        self, scanner: Scanner, content: Content, *, rules: str, on_scanned: Sequence[OnScanned] = ()
    ) -> None:  # fmt: skip
        """`rules`: fingerprint of the YARA rules that the scanner has."""
        self._scanner = scanner
        self._content = content
        self._rules = rules
        self._begun = False
        self._on_scanned = tuple(on_scanned)

    def take(self, db: sqlite3.Connection, events_: Sequence[StoredEvent]) -> None:
        """Note what was kept; `work` looks at it."""
        for event in events_:
            if event.event != "artifact.stored" or not isinstance(fact := event.fact(), events.ArtifactStored):
                continue
            db.execute(
                "INSERT OR IGNORE INTO scans (sha256, size, state) VALUES (?, ?, 'waiting')", (fact.sha256, fact.size)
            )  # fmt: skip
            db.execute(
                "INSERT OR IGNORE INTO scans_seen VALUES (?, ?, ?, ?, ?, ?, ?)",
                (fact.sha256, event.session_id or "", event.connection_id or "", event.id, fact.path, fact.source, fact.channel),
            )

    def forget(self, db: sqlite3.Connection, gone: Gone) -> None:
        """Forget what was found in contents that no session is left of."""
        touched: set[str] = set()
        for column, values in (("session_id", gone.sessions), ("connection_id", gone.connections), ("event_id", gone.events)):
            for value in values:
                rows = db.execute(f"DELETE FROM scans_seen WHERE {column} = ? RETURNING sha256", (value,))
                touched.update(sha256 for (sha256,) in rows)
        for sha256 in touched:
            if db.execute("SELECT 1 FROM scans_seen WHERE sha256 = ? LIMIT 1", (sha256,)).fetchone() is None:
                for table in ("scans", "scans_matches", "scans_keys"):
                    db.execute(f"DELETE FROM {table} WHERE sha256 = ?", (sha256,))

    def work(self, db: sqlite3.Connection) -> Note | None:
        """Look at one content; before, note that it is being looked at: one of which the analyst dies is tried twice, no more."""
        if not self._begun:
            self._begun = True
            return self._begin
        if (begun := _first(db, "looking")) is not None:
            return partial(self._write, sha256=begun, found=self._look(db, begun))
        if (next_one := _first(db, "waiting")) is not None:
            return partial(
                _set, statement="UPDATE scans SET state = 'looking', tries = tries + 1 WHERE sha256 = ?", values=(next_one,)
            )
        return None

    def _begin(self, db: sqlite3.Connection) -> None:
        """Give up what an analyst before died of, and have everything looked at again that was looked at with other rules."""
        given_up = "UPDATE scans SET state = 'failed', failure = ?, rules = ? WHERE state = 'looking' AND tries >= ?"
        _set(db, given_up, (DIED, self._rules, MAX_TRIES))
        _set(db, "UPDATE scans SET state = 'waiting' WHERE state = 'looking'", ())
        _set(db, "UPDATE scans SET state = 'waiting', tries = 0 WHERE state IN ('done', 'failed') AND rules <> ?", (self._rules,))

    def _look(self, db: sqlite3.Connection, sha256: str) -> tuple[Facts | None, str | None]:
        """What was found, or why nothing was. Raises MachineError when the scanner died."""
        inputs = db.execute(
            "SELECT session_id, channel FROM scans_seen WHERE sha256 = ? AND source = 'input' AND channel NOT NULL LIMIT ?",
            (sha256, MAX_INPUTS),
        ).fetchall()
        try:
            content = self._content(sha256, inputs)
        except HermesError as error:
            return None, str(error)
        except OSError as error:
            return None, f"it cannot be read: {error.strerror}"
        with content:
            return understood(self._scanner.look(content.fileno()))

    def _write(self, db: sqlite3.Connection, sha256: str, found: tuple[Facts | None, str | None]) -> None:
        """Write what was found, and tell those that build on it."""
        facts, failure = found
        for table in ("scans_matches", "scans_keys"):
            db.execute(f"DELETE FROM {table} WHERE sha256 = ?", (sha256,))
        now = time.time_ns() // 1000
        if facts is None:
            log.warning("a kept file could not be analysed", sha256=sha256, reason=failure)
            db.execute(
                "UPDATE scans SET state = 'failed', failure = ?, rules = ?, scanned = ? WHERE sha256 = ?",
                (failure, self._rules, now, sha256),
            )
            return
        elf = None if facts.elf is None else msgspec.json.encode(facts.elf).decode()
        db.execute(
            "UPDATE scans SET state = 'done', failure = NULL, rules = ?, mime = ?, description = ?, elf = ?, looked_at = ?, "
            "scanned = ? WHERE sha256 = ?",
            (self._rules, facts.mime, facts.description, elf, facts.looked_at, now, sha256),
        )
        db.executemany(
            "INSERT OR IGNORE INTO scans_matches VALUES (?, ?, ?, ?, ?, ?)",
            (
                (sha256, it.namespace, it.rule, " ".join(it.tags), it.description, " ".join(it.patterns))
                for it in facts.matches
            ),
        )  # fmt: skip
        db.executemany(
            "INSERT OR IGNORE INTO scans_keys VALUES (?, ?, ?)",
            ((sha256, fingerprint, key) for key in facts.public_keys if (fingerprint := keys.fingerprint(key)) is not None),
        )
        for told in self._on_scanned:
            told(db, sha256)


def _first(db: sqlite3.Connection, state: str) -> str | None:
    row = db.execute("SELECT sha256 FROM scans WHERE state = ? LIMIT 1", (state,)).fetchone()
    return None if row is None else str(row[0])


def _set(db: sqlite3.Connection, statement: str, values: Sequence[str | int]) -> None:
    db.execute(statement, values)
