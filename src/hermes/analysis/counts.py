"""Counting what the index has: what was tried, typed, brought and by whom, the most frequent first, and how much of it when."""

from datetime import datetime
from typing import Any, Literal

import msgspec

from hermes.analysis.reader import IndexReader, moment
from hermes.analysis.visits import micros

_WHEN = "{when}"


def _paired(columns: str, which: str) -> str:
    """What was tried: attempts are counted by pair first, for there are far fewer pairs."""
    return (
        f"SELECT {columns}, sum(n), max(last) FROM"
        f" (SELECT pair, count(*) AS n, max(time) AS last FROM stats_attempts WHERE {_WHEN} GROUP BY pair)"
        f" JOIN stats_pairs ON stats_pairs.id = pair WHERE {which} GROUP BY {columns}"
    )


def _visited(columns: str, which: str) -> str:
    return f"SELECT {columns}, count(*), max(time) FROM visits WHERE {_WHEN} AND {which} IS NOT NULL GROUP BY {columns}"


def _typed(columns: str, table: str, group: str) -> str:
    return (
        f"SELECT {columns}, sum(n), max(last) FROM"
        f" (SELECT line AS key, count(*) AS n, max(time) AS last FROM commands WHERE {_WHEN} GROUP BY line)"
        f" JOIN {table} GROUP BY {group}"
    )


def _said(kind: str) -> str:
    return _typed("value", f"commands_facts ON commands_facts.line = key AND kind = '{kind}'", "value")


class Kind(msgspec.Struct, frozen=True):
    """Something that is counted: how its values are called, and the query that counts them."""

    columns: tuple[str, ...]
    query: str


KINDS: dict[str, Kind] = {
    "credentials": Kind(("username", "password"), _paired("username, password", "password IS NOT NULL")),
    "usernames": Kind(("username",), _paired("username", "1")),
    "passwords": Kind(("password",), _paired("password", "password IS NOT NULL")),
    "keys": Kind(("key",), _paired("key", "key IS NOT NULL")),
    "commands": Kind(
        ("command", "example"),
        _typed("normal, line", "commands_lines ON commands_lines.id = key", "normal"),
    ),
    "hosts": Kind(("host",), _said("host")),
    "planted-keys": Kind(("key",), _said("key")),
    "clients": Kind(("client",), _visited("version", "version")),
    "hasshs": Kind(("hassh",), _visited("hassh", "hassh")),
    "addresses": Kind(("address",), _visited("source_ip", "source_ip")),
    "networks": Kind(("network",), _visited("network", "network")),
    "countries": Kind(("country",), _visited("country", "country")),
    "asns": Kind(("asn", "organization"), _visited("asn, organization", "asn")),
    "files": Kind(
        ("sha256", "size", "path"),
        f"SELECT sha256, size, path, count(*), max(time) FROM stats_files WHERE {_WHEN} GROUP BY sha256",
    ),
}
"""All that can be counted. `commands` are alike but for numbers, addresses, keys and random text; `hosts` and `planted-keys`
stand in commands; `files` are counted by the sessions that brought them."""

_SERIES = {
    "connections": ("visits", "1"),
    "sessions": ("visits", "session_id IS NOT NULL"),
    "attempts": ("stats_attempts", "1"),
    "commands": ("commands", "1"),
    "files": ("stats_files", "1"),
}
_LENGTH = {"hour": 3_600_000_000, "day": 86_400_000_000}


class Count(msgspec.Struct, frozen=True, kw_only=True):
    """How often something came."""

    values: dict[str, Any]
    count: int
    last: datetime


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """What is counted: from `since` until before `until` (aware); None: without that bound."""

    since: datetime | None = None
    until: datetime | None = None

    def where(self) -> tuple[str, list[int]]:
        """The condition on `time`, and its values."""
        bounds = [(f"time {sign} ?", micros(it)) for sign, it in ((">=", self.since), ("<", self.until)) if it is not None]
        return " AND ".join(it[0] for it in bounds) or "1", [it[1] for it in bounds]


def top(index: IndexReader, kind: str, window: Window, limit: int) -> list[Count]:
    """Return the most frequent of a kind of `KINDS`, the most frequent first."""
    wanted = KINDS[kind]
    when, values = window.where()
    order = f"ORDER BY {len(wanted.columns) + 1} DESC, 1 LIMIT ?"
    rows = index.query(f"{wanted.query.format(when=when)} {order}", *values, limit)
    return [Count(values=dict(zip(wanted.columns, row[:-2], strict=True)), count=row[-2], last=moment(row[-1])) for row in rows]


def totals(index: IndexReader, window: Window) -> dict[str, int]:
    """Return how many connections, sessions, authentication tries, commands and files there are."""
    when, values = window.where()
    return {
        name: index.query(f"SELECT count(*) FROM {table} WHERE {when} AND {which}", *values)[0][0]
        for name, (table, which) in _SERIES.items()
    }


def series(index: IndexReader, window: Window, by: Literal["hour", "day"]) -> list[tuple[datetime, dict[str, int]]]:
    """Return the same for each hour or day (UTC) in which there was anything, in their order."""
    when, values = window.where()
    found: dict[int, dict[str, int]] = {}
    for name, (table, which) in _SERIES.items():
        sql = f"SELECT time / {_LENGTH[by]}, count(*) FROM {table} WHERE {when} AND {which} GROUP BY 1"
        for number, count in index.query(sql, *values):
            found.setdefault(number, dict.fromkeys(_SERIES, 0))[name] = count
    return [(moment(number * _LENGTH[by]), found[number]) for number in sorted(found)]
