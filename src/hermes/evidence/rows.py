"""The journal's old rows: which go first, and their removal by the journal's one writer, a step at a time."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hermes.events import Event, EvidenceRemoved
from hermes.evidence.value import Candidate, Value, first_to_go, value
from hermes.store import database, pruning
from hermes.store.waiting import Work

ROWS = 256
"""Events looked at in one step: a few milliseconds of the writer's time."""
SESSIONS = 10
"""Sessions removed in one step, at most."""
SCAN = 5000
"""Sessions looked at to find one of a value, at most, before others have their turn."""
RANGES = 1000
"""Ranges of ids that one event tells at most."""
PAGES = 500
"""Pages given back in one step."""


class Rows:
    """A sweep through the journal. Methods block for reading; what they return is work for the writer."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._knocks = 0
        """Id of the event up to which nobody is left who was not let in."""
        self._swept = False
        """The sweep came to the newest event in this turn."""
        self._open: int | None = None
        """Id of the first event that the sweep left since its connection was not over."""
        self._sessions = dict.fromkeys((Value.IDLE, Value.BULK, Value.ACTED), 0)
        self._old = 0
        """Id of the event up to which nobody is left who is too old. (A clock that was ahead has left what does not age.)"""

    def begin_turn(self) -> None:
        """What is over by now may go."""
        self._swept = False

    def read(self, what: Callable[[sqlite3.Connection], Any]) -> Any:
        """Return what a reader finds. Raises sqlite3.Error."""
        db = database.connect(self._path, mode="ro", busy_timeout=1)
        try:
            return what(db)
        finally:
            db.close()

    def plan(self, db: sqlite3.Connection, now: float, first_id: int, reason: str) -> Work | None:
        """Return the removal of what goes first; None when there is nothing that could go."""
        candidates: dict[Value, Candidate] = {}
        ids: dict[Value, list[str]] = {}
        if not self._swept and (time := pruning.oldest(db, self._knocks, 1)) is not None:
            candidates[Value.KNOCK] = Candidate(Value.KNOCK, now - time / 1e6)
        for kind in self._sessions:
            if found := self._seek(db, kind):
                candidates[kind] = Candidate(kind, now - found[0].started / 1e6)
                ids[kind] = [one.session_id for one in found]
        first = first_to_go(candidates.values())
        if first is None:
            return None
        if first.value is Value.KNOCK:
            return lambda writer: self._sweep_knocks(writer, first_id, reason)
        return lambda writer: _remove(writer, ids[first.value], reason)

    def age(self, db: sqlite3.Connection, before: int, first_id: int, reason: str) -> Work | None:
        """Return the removal of what began before (µs); None when all of it is gone."""
        time = pruning.oldest(db, self._old, ROWS)
        if time is None or time >= before:
            self._old = 0
            return None
        return lambda writer: self._sweep_old(writer, before, first_id, reason)

    def _seek(self, db: sqlite3.Connection, kind: Value) -> list[pruning.SessionRow]:
        """Return the next sessions of a value."""
        for _ in range(0, SCAN, ROWS):
            rows = pruning.ended_sessions(db, self._sessions[kind], ROWS)
            if found := [row for row in rows if value(row) is kind]:
                self._sessions[kind] = found[0].id - 1
                return found[:SESSIONS]
            if not rows:
                self._sessions[kind] = 0
                return []
            self._sessions[kind] = rows[-1].id
        return []

    def _sweep_knocks(self, writer: sqlite3.Connection, first_id: int, reason: str) -> tuple[None, list[Event]]:
        swept = pruning.sweep(writer, self._knocks, ROWS, run=first_id)
        self._open = self._open or swept.open
        self._knocks = swept.cursor
        if not swept.more:
            self._swept = True
            if self._open is not None:
                self._knocks, self._open = self._open - 1, None
        return None, _stated(reason, swept.removed)

    def _sweep_old(self, writer: sqlite3.Connection, before: int, first_id: int, reason: str) -> tuple[None, list[Event]]:
        swept = pruning.sweep(writer, self._old, ROWS, run=first_id, before=before, sessions=True)
        self._old = swept.cursor if swept.ripe and swept.more else 0
        return None, _stated(reason, swept.removed)


def shrink(writer: sqlite3.Connection) -> tuple[None, list[Event]]:
    """Give back pages that nothing uses."""
    pruning.shrink(writer, PAGES)
    return None, []


def _remove(writer: sqlite3.Connection, session_ids: list[str], reason: str) -> tuple[None, list[Event]]:
    return None, _stated(reason, pruning.remove_sessions(writer, session_ids))


def _stated(reason: str, removed: pruning.Removed) -> list[Event]:
    """The events that tell of a removal: several where the ids are many."""
    if not removed.events:
        return []
    first, *more = removed.ids.parts(RANGES)
    return [
        EvidenceRemoved(
            what="journal", reason=reason, bytes=removed.bytes, connections=removed.connections, events=removed.events,
            ids=str(first),
        ),
        *(EvidenceRemoved(what="journal", reason=reason, bytes=0, ids=str(one)) for one in more),
    ]  # fmt: skip
