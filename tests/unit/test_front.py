"""The front's process: it gives up its power, and turns what goes wrong into the right end."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hermes import events, front
from hermes.config import Settings
from hermes.container import BrokerEvent
from tests.front.conftest import MemoryJournal

DROP = """
import os, sys
from hermes.front import drop_privileges
drop_privileges("nobody")
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(os.getresuid(), os.getgroups(), status["CapEff"].split()[0], status["CapPrm"].split()[0], status["NoNewPrivs"].split()[0])
for regain in (lambda: os.setuid(0), lambda: os.setgroups([0])):
    try:
        regain()
    except PermissionError:
        print("refused")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has power to give up")
def test_power_is_given_up_for_good() -> None:
    done = subprocess.run([sys.executable, "-c", DROP], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines() == [
        "(65534, 65534, 65534) [] 0000000000000000 0000000000000000 1", "refused", "refused",
    ]  # fmt: skip


def test_an_unknown_user_is_named() -> None:
    code = "from hermes.front import drop_privileges; drop_privileges('no-such-user')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert "sensor.user 'no-such-user' does not exist" in done.stderr


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
