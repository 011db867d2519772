"""A clock that is set is told once, between the right events; one that only drifts, or is read slowly, is not."""

from pathlib import Path

from hermes.store import Journal
from hermes.store.clock import ClockWatch
from tests.unit.store.facts import fact, stored

SECOND = 1_000_000_000


class Clocks:
    """A wall clock and a steady one; reading takes as long as `slow` says, once each."""

    def __init__(self) -> None:
        self.now = 1_000 * SECOND
        self.ahead = 1_700_000_000 * SECOND
        self.slow: list[int] = []

    def wall(self) -> int:
        return self.steady() + self.ahead

    def steady(self) -> int:
        self.now += self.slow.pop() if self.slow else 100
        return self.now


def watch() -> tuple[Clocks, ClockWatch]:
    clocks = Clocks()
    return clocks, ClockWatch(clocks.wall, clocks.steady)


def test_a_clock_that_runs_evenly_is_never_told() -> None:
    clocks, seen = watch()
    for _ in range(100):
        clocks.now += 3600 * SECOND
        assert seen.jump() == 0


def test_a_jump_is_told_once_and_exactly() -> None:
    clocks, seen = watch()
    for seconds in (3600, -7200, 0.25):
        clocks.ahead += int(seconds * SECOND)
        assert abs(seen.jump() - seconds) < 0.001
        assert seen.jump() == 0


def test_small_steps_are_told_when_they_come_to_something() -> None:
    clocks, seen = watch()
    told = []
    for _ in range(10):
        clocks.ahead += 1_000_000
        told.append(seen.jump())
    assert abs(sum(told) - 0.009) < 0.0015
    assert told[:2] == [0, 0]


def test_a_process_that_had_to_wait_between_two_readings_has_seen_no_jump() -> None:
    clocks, seen = watch()
    clocks.slow = [50_000_000, 100, 100, 40_000_000, 100]
    assert seen.jump() == 0


def test_the_journal_states_it_between_the_events_before_and_after(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    clocks, seen = watch()
    journal = Journal(path, sensor="s1")
    journal._clock = seen
    journal.open()
    journal.emit(fact(1))
    clocks.ahead -= 90 * SECOND
    journal.emit(fact(2))
    journal.emit(fact(3))
    journal.close()
    names = ["connection.version", "clock.set", "connection.version", "connection.version"]
    assert stored(path, "SELECT event FROM events ORDER BY id") == names
    assert stored(path, "SELECT round(body ->> '$.seconds') FROM events WHERE event = 'clock.set'") == [-90]
