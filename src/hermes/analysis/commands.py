"""The stage `commands`: every command line that was typed or executed, taken apart; each line once, however often it came."""

import hashlib
import sqlite3
from collections.abc import Iterator, Sequence

import msgspec

from hermes.analysis.shell import Credential, Parsed, normalise, parse
from hermes.analysis.stage import Gone
from hermes.analysis.visits import keys, leaving, micros, visit_of
from hermes.store import StoredEvent

_encode = msgspec.json.Encoder().encode


class Commands:
    """The stage."""

    name = "commands"
    version = 1
    schema = """
        CREATE TABLE IF NOT EXISTS commands_lines (
            id     INTEGER PRIMARY KEY,
            hash   BLOB NOT NULL UNIQUE,
            line   TEXT NOT NULL,
            normal TEXT NOT NULL,
            parsed TEXT NOT NULL
        );
        CREATE TABLE IF NOT EXISTS commands_facts (
            kind TEXT NOT NULL, value TEXT NOT NULL, line INTEGER NOT NULL, PRIMARY KEY (kind, value, line)
        ) WITHOUT ROWID;
        CREATE INDEX IF NOT EXISTS commands_facts_line ON commands_facts (line);
        CREATE TABLE IF NOT EXISTS commands (
            id      INTEGER PRIMARY KEY,
            time    INTEGER NOT NULL,
            visit   INTEGER,
            channel INTEGER,
            kind    TEXT NOT NULL,
            line    INTEGER NOT NULL
        );
        CREATE INDEX IF NOT EXISTS commands_visit ON commands (visit);
        CREATE INDEX IF NOT EXISTS commands_line ON commands (line, time);
    """

    def take(self, db: sqlite3.Connection, events: Sequence[StoredEvent]) -> None:
        events = [it for it in events if _line(it)]
        if not events:
            return
        known = keys(db, events)
        for event in events:
            visit, channel = visit_of(known, event), event.body.get("channel")
            line = _line(event)
            kind = "exec" if event.event == "channel.started" else "input"
            db.execute(
                "INSERT OR REPLACE INTO commands VALUES (?, ?, ?, ?, ?, ?)",
                (event.id, micros(event.time), visit, channel, kind, _keep(db, line)),
            )
            if kind == "input" and (credential := _typed(db, visit, channel, event.id, line)) is not None:
                _state(db, _keep(db, line), "credential", f"{credential.user}:{credential.password}")

    def forget(self, db: sqlite3.Connection, gone: Gone) -> None:
        for visit in leaving(db, gone):
            lines = db.execute("SELECT DISTINCT line FROM commands WHERE visit = ?", (visit,)).fetchall()
            db.execute("DELETE FROM commands WHERE visit = ?", (visit,))
            for line in lines:
                if db.execute("SELECT 1 FROM commands WHERE line = ?", line).fetchone() is None:
                    db.execute("DELETE FROM commands_facts WHERE line = ?", line)
                    db.execute("DELETE FROM commands_lines WHERE id = ?", line)


def _line(event: StoredEvent) -> str:
    """The command line that an event tells of; empty: none."""
    if event.event == "channel.input":
        line = event.body.get("line")
    elif event.event == "channel.started" and event.body.get("kind") == "exec":
        line = event.body.get("command")
    else:
        return ""
    return line.encode(errors="replace").decode().replace("\0", " ") if isinstance(line, str) else ""


def _keep(db: sqlite3.Connection, line: str) -> int:
    """The key of a line, which is taken apart when it comes for the first time."""
    digest = hashlib.blake2b(line.encode(), digest_size=16).digest()
    row = db.execute("SELECT id FROM commands_lines WHERE hash = ?", (digest,)).fetchone()
    if row is not None:
        return int(row[0])
    parsed = parse(line)
    kept = _encode(msgspec.structs.replace(parsed, text="")).decode()
    key = db.execute(
        "INSERT INTO commands_lines (hash, line, normal, parsed) VALUES (?, ?, ?, ?)", (digest, line, normalise(parsed), kept)
    ).lastrowid
    assert key is not None
    for kind, value in _facts(parsed):
        _state(db, key, kind, value)
    return key


def _state(db: sqlite3.Connection, line: int, kind: str, value: str) -> None:
    db.execute("INSERT OR IGNORE INTO commands_facts VALUES (?, ?, ?)", (kind, value, line))


def _facts(parsed: Parsed) -> Iterator[tuple[str, str]]:
    facts = parsed.facts
    yield from (("url", it) for it in facts.urls)
    yield from (("host", it) for it in facts.hosts)
    yield from (("key", it.fingerprint) for it in facts.keys)
    yield from (("credential", f"{it.user}:{it.password}") for it in facts.credentials)
    yield from (("download", it.source) for it in facts.downloads)


def _typed(db: sqlite3.Connection, visit: int | None, channel: object, event: int, line: str) -> Credential | None:
    """A password that `passwd` asked for and that was typed twice, the second time now."""
    if len(line) > 256 or len(line.split()) != 1:
        return None
    before = db.execute(
        "SELECT line FROM commands WHERE visit IS ? AND channel IS ? AND id < ? ORDER BY id DESC LIMIT 3", (visit, channel, event)
    ).fetchall()
    lines = [db.execute("SELECT line FROM commands_lines WHERE id = ?", it).fetchone()[0] for it in before]
    if len(lines) < 2 or lines[0] != line:
        return None
    for command in (command for it in lines[1:] for command in parse(it).commands):
        name, arguments = command.plain()
        if name == "passwd":
            return Credential(next((it for it in reversed(arguments) if not it.startswith("-")), ""), line)
    return None
