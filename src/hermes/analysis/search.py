"""Searching the index: which documents a query finds, newest first.

There are three ways to walk, and the shortest is taken: over the documents of few connections, over those that have one of few
texts, or over all of them from the newest, until there are enough.
"""

import secrets
import sqlite3
from datetime import datetime
from typing import Any

import msgspec

from hermes.analysis.documents import HOUR, PARTS, SHIFT
from hermes.analysis.query import Query, like, terms
from hermes.analysis.reader import IndexReader, moment
from hermes.analysis.visits import micros, packed
from hermes.errors import AnalysisError

FEW = 2000
"""Connections, or texts, up to which a walk begins with them."""
MAX_PATTERN = 50_000
"""Bytes of a pattern from which SQLite takes none; a longer piece of text is found in its own case only."""
SNIPPET_TOKENS = 40
SNIPPET_CHARACTERS = 400
_SHOWN = 64 * 1024
_HIT = """
    SELECT documents.time, documents_events.name, channel, documents.text, connection_id, session_id, source_ip, country,
        username, substr(documents_texts.text, 1, ?) FROM documents
    LEFT JOIN documents_events ON documents_events.id = documents.event
    LEFT JOIN visits ON visits.id = documents.visit
    LEFT JOIN documents_texts ON documents_texts.id = documents.text
    WHERE documents.id = ?
"""


class Hit(msgspec.Struct, frozen=True, kw_only=True):
    """One document that was found."""

    id: int
    """Of its event in the journal."""
    time: datetime
    event: str
    part: str
    """What the text is of the event: `event`, `output`, `input` or `decoded`."""
    connection_id: str | None
    session_id: str | None
    channel: int | None
    source_ip: str | None
    country: str | None
    username: str | None
    text: str
    """At most 64 KiB of it."""
    snippet: list[tuple[str, bool]]
    """The place that was found, in pieces; true: this is what was searched for."""


def search(index: IndexReader, query: Query) -> list[Hit]:
    """Return what the query finds, newest first by the journal's order. AnalysisError where an FTS5 expression is wrong."""
    with index.snapshot() as db:
        return _Search(db, query).run()


class _Search:
    def __init__(self, db: sqlite3.Connection, query: Query) -> None:
        self._db = db
        self._query = query
        self._wheres: list[str] = []
        self._values: list[Any] = []
        self._match = ""

    def run(self) -> list[Hit]:
        texts, visits = self._texts(), self._visits()
        self._when()
        self._which()
        order = "documents"
        if visits is not None and visits <= FEW:
            order = "documents INDEXED BY documents_visit"
        elif texts is not None and texts <= FEW:
            order = "documents INDEXED BY documents_text"
        elif self._few_events():
            order = "documents INDEXED BY documents_event"
        else:
            order = "documents NOT INDEXED"
        where = " AND ".join(self._wheres) or "1"
        rows = self._db.execute(
            f"SELECT id FROM {order} WHERE {where} ORDER BY id DESC LIMIT ?", (*self._values, self._query.limit)
        )
        return [self._hit(identity) for (identity,) in rows.fetchall()]

    def _also(self, where: str, *values: Any) -> None:
        self._wheres.append(where)
        self._values += values

    # ---- what narrows it

    def _texts(self) -> int | None:
        """Make a table of the texts that match; return how many there are, None where all do."""
        query, wanted = self._query, self._query.text.replace("\0", " ")
        wheres: list[str] = []
        values: list[Any] = []
        if query.syntax == "substring" and query.text:
            pattern = like(wanted)
            short = len(pattern.encode()) < MAX_PATTERN
            wheres.append("text LIKE ? ESCAPE '\\'" if short else "instr(text, ?)")
            values.append(pattern if short else wanted)
        elif query.text:
            found = terms(wanted) if query.syntax == "words" else None
            self._match = found.match if found is not None else wanted
            if self._match:
                wheres.append("id IN (SELECT rowid FROM documents_words WHERE documents_words MATCH ?)")
                values.append(self._match)
            for literal in found.literals if found is not None else ():
                wheres.append("instr(text, ?)")
                values.append(literal)
        if not wheres:
            return None
        self._table("found_texts", f"SELECT id FROM documents_texts WHERE {' AND '.join(wheres)}", values)
        self._also("text IN (SELECT id FROM temp.found_texts)")
        return self._count("found_texts")

    def _visits(self) -> int | None:
        """The same for connections."""
        query = self._query
        wheres: list[str] = []
        values: list[Any] = []
        if query.network is not None:
            wheres.append("address BETWEEN ? AND ?")
            values += [packed(query.network[0]), packed(query.network[-1])]
        for column, value in (("country", query.country), ("hassh", query.hassh), ("username", query.user)):
            if value is not None:
                wheres.append(f"{column} = ?")
                values.append(value)
        if query.session is not None:
            wheres.append("session_id BETWEEN ? AND ?")
            values += [query.session, query.session + "\U0010ffff"]
        if not wheres:
            return None
        self._table("found_visits", f"SELECT id FROM visits WHERE {' AND '.join(wheres)}", values)
        self._also("visit IN (SELECT id FROM temp.found_visits)")
        return self._count("found_visits")

    def _when(self) -> None:
        """Times are not quite in the order of ids: hours tell between which ids to look."""
        since, until = (None if it is None else micros(it) for it in (self._query.since, self._query.until))
        if since is not None:
            self._also("time >= ?", since)
            self._also("id >= coalesce((SELECT min(first) FROM documents_hours WHERE hour >= ?), 0)", since // HOUR)
        if until is not None:
            self._also("time < ?", until)
            self._also("id <= coalesce((SELECT max(last) FROM documents_hours WHERE hour <= ?), 0)", until // HOUR)

    def _which(self) -> None:
        query = self._query
        if query.event is not None:
            if query.event.endswith("*"):
                beginning = query.event[:-1]
                self._also("event IN (SELECT id FROM documents_events WHERE substr(name, 1, ?) = ?)", len(beginning), beginning)
            else:
                self._also("event IN (SELECT id FROM documents_events WHERE name = ?)", query.event)
        if query.hash is not None:
            self._hash(query.hash.lower())
        if query.host is not None:
            self._also(
                f"id >> {SHIFT} IN (SELECT commands.id FROM commands_facts JOIN commands USING (line)"
                " WHERE commands_facts.kind = 'host' AND value = ?)",
                query.host.lower(),
            )

    def _hash(self, value: str) -> None:
        """By the SHA-256 that stands in the text of each event of a file; others are known from when it was stored."""
        column = {64: "sha256", 40: "sha1", 32: "md5"}.get(len(value))
        if column is None or not value.isalnum() or not value.isascii():
            raise AnalysisError("a hash is the SHA-256, SHA-1 or MD5 of a file in hexadecimal digits")
        names = [value]
        if column != "sha256":
            found = self._db.execute(f"SELECT DISTINCT sha256 FROM documents_files WHERE {column} = ?", (value,))
            names = [it for (it,) in found if it and it.isalnum()]
        match = " OR ".join(f'"{it}"' for it in names) or '""'
        self._also("text IN (SELECT rowid FROM documents_words WHERE documents_words MATCH ?)", match)
        self._also("event IN (SELECT id FROM documents_events WHERE name LIKE 'file.%' OR name = 'artifact.stored')")

    def _few_events(self) -> bool:
        if self._query.event is None:
            return False
        counted = (
            "SELECT count(*) FROM (SELECT 1 FROM documents WHERE event IN (SELECT id FROM documents_events WHERE {}) LIMIT ?)"
        )
        name = self._query.event
        where = "substr(name, 1, ?) = ?" if name.endswith("*") else "name = ? || ?"
        values = (len(name) - 1, name[:-1]) if name.endswith("*") else (name, "")
        return bool(self._db.execute(counted.format(where), (*values, FEW + 1)).fetchone()[0] <= FEW)

    def _table(self, name: str, query: str, values: list[Any]) -> None:
        self._db.execute(f"DROP TABLE IF EXISTS temp.{name}")
        self._db.execute(f"CREATE TEMP TABLE {name} (id INTEGER PRIMARY KEY)")
        try:
            self._db.execute(f"INSERT INTO temp.{name} {query}", values)
        except sqlite3.OperationalError as error:
            if self._query.syntax == "fts5" and (
                "fts5" in str(error) or "no such column" in str(error) or "unterminated" in str(error)
            ):
                raise AnalysisError(f"not an expression that FTS5 understands: {error}") from error
            raise

    def _count(self, name: str) -> int:
        return int(self._db.execute(f"SELECT count(*) FROM temp.{name}").fetchone()[0])

    # ---- what was found

    def _hit(self, identity: int) -> Hit:
        row = self._db.execute(_HIT, (_SHOWN, identity)).fetchone()
        (time, event, channel, key, connection, session, address, country, user, text) = row
        return Hit(
            id=identity >> SHIFT,
            time=moment(time),
            event=event or "?",
            part=PARTS[identity & (len(PARTS) - 1)],
            connection_id=connection,
            session_id=session,
            channel=channel,
            source_ip=address,
            country=country,
            username=user,
            text=text or "",
            snippet=self._snippet(key, text or ""),
        )

    def _snippet(self, key: int | None, text: str) -> list[tuple[str, bool]]:
        if self._query.syntax == "substring" and self._query.text:
            at = text.lower().find(self._query.text.lower())
            if at < 0:
                return [(text[:SNIPPET_CHARACTERS], False)]
            start, end = max(0, at - SNIPPET_CHARACTERS // 4), at + len(self._query.text)
            pieces = [("…" if start else "", False), (text[start:at], False), (text[at:end], True)]
            pieces.append((text[end : start + SNIPPET_CHARACTERS], False))
            return [it for it in pieces if it[0]]
        if not self._match or key is None:
            return [(text[:SNIPPET_CHARACTERS], False)] if text else []
        # No attacker knows these marks in advance, so none can be in the text.
        begin, end_mark = (f"<{secrets.token_hex(16)}>" for _ in range(2))
        row = self._db.execute(
            "SELECT snippet(documents_words, 0, ?, ?, '…', ?) FROM documents_words WHERE documents_words MATCH ? AND rowid = ?",
            (begin, end_mark, SNIPPET_TOKENS, self._match, key),
        ).fetchone()
        if row is None:
            return [(text[:SNIPPET_CHARACTERS], False)]
        pieces = []
        for number, piece in enumerate(row[0].split(begin)):
            found, mark, rest = piece.partition(end_mark)
            pieces += [(found, number > 0 and bool(mark)), (rest, False)]
        return _cut([it for it in pieces if it[0]])


def _cut(pieces: list[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """At most so many characters of it, for one word may be long."""
    left, kept = SNIPPET_CHARACTERS, []
    for text, found in pieces:
        if left <= 0:
            break
        kept.append((text if len(text) <= left else text[:left] + "…", found))
        left -= len(text)
    return kept
