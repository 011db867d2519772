"""Events as streams, on a real journal."""

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from hermes import events
from hermes.store import JournalReader, streams
from tests.unit.store.facts import fact, login, logout, write


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    path = tmp_path / "journal.db"
    one, two = [*login("one"), *logout("one")], [*login("two"), *logout("two")]
    both = [each for pair in zip(one, two, strict=True) for each in pair]
    write(path, *both, events.ClockSet(seconds=-1.5), fact(1))
    with JournalReader(path) as reader, reader.snapshot() as snapshot:
        yield snapshot


def test_a_session_has_its_connections_events_once_each_in_order(db: sqlite3.Connection) -> None:
    found = list(streams.of_session(db, "one", streams.connection_of(db, "one")))
    assert [each.event for each in found] == [type(each).tag() for each in [*login("one"), *logout("one")]]
    assert [each.id for each in found] == list(range(1, 20, 2))
    assert [each.id for each in streams.by_time(db, "one", "c-one")] == list(range(1, 20, 2))
    assert [each.id for each in streams.of_session(db, "one", "c-one", through=6)] == [1, 3, 5]


def test_a_session_without_a_connection_has_its_own(db: sqlite3.Connection) -> None:
    assert {each.session_id for each in streams.of_session(db, "one", None)} == {"one"}
    assert list(streams.of_session(db, "nobody", None)) == []
    assert streams.connection_of(db, "nobody") is None


def test_a_range_has_everything_from_after_one_id_through_another(db: sqlite3.Connection) -> None:
    last = streams.last_id(db)
    assert [each.id for each in streams.between(db, 0)] == list(range(1, last + 1))
    assert [each.id for each in streams.between(db, 3, 5)] == [4, 5]
    assert sorted(streams.named(db, [2, 5, 10_000])) == [2, 5]


def test_a_line_is_the_one_of_the_json_lines(db: sqlite3.Connection) -> None:
    (one,) = streams.between(db, 0, 1)
    assert json.loads(one.line)["event"] == one.event == "connection.opened"
    assert one.line.endswith(b"\n")


def test_steps_of_the_clock_are_found_within_a_range(db: sqlite3.Connection) -> None:
    (step,) = streams.clock_steps(db, 1, 1000)
    assert step == (21, -1_500_000)
    assert streams.clock_steps(db, 1, 20) == []
