"""The journal's database file: opened, checked, kept aside when damaged, and locked against a second writer."""

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from hermes.errors import JournalError
from hermes.events import JournalDamaged
from hermes.store import schema
from hermes.store.bookkeeping import end_lost_sessions

DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
WHOLE_CHECK_BYTES = 512 * 2**20
"""A journal up to this size is checked page by page at start (about 1 s); a larger one only where it is written next."""
REWRITTEN_BYTES = 64 * 2**20
"""A journal of an older Hermes up to this size is rewritten at start; in memory, so that it needs no temporary file."""
WAL_BYTES = 16 * 2**20
"""The write-ahead log is cut back to this size once its content is in the database."""
FILE_MODE = 0o640
"""The journal holds passwords: its owner and its group read it, nobody else."""


def file_identity(path: Path) -> tuple[int, int]:
    """Return what tells the file at this place from any other; zeros where there is none."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return (0, 0)
    return (there.st_dev, there.st_ino)


def is_damage(error: sqlite3.Error) -> bool:
    """Tell whether the error says that the database itself is broken (not that it is busy, full, or read-only)."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and (code & 0xFF) in DAMAGE


def connect(path: Path, *, mode: str, busy_timeout: float) -> sqlite3.Connection:
    """Open an existing database; `mode` is `ro` or `rw`, `busy_timeout` in seconds. The caller keeps to one thread at a time."""
    uri = f"file:{quote(str(path.absolute()))}?mode={mode}"
    db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=busy_timeout, check_same_thread=False)
    db.execute("PRAGMA trusted_schema = OFF")
    return db


def lock(path: Path) -> int:
    """Take the lock that makes this process the journal's one writer; return the file descriptor that holds it."""
    try:
        held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)
    except OSError as error:
        raise JournalError(f"cannot write in {path.parent}: {error.strerror}") from error
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(held)
        if isinstance(error, BlockingIOError):
            raise JournalError(f"the journal in {path.parent} is in use: another Hermes runs on this data directory?") from error
        raise JournalError(f"cannot lock {path}: {error.strerror}") from error
    return held


def open_for_writing(
    path: Path, *, busy_timeout: float, end_lost: bool, known_damage: str | None = None
) -> tuple[sqlite3.Connection, JournalDamaged | None]:
    """Open the journal for its one writer, beginning a new one where there is none.

    A damaged journal is renamed, never changed or deleted; the event returned says what and where. JournalError where it
    cannot be used: locked, newer, not a journal, not writable. `end_lost`: sessions left open are of a run that is gone.
    `known_damage`: what was found broken already, where the check made here might not see it.
    """
    try:
        reason = known_damage or _damage(path)
        damaged = None if reason is None else _keep_aside(path, reason)
        if not path.exists():
            _begin(path)
        try:
            return _open(path, busy_timeout, end_lost), damaged
        except sqlite3.Error as error:
            if damaged is not None or not is_damage(error):
                raise
            damaged = _keep_aside(path, str(error))
        _begin(path)
        return _open(path, busy_timeout, end_lost), damaged
    except sqlite3.Error as error:
        raise JournalError(f"cannot open the journal {path}: {error}{_hint(error)}") from error
    except OSError as error:
        raise JournalError(f"cannot open the journal {path}: {error.strerror}") from error


def abandon(db: sqlite3.Connection, path: Path) -> None:
    """Close a journal whose file was moved from its place, taking care that its log does not meet the file that is there now."""
    with contextlib.suppress(sqlite3.Error):
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    with contextlib.suppress(sqlite3.Error):
        db.close()
    left = Path(f"{path}-wal")
    if left.exists() and left.stat().st_size:
        left.rename(f"{_aside(path)}-wal")


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Commit what is done inside, or none of it."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")
        raise


def _hint(error: sqlite3.Error) -> str:
    busy = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
    return ": another program is writing to it" if busy else ""


def _damage(path: Path) -> str | None:
    """Return what is broken in the journal, None for a sound one or none at all. Changes nothing on disk."""
    if not path.exists():
        orphan = Path(f"{path}-wal")
        if orphan.exists() and orphan.stat().st_size:
            return "the database is missing, its write-ahead log is there"
        return None
    if path.stat().st_size == 0:
        return "the database is empty"
    # Read-only: a connection that may write could move a damaged write-ahead log into the database while we look.
    db = connect(path, mode="ro", busy_timeout=5)
    try:
        if schema.version(db) == 0:
            return "the database has no tables"
        whole = path.stat().st_size <= WHOLE_CHECK_BYTES
        tables = db.execute("PRAGMA quick_check(1)" if whole else "PRAGMA quick_check(sessions)").fetchone()
        db.execute("SELECT body FROM events ORDER BY id DESC LIMIT 1").fetchone()
        return None if tables == ("ok",) else " ".join(str(tables[0]).split())
    except sqlite3.Error as error:
        if not is_damage(error):
            raise
        return str(error)
    finally:
        db.close()


def _keep_aside(path: Path, reason: str) -> JournalDamaged:
    kept = _aside(path)
    # The database goes first: were we killed in between, the log left over is found and kept aside at the next start.
    for tail in ("", "-wal", "-shm"):
        part = Path(f"{path}{tail}")
        if part.exists():
            part.rename(f"{kept}{tail}")
    return JournalDamaged(kept=str(kept), reason=reason)


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.stem}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}{path.suffix}")


def _begin(path: Path) -> None:
    """Make an empty journal beside the place and move it there, so that a journal is whole or absent at any moment."""
    fresh = path.with_name(f"{path.name}.new")
    for tail in ("", "-wal", "-shm", "-journal"):
        Path(f"{fresh}{tail}").unlink(missing_ok=True)
    os.close(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE))
    db = connect(fresh, mode="rw", busy_timeout=0)
    try:
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        schema.migrate(db)
    finally:
        db.close()
    fresh.rename(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _let_shrink(db: sqlite3.Connection, path: Path) -> None:
    """Turn a journal of an older Hermes, unless it is large, into one whose file can give pages back."""
    if db.execute("PRAGMA auto_vacuum").fetchone() != (0,) or path.stat().st_size > REWRITTEN_BYTES:
        return
    with contextlib.suppress(sqlite3.Error):  # no room for a second copy: it goes on as it is, and is tried at the next start
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        db.execute("VACUUM")


def _open(path: Path, busy_timeout: float, end_lost: bool) -> sqlite3.Connection:
    db = connect(path, mode="rw", busy_timeout=busy_timeout)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
        db.execute("PRAGMA wal_autocheckpoint = 1000")
        # Its pages stay in memory as the journal grows, so a front grows by this much; rows come in the order of their keys.
        db.execute("PRAGMA cache_size = -2048")
        schema.migrate(db)
        db.execute("PRAGMA temp_store = MEMORY")  # a full /tmp is none of its business
        _let_shrink(db, path)
        if end_lost:
            end_lost_sessions(db)
    except BaseException:
        db.close()
        raise
    return db
