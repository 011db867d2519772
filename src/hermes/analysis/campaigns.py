"""Stage `campaigns`: sessions that share a trait are one campaign; and what an earlier session left is seen to come back.

A campaign is named by the event that opened its oldest session: `C` and that number. Where two become one, the older name stays,
and every name it ever had leads to it. The same journal gives the same campaigns, in whatever order files were looked at.
"""

import sqlite3
from collections.abc import Iterator, Sequence

from hermes import events
from hermes.analysis import traits
from hermes.analysis.guessing import is_weak
from hermes.analysis.stage import Gone
from hermes.analysis.traits import Trait
from hermes.analysis.visits import micros
from hermes.store import StoredEvent

MAX_TRAITS = 200
"""Of one session."""
MAX_LINES = 500
"""Command lines of one session that make its sequence."""


class Campaigns:
    """The stage. It reads what `visits`, `commands` and `scans` wrote of the same events."""

    name = "campaigns"
    version = 1
    schema = """
    CREATE TABLE IF NOT EXISTS campaigns (
        session       INTEGER PRIMARY KEY,
        campaign      INTEGER NOT NULL,
        session_id    TEXT NOT NULL UNIQUE,
        connection_id TEXT NOT NULL,
        time          INTEGER NOT NULL,
        username      TEXT NOT NULL,
        source_ip     TEXT NOT NULL
    );
    CREATE INDEX IF NOT EXISTS campaigns_campaign ON campaigns (campaign);
    CREATE INDEX IF NOT EXISTS campaigns_connection ON campaigns (connection_id);
    CREATE TABLE IF NOT EXISTS campaigns_traits (
        kind    TEXT NOT NULL,
        value   TEXT NOT NULL,
        session INTEGER NOT NULL,
        label   TEXT NOT NULL,
        PRIMARY KEY (kind, value, session)
    ) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS campaigns_traits_session ON campaigns_traits (session);
    CREATE TABLE IF NOT EXISTS campaigns_programs (
        kind  TEXT NOT NULL,
        value TEXT NOT NULL,
        hassh TEXT NOT NULL,
        PRIMARY KEY (kind, value, hassh)
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS campaigns_logins (
        connection_id TEXT NOT NULL,
        event_id      INTEGER NOT NULL,
        kind          TEXT NOT NULL,
        username      TEXT NOT NULL,
        value         TEXT NOT NULL,
        PRIMARY KEY (connection_id, kind, value)
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS campaigns_planted (
        kind     TEXT NOT NULL,
        value    TEXT NOT NULL,
        session  INTEGER NOT NULL,
        username TEXT NOT NULL,
        PRIMARY KEY (kind, value, session)
    ) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS campaigns_planted_session ON campaigns_planted (session);
    CREATE TABLE IF NOT EXISTS campaigns_returns (
        connection_id TEXT NOT NULL,
        kind          TEXT NOT NULL,
        value         TEXT NOT NULL,
        event_id      INTEGER NOT NULL,
        time          INTEGER NOT NULL,
        username      TEXT NOT NULL,
        accepted      INTEGER NOT NULL,
        session_id    TEXT,
        earlier       TEXT NOT NULL,
        PRIMARY KEY (connection_id, kind, value)
    ) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS campaigns_returns_session ON campaigns_returns (session_id);
    CREATE INDEX IF NOT EXISTS campaigns_returns_earlier ON campaigns_returns (earlier);
    """

    def take(self, db: sqlite3.Connection, events_: Sequence[StoredEvent]) -> None:
        """Find the traits that the events add to their sessions, and join those who share them."""
        for event in events_:
            if event.connection_id is None:
                continue
            match event.event:
                case "auth.attempt":
                    if isinstance(attempt := event.fact(), events.AuthAttempt):
                        _tried(db, event, attempt)
                case "session.opened":
                    if isinstance(opened := event.fact(), events.SessionOpened) and event.session_id is not None:
                        self._opened(db, event, opened)
                case "channel.started" | "channel.input":
                    for trait, username in _typed(db, event.id):
                        self._add(db, event.session_id, trait, planted_for=username)
                case "artifact.stored":
                    if isinstance(stored := event.fact(), events.ArtifactStored):
                        self._add(db, event.session_id, traits.payload(stored.sha256, stored.size, stored.path))
                        self._planted_by_file(db, event.session_id, stored.sha256)
                case "session.closed":
                    self._closed(db, event.session_id)
                case "connection.closed":
                    db.execute("DELETE FROM campaigns_logins WHERE connection_id = ?", (event.connection_id,))

    def forget(self, db: sqlite3.Connection, gone: Gone) -> None:
        """Remove those sessions; what they were the first of keeps its name."""
        for column, names in (("connection_id", gone.connections), ("session_id", gone.sessions)):
            for name in names:
                for (session,) in db.execute(f"SELECT session FROM campaigns WHERE {column} = ?", (name,)).fetchall():
                    for table in ("campaigns", "campaigns_traits", "campaigns_planted"):
                        db.execute(f"DELETE FROM {table} WHERE session = ?", (session,))
        for name in gone.connections:
            for table in ("campaigns_returns", "campaigns_logins"):
                db.execute(f"DELETE FROM {table} WHERE connection_id = ?", (name,))

    def scanned(self, db: sqlite3.Connection, sha256: str) -> None:
        """Take in the SSH keys that were found in a file, for all the sessions that brought it."""
        for (session_id,) in db.execute("SELECT session_id FROM scans_seen WHERE sha256 = ?", (sha256,)).fetchall():
            self._planted_by_file(db, session_id, sha256)

    # ---- what happened

    def _opened(self, db: sqlite3.Connection, event: StoredEvent, opened: events.SessionOpened) -> None:
        db.execute(
            "INSERT OR IGNORE INTO campaigns VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                event.id, event.id, event.session_id, event.connection_id, micros(event.time),
                opened.username, opened.source_ip,
            ),
        )  # fmt: skip
        db.execute(
            "UPDATE campaigns_returns SET session_id = ? WHERE connection_id = ?", (event.session_id, event.connection_id)
        )  # fmt: skip
        hassh = _hassh(db, event.connection_id)
        logins = db.execute(
            "SELECT kind, username, value FROM campaigns_logins WHERE connection_id = ?", (event.connection_id,)
        ).fetchall()
        for kind, username, value in logins:
            if kind == "key":
                self._add(db, event.session_id, traits.key(value))
            elif (trait := traits.login(hassh, username, value)) is not None and _is_rare(
                db, "login", f"{username}:{value}", hassh
            ):
                self._add(db, event.session_id, trait)
        for kind, value, username in db.execute(
            "SELECT kind, value, username FROM campaigns_returns WHERE connection_id = ?", (event.connection_id,)
        ).fetchall():
            self._add(db, event.session_id, traits.key(value) if kind == "key" else traits.password(username, value))

    def _closed(self, db: sqlite3.Connection, session_id: str | None) -> None:
        row = db.execute("SELECT id, hassh FROM visits WHERE session_id = ?", (session_id,)).fetchone()
        if row is None:
            return
        lines = db.execute(
            "SELECT normal FROM commands JOIN commands_lines ON commands_lines.id = commands.line WHERE visit = ?"
            " ORDER BY commands.id LIMIT ?",
            (row[0], MAX_LINES),
        ).fetchall()
        trait = traits.commands([it for (it,) in lines])
        if trait is not None and _is_rare(db, "commands", trait.value, row[1] or ""):
            self._add(db, session_id, trait)

    def _planted_by_file(self, db: sqlite3.Connection, session_id: str | None, sha256: str) -> None:
        for (fingerprint,) in db.execute("SELECT fingerprint FROM scans_keys WHERE sha256 = ?", (sha256,)).fetchall():
            self._add(db, session_id, traits.key(fingerprint), planted_for="")

    # ---- joining

    def _add(
        self, db: sqlite3.Connection, session_id: str | None, trait: Trait | None, *, planted_for: str | None = None
    ) -> None:
        """Give a session a trait, and join it with whoever has it, too."""
        if trait is None:
            return
        row = db.execute("SELECT session, campaign, username FROM campaigns WHERE session_id = ?", (session_id,)).fetchone()
        if row is None:
            return
        session, campaign, own = row
        (count,) = db.execute("SELECT count(*) FROM campaigns_traits WHERE session = ?", (session,)).fetchone()
        if count >= MAX_TRAITS:
            return
        if planted_for is not None and trait.kind in ("key", "password"):
            db.execute(
                "INSERT OR IGNORE INTO campaigns_planted VALUES (?, ?, ?, ?)",
                (trait.kind, trait.value, session, planted_for or own),
            )
        db.execute(
            "INSERT OR IGNORE INTO campaigns_traits VALUES (?, ?, ?, ?)", (trait.kind, trait.value, session, trait.label)
        )  # fmt: skip
        other = db.execute(
            "SELECT campaign FROM campaigns_traits JOIN campaigns USING (session) WHERE kind = ? AND value = ? AND session <> ?"
            " LIMIT 1",
            (trait.kind, trait.value, session),
        ).fetchone()
        if other is not None and other[0] != campaign:
            older, younger = sorted((campaign, other[0]))
            db.execute("UPDATE campaigns SET campaign = ? WHERE campaign = ?", (older, younger))


def _tried(db: sqlite3.Connection, event: StoredEvent, attempt: events.AuthAttempt) -> None:
    """Remember what was accepted, and recognise what an earlier session left."""
    tried = [("key", attempt.key_fingerprint)] if attempt.key_fingerprint else []
    tried += [("password", it) for it in (attempt.password, *(attempt.responses or ())) if it]
    for kind, value in tried[:10]:
        if kind == "password" and is_weak(attempt.username, value):
            continue
        earlier = db.execute(
            "SELECT session_id FROM campaigns_planted JOIN campaigns USING (session) WHERE kind = ? AND value = ? AND session < ?"
            " AND connection_id <> ? AND (kind = 'key' OR campaigns_planted.username = ?) ORDER BY session DESC LIMIT 1",
            (kind, value, event.id, event.connection_id, attempt.username),
        ).fetchone()
        if earlier is not None:
            db.execute(
                "INSERT INTO campaigns_returns VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET accepted = max(accepted, excluded.accepted)",
                (
                    event.connection_id, kind, value, event.id, micros(event.time), attempt.username, attempt.accepted,
                    event.session_id, earlier[0],
                ),
            )  # fmt: skip
    if attempt.accepted:
        for kind, value in tried[:10]:
            db.execute(
                "INSERT OR IGNORE INTO campaigns_logins VALUES (?, ?, ?, ?, ?)",
                (event.connection_id, event.id, kind, attempt.username, value),
            )


def _typed(db: sqlite3.Connection, event_id: int) -> Iterator[tuple[Trait | None, str | None]]:
    """The traits in a command line, and for which user a key or password was planted by it (empty: for the session's own)."""
    rows = db.execute(
        "SELECT kind, value FROM commands_facts WHERE line = (SELECT line FROM commands WHERE id = ?)"
        " AND kind IN ('key', 'credential', 'download') ORDER BY kind, value LIMIT ?",
        (event_id, MAX_TRAITS),
    ).fetchall()
    for kind, value in rows:
        if kind == "key":
            yield traits.key(value), ""
        elif kind == "download":
            yield traits.download(value), None
        else:
            username, _, password = value.partition(":")
            yield traits.password(username, password), username


def _is_rare(db: sqlite3.Connection, kind: str, value: str, hassh: str) -> bool:
    """Note that this kind of client knows it, and say whether so few do that it tells something."""
    db.execute("INSERT OR IGNORE INTO campaigns_programs VALUES (?, ?, ?)", (kind, value, hassh))
    (count,) = db.execute("SELECT count(*) FROM campaigns_programs WHERE kind = ? AND value = ?", (kind, value)).fetchone()
    return bool(count <= traits.MAX_PROGRAMS)


def _hassh(db: sqlite3.Connection, connection_id: str | None) -> str:
    row = db.execute("SELECT hassh FROM visits WHERE connection_id = ?", (connection_id,)).fetchone()
    return "" if row is None or row[0] is None else str(row[0])
