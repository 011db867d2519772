"""Events, and what a session looks like, for the tests of the store."""

import asyncio
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hermes import events
from hermes.events import Event
from hermes.store import Journal


def fact(number: int, size: int = 0) -> Event:
    """Return an event that carries a number, and as many more bytes as asked."""
    return events.ClientVersion(connection_id="c", version=f"{number}" + "x" * size)


def login(session_id: str, username: str = "root", source_ip: str = "192.0.2.7", **more: Any) -> list[Event]:
    """Return a session from its connection to its first command; it stays open."""
    ids: dict[str, Any] = {"connection_id": f"c-{session_id}"}
    both: dict[str, Any] = {**ids, "session_id": session_id}
    return [
        events.ConnectionOpened(source_ip=source_ip, source_port=4001, local_ip="192.0.2.1", local_port=22, **ids),
        events.AuthAttempt(method="password", username=username, password="wrong", accepted=False, rule="denied", **ids),
        events.AuthAttempt(method="password", username=username, password="root", accepted=True, rule="password", **ids),
        events.SessionOpened(username=username, source_ip=source_ip, source_port=4001, client_version="SSH-2.0-Go", **both),
        events.SessionContainer(container_id="box1", engine="local", image="debian-12", waited=0.003, **both),
        events.ChannelOpened(channel=0, **both),
        events.ChannelStarted(channel=0, kind="exec", command=more.get("command", "uname -a"), recording="r/0.cast", **both),
    ]


def logout(session_id: str) -> list[Event]:
    """Return the end of a session."""
    both: dict[str, Any] = {"connection_id": f"c-{session_id}", "session_id": session_id}
    return [
        events.ChannelClosed(channel=0, exit_status=0, duration=1.5, bytes_in=10, bytes_out=200, **both),
        events.SessionClosed(cause="client", duration=2.0, channels=1, bytes_in=10, bytes_out=200, **both),
        events.ConnectionClosed(cause="client", duration=2.5, auth_attempts=2, channels=1, connection_id=f"c-{session_id}"),
    ]


def write(path: Path, *facts: Event, sensor: str = "s1") -> None:
    """Let a sensor run that states these facts and stops in good order."""
    journal = Journal(path, sensor=sensor)
    journal.open()
    for one in facts:
        journal.emit(one)
    journal.close()


def stored(
    path: Path, query: str = "SELECT body ->> '$.version' FROM events WHERE event = 'connection.version' ORDER BY id"
) -> list[Any]:
    """Return the first column of a query's rows."""
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return [row[0] for row in db.execute(query)]
    finally:
        db.close()


async def eventually(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Return once the condition holds; fail when it does not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.01)
