"""The index as its one writer has it open: the tables of all stages, and how far in the journal each of them came.

It is derived from the journal, and so is never mended: what does not fit, or is damaged, is thrown away and made anew.
"""

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import structlog

from hermes.analysis.stage import Gone, Stage, Working
from hermes.analysis.visits import micros
from hermes.errors import AnalysisError
from hermes.store import StoredEvent, database, pruning
from hermes.store.follow import Position

log = structlog.get_logger(__name__)

APPLICATION_ID = 0x48724978
"""`PRAGMA application_id` of every index: `HrIx`."""
LAYOUT = 1
"""`PRAGMA user_version`: of the tables below. An index of another layout is thrown away."""
BUSY_SECONDS = 5.0
CACHE_KIB = 32 * 1024
SUSPICIOUS_STARTS = 3
"""Starts without any progress after which the next events are taken one at a time: one of them may kill the process."""
CAREFUL_EVENTS = 5000
LOGGED = 20
"""Events left out of a stage that the log names; the others are only counted."""

_SCHEMA = f"""
    BEGIN;
    CREATE TABLE index_state (key TEXT PRIMARY KEY, value);
    CREATE TABLE index_stages (
        name     TEXT PRIMARY KEY,
        version  INTEGER NOT NULL,
        position INTEGER NOT NULL DEFAULT 0,
        skipped  INTEGER NOT NULL DEFAULT 0
    );
    PRAGMA application_id = {APPLICATION_ID};
    PRAGMA user_version = {LAYOUT};
    COMMIT;
"""
_OF_THE_MACHINE = frozenset(
    {
        sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PERM,
    }
)  # fmt: skip
"""Errors that no event is to blame for."""


class IndexDamaged(AnalysisError):
    """The index is broken; it must be begun anew."""


class Mark(NamedTuple):
    """An event by which a journal is known again; `time` in µs since the epoch."""

    id: int
    time: int


class Index:
    """The index, for its one writer and one thread at a time. Methods raise AnalysisError where the disk does not let them."""

    def __init__(self, path: Path, stages: Sequence[Stage]) -> None:
        self.journal = ""
        """Identity of the journal that it is derived from; empty before its first event."""
        self.careful = 0
        """So many events are to be taken one at a time."""
        self._path = path
        self._stages = tuple(stages)
        self._positions: dict[str, int] = {}
        self._logged: dict[str, int] = {}
        self._suspect: int | None = None
        self._db: sqlite3.Connection | None = None

    @property
    def position(self) -> Position:
        """What every stage has taken."""
        return Position(self.journal, min(self._positions.values(), default=0))

    @property
    def mark(self) -> "Mark | None":
        """The newest event that was taken, None where there was none."""
        rows = self.rows("SELECT value FROM index_state WHERE key = 'mark'")
        return Mark(*map(int, rows[0][0].split())) if rows else None

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        with self.translated():
            return self.db.execute(query, values).fetchall()

    @property
    def db(self) -> sqlite3.Connection:
        """The open database."""
        assert self._db is not None
        return self._db

    def open(self) -> None:
        """Open the index, or begin one; one that is damaged, or of another layout, is thrown away."""
        with self.translated():
            try:
                self._open()
            except (IndexDamaged, sqlite3.DatabaseError) as error:
                if not isinstance(error, IndexDamaged) and not database.is_damage(error):
                    raise
                log.error("the index is thrown away and made anew", path=str(self._path), reason=str(error))
                self.close()
                _remove(self._path)
                self._open()

    def close(self) -> None:
        """Close it in good order."""
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("DELETE FROM index_state WHERE key = 'starts'")
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
            self._db = None

    def begin_anew(self, reason: str) -> None:
        """Throw the index away, and begin an empty one."""
        log.error("the index is thrown away and made anew", path=str(self._path), reason=reason)
        self.close()
        with self.translated():
            _remove(self._path)
        self.open()

    def take(self, position: Position, events: Sequence[StoredEvent]) -> None:
        """Give the journal's next events to each stage that has not had them, and keep that they did: all of it, or nothing."""
        if position.journal != self.journal:
            self._begin_with(position.journal)
        with self.translated():
            if self.careful:
                self._state("trying", events[0].id)
            with database.transaction(self.db):
                for stage in self._stages:
                    self._give(stage, [it for it in events if it.id > self._positions[stage.name]])
                self.db.execute("UPDATE index_stages SET position = max(position, ?)", (position.id,))
                if (mark := self.mark) is None or mark.id < events[-1].id:
                    self._state("mark", f"{events[-1].id} {micros(events[-1].time)}")
                if not self.careful:
                    self.db.execute("DELETE FROM index_state WHERE key IN ('starts', 'trying')")
        self._suspect = None
        self.careful = max(0, self.careful - len(events))
        self._positions = {name: max(came, position.id) for name, came in self._positions.items()}

    def work(self, worker: Working) -> bool:
        """Have a stage do one piece of what waits, and write what it says; False where nothing waits."""
        with self.translated():
            if (note := worker.work(self.db)) is None:
                return False
            with database.transaction(self.db):
                note(self.db)
        return True

    def forget(self, gone: Gone) -> None:
        """Remove what was derived from these."""
        with self.translated(), database.transaction(self.db):
            for stage in reversed(self._stages):
                self._alone(stage, lambda stage=stage: stage.forget(self.db, gone))  # type: ignore[misc]

    @property
    def size(self) -> pruning.Extent:
        """How large it is."""
        with self.translated():
            return pruning.extent(self.db)

    def shrink(self, pages: int) -> None:
        """Let its file give back up to so many pages that nothing uses."""
        with self.translated():
            pruning.shrink(self.db, pages)

    # ---- opening

    def _open(self) -> None:
        fresh = not self._path.exists()
        if fresh:
            _remove(self._path)  # what may be left of one
            os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, database.FILE_MODE))
        self._db = db = database.connect(self._path, mode="rw", busy_timeout=BUSY_SECONDS)
        (application,), (layout,) = db.execute("PRAGMA application_id").fetchone(), db.execute("PRAGMA user_version").fetchone()
        empty = db.execute("SELECT count(*) FROM sqlite_schema").fetchone() == (0,)
        if not empty and (application, layout) != (APPLICATION_ID, LAYOUT):
            raise IndexDamaged(f"its layout is {layout}, not {LAYOUT}" if application == APPLICATION_ID else "it is no index")
        if empty:
            db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute(f"PRAGMA journal_size_limit = {database.WAL_BYTES}")
        db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        db.execute("PRAGMA temp_store = MEMORY")
        if empty:
            db.executescript(_SCHEMA)
        with database.transaction(db):
            self._prepare(db)
        state = dict(db.execute("SELECT key, value FROM index_state").fetchall())
        self.journal = state.get("journal", "")
        self._positions = dict(db.execute("SELECT name, position FROM index_stages").fetchall())
        self._suspect = state.get("trying")
        starts = state.get("starts", 0) + 1
        self.careful = CAREFUL_EVENTS if starts > SUSPICIOUS_STARTS else 0
        self._state("starts", starts)
        if self.careful:
            log.warning("the analyst died several times at one place; it goes on one event at a time", after=self.position.id)

    def _prepare(self, db: sqlite3.Connection) -> None:
        """Make the tables of each stage, anew where its version is another; drop those of stages that are no more."""
        known = dict(db.execute("SELECT name, version FROM index_stages").fetchall())
        wanted = {stage.name: stage.version for stage in self._stages}
        for name, version in known.items():
            if wanted.get(name) != version:
                if name in wanted:
                    log.info("a stage of the index is made anew", stage=name, version=wanted[name])
                _drop(db, name)
                db.execute("DELETE FROM index_stages WHERE name = ?", (name,))
        for stage in self._stages:
            for statement in _statements(stage.schema):
                db.execute(statement)
            db.execute("INSERT OR IGNORE INTO index_stages (name, version) VALUES (?, ?)", (stage.name, stage.version))

    def _begin_with(self, journal: str) -> None:
        """Belong to this journal from now on. What was derived from another one is kept beside, for that journal may be broken
        and this be all that can still be searched of it; until the next takes its place."""
        if self.journal:
            kept = self._path.with_name(f"{self._path.stem}.previous{self._path.suffix}")
            log.warning("the journal was replaced; its index is kept, and a new one begun", kept=str(kept))
            with self.translated():
                self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                self.close()
                _remove(kept)
                self._path.rename(kept)
                _remove(self._path)
            self.open()
        with self.translated():
            self._state("journal", journal)
        self.journal = journal

    def _state(self, key: str, value: object) -> None:
        self.db.execute("INSERT OR REPLACE INTO index_state VALUES (?, ?)", (key, value))

    # ---- stages

    def _give(self, stage: Stage, events: list[StoredEvent]) -> None:
        if self._suspect is not None and any(it.id == self._suspect for it in events):
            self._leave_out(stage, self._suspect, "the analyst died of it")
            events = [it for it in events if it.id != self._suspect]
        if not events or self._alone(stage, lambda: stage.take(self.db, events)) is None:
            return
        for event in events:
            if (reason := self._alone(stage, lambda event=event: stage.take(self.db, [event]))) is not None:  # type: ignore[misc]
                self._leave_out(stage, event.id, reason)

    def _alone(self, stage: Stage, work: Callable[[], None]) -> str | None:
        """Do a stage's work; where it fails, undo it and return why. Raises what is the machine's fault."""
        self.db.execute("SAVEPOINT stage")
        try:
            work()
        except Exception as error:  # whatever an attacker made a stage do: the others go on
            if isinstance(error, MemoryError) or (isinstance(error, sqlite3.Error) and _of_the_machine(error)):
                raise
            self.db.execute("ROLLBACK TO stage")
            self.db.execute("RELEASE stage")
            return f"{type(error).__name__}: {error}"
        self.db.execute("RELEASE stage")
        return None

    def _leave_out(self, stage: Stage, event: int, reason: str) -> None:
        self.db.execute("UPDATE index_stages SET skipped = skipped + 1 WHERE name = ?", (stage.name,))
        self._logged[stage.name] = self._logged.get(stage.name, 0) + 1
        if self._logged[stage.name] <= LOGGED:
            log.error("an event could not be analysed and is left out", stage=stage.name, event_id=event, reason=reason[:500])

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """Turn what SQLite and the kernel say into an AnalysisError; IndexDamaged where it has to be begun anew."""
        try:
            yield
        except sqlite3.Error as error:
            if database.is_damage(error):
                raise IndexDamaged(str(error)) from error
            raise AnalysisError(f"cannot write the index {self._path}: {error}") from error
        except OSError as error:
            raise AnalysisError(f"cannot write the index {self._path}: {error.strerror}") from error


def _of_the_machine(error: sqlite3.Error) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and (code & 0xFF) in _OF_THE_MACHINE


def _remove(path: Path) -> None:
    for tail in ("", "-wal", "-shm", "-journal"):
        Path(f"{path}{tail}").unlink(missing_ok=True)


def _drop(db: sqlite3.Connection, stage: str) -> None:
    """Drop all tables of a stage; virtual ones first, which take their own with them."""
    named = "(name = ?1 OR substr(name, 1, length(?1) + 1) = ?1 || '_')"
    for kind in ("AND sql LIKE 'CREATE VIRTUAL%'", ""):
        for (table,) in db.execute(
            f"SELECT name FROM sqlite_schema WHERE type = 'table' AND {named} {kind}", (stage,)
        ).fetchall():
            db.execute(f'DROP TABLE IF EXISTS "{table}"')


def _statements(script: str) -> list[str]:
    """The statements of a script: `executescript` would commit the transaction they are to be part of."""
    found: list[str] = []
    rest = ""
    for piece in script.split(";"):
        rest += piece + ";"
        if sqlite3.complete_statement(rest):
            if rest.strip(" \n;"):
                found.append(rest)
            rest = ""
    return found
