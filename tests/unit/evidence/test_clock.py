from hermes.evidence.clock import PATIENCE, AgeClock

YEAR = 365 * 86400.0
NOW = 1_800_000_000.0


class Machine:
    """A machine whose clock can be set."""

    def __init__(self) -> None:
        self.steady = 1000.0
        self.wall = NOW

    def passes(self, seconds: float, *, drift: float = 0.0) -> None:
        self.steady += seconds
        self.wall += seconds + drift

    def clock(self, newest: float | None) -> AgeClock:
        return AgeClock(newest, wall=lambda: self.wall, steady=lambda: self.steady)


def test_an_even_clock_is_believed() -> None:
    machine = Machine()
    clock = machine.clock(NOW - 1)
    for _ in range(100):
        machine.passes(10, drift=0.001)
        now, jump = clock.look()
        assert (abs(now - machine.wall) < 2, jump) == (True, 0.0)


def test_a_clock_set_forward_is_told_and_ages_nothing_until_it_has_run_for_a_day() -> None:
    machine = Machine()
    clock = machine.clock(NOW)
    machine.wall += 10 * YEAR
    machine.passes(10)
    assert clock.look() == (NOW + 10, 10 * YEAR)
    machine.passes(PATIENCE - 60)
    assert clock.look() == (NOW + PATIENCE - 50, 0.0)
    machine.passes(120)
    assert clock.look() == (machine.wall, 0.0)


def test_a_clock_set_forward_and_back_has_cost_nothing() -> None:
    machine = Machine()
    clock = machine.clock(NOW)
    machine.wall += 10 * YEAR
    machine.passes(100)
    clock.look()
    machine.wall -= 10 * YEAR
    machine.passes(100)
    assert clock.look() == (NOW + 200, -10 * YEAR)


def test_a_clock_set_back_is_believed_at_once() -> None:
    machine = Machine()
    clock = machine.clock(NOW)
    machine.wall -= 3 * YEAR
    assert clock.look() == (NOW - 3 * YEAR, -3 * YEAR)


def test_a_clock_ahead_of_the_newest_evidence_at_start_is_believed_after_a_day() -> None:
    machine = Machine()
    clock = machine.clock(NOW - YEAR)
    machine.passes(10)
    assert clock.look() == (NOW - YEAR + 10, 0.0)
    machine.passes(PATIENCE)
    assert clock.look()[0] == machine.wall


def test_without_evidence_there_is_nothing_to_lose() -> None:
    machine = Machine()
    assert machine.clock(None).look() == (NOW, 0.0)
    assert machine.clock(NOW + YEAR).look() == (NOW, 0.0), "evidence of a clock that was ahead"
