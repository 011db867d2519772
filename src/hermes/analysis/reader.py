"""Reading the index, while the analyst writes it or when none runs. Nothing here can change it."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

import msgspec

from hermes.analysis.index import APPLICATION_ID, LAYOUT
from hermes.analysis.shell import Parsed
from hermes.analysis.visits import EPOCH
from hermes.errors import AnalysisError
from hermes.store import database
from hermes.store.follow import Position
from hermes.store.reading import Reader


class TypedCommand(msgspec.Struct, frozen=True, kw_only=True):
    """One command line of a session."""

    id: int
    """Of its event."""
    time: datetime
    channel: int | None
    kind: str
    """`exec` or `input`."""
    line: str
    normal: str
    """The same for lines that differ only in numbers, addresses, keys and the like."""
    parsed: Parsed


def moment(micros: int) -> datetime:
    """The time that is so many µs after the epoch."""
    return EPOCH + timedelta(microseconds=micros)


class IndexReader(Reader):
    """An open index, read-only. Every method may raise AnalysisError, whose text is one line."""

    error = AnalysisError
    missing = "there is no index at {path}: no Hermes with analysis.enabled has run with this data directory"

    def _begin(self) -> None:
        self._db.execute("PRAGMA temp_store = MEMORY")
        layout = [self._db.execute(f"PRAGMA {it}").fetchone()[0] for it in ("application_id", "user_version")]
        if layout != [APPLICATION_ID, LAYOUT]:
            raise AnalysisError(f"{self._path} is no index of this Hermes: `hermes up` makes it anew")

    @property
    def position(self) -> Position:
        """How far in the journal it came."""
        with self.snapshot() as db:
            journal = db.execute("SELECT value FROM index_state WHERE key = 'journal'").fetchone()
            (least,) = db.execute("SELECT min(position) FROM index_stages").fetchone()
            return Position("" if journal is None else journal[0], least or 0)

    @property
    def skipped(self) -> dict[str, int]:
        """How many events each stage could not analyse."""
        with self.snapshot() as db:
            return dict(db.execute("SELECT name, skipped FROM index_stages").fetchall())

    def commands(self, session_id: str) -> list[TypedCommand]:
        """All command lines of a session, in the order they came, taken apart."""
        with self.snapshot() as db:
            rows = db.execute(
                "SELECT commands.id, commands.time, channel, kind, commands_lines.line, normal, parsed FROM commands"
                " JOIN commands_lines ON commands_lines.id = commands.line"
                " WHERE visit = (SELECT id FROM visits WHERE session_id = ?) ORDER BY commands.id",
                (session_id,),
            )
            return [_typed(*row) for row in rows]

    def query(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """The rows of a query; for stages that have readers of their own."""
        with self.snapshot() as db:
            return db.execute(sql, values).fetchall()

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turn what SQLite says into an AnalysisError."""
        try:
            yield
        except sqlite3.Error as error:
            if database.is_damage(error):
                raise AnalysisError(f"{self._path} is damaged ({error}); the next `hermes up` makes it anew") from error
            if "no such table" in str(error):
                raise AnalysisError(f"{self._path} is not made yet, or by another Hermes ({error})") from error
            raise AnalysisError(f"cannot read {self._path}: {error}; only root and the sensor's user can") from error


def _typed(id: int, time: int, channel: int | None, kind: str, line: str, normal: str, parsed: str) -> TypedCommand:
    found = msgspec.json.decode(parsed, type=Parsed)
    return TypedCommand(
        id=id, time=moment(time), channel=channel, kind=kind, line=line, normal=normal,
        parsed=msgspec.structs.replace(found, text=line),
    )  # fmt: skip
