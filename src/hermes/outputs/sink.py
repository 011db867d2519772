"""What a sink is: it takes records, and returns when whoever is to have them has confirmed them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Protocol

import msgspec

from hermes.errors import HermesError
from hermes.store import StoredEvent
from hermes.store.follow import Position

ALERT = "alert.raised"
"""The `event` of a record that is an alert."""
TEST = "output.tested"
"""That of `hermes outputs test`."""


class SinkError(HermesError):
    """A sink could not deliver, and should try again: after `after` seconds, if its receiver said so. The text has no secret."""

    def __init__(self, text: str, *, after: float | None = None) -> None:
        super().__init__(text)
        self.after = after


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One event of the journal, or an alert about one, on its way out. `event_id` is its name among all records of all sensors;
    a record that comes twice has the same one."""

    event_id: str
    id: int
    time: datetime
    sensor: str
    event: str
    connection_id: str | None
    session_id: str | None
    body: dict[str, Any]
    """All fields of the event, its name as `event`."""

    @classmethod
    def of(cls, journal: str, stored: StoredEvent) -> "Record":
        """The record of an event of the journal with that identity."""
        return cls(
            event_id=Position(journal).event_id(stored), id=stored.id, time=stored.time, sensor=stored.sensor, event=stored.event,
            connection_id=stored.connection_id, session_id=stored.session_id, body=stored.body,
        )  # fmt: skip

    def flat(self) -> dict[str, Any]:
        """The record as one JSON object: `id`, `event_id`, `time` and `sensor` before the event's own fields."""
        head = {"id": self.id, "event_id": self.event_id, "time": written(self.time), "sensor": self.sensor}
        return {**head, **self.body}


def written(moment: datetime) -> str:
    """A time as events have it: `2026-01-31T12:34:56.123456Z`."""
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond:06}Z"


class Sink(Protocol):
    """Takes records, in their order."""

    limit: int
    """Records that it takes at once."""

    async def send(self, records: Sequence[Record]) -> None:
        """Return when all the records are where they should be. SinkError (or OSError) where they may not be: then the very same
        records come again, until they are."""

    async def close(self) -> None:
        """Give up what it holds. Never fails, never takes long."""
