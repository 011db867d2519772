"""What a stage of the analysis is: one kind of rows in the index, derived from the journal's events."""

import sqlite3
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from hermes.store import StoredEvent


class Gone(NamedTuple):
    """What the journal no longer has, or the index has no room for: whole connections with their sessions, and single events
    that belonged to neither."""

    connections: Sequence[str]
    sessions: Sequence[str]
    events: Sequence[int]


class Stage(Protocol):
    """One stage. It keeps nothing between two calls but rows: what it is given may be given again, after a rollback or a kill.

    All tables it makes are named `NAME` or `NAME_…`, so that they can be thrown away together when its version changes. The
    connection has foreign keys off and returns plain tuples; transactions are the caller's: a stage never commits.
    """

    name: str
    version: int
    """Raised when the same events would give other rows: the stage is then built anew, from the journal's first event."""
    schema: str
    """`CREATE TABLE IF NOT EXISTS …`, and so on; many statements with `;` between. Executed at each start."""

    def take(self, db: sqlite3.Connection, events: Sequence[StoredEvent]) -> None:
        """Write the rows of these events, the next in the journal's order; an event is given to a stage exactly once.

        What it raises is undone, and the events are given once more, one at a time: whichever raises again is logged, counted
        and left out. `sqlite3.Error` of a full or broken disk is not the event's fault, and is tried again. Must return
        within a few seconds, whatever an attacker put into the events.
        """

    def forget(self, db: sqlite3.Connection, gone: Gone) -> None:
        """Remove the rows that were derived from these."""


Note = Callable[[sqlite3.Connection], None]
"""Writes rows, within a transaction of the caller's."""


@runtime_checkable
class Working(Protocol):
    """What a stage is, too, that has work which takes long: it only notes what waits when it takes events, and does it here."""

    def work(self, db: sqlite3.Connection) -> Note | None:
        """Do one piece of what waits, outside of any transaction; return what is to be written of it, None where nothing waits.

        Takes at most half a minute. Raises a HermesError when it cannot go on at all: then the analyst is started afresh.
        """
