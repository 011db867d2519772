"""How far each output came in the journal: one small file each, replaced whole, so that it is never half a position."""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from hermes.errors import JournalError
from hermes.store.follow import Follower, Position

SUFFIX = ".cursor"
MAX_BYTES = 16 * 2**20
"""Bytes of a cursor's file that are read."""
MODE = 0o640


class Cursor(msgspec.Struct, frozen=True, kw_only=True):
    """Where an output is: everything up to `id` of the journal `journal` was confirmed by its receiver, or not meant for it."""

    journal: str = ""
    id: int = 0
    began: int = 0
    """Id of the journal's last event when this output began: what was removed before that it did not miss."""
    delivered: int = 0
    """Events and alerts that were confirmed."""
    missed: int = 0
    """Events that were removed from the journal before this output had them."""
    failing_since: float | None = None
    """Since when it fails (seconds since the epoch); None: it does not."""
    error: str = ""
    """How it fails, or failed the last time."""
    memory: dict[str, Any] = {}
    """What its alerts remember of what went before."""

    @property
    def position(self) -> Position:
        """The place in the journal."""
        return Position(self.journal, self.id)


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """How an output does, for those who look from outside. `lag`: events it has yet to look at; None while that is not known."""

    name: str
    cursor: Cursor | None
    lag: int | None
    trouble: str = ""
    """Why its cursor, or the journal, cannot be read."""


def standing(journal: Path, directory: Path, names: Iterable[str]) -> list[Standing]:
    """How these outputs do. Never fails."""
    last, why = None, ""
    with contextlib.closing(Follower(journal)) as follower:
        try:
            last = follower.last()
        except JournalError as error:
            why = str(error)
    found = []
    for name in names:
        cursor, trouble = None, why
        try:
            cursor = load(directory, name)
        except JournalError as error:
            trouble = str(error)
        lag = None if cursor is None or last is None else last.id - (cursor.id if cursor.journal == last.journal else 0)
        found.append(Standing(name=name, cursor=cursor, lag=lag, trouble=trouble))
    return found


def load(directory: Path, name: str) -> Cursor | None:
    """Return the output's cursor; None if it has none yet. JournalError for one that cannot be read."""
    path = directory / f"{name}{SUFFIX}"
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(MAX_BYTES), type=Cursor)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise JournalError(f"{path} cannot be read ({error}): remove it, and the output begins anew") from error


def save(directory: Path, name: str, cursor: Cursor) -> None:
    """Replace the output's cursor, on the disk itself. OSError where that fails; then the one before is still there."""
    path = directory / f"{name}{SUFFIX}"
    fresh = directory / f"{name}.new"
    with fresh.open("wb") as file:
        os.fchmod(file.fileno(), MODE)
        file.write(msgspec.json.encode(cursor))
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)
