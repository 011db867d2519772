"""The front's process: what it keeps for itself, and how it turns what goes wrong into the right end."""

from pathlib import Path

import pytest

from hermes import events, front
from hermes.config import Settings
from hermes.confine.landlock import OWN, READ, Files
from hermes.container import BrokerEvent
from hermes.store import cursors
from hermes.store.follow import Follower
from tests.front.conftest import MemoryJournal
from tests.unit.store.facts import fact, write


def test_the_brokers_facts_become_events_and_nothing_else_does() -> None:
    journal = MemoryJournal()
    fields: dict[str, str | int | float | bool | None] = {"container_id": "c", "engine": "local", "seconds": 0.5}
    front._state(journal, BrokerEvent(kind="container.created", fields=fields))  # type: ignore[arg-type]
    front._state(journal, BrokerEvent(kind="container.created", fields={"container_id": 7}))  # type: ignore[arg-type]
    front._state(journal, BrokerEvent(kind="no.such.event", fields={}))  # type: ignore[arg-type]
    assert journal.events == [events.ContainerCreated(container_id="c", engine="local", seconds=0.5)]


@pytest.mark.parametrize(
    ("where", "lines"), [("off", None), ("stdout", "stdout"), ("events.jsonl", Path("/d/journal/events.jsonl"))]
)
def test_where_events_go(where: str, lines: object) -> None:
    settings = Settings.model_validate({"data_dir": "/d", "logging": {"events": where}})
    assert front._lines(settings) == lines


@pytest.mark.parametrize(
    ("settings", "extra"),
    [
        ({}, {"/d/recordings"}),
        ({"recording": {"enabled": False}}, set()),
        ({"recording": {"output_dir": "/r"}, "logging": {"events": "/l/e.jsonl"}}, {"/r", "/l"}),
    ],
)
def test_the_front_keeps_its_own_files_and_no_others(settings: dict[str, object], extra: set[str]) -> None:
    rules = front.own_files(Settings.model_validate({"data_dir": "/d", "geo": {"asn": "/g/asn.mmdb"}, **settings}))
    assert {str(rule.path) for rule in rules if rule.rights == OWN} == {"/d/journal", "/d/keys", *extra}
    assert [(str(rule.path), rule.rights, rule.optional) for rule in rules if rule.rights != OWN] == [
        ("/d/geo", Files.READ_FILE | Files.READ_DIR, True), ("/g/asn.mmdb", Files.READ_FILE | Files.READ_DIR, True),
        ("/d/index", READ, False), ("/d/outputs", READ, False), ("/proc/self", Files.READ_FILE, False),
    ]  # fmt: skip
    assert not OWN & (Files.EXECUTE | Files.MAKE_SYM | Files.MAKE_SOCK | Files.MAKE_FIFO | Files.MAKE_CHAR | Files.MAKE_BLOCK)


def test_how_far_the_index_is_behind_is_known_once_there_is_one(tmp_path: Path) -> None:
    settings = Settings.model_validate({"data_dir": tmp_path})
    for directory in (settings.journal_dir, settings.index_dir):
        directory.mkdir()
    write(settings.journal_path, *map(fact, range(5)))
    assert front._index_lag(settings) is None
    position = Follower(settings.journal_path).last()
    cursors.save(settings.index_dir, "analyst", cursors.Cursor(journal=position.journal, id=2))
    assert front._index_lag(settings) == 3
    assert front._index_lag(Settings.model_validate({"data_dir": tmp_path, "analysis": {"enabled": False}})) is None
