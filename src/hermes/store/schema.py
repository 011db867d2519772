"""The journal's tables, and how an older journal becomes a newer one.

`PRAGMA user_version` is the number of migrations a journal has been through. A migration is never edited once released: a
change of the tables is one more migration at the end, and `docs/reference/journal.md` says what it did.
"""

import sqlite3
from collections.abc import Sequence

from hermes.errors import JournalError

APPLICATION_ID = 0x48724D73
"""`PRAGMA application_id` of every journal: `HrMs`."""

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE events (
        id            INTEGER PRIMARY KEY,
        time          INTEGER NOT NULL,
        sensor        TEXT NOT NULL,
        event         TEXT NOT NULL,
        connection_id TEXT,
        session_id    TEXT,
        body          TEXT NOT NULL
    );
    CREATE INDEX events_connection ON events (connection_id) WHERE connection_id IS NOT NULL;
    CREATE INDEX events_session ON events (session_id) WHERE session_id IS NOT NULL;

    CREATE TABLE sessions (
        id             INTEGER PRIMARY KEY REFERENCES events (id),
        session_id     TEXT NOT NULL UNIQUE,
        connection_id  TEXT,
        sensor         TEXT NOT NULL,
        username       TEXT NOT NULL,
        source_ip      TEXT NOT NULL,
        source_port    INTEGER NOT NULL,
        client_version TEXT NOT NULL,
        started        INTEGER NOT NULL,
        ended          INTEGER,
        cause          TEXT,
        container_id   TEXT,
        engine         TEXT,
        image          TEXT,
        channels       INTEGER NOT NULL DEFAULT 0,
        commands       INTEGER NOT NULL DEFAULT 0,
        bytes_in       INTEGER NOT NULL DEFAULT 0,
        bytes_out      INTEGER NOT NULL DEFAULT 0
    );
    CREATE INDEX sessions_started ON sessions (started);
    CREATE INDEX sessions_username ON sessions (username, started);
    CREATE INDEX sessions_source ON sessions (source_ip, started);
    CREATE INDEX sessions_active ON sessions (started) WHERE ended IS NULL;

    CREATE TABLE commands (
        id         INTEGER PRIMARY KEY REFERENCES events (id),
        session_id TEXT NOT NULL,
        channel    INTEGER NOT NULL,
        time       INTEGER NOT NULL,
        kind       TEXT NOT NULL,
        command    TEXT NOT NULL
    );
    CREATE INDEX commands_session ON commands (session_id);
    """,
    """
    CREATE INDEX sessions_connection ON sessions (connection_id) WHERE connection_id IS NOT NULL;
    """,
    """
    CREATE TABLE journal (identity TEXT NOT NULL);
    INSERT INTO journal VALUES (lower(hex(randomblob(16))));
    """,
    """
    CREATE TABLE spools (container_id TEXT PRIMARY KEY, position INTEGER NOT NULL) WITHOUT ROWID;
    """,
    """
    ALTER TABLE sessions ADD COLUMN sealed INTEGER;
    UPDATE sessions SET sealed = 0;
    CREATE INDEX sessions_unsealed ON sessions (id) WHERE sealed IS NULL;
    CREATE INDEX events_sensor ON events (event) WHERE connection_id IS NULL AND session_id IS NULL;
    """,
)


def version(db: sqlite3.Connection) -> int:
    """Return how many migrations the journal has been through; raise JournalError if it is not a journal this Hermes can use."""
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (found,) = db.execute("PRAGMA user_version").fetchone()
    (tables,) = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if tables and application != APPLICATION_ID:
        raise JournalError(f"{_path(db)} is a database, but not a journal of Hermes")
    if found > len(MIGRATIONS):
        raise JournalError(
            f"{_path(db)} was written by a newer Hermes: its tables are of version {found}, this Hermes knows {len(MIGRATIONS)}"
        )
    return int(found)


def _path(db: sqlite3.Connection) -> str:
    return str(db.execute("PRAGMA database_list").fetchone()[2])


def migrate(db: sqlite3.Connection, migrations: Sequence[str] = MIGRATIONS) -> None:
    """Bring the tables up to the newest version, each step a transaction of its own: it happens wholly or not at all."""
    for number in range(version(db), len(migrations)):
        try:
            db.executescript(
                f"BEGIN IMMEDIATE; {migrations[number]};"
                f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {number + 1}; COMMIT;"
            )
        except sqlite3.Error:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
