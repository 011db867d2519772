"""What waits for the journal's writer: events that were stated, and marks that ask for something once those are written."""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from hermes.errors import JournalError
from hermes.events import Event

_encode = msgspec.json.Encoder().encode


class Stated(NamedTuple):
    """An event with the time of the fact (µs since the epoch), and its JSON."""

    time: int
    event: Event
    body: bytes


Work = Callable[[sqlite3.Connection], tuple[Any, Sequence[Event | Stated]]]
"""Done by the writer in a transaction of its own. Returns its result, and events that are written in the same transaction, with
the time of now if they bring none."""


class Mark(NamedTuple):
    """Asks the writer to do `work`, if any, when everything emitted before is committed, and to say so."""

    loop: asyncio.AbstractEventLoop
    done: "asyncio.Future[Any]"
    work: Work | None = None

    def resolve(self, result: Any) -> None:
        """Wake whoever waits, with a result or a JournalError; from any thread."""

        def settle() -> None:
            if self.done.done():
                return
            if isinstance(result, JournalError):
                self.done.set_exception(result)
            else:
                self.done.set_result(result)

        # The loop may be gone by now, and with it whoever waited.
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(settle)


def stated(event: Event, time_us: int | None = None) -> Stated:
    """Return the event as a fact of that time (µs since the epoch), or of now."""
    try:
        body = _encode(event)
    except UnicodeEncodeError:
        event = _without_surrogates(event)
        body = _encode(event)
    return Stated(time.time_ns() // 1000 if time_us is None else time_us, event, body)


def _without_surrogates(event: Event) -> Event:
    """Return the event with each character that UTF-8 cannot carry written as `\\udcNN`."""

    def cleaned(value: Any) -> Any:
        if isinstance(value, str):
            return value.encode(errors="backslashreplace").decode()
        return [cleaned(item) for item in value] if isinstance(value, list | tuple) else value

    return type(event)(**{name: cleaned(getattr(event, name)) for name in event.__struct_fields__})
