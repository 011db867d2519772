"""Reading the journal, while a sensor writes it or when none runs. Nothing here can change it."""

import json
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import reduce
from operator import or_
from typing import Any, TypeVar

import msgspec

from hermes import events
from hermes.errors import JournalError
from hermes.store import database, schema
from hermes.store.reading import Reader

S = TypeVar("S", str, str | None)

COMMANDS_LISTED = 1000
"""Commands of one session that `list_sessions` gives at most; `get_session` gives all."""
EVENT_COLUMNS = "id, time, sensor, event, connection_id, session_id, body"
_ANY_EVENT: Any = reduce(or_, events.ALL.values())


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """One session as the journal knows it; times are UTC."""

    session_id: str
    connection_id: str | None
    sensor: str
    username: str
    source_ip: str
    source_port: int
    client_version: str
    started: datetime
    ended: datetime | None
    """None while it is active."""
    cause: str | None
    """Why it ended; `lost`: its sensor was killed."""
    container_id: str | None
    engine: str | None
    image: str | None
    channels: int
    commands: list[str]
    """Exec commands and shell input lines, in the order they came."""
    command_count: int
    bytes_in: int
    bytes_out: int


class StoredEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One event as it is stored; `time` is UTC, `body` all its fields with its name as `event`."""

    id: int
    time: datetime
    sensor: str
    event: str
    connection_id: str | None
    session_id: str | None
    body: dict[str, Any]

    @classmethod
    def of(
        cls, id: int, time: int, sensor: str, event: str, connection_id: str | None, session_id: str | None, body: str
    ) -> "StoredEvent":  # fmt: skip
        """The event of a row of the journal's table (`EVENT_COLUMNS`)."""
        return cls(
            id=id, time=_moment(time), sensor=sensor, event=event, connection_id=connection_id, session_id=session_id,
            body=msgspec.json.decode(body, type=dict[str, Any]),
        )  # fmt: skip

    def fact(self) -> events.Event | None:
        """Return the event of the catalogue, None if this Hermes does not know it (any more)."""
        try:
            fact: events.Event = msgspec.convert(self.body, _ANY_EVENT)
        except msgspec.ValidationError:
            return None
        return fact


class JournalReader(Reader):
    """An open journal, read-only. Every method may raise JournalError, whose text is one line."""

    error = JournalError
    missing = "there is no journal at {path}: no Hermes has run with this data directory"

    def _begin(self) -> None:
        if schema.version(self._db) < len(schema.MIGRATIONS):
            raise JournalError(f"{self._path} was written by an older Hermes: start `hermes up` once to bring it up to date")

    def list_sessions(
        self,
        limit: int = 50,
        offset: int = 0,
        *,
        username: str | None = None,
        source_ip: str | None = None,
        since: datetime | None = None,
        active: bool | None = None,
    ) -> list[Session]:
        """Return sessions, newest first; each filter given must hold. `since`: started then or later (aware)."""
        wheres: list[str] = []
        values: list[Any] = []
        for where, value in (
            ("username = ?", _as_stored(username)),
            ("source_ip = ?", _as_stored(source_ip)),
            ("started >= ?", None if since is None else _micros(since)),
        ):
            if value is not None:
                wheres.append(where)
                values.append(value)
        if active is not None:
            wheres.append("ended IS NULL" if active else "ended IS NOT NULL")
        condition = f"WHERE {' AND '.join(wheres)}" if wheres else ""
        with self.snapshot() as db:
            found = db.execute(
                f"{_SESSION} {condition} ORDER BY started DESC, id DESC LIMIT ? OFFSET ?", (*values, limit, offset)
            )
            return [_session(row, self._commands(row[0], COMMANDS_LISTED)) for row in found.fetchall()]

    def get_session(self, session_id: str) -> Session:
        """Return the session of that id, or the one whose id begins so; JournalError if there is none, or several."""
        session_id = _as_stored(session_id)
        with self.snapshot() as db:
            rows = db.execute(f"{_SESSION} WHERE session_id = ?", (session_id,)).fetchall()
            if not rows and session_id:
                rows = db.execute(
                    f"{_SESSION} WHERE session_id BETWEEN ? AND ? ORDER BY session_id LIMIT 3",
                    (session_id, session_id + "\U0010ffff"),
                ).fetchall()
            if not rows:
                raise JournalError(f"no session with an id like {_named(session_id)}")
            if len(rows) > 1:
                several = ", ".join(row[0] for row in rows[:2]) + (", …" if len(rows) > 2 else "")
                raise JournalError(f"several sessions have an id like {_named(session_id)}: {several}")
            return _session(rows[0], self._commands(rows[0][0], -1))

    def last_time(self) -> datetime | None:
        """Return when the last event was stated; None for a journal without any."""
        with self.snapshot() as db:
            row = db.execute("SELECT time FROM events ORDER BY id DESC LIMIT 1").fetchone()
            return None if row is None else _moment(row[0])

    def unknown(self, session_ids: Collection[str]) -> set[str]:
        """Return those of the ids that no session of the journal has."""
        with self.snapshot() as db:
            wanted = json.dumps(list(session_ids))
            known = db.execute("SELECT session_id FROM sessions WHERE session_id IN (SELECT value FROM json_each(?))", (wanted,))
            return set(session_ids) - {session_id for (session_id,) in known}

    def session_events(self, session_id: str) -> list[StoredEvent]:
        """Return all events of a session in order, with those of its connection, also from before the login."""
        with self.snapshot() as db:
            rows = db.execute(
                f"""
                SELECT {EVENT_COLUMNS} FROM events WHERE session_id = ?1
                UNION
                SELECT {EVENT_COLUMNS} FROM events
                    WHERE connection_id = (SELECT connection_id FROM sessions WHERE session_id = ?1)
                ORDER BY id
                """,
                (session_id,),
            )
            return [StoredEvent.of(*row) for row in rows]

    def select(self, query: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        """Return the rows of a query on the journal's tables (`hermes.store.schema`), as they are at one moment."""
        with self.snapshot() as db:
            return db.execute(query, values).fetchall()

    @staticmethod
    def moment(micros: int) -> datetime:
        """A time as the journal has it, in UTC."""
        return _moment(micros)

    def _commands(self, session_id: str, limit: int) -> list[str]:
        rows = self._db.execute("SELECT command FROM commands WHERE session_id = ? ORDER BY id LIMIT ?", (session_id, limit))
        return [command for (command,) in rows]

    @contextmanager
    def translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if database.is_damage(error):
                raise JournalError(
                    f"{self._path} is damaged ({error}); the next `hermes up` keeps it aside and begins a new one"
                ) from error
            raise JournalError(f"cannot read {self._path}: {error}; only root and the sensor's user can") from error


_SESSION = """
    SELECT session_id, connection_id, sensor, username, source_ip, source_port, client_version, started, ended, cause,
        container_id, engine, image, channels, commands, bytes_in, bytes_out FROM sessions
"""


def _session(row: tuple[Any, ...], commands: list[str]) -> Session:
    (
        session_id, connection_id, sensor, username, source_ip, source_port, client_version, started, ended, cause, container_id,
        engine, image, channels, command_count, bytes_in, bytes_out,
    ) = row  # fmt: skip
    return Session(
        session_id=session_id, connection_id=connection_id, sensor=sensor, username=username, source_ip=source_ip,
        source_port=source_port, client_version=client_version, started=_moment(started),
        ended=None if ended is None else _moment(ended), cause=cause, container_id=container_id, engine=engine, image=image,
        channels=channels, commands=commands, command_count=command_count, bytes_in=bytes_in, bytes_out=bytes_out,
    )  # fmt: skip


def _moment(micros: int) -> datetime:
    seconds, rest = divmod(micros, 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest)


def _micros(moment: datetime) -> int:
    return int(moment.timestamp()) * 1_000_000 + moment.microsecond


def _as_stored(text: S) -> S:
    """Return text from a command line as the journal has it: bytes that are not UTF-8 written out."""
    return text if text is None else text.encode(errors="backslashreplace").decode()


def _named(session_id: str) -> str:
    return repr(session_id if len(session_id) <= 80 else session_id[:80] + "…")
