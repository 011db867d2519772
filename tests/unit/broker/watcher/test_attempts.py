"""Attempts at the network: what is stated, what is counted, and that nothing of it grows."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hermes import events
from hermes.broker.watcher import attempts as module
from hermes.broker.watcher.attempts import Attempts
from hermes.broker.watcher.network import Target
from hermes.broker.watcher.processes import Process
from hermes.broker.watcher.writer import Writer
from hermes.container import spool


class Nowhere:
    """A network without a way out."""

    def foretell(self, call: str, protocol: str, to: Target, *, cwd: bytes, root: bool) -> str:
        return "ENETUNREACH"


class House:
    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        self.news = os.eventfd(0, os.EFD_NONBLOCK)
        self.attempts = Attempts("box", Nowhere(), Writer(self.fd, self.news, 1 << 24))  # type: ignore[arg-type]
        self.process = Process(os.getpid(), -1, 7, 3)

    def ask(self, port: int, times: int = 1) -> None:
        to = Target("inet", "192.0.2.1", port, b"")
        for _ in range(times):
            self.attempts.state("connect", os.getpid(), 1 << 20, [to], self.process, cwd=b"/", root=True)

    def stated(self) -> list[tuple[int, int]]:
        found = []
        for record, _ in spool.read(self.fd, 0, 1 << 24):
            assert isinstance(record, spool.Fact)
            event = spool.event_of(record)
            assert isinstance(event, events.NetworkAttempted)
            assert (event.pid, event.channel, event.outcome) == (7, 3, "EBADF")
            found.append((event.port, event.repeated))
        return found


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path / "spool")
    yield house
    os.close(house.fd)
    os.close(house.news)


def test_each_other_is_stated_and_the_same_is_counted(house: House) -> None:
    house.ask(1, times=5)
    house.ask(2)
    assert house.stated() == [(1, 0), (2, 0)]
    house.attempts.ended(house.process)
    assert house.stated() == [(1, 0), (2, 0), (1, 3)], "five: the first, the one that tells, and three that it counts"
    assert house.process.attempts == set()
    house.attempts.close()
    assert len(house.stated()) == 3


def test_a_scan_of_everything_is_stated_and_not_remembered(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 10)
    for port in range(500):
        house.ask(port)
    assert [port for port, _ in house.stated()] == list(range(500))
    assert len(house.process.attempts) <= 10


def test_what_was_counted_is_stated_when_it_is_quiet(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    assert house.attempts.next_look() is None
    house.ask(1, times=3)
    wait = house.attempts.next_look()
    assert wait is not None
    assert 0 < wait <= module.QUIET_SECONDS
    house.attempts.look()
    assert house.stated() == [(1, 0)]
    monkeypatch.setattr(module, "QUIET_SECONDS", 0.0)
    house.attempts.look()
    assert house.stated() == [(1, 0), (1, 1)]
    house.ask(1)
    assert house.stated()[-1] == (1, 0)
