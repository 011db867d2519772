"""What the journal says of files that are kept by their content."""

from datetime import datetime

import msgspec

from hermes.store.queries import JournalReader


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """One content, however often it came; times are UTC."""

    sha256: str
    sha1: str
    md5: str
    size: int
    first_seen: datetime
    last_seen: datetime
    sessions: int
    """Sessions that brought or made it."""
    path: str
    """The name it had when it was seen last; empty: it was a command's input."""
    source: str
    """As in `artifact.stored`, of when it was seen last."""


class Sighting(msgspec.Struct, frozen=True, kw_only=True):
    """One fact that names a content."""

    time: datetime
    event: str
    session_id: str | None
    channel: int | None
    path: str


_KNOWN = """
    SELECT body ->> '$.sha256' AS sha256, min(time), max(time), count(DISTINCT session_id), max(id), body
    FROM events WHERE event = 'artifact.stored' {where} GROUP BY sha256 ORDER BY max(id) DESC LIMIT ? OFFSET ?
"""
_SIGHTINGS = """
    SELECT time, event, session_id, body ->> '$.channel', body ->> '$.path' FROM events
    WHERE event IN ('artifact.stored', 'file.written', 'file.executed', 'file.changed') AND body ->> '$.sha256' = ?
    ORDER BY time, id LIMIT ?
"""


def known(
    journal: JournalReader, *, limit: int, offset: int = 0, beginning: str = "", session_id: str | None = None
) -> list[Artifact]:
    """Return contents that were kept at some time, last seen first; those whose hash begins so, or of one session."""
    where, values = "", []
    if beginning:
        where, values = "AND body ->> '$.sha256' BETWEEN ? AND ?", [beginning, beginning + "g"]
    if session_id is not None:
        where, values = where + " AND session_id = ?", [*values, session_id]
    rows = journal.select(_KNOWN.format(where=where), (*values, limit, offset))
    return [
        msgspec.convert(
            {
                **msgspec.json.decode(body),
                "first_seen": journal.moment(first),
                "last_seen": journal.moment(last),
                "sessions": count,
            },
            Artifact,
        )
        for _, first, last, count, _, body in rows
    ]


def sightings(journal: JournalReader, sha256: str, limit: int = 1000) -> list[Sighting]:
    """Return the facts that name a content, oldest first."""
    return [
        Sighting(time=journal.moment(time), event=event, session_id=session_id, channel=channel, path=path)
        for time, event, session_id, channel, path in journal.select(_SIGHTINGS, (sha256, limit))
    ]
