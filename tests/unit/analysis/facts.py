"""Events of attackers as the analyst reads them, and an analyst to read them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from hermes import events
from hermes.analysis.index import Index
from hermes.analysis.reader import IndexReader
from hermes.analysis.stage import Gone
from hermes.analysis.work import Analyst, stages
from hermes.config import Settings
from hermes.events import Event
from hermes.store import StoredEvent
from hermes.store.follow import Position

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


def stored(*facts: Event, first: int = 1, start: datetime = NOON, apart: timedelta = timedelta(seconds=1)) -> list[StoredEvent]:
    """The events as the journal would have them."""
    return [
        StoredEvent(
            id=number, time=start + apart * (number - first), sensor="s1", event=fact.tag(), connection_id=fact.connection_id,
            session_id=fact.session_id, body=msgspec.to_builtins(fact),
        )
        for number, fact in enumerate(facts, first)
    ]  # fmt: skip


def visit(
    name: str, *, address: str = "192.0.2.7", user: str = "root", password: str = "root", country: str = "NL"
) -> list[Event]:
    """Who comes and gets in."""
    ids: dict[str, Any] = {"connection_id": f"c-{name}"}
    return [
        events.ConnectionOpened(source_ip=address, source_port=4001, local_ip="192.0.2.1", local_port=22, **ids),
        events.ConnectionOrigin(country=country, asn=64500, organization="Example", **ids),
        events.ClientVersion(version="SSH-2.0-Go", **ids),
        events.ClientAlgorithms(
            hassh=f"hassh-of-{user}", kex=[], host_key=[], encryption=[], mac=[], compression=[], languages=[], **ids
        ),
        events.AuthAttempt(method="password", username=user, password=password, accepted=True, rule="password", **ids),
        events.SessionOpened(
            username=user, source_ip=address, source_port=4001, client_version="SSH-2.0-Go", session_id=name, **ids
        ),
    ]


def both(name: str) -> Any:
    """The ids of a session."""
    return {"connection_id": f"c-{name}", "session_id": name}


def ran(name: str, *commands: str, channel: int = 0) -> list[Event]:
    """Commands that were executed, each in a channel of its own."""
    return [
        events.ChannelStarted(channel=number, kind="exec", command=command, **both(name))
        for number, command in enumerate(commands, channel)
    ]


def typed(name: str, *lines: str) -> list[Event]:
    """Lines that were typed into one shell."""
    return [events.ChannelInput(channel=0, line=line, **both(name)) for line in lines]


def settings(directory: Path, **analysis: Any) -> Settings:
    """Settings with a data directory that is ready."""
    made = Settings.model_validate({"data_dir": directory, "analysis": analysis})
    for path in (made.journal_dir, made.index_dir, made.recordings_dir):
        path.mkdir(exist_ok=True)
    return made


@contextmanager
def analyst(made: Settings, given: Sequence[Any] | None = None) -> Iterator[Analyst]:
    """An open analyst of all stages, or of those given."""
    working = Analyst(made, stages(made) if given is None else given)
    working.open()
    try:
        yield working
    finally:
        working.close()


def work(working: Analyst, steps: int = 1000) -> None:
    """Let it work until there is nothing to do."""
    for _ in range(steps):
        if working.step():
            return
    raise AssertionError("it never comes to rest")


@contextmanager
def indexed(directory: Path, *facts: Event, **analysis: Any) -> Iterator[IndexReader]:
    """The index of these events, given to all stages without a journal."""
    made = settings(directory, **analysis)
    index = Index(made.index_path, stages(made))
    index.open()
    found = stored(*facts)
    index.take(Position("j", len(found)), found)
    assert index.db.execute("SELECT sum(skipped) FROM index_stages").fetchone() == (0,)
    index.close()
    with IndexReader(made.index_path) as reader:
        yield reader


class Names:
    """A small stage that writes the names of events, and fails where it is told to."""

    name = "names"
    schema = "CREATE TABLE IF NOT EXISTS names (id INTEGER PRIMARY KEY, name TEXT)"

    def __init__(self, version: int = 1, poison: str = "") -> None:
        self.version = version
        self.poison = poison
        self.gone: list[Gone] = []

    def take(self, db: Any, events: Sequence[StoredEvent]) -> None:
        for event in events:
            db.execute("INSERT INTO names VALUES (?, ?)", (event.id, event.event))
            if self.poison and self.poison in str(event.body):
                raise ValueError("poison")

    def forget(self, db: Any, gone: Gone) -> None:
        self.gone.append(gone)
