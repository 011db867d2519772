"""Sets of ids."""

from hypothesis import given
from hypothesis import strategies as st

from hermes.store.ranges import Ranges

NUMBERS = st.sets(st.integers(1, 60))


@given(NUMBERS, NUMBERS)
def test_they_are_sets(one: set[int], two: set[int]) -> None:
    both = Ranges.of(one) | Ranges.of(two)
    assert both == Ranges.of(one | two)
    assert len(both) == len(one | two)
    assert Ranges.of(one) & Ranges.of(two) == Ranges.of(one & two)
    assert Ranges.of(one) - Ranges.of(two) == Ranges.of(one - two)
    assert Ranges.parse(str(both)) == both
    for number in range(1, 60):
        assert both.covers(number, number) == (number in one | two)
        assert both.covers(number, number + 1) == ({number, number + 1} <= one | two)


@given(NUMBERS)
def test_parts_are_the_whole(numbers: set[int]) -> None:
    parts = Ranges.of(numbers).parts(3)
    assert parts
    assert all(len(list(part)) <= 3 for part in parts)
    assert Ranges(pair for part in parts for pair in part) == Ranges.of(numbers)


def test_as_text() -> None:
    assert str(Ranges.of([1, 2, 3, 5, 9, 10])) == "1-3,5,9-10"
    assert str(Ranges.parse("x,-1,7-,3-5,,9e9," + "9" * 50)) == "3-5,7"
    assert str(Ranges()) == ""
