"""Records as JSON lines."""

import json

from hermes import events
from hermes.outputs.jsonl import lines
from tests.unit.outputs.world import World, record, records


def test_a_line_has_the_event_with_its_names_in_time_and_place() -> None:
    (line,) = lines([record(7, version="v")]).splitlines()
    assert json.loads(line) == {
        "id": 7, "event_id": "j:7", "time": "2026-01-02T03:04:05.500000Z", "sensor": "s1", "event": "connection.version",
        "connection_id": "c", "session_id": None, "version": "v",
    }  # fmt: skip


def test_no_byte_of_an_attacker_moves_a_terminal(tmp_path: "object") -> None:
    text = "\x1b[2J\x7f\u202e\n"
    (line,) = lines([record(1, version=text)]).splitlines()
    assert all(0x20 <= it < 0x7F for it in line)
    assert json.loads(line)["version"] == text


def test_events_of_a_journal_have_an_id_of_their_own_everywhere(tmp_path: "object") -> None:
    from pathlib import Path

    assert isinstance(tmp_path, Path)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    found = []
    for place in ("a", "b"):
        world = World(tmp_path / place)
        world.state(events.ContainerLost(container_id="b"))
        found += [it.event_id for it in records(world.journal)]
    assert len(set(found)) == 2
