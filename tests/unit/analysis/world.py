"""A journal in small, and an index of it, for the tests of stages."""

import itertools
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from hermes import events
from hermes.analysis.commands import Commands
from hermes.analysis.index import Index
from hermes.analysis.stage import Stage
from hermes.analysis.visits import Visits
from hermes.events import Event
from hermes.store import StoredEvent
from hermes.store.follow import Position

BEGIN = datetime(2026, 1, 31, 12, tzinfo=UTC)
GO, OPENSSH = "2aec6b44b06bec95d73f66b5d30cb69a", "acaa53e0a7d7ac7d1255103f37901306"


def stored(facts: Iterable[Event], first: int = 1) -> list[StoredEvent]:
    """Facts as the journal would give them, a second between two of them."""
    return [
        StoredEvent(
            id=number, time=BEGIN + timedelta(seconds=number), sensor="s", event=fact.tag(), connection_id=fact.connection_id,
            session_id=fact.session_id, body=msgspec.to_builtins(fact),
        )
        for number, fact in enumerate(facts, first)
    ]  # fmt: skip


class World:
    """Attackers who come one after the other, and an index that takes what they do."""

    def __init__(self, path: Path, stages: Sequence[Stage]) -> None:
        self.index = Index(path / "index.db", [Visits(), Commands(), *stages])
        self.index.open()
        self.happened: list[StoredEvent] = []
        self._numbers = itertools.count(1)

    def state(self, *facts: Event) -> list[StoredEvent]:
        """Let this happen; return it as it is stored."""
        batch = stored(facts, len(self.happened) + 1)
        self.happened += batch
        self.index.take(Position("j", batch[-1].id), batch)
        return batch

    def session(self, *commands: str, name: str = "", **what: Any) -> str:
        """Let one attacker come, do this, and go (see `attack`); return the session's id."""
        name = name or f"session-{next(self._numbers)}"
        self.state(*attack(name, *commands, **what))
        return name

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Rows of the index."""
        return self.index.db.execute(query, values).fetchall()


def attack(
    name: str,
    *commands: str,
    user: str = "root",
    password: str = "123456",
    hassh: str = GO,
    key: str | None = None,
    failures: int = 0,
    more: Sequence[Event] = (),
    typed: bool = False,
    closed: bool = True,
    address: str = "192.0.2.7",
) -> list[Event]:
    """One session from its connection to its end. `more`: further facts of it, without its ids."""
    ids: dict[str, Any] = {"connection_id": f"c-{name}"}
    both: dict[str, Any] = {**ids, "session_id": name}
    offered: dict[str, Any] = {"method": "password", "password": password}
    if key is not None:
        offered = {"method": "publickey", "key_type": "ssh-ed25519", "key_fingerprint": key, "key_signed": True}
    facts: list[Event] = [
        events.ConnectionOpened(source_ip=address, source_port=4001, local_ip="192.0.2.1", local_port=22, **ids),
        events.ClientAlgorithms(hassh=hassh, kex=[], host_key=[], encryption=[], mac=[], compression=[], languages=[], **ids),
        *(
            events.AuthAttempt(method="password", username=user, password=f"no{it}", accepted=False, rule="denied", **ids)
            for it in range(failures)
        ),
        events.AuthAttempt(username=user, accepted=True, rule="password", **offered, **ids),
        events.SessionOpened(username=user, source_ip=address, source_port=4001, client_version="SSH-2.0-Go", **both),
    ]
    for number, command in enumerate(commands, 1):
        if typed:
            facts.append(events.ChannelInput(channel=1, line=command, **both))
        else:
            facts.append(events.ChannelStarted(channel=number, kind="exec", command=command, **both))
    facts += [msgspec.structs.replace(it, **both) for it in more]
    if closed:
        facts.append(events.SessionClosed(cause="client", duration=1, channels=1, bytes_in=1, bytes_out=1, **both))
        facts.append(events.ConnectionClosed(cause="client", duration=1, auth_attempts=1, channels=1, **ids))
    return facts


def artifact(sha256: str, path: str = "/tmp/x", size: int = 1000, source: str = "written") -> Event:
    """A kept file of a session."""
    return events.ArtifactStored(
        container_id="box", sha256=sha256, sha1="1" * 40, md5="5" * 32, size=size, path=path, source=source, known=False
    )  # fmt: skip
