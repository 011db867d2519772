"""What the analysis found, read from the index: techniques with their evidence, files, what came back, and campaigns."""

import json
import re
import sqlite3
from datetime import datetime

import msgspec

from hermes.analysis.reader import IndexReader, moment
from hermes.errors import AnalysisError

SHOWN_SESSIONS = 1000
"""Sessions of one campaign that are given, at most; the newest."""


class Evidence(msgspec.Struct, frozen=True):
    """The text that fired a rule, and its event in the journal."""

    event_id: int
    text: str


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """A technique that a session shows."""

    technique: str
    name: str
    rule: str
    count: int
    """Events that fired it; the first few are the evidence."""
    evidence: list[Evidence]


class Return(msgspec.Struct, frozen=True, kw_only=True):
    """A key or password that an earlier session left came back. `kind`: `returning-key` or `returning-password`."""

    kind: str
    value: str
    time: datetime
    event_id: int
    username: str
    accepted: bool
    session_id: str | None
    """The session it opened; None where it opened none."""
    connection_id: str
    earlier_session: str
    """The last session before that had left it."""


class FileMatch(msgspec.Struct, frozen=True, kw_only=True):
    """A YARA rule that matches a file."""

    rule: str
    namespace: str
    tags: list[str]
    description: str
    patterns: list[str]


class File(msgspec.Struct, frozen=True, kw_only=True):
    """A kept content, as it was looked at. `state`: `waiting`, `looking`, `done`, or `failed`."""

    sha256: str
    size: int
    state: str
    mime: str
    description: str
    elf: dict[str, str | int | bool | None] | None
    failure: str | None
    looked_at: int
    matches: list[FileMatch]
    keys: list[str]


class Reason(msgspec.Struct, frozen=True, kw_only=True):
    """What sessions of a campaign share."""

    kind: str
    value: str
    label: str
    sessions: int


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A session of a campaign."""

    session_id: str
    time: datetime
    username: str
    source_ip: str


class Campaign(msgspec.Struct, frozen=True, kw_only=True):
    """Sessions that are joined by what they share."""

    id: str
    sessions: int
    addresses: int
    first: datetime
    last: datetime
    reasons: list[Reason]
    """The most shared first."""


def techniques(index: IndexReader, session_id: str) -> list[Finding]:
    """What a session shows, in the order of the techniques."""
    with index.snapshot() as db:
        rows = db.execute(
            "SELECT connection_id, rule, technique, name, count FROM techniques WHERE session_id = ? AND count >= needed"
            " ORDER BY technique, rule",
            (session_id,),
        ).fetchall()
        return [
            Finding(technique=technique, name=name, rule=rule, count=count, evidence=_evidence(db, connection, rule))
            for connection, rule, technique, name, count in rows
        ]


def technique_counts(index: IndexReader) -> list[tuple[str, int]]:
    """Each technique, and in how many sessions it was seen; the most frequent first."""
    return [
        (str(technique), int(count))
        for technique, count in index.query(
            "SELECT technique, count(DISTINCT session_id) AS sessions FROM techniques"
            " WHERE count >= needed AND session_id NOT NULL GROUP BY technique ORDER BY sessions DESC, technique"
        )
    ]


def sessions_showing(index: IndexReader, technique: str, limit: int) -> list[Member]:
    """Sessions that show a technique, or one of its sub-techniques; the newest first."""
    rows = index.query(
        "SELECT DISTINCT campaigns.session_id, campaigns.time, username, source_ip FROM techniques"
        " JOIN campaigns ON campaigns.session_id = techniques.session_id"
        " WHERE (technique = ? OR technique BETWEEN ? AND ?) AND count >= needed ORDER BY session DESC LIMIT ?",
        technique, f"{technique}.", f"{technique}.~", limit,
    )  # fmt: skip
    return [_member(row) for row in rows]


def returns(index: IndexReader, session_id: str) -> list[Return]:
    """What came back with a session, and what it left that came back later."""
    rows = index.query(
        "SELECT kind, value, time, event_id, username, accepted, session_id, connection_id, earlier FROM campaigns_returns"
        " WHERE session_id = ?1 OR earlier = ?1 ORDER BY event_id",
        session_id,
    )
    return [
        Return(
            kind=f"returning-{kind}", value=value, time=moment(time), event_id=event_id, username=username,
            accepted=bool(accepted), session_id=session, connection_id=connection, earlier_session=earlier,
        )
        for kind, value, time, event_id, username, accepted, session, connection, earlier in rows
    ]  # fmt: skip


def file(index: IndexReader, sha256: str) -> File | None:
    """What is known of a content; None if no session brought it."""
    with index.snapshot() as db:
        return _file(db, sha256)


def session_files(index: IndexReader, session_id: str) -> list[tuple[str, File]]:
    """The contents that a session brought or made, each with the name it had there."""
    with index.snapshot() as db:
        rows = db.execute("SELECT path, sha256 FROM scans_seen WHERE session_id = ? ORDER BY event_id", (session_id,)).fetchall()
        return [(path, found) for path, sha256 in rows if (found := _file(db, sha256)) is not None]


def campaigns(index: IndexReader, limit: int, *, since: datetime | None = None) -> list[Campaign]:
    """Campaigns, the last active first; with `since`, those that were active since then (aware)."""
    least = 0 if since is None else int(since.timestamp() * 1_000_000)
    with index.snapshot() as db:
        rows = db.execute(
            "SELECT campaign, count(*), count(DISTINCT source_ip), min(time), max(time) FROM campaigns GROUP BY campaign"
            " HAVING count(*) > 1 AND max(time) >= ? ORDER BY max(time) DESC, campaign LIMIT ?",
            (least, limit),
        ).fetchall()
        return [_campaign(db, row, 3) for row in rows]


def campaign_of(index: IndexReader, session_id: str) -> str | None:
    """The name of the campaign that a session belongs to; None where it shares nothing with another."""
    rows = index.query(
        "SELECT campaign, count(*) FROM campaigns WHERE campaign = (SELECT campaign FROM campaigns WHERE session_id = ?)"
        " GROUP BY campaign",
        session_id,
    )
    return f"C{rows[0][0]}" if rows and rows[0][1] > 1 else None


def campaign(index: IndexReader, name: str) -> tuple[Campaign, list[Member]]:
    """A campaign by its name, or any name it had before, and its sessions, newest first. AnalysisError if there is none."""
    if (match := re.fullmatch(r"[Cc]?([0-9]{1,18})", name)) is None:
        raise AnalysisError(f"{name!r} is no name of a campaign: that is C and a number, such as C42")
    with index.snapshot() as db:
        number = int(match[1])
        row = db.execute("SELECT campaign FROM campaigns WHERE session = ?", (number,)).fetchone()
        number = number if row is None else row[0]
        found = db.execute(
            "SELECT campaign, count(*), count(DISTINCT source_ip), min(time), max(time) FROM campaigns WHERE campaign = ?"
            " GROUP BY campaign",
            (number,),
        ).fetchone()
        if found is None or (found[1] < 2 and row is not None):
            raise AnalysisError(f"there is no campaign {name}")
        rows = db.execute(
            "SELECT session_id, time, username, source_ip FROM campaigns WHERE campaign = ? ORDER BY session DESC LIMIT ?",
            (number, SHOWN_SESSIONS),
        ).fetchall()
        return _campaign(db, found, 1000), [_member(it) for it in rows]


def _campaign(db: sqlite3.Connection, row: tuple[int, ...], most: int) -> Campaign:
    number, sessions, addresses, first, last = row
    reasons = db.execute(
        "SELECT kind, value, min(label), count(*) AS sharing FROM campaigns_traits JOIN campaigns USING (session)"
        " WHERE campaign = ? GROUP BY kind, value HAVING sharing > 1 ORDER BY sharing DESC, kind, value LIMIT ?",
        (number, most),
    ).fetchall()
    return Campaign(
        id=f"C{number}", sessions=sessions, addresses=addresses, first=moment(first), last=moment(last),
        reasons=[Reason(kind=kind, value=value, label=label, sessions=sharing) for kind, value, label, sharing in reasons],
    )  # fmt: skip


def _member(row: tuple[str, int, str, str]) -> Member:
    return Member(session_id=row[0], time=moment(row[1]), username=row[2], source_ip=row[3])


def _evidence(db: sqlite3.Connection, connection: str, rule: str) -> list[Evidence]:
    rows = db.execute(
        "SELECT event_id, text FROM techniques_evidence WHERE connection_id = ? AND rule = ? ORDER BY event_id",
        (connection, rule),
    )
    return [Evidence(*row) for row in rows]


def _file(db: sqlite3.Connection, sha256: str) -> File | None:
    row = db.execute(
        "SELECT size, state, mime, description, elf, failure, looked_at FROM scans WHERE sha256 = ?", (sha256,)
    ).fetchone()
    if row is None:
        return None
    size, state, mime, description, elf, failure, looked_at = row
    matches = db.execute(
        "SELECT rule, namespace, tags, description, patterns FROM scans_matches WHERE sha256 = ? ORDER BY namespace, rule",
        (sha256,),
    ).fetchall()
    keys = db.execute("SELECT key FROM scans_keys WHERE sha256 = ? ORDER BY fingerprint", (sha256,)).fetchall()
    return File(
        sha256=sha256, size=size, state=state, mime=mime, description=description, elf=None if elf is None else json.loads(elf),
        failure=failure, looked_at=looked_at, keys=[key for (key,) in keys],
        matches=[
            FileMatch(rule=rule, namespace=namespace, tags=tags.split(), description=told, patterns=patterns.split())
            for rule, namespace, tags, told, patterns in matches
        ],
    )  # fmt: skip
