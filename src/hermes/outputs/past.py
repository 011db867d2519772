"""What the journal says of a connection before a certain event: what is remembered here may be forgotten, and looked up again."""

import contextlib
import sqlite3
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from hermes.errors import JournalError
from hermes.outputs.sink import Record
from hermes.store import StoredEvent, database
from hermes.store.queries import EVENT_COLUMNS
from hermes.store.reading import BUSY_SECONDS

ADDRESSES = 10_000
"""Connections whose address is remembered."""
WITH_ADDRESS = ("connection.opened", "session.opened")


def before(journal: Path, record: Record, names: Sequence[str], limit: int) -> list[StoredEvent]:
    """Return the first events with one of those names that the record's connection (or session) has in the journal before it."""
    column, value = ("connection_id", record.connection_id) if record.connection_id else ("session_id", record.session_id)
    if value is None:
        return []
    try:
        with contextlib.closing(database.connect(journal, mode="ro", busy_timeout=BUSY_SECONDS)) as db:
            rows = db.execute(
                f"SELECT {EVENT_COLUMNS} FROM events WHERE {column} = ? AND id < ? AND event IN ({','.join('?' * len(names))})"
                " ORDER BY id LIMIT ?",
                (value, record.id, *names, limit),
            ).fetchall()
    except sqlite3.Error as error:
        raise JournalError(f"cannot read {journal}: {error}") from error
    return [StoredEvent.of(*row) for row in rows]


class Addresses:
    """From where connections came."""

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._known: OrderedDict[str, str | None] = OrderedDict()

    def __call__(self, record: Record) -> str | None:
        """The address of the client that the record is about; None if it is about none."""
        key = record.connection_id or record.session_id
        stated = record.body.get("source_ip")
        if key is None or isinstance(stated, str):
            return stated if isinstance(stated, str) else None
        if key not in self._known:
            found = before(self._journal, record, WITH_ADDRESS, 1)
            self._known[key] = str(found[0].body["source_ip"]) if found else None
            if len(self._known) > ADDRESSES:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key]
