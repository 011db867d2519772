"""A journal that grows, and an output that follows it, for the tests of outputs."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hermes.config.outputs import AlertConfig, OutputConfig
from hermes.events import Event
from hermes.outputs.alerts import Alerts
from hermes.outputs.delivery import Delivery
from hermes.outputs.past import Addresses
from hermes.outputs.sink import Record, Sink
from hermes.store.follow import Follower
from hermes.tasks import TaskOwner
from tests.unit.store.facts import eventually, fact, write

LOGIN = [
    {"event": "connection.opened", "source_ip": "192.0.2.7", "source_port": 4001, "local_ip": "192.0.2.1", "local_port": 22},
    {"event": "session.opened", "username": "root", "source_ip": "192.0.2.7", "source_port": 4001, "client_version": "x"},
]


def record(number: int = 1, event: str = "connection.version", at: float = 0.0, **body: Any) -> Record:
    """A record as if from a journal; `at`: seconds after a certain moment."""
    return Record(
        event_id=f"j:{number}", id=number, time=datetime.fromtimestamp(1_767_323_045.5 + at, UTC), sensor="s1", event=event,
        connection_id=body.pop("connection_id", "c"), session_id=body.pop("session_id", None),
        body={"event": event, "connection_id": "c", "session_id": None, **body},
    )  # fmt: skip


def records(journal: Path) -> list[Record]:
    """Everything a journal holds."""
    with contextlib.closing(Follower(journal)) as follower:
        stored = follower.read(10_000)
        return [Record.of(follower.position.journal, it) for it in stored]


def lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of JSON lines."""
    return [json.loads(it) for it in path.read_text().splitlines()] if path.exists() else []


class World:
    """A data directory with a journal, in which outputs run."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.journal = place / "journal.db"
        self.cursors = place / "outputs"
        self.cursors.mkdir()

    def state(self, *facts: Event) -> None:
        """Let a sensor state these."""
        write(self.journal, *facts)

    def count(self, first: int, upto: int) -> None:
        """State facts with the numbers from `first` on, before `upto`."""
        self.state(*(fact(it) for it in range(first, upto)))

    def delivery(self, config: OutputConfig, sink: Sink, alarms: Sequence[AlertConfig] = ()) -> Delivery:
        """An output as the outputs' process makes it."""
        alerts = Alerts(alarms, Addresses(self.journal))
        return Delivery(config, sink, journal=self.journal, cursors_dir=self.cursors, alerts=alerts)

    @contextlib.asynccontextmanager
    async def running(self, config: OutputConfig, sink: Sink, alarms: Sequence[AlertConfig] = ()) -> AsyncIterator[Delivery]:
        """An output that runs."""
        delivery = self.delivery(config, sink, alarms)
        async with TaskOwner("test") as tasks:
            tasks.spawn(delivery.run(), name="delivery")
            yield delivery

    async def until(self, config: OutputConfig, sink: Sink, condition: Callable[[], bool]) -> None:
        """Let an output run until a condition holds."""
        async with self.running(config, sink):
            await eventually(condition)
            await asyncio.sleep(0)
