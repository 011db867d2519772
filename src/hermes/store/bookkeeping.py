"""What the journal derives from events as it writes them: the tables `sessions` and `commands`.

Everything here runs in the transaction that writes the events themselves, so the tables never say more or less than they do.
"""

import sqlite3
from collections.abc import Callable
from typing import Any

from hermes.events import (
    ChannelInput,
    ChannelOpened,
    ChannelStarted,
    Event,
    SessionClosed,
    SessionContainer,
    SessionOpened,
    SessionSealed,
)

LOST = "lost"
"""Cause of a session whose sensor was killed before it could say how it ended."""


def book(db: sqlite3.Connection, identity: int, time: int, sensor: str, event: Event) -> None:
    """Bring the derived tables up to date with one event (`time` in µs since the epoch)."""
    if event.session_id is not None and (entry := _BOOKS.get(type(event))) is not None:
        entry(db, identity, time, sensor, event)


def end_lost_sessions(db: sqlite3.Connection) -> int:
    """End every session still open, at the time of its last event, and return how many: their sensor is gone."""
    return db.execute(
        """
        UPDATE sessions SET cause = ?, ended = max(
            started,
            coalesce((SELECT max(time) FROM events WHERE events.session_id = sessions.session_id), 0),
            coalesce((SELECT max(time) FROM events WHERE events.connection_id = sessions.connection_id), 0)
        ) WHERE ended IS NULL
        """,
        (LOST,),
    ).rowcount


def _opened(db: sqlite3.Connection, identity: int, time: int, sensor: str, event: SessionOpened) -> None:
    db.execute(
        "INSERT OR IGNORE INTO sessions (id, session_id, connection_id, sensor, username, source_ip, source_port, client_version,"
        " started) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            identity, event.session_id, event.connection_id, sensor, event.username, event.source_ip, event.source_port,
            event.client_version, time,
        ),
    )  # fmt: skip


def _contained(db: sqlite3.Connection, identity: int, time: int, sensor: str, event: SessionContainer) -> None:
    db.execute(
        "UPDATE sessions SET container_id = ?, engine = ?, image = ? WHERE session_id = ?",
        (event.container_id, event.engine, event.image, event.session_id),
    )


def _closed(db: sqlite3.Connection, identity: int, time: int, sensor: str, event: SessionClosed) -> None:
    db.execute(
        "UPDATE sessions SET ended = max(started, ?), cause = ?, channels = max(channels, ?), bytes_in = ?, bytes_out = ?"
        " WHERE session_id = ?",
        (time, event.cause, event.channels, event.bytes_in, event.bytes_out, event.session_id),
    )


def _sealed(db: sqlite3.Connection, identity: int, time: int, sensor: str, event: SessionSealed) -> None:
    db.execute("UPDATE sessions SET sealed = ? WHERE session_id = ?", (event.sequence, event.session_id))


def _channel(db: sqlite3.Connection, identity: int, time: int, sensor: str, event: ChannelOpened) -> None:
    db.execute("UPDATE sessions SET channels = channels + 1 WHERE session_id = ?", (event.session_id,))


def _started(db: sqlite3.Connection, identity: int, time: int, sensor: str, event: ChannelStarted) -> None:
    if event.kind == "exec" and event.command is not None:
        _command(db, identity, time, event, "exec", event.command)


def _input(db: sqlite3.Connection, identity: int, time: int, sensor: str, event: ChannelInput) -> None:
    _command(db, identity, time, event, "input", event.line)


def _command(
    db: sqlite3.Connection, identity: int, time: int, event: ChannelStarted | ChannelInput, kind: str, command: str
) -> None:
    db.execute(
        "INSERT INTO commands (id, session_id, channel, time, kind, command) VALUES (?, ?, ?, ?, ?, ?)",
        (identity, event.session_id, event.channel, time, kind, command),
    )
    db.execute("UPDATE sessions SET commands = commands + 1 WHERE session_id = ?", (event.session_id,))


_BOOKS: dict[type[Event], Callable[[sqlite3.Connection, int, int, str, Any], None]] = {
    SessionOpened: _opened,
    SessionContainer: _contained,
    SessionClosed: _closed,
    SessionSealed: _sealed,
    ChannelOpened: _channel,
    ChannelStarted: _started,
    ChannelInput: _input,
}
