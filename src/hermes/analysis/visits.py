"""The stage `visits`: one row a connection, with all that it is found by: address, network, country, client, user, session.

Its `id` is that of the connection's first event, so that it stays the same when the stage is built anew. Other stages write
it into their rows; `keys` finds it.
"""

import ipaddress
import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from hermes.analysis.stage import Gone
from hermes.store import StoredEvent

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_FIELDS = {
    "connection.opened": {"source_ip": "source_ip"},
    "connection.refused": {"source_ip": "source_ip"},
    "connection.version": {"version": "version"},
    "connection.algorithms": {"hassh": "hassh"},
    "connection.origin": {"country": "country", "asn": "asn", "organization": "organization"},
    "auth.attempt": {"username": "username"},
    "session.opened": {"username": "username", "source_ip": "source_ip", "client_version": "version"},
}
"""What is taken of which event, and in which column it is kept."""
_COLUMNS = (
    "connection_id", "session_id", "source_ip", "address", "network", "version", "hassh", "country", "asn", "organization",
    "username",
)  # fmt: skip
MAX_TEXT = 1024


def micros(moment: datetime) -> int:
    """µs since the epoch."""
    return (moment - EPOCH) // _MICROSECOND


def packed(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bytes:
    """An address as 16 bytes, IPv4 as ::ffff:a.b.c.d, so that those of a network follow each other."""
    return address.packed if address.version == 6 else b"\0" * 10 + b"\xff\xff" + address.packed


def network_of(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """The network that addresses are counted by: /24 of IPv4, /48 of IPv6."""
    return str(ipaddress.ip_network((address, 24 if address.version == 4 else 48), strict=False))


def keys(db: sqlite3.Connection, events: Sequence[StoredEvent]) -> dict[str | None, int]:
    """The `visits.id` for each connection id and session id of the events. Those without either have none."""
    found: dict[str | None, int] = {}
    for column in ("connection_id", "session_id"):
        wanted = {getattr(it, column) for it in events} - {None}
        for name in wanted:
            row = db.execute(f"SELECT id FROM visits WHERE {column} = ?", (name,)).fetchone()
            if row is not None:
                found[name] = row[0]
    return found


def visit_of(known: dict[str | None, int], event: StoredEvent) -> int | None:
    """The event's `visits.id` among those that `keys` found."""
    visit = known.get(event.connection_id) if event.connection_id is not None else None
    return known.get(event.session_id) if visit is None and event.session_id is not None else visit


def leaving(db: sqlite3.Connection, gone: Gone) -> list[int]:
    """The `visits.id` of all that is gone; to be asked before `visits` itself forgets it."""
    return [
        visit
        for column, names in (("connection_id", gone.connections), ("session_id", gone.sessions))
        for name in names
        for (visit,) in db.execute(f"SELECT id FROM visits WHERE {column} = ?", (name,)).fetchall()
    ]


class Visits:
    """The stage."""

    name = "visits"
    version = 1
    schema = """
        CREATE TABLE IF NOT EXISTS visits (
            id            INTEGER PRIMARY KEY,
            time          INTEGER NOT NULL,
            connection_id TEXT UNIQUE,
            session_id    TEXT UNIQUE,
            source_ip     TEXT,
            address       BLOB,
            network       TEXT,
            version       TEXT,
            hassh         TEXT,
            country       TEXT,
            asn           INTEGER,
            organization  TEXT,
            username      TEXT
        );
        CREATE INDEX IF NOT EXISTS visits_address ON visits (address);
        CREATE INDEX IF NOT EXISTS visits_hassh ON visits (hassh);
        CREATE INDEX IF NOT EXISTS visits_username ON visits (username);
        CREATE INDEX IF NOT EXISTS visits_country ON visits (country);
        CREATE TABLE IF NOT EXISTS visits_strays (id INTEGER PRIMARY KEY);
    """

    def take(self, db: sqlite3.Connection, events: Sequence[StoredEvent]) -> None:
        known = keys(db, events)
        changes: dict[int, dict[str, Any]] = {}
        for event in events:
            if event.connection_id is None and event.session_id is None:
                db.execute("INSERT OR IGNORE INTO visits_strays VALUES (?)", (event.id,))
                continue
            identity = visit_of(known, event)
            if identity is None:
                identity = event.id
            row = changes.setdefault(identity, {"time": micros(event.time)})
            for column in ("connection_id", "session_id"):
                if (name := getattr(event, column)) is not None and name not in known:
                    known[name] = identity
                    row[column] = name
            for field, column in _FIELDS.get(event.event, {}).items():
                if (value := event.body.get(field)) is not None:
                    row[column] = value[:MAX_TEXT] if isinstance(value, str) else value
        for identity, row in changes.items():
            _place(row)
            values = [row.get(column) for column in _COLUMNS]
            db.execute(_UPSERT, (identity, row["time"], *values))

    def forget(self, db: sqlite3.Connection, gone: Gone) -> None:
        db.executemany("DELETE FROM visits WHERE connection_id = ?", [(it,) for it in gone.connections])
        db.executemany("DELETE FROM visits WHERE session_id = ?", [(it,) for it in gone.sessions])
        db.executemany("DELETE FROM visits_strays WHERE id = ?", [(it,) for it in gone.events])


_UPSERT = (
    f"INSERT INTO visits (id, time, {', '.join(_COLUMNS)}) VALUES (?, ?{', ?' * len(_COLUMNS)}) ON CONFLICT (id) DO UPDATE SET "
    + ", ".join(f"{it} = coalesce(excluded.{it}, {it})" for it in _COLUMNS)
)


def _place(row: dict[str, Any]) -> None:
    """Add what an address tells by itself."""
    if (text := row.get("source_ip")) is not None:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return
        row["address"], row["network"] = packed(address), network_of(address)
