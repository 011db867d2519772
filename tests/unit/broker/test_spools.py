"""Spools as the broker keeps them: who has a box, its end, and what outlives whom."""

import errno
import os
from pathlib import Path

import pytest

from hermes.broker.spools import Spool, Spools
from hermes.container import spool
from hermes.container.spool import End, Fact, Given, Record
from tests.unit.container.test_spool import started


@pytest.fixture
def spools(tmp_path: Path) -> Spools:
    return Spools(tmp_path / "watched")


def records(fd: int) -> list[Record]:
    return [record for record, _ in spool.read(fd, 0)]


def test_a_front_reads_what_it_cannot_write(spools: Spools) -> None:
    one = spools.make("box")
    reader, news = one.give("s1")
    assert os.eventfd_read(news) == 1
    one.emit(started(1), 7)
    assert os.eventfd_read(news) == 1
    given, fact = records(reader)
    assert given == Given("s1")
    assert isinstance(fact, Fact)
    assert (fact.time, spool.event_of(fact)) == (7, started(1))
    with pytest.raises(OSError, match="Bad file"):
        os.write(reader, b"x")
    again = one.give("s1")
    assert len(records(again[0])) == 2, "asked for again, it is given once"
    spools.close()


def test_it_stays_until_a_front_has_taken_it(spools: Spools) -> None:
    one = spools.make("box")
    one.give("s1")
    assert spools.waiting() == [one]
    assert not spools.taken("box"), "the box is not gone"
    spools.end("box")
    assert records(one.fd) == [Given("s1"), End()]
    assert spools.taken("box")
    assert spools.waiting() == []
    assert list(spools.directory.iterdir()) == []
    assert spools.taken("box"), "it may be said twice"


def test_that_of_a_box_no_session_had_goes_with_the_box(spools: Spools) -> None:
    spools.make("warm").emit(started(1))
    assert spools.waiting() == []
    spools.end("warm")
    spools.make("other")
    spools.close()
    assert list(spools.directory.iterdir()) == []


def test_the_next_broker_finds_what_was_not_taken(spools: Spools) -> None:
    first = spools.make("given")
    first.give("s1")
    first.emit(started(1), 7)
    spools.make("spared").give("s2")
    spools.make("warm").emit(started(2))
    for name in ("given", "spared", "warm"):
        left = spools.of(name)
        assert left is not None
        left.close()  # as a kill would
    again = Spools(spools.directory)
    again.start(spare=["spared"])
    assert {one.container_id: one.session_id for one in again.waiting()} == {"given": "s1", "spared": "s2"}
    given, spared = again.of("given"), again.of("spared")
    assert given is not None
    assert spared is not None
    assert [type(it) for it in records(given.fd)] == [Given, Fact, End]
    assert [type(it) for it in records(spared.fd)] == [Given]
    spared.emit(started(3))
    again.end("spared")
    assert [type(it) for it in records(spared.fd)] == [Given, Fact, End]
    assert sorted(path.name for path in spools.directory.iterdir()) == ["given", "spared"]
    again.close()


@pytest.mark.parametrize("left", [1, 4, 9])
def test_what_a_killed_watcher_cut_short_is_cut_away(spools: Spools, left: int) -> None:
    one = spools.make("box")
    one.give("s1")
    os.write(one.fd, spool.framed(spool.fact(started(1), 5))[:left])
    one.whole = False
    one.end()
    assert records(one.fd) == [Given("s1"), End()]
    one.close()
    again = Spools(spools.directory)
    again.start()
    assert [one.ended for one in again.waiting()] == [True]
    again.close()


def test_a_damaged_one_is_left_alone(spools: Spools) -> None:
    spools.make("good").give("s1")
    spools.close()
    (spools.directory / "bad").write_bytes(b"\xff" * 20)
    again = Spools(spools.directory)
    again.start()
    assert [one.container_id for one in again.waiting()] == ["good"]
    assert (spools.directory / "bad").read_bytes() == b"\xff" * 20
    again.close()


def test_a_full_disk_is_no_record(spools: Spools, monkeypatch: pytest.MonkeyPatch) -> None:
    one = spools.make("box")
    one.give("s1")
    real = os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda fd, data: real(fd, data[:5]))
        with pytest.raises(OSError, match="No space") as caught:
            one.emit(started(1))
    assert caught.value.errno == errno.ENOSPC
    spools.end("box")
    assert records(one.fd) == [Given("s1"), End()]


def test_two_never_append_to_one(spools: Spools, monkeypatch: pytest.MonkeyPatch) -> None:
    spools.make("box")
    monkeypatch.setattr("hermes.broker.spools.LOCK_PATIENCE", 0.0)
    with pytest.raises(BlockingIOError):
        Spool(spools.directory / "box", fresh=False)
