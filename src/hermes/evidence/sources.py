"""A session's timeline from what is kept: the journal's events, and the lossless recordings."""

import sqlite3
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import msgspec

from hermes.evidence.oneclock import OneClock, Stated
from hermes.evidence.timeline import Channel, Event, Item, merge
from hermes.recording.reader import ChannelRecording, channels
from hermes.store import streams
from hermes.store.streams import Record

FETCHED = 500
"""Events fetched at once where their order is not the journal's own."""

_decode = msgspec.json.Decoder(dict).decode


def timeline(
    db: sqlite3.Connection, recordings: Path, session_id: str, connection_id: str | None, *, bursts: bool = True
) -> Iterator[Item]:
    """Yield a session's timeline (`timeline.merge`). Raises sqlite3.Error, and RecordingUnavailable."""
    found = [one for one in channels(recordings, session_id) if one.facts is not None]
    if not (steps := _steps(db, session_id, connection_id)):
        events = (_event(one, one.time) for one in streams.by_time(db, session_id, connection_id))
        return merge(events, [_channel(one, _start(one)) for one in found], bursts=bursts)
    clock = OneClock(steps)
    stated: dict[str, int] = {}
    order = clock.order(_noted(streams.of_session(db, session_id, connection_id), stated))
    wanted = set(stated.values())
    times = {identity: time for time, identity in order if identity in wanted}
    sources = []
    for one in found:
        started = stated.get(str(one.cast.relative_to(recordings)))
        sources.append(_channel(one, clock.start(_start(one), times[started]) if started is not None else _start(one)))
    return merge(_fetched(db, order), sources, bursts=bursts)


def _steps(db: sqlite3.Connection, session_id: str, connection_id: str | None) -> list[streams.Step]:
    ends = [
        db.execute(f"SELECT {end}(id) FROM events WHERE {column} = ?", (value,)).fetchone()[0]
        for column, value in (("session_id", session_id), ("connection_id", connection_id))
        for end in ("min", "max")
    ]
    ids = [one for one in ends if one is not None]
    return streams.clock_steps(db, min(ids), max(ids)) if ids else []


def _start(one: ChannelRecording) -> int:
    """µs since the epoch at which the recording began, by the wall clock."""
    return 0 if one.facts is None else one.facts.started_ns // 1000


def _channel(one: ChannelRecording, start: int) -> Channel:
    return Channel(one.channel, start, one.play)


def _event(record: Record, time: int) -> Event:
    return Event(time, record.time, record.id, record.event, _decode(record.body))


def _noted(records: Iterator[Record], started: dict[str, int]) -> Iterator[Stated]:
    """Pass events on, and note by which one the start of each recording was stated."""
    for one in records:
        if one.event == "channel.started" and (recording := _decode(one.body).get("recording")) is not None:
            started[str(recording)] = one.id
        yield Stated(one.id, one.time, one.event)


def _fetched(db: sqlite3.Connection, order: list[tuple[int, int]]) -> Iterator[Event]:
    left = iter(order)
    while some := list(islice(left, FETCHED)):
        records = streams.named(db, [identity for _, identity in some])
        yield from (_event(records[identity], time) for time, identity in some if identity in records)
