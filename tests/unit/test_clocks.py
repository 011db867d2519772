"""How far the wall clock is ahead."""

from hermes.clocks import READINGS, wall_ahead

AHEAD = 1_700_000_000_000_000_000


class Slow:
    """Clocks that take as long to read as told; then they are quick."""

    def __init__(self, *took: int) -> None:
        self.now = 1_000
        self.took = list(took)
        self.read = 0

    def steady(self) -> int:
        self.read += 1
        self.now += self.took.pop(0) if self.took else 100
        return self.now

    def wall(self) -> int:
        return self.steady() + AHEAD


def off(clocks: Slow) -> int:
    return abs(wall_ahead(clocks.wall, clocks.steady) - AHEAD)


def test_one_quick_reading_is_enough() -> None:
    clocks = Slow()
    assert off(clocks) <= 100
    assert clocks.read == 3


def test_a_reading_in_which_the_process_had_to_wait_does_not_count() -> None:
    assert off(Slow(0, 50_000_000, 0, 0, 0, 70_000_000)) <= 100


def test_the_closest_counts_where_all_were_slow_and_it_comes_to_an_end() -> None:
    clocks = Slow(*[900_000] * 9, 0, 300_000, 0, *[900_000] * 100)
    assert off(clocks) <= 150_000
    assert clocks.read == 3 * READINGS
