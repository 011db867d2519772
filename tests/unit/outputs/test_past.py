"""What the journal says of what went before."""

from pathlib import Path

import pytest

from hermes.errors import JournalError
from hermes.outputs import past
from hermes.outputs.past import Addresses, before
from tests.unit.outputs.world import record, records
from tests.unit.store.facts import login, write


def test_only_earlier_events_of_the_same_connection(tmp_path: Path) -> None:
    journal = tmp_path / "journal.db"
    write(journal, *login("a"), *login("b", source_ip="192.0.2.8"))
    last = records(journal)[-1]
    found = before(journal, last, ["connection.opened", "channel.started"], 10)
    assert [it.body["source_ip"] for it in found] == ["192.0.2.8"]
    assert before(journal, record(connection_id=None), ["connection.opened"], 10) == []
    with pytest.raises(JournalError, match="cannot read"):
        before(tmp_path / "none.db", last, ["connection.opened"], 10)


def test_addresses_are_known_after_they_were_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(past, "ADDRESSES", 1)
    journal = tmp_path / "journal.db"
    write(journal, *login("a"), *login("b", source_ip="192.0.2.8"))
    whence = Addresses(journal)
    everything = records(journal)
    for _ in range(2):
        assert {whence(it) for it in everything if it.connection_id == "c-a"} == {"192.0.2.7"}
        assert {whence(it) for it in everything if it.connection_id == "c-b"} == {"192.0.2.8"}
    assert whence(record(connection_id="unknown")) is None
    assert whence(record(connection_id=None)) is None
    assert whence(record(connection_id=None, source_ip="192.0.2.9")) == "192.0.2.9"
