"""A database that is read while another process writes it, or none does: opened read-only, closed, looked at as of one moment."""

import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from hermes.errors import HermesError
from hermes.store import database

BUSY_SECONDS = 5.0


class Reader(ABC):
    """An open database, read-only; also a context manager. What goes wrong is an `error`, whose text is one line."""

    error: ClassVar[type[HermesError]]
    missing: ClassVar[str]
    """What is said where there is none; `{path}` is its place."""

    def __init__(self, path: Path) -> None:
        """Open the database; `error` where there is none, or none that this Hermes can read."""
        self._path = path
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self.error(self.missing.format(path=path)) from error
        except PermissionError as error:
            raise self.error(f"cannot look at {path}: only root and the sensor's user can read it") from error
        with self.translated():
            self._db = database.connect(path, mode="ro", busy_timeout=BUSY_SECONDS)
        try:
            with self.translated():
                self._begin()
        except BaseException:
            self._db.close()
            raise

    @abstractmethod
    def _begin(self) -> None:
        """What is done first with it. Raises `error` for a database of another Hermes."""

    @abstractmethod
    def translated(self) -> AbstractContextManager[None]:
        """Turn what SQLite says into an `error`."""

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """See the database as it is at this moment, for as long as it takes, through queries of one's own."""
        with self.translated():
            self._db.execute("BEGIN")
            try:
                yield self._db
            finally:
                self._db.execute("ROLLBACK")
