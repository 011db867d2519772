"""The front's process: what it keeps for itself, and how it turns what goes wrong into the right end."""

from pathlib import Path

import pytest

from hermes import events, front
from hermes.config import Settings
from hermes.confine.landlock import OWN, READ, Files
from hermes.container import BrokerEvent
from tests.front.conftest import MemoryJournal


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
        ("/d/outputs", READ, False), ("/proc/self", Files.READ_FILE, False),
    ]  # fmt: skip
    assert not OWN & (Files.EXECUTE | Files.MAKE_SYM | Files.MAKE_SOCK | Files.MAKE_FIFO | Files.MAKE_CHAR | Files.MAKE_BLOCK)
